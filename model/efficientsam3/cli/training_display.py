"""The progress of training on a terminal, which `distill` and `finetune` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from .common import (
    EXIT_STOPPED,
    ProgressBar,
    UsageError,
    output_console,
    print_status,
    status_console,
)

if TYPE_CHECKING:
    from ..train.logs import Progress
    from ..train.recipe import Stage

# Seconds between lines of progress where no bar can be drawn.
LINE_SECONDS = 30.0


@contextmanager
def training_display() -> Iterator[Mapping[str, Callable[..., None]]]:
    """Show the progress of a recipe; a run that a signal stops ends the command.

    Yields:
        ``on_stage`` and ``on_progress`` for ``run_recipe``.
    """
    from ..train.errors import TrainingStopped

    display = _Display()
    try:
        yield {"on_stage": display.show_stage, "on_progress": display.show_progress}
    except TrainingStopped as error:
        display.close_bar()
        print_status(str(error), "yellow")
        raise typer.Exit(EXIT_STOPPED) from error
    finally:
        display.close_bar()


def parse_overrides(values: Sequence[str]) -> dict[str, str]:
    """Parse the values of ``--set``.

    Args:
        values: "KEY=VALUE" each.

    Raises:
        UsageError: a value has another form.
    """
    texts = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not (key and equals):
            raise UsageError(f"--set takes KEY=VALUE; got {value!r}")
        texts[key] = text
    return texts


def print_summary(record: Mapping[str, Any]) -> None:
    """Print steps, times and metrics of the stages.

    Args:
        record: What ``run_recipe`` returns.
    """
    from rich.table import Table

    table = Table("stage", "steps", "time", "s/step", "metrics", box=None, pad_edge=False)
    for name, entry in record["stages"].items():
        rate = entry.get("seconds_per_step")
        table.add_row(
            name,
            str(entry.get("steps", "")),
            _clock(entry["seconds"]),
            "" if rate is None else f"{rate:.3f}",
            _join(entry.get("metrics", {})),
        )
    output_console().print(table)


class _Display:
    """Progress on standard error: a bar on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self.console = status_console()
        self.bar: ProgressBar | None = None
        self.last_line = 0.0

    def close_bar(self) -> None:
        """Remove the bar of the last stage."""
        if self.bar is not None:
            self.bar.__exit__()
            self.bar = None

    def show_stage(self, stage: Stage, done: bool) -> None:
        """Print the name of the stage whose turn it is."""
        self.close_bar()
        about = "done before" if done else stage.about
        self._print(f"{stage.name}: {about}" if about else stage.name)
        self.last_line = 0.0

    def show_progress(self, stage: Stage, p: Progress) -> None:
        """Update the bar, or print a line; metrics have a line of their own."""
        loss = "-" if p.loss is None else f"{p.loss:.4g}"
        speed = f"{p.rate:.3g} steps/s" if p.rate >= 1 else f"{1 / max(p.rate, 1e-9):.3g} s/step"
        note = f"loss {loss}, {speed}" + (f", {p.skipped} skipped" if p.skipped else "")
        note = note if p.step else ""  # a validation before the first step
        if self.console.is_terminal:
            if self.bar is None:
                self.bar = ProgressBar(stage.name, p.steps)
                self.bar.__enter__()
            self.bar.update(done=p.step, note=note)
        place = f"{stage.name} {p.step}/{p.steps}"
        if p.metrics:
            self._print(f"{place}: {_join(p.metrics)}")
        elif self.bar is None and time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            self._print(f"{place}: {note}, {_clock(p.eta)} left")

    def _print(self, text: str) -> None:
        console = self.console if self.bar is None else self.bar.console
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _join(metrics: Any) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss; "?" where that is not known."""
    if not seconds < 1e7:
        return "?"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
