"""The command `efficientsam3 distill`: run a recipe and show its progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


def distill(
    recipe: Annotated[
        str | None, typer.Option(help="A name of --list, or package.module:NAME of your own.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run.")] = None,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Delete the run in the folder, or the stages of --stage in it, and start again.",
        ),
    ] = False,
    stage: Annotated[
        list[str] | None, typer.Option(help="Run only this stage; repeat for more.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each stage, for a trial.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An option of the recipe; loop.KEY: a setting of every stage's training, "
            "STAGE.KEY: of one stage's. Repeat for more.",
        ),
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Continue although settings differ.")
    ] = False,
    list_recipes: Annotated[
        bool, typer.Option("--list", help="List the recipes; with --recipe, its options.")
    ] = False,
) -> None:
    """Train a model by a recipe, stage after stage.

    A run that was interrupted continues when the same command is run again.

    Example: efficientsam3 distill --recipe stage3 --out runs/stage3 --set model=my_model
    """
    if list_recipes:
        _list_recipes(recipe)
        return
    if recipe is None or out is None:
        raise UsageError("--recipe NAME and --out FOLDER are needed, or --list")
    texts = _parse_overrides(overrides or ())
    from ..train.errors import TrainingStopped
    from ..train.recipe import find_recipe, run_recipe

    found = find_recipe(recipe)
    display = _Display()
    try:
        record = run_recipe(
            found,
            out,
            stages=stage or (),
            steps=steps,
            overrides=texts,
            restart=restart,
            accept_changes=accept_changes,
            on_stage=display.show_stage,
            on_progress=display.show_progress,
        )
    except TrainingStopped as error:
        display.close_bar()
        print_status(str(error), "yellow")
        raise typer.Exit(EXIT_STOPPED) from error
    finally:
        display.close_bar()
    _print_summary(record)


def _parse_overrides(values: Sequence[str]) -> dict[str, str]:
    texts = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not (key and equals):
            raise UsageError(f"--set takes KEY=VALUE; got {value!r}")
        texts[key] = text
    return texts


def _list_recipes(name: str | None) -> None:
    from ..train.errors import RecipeError
    from ..train.recipe import find_recipe, known_recipes
    from ..train.settings import to_plain

    console = output_console()
    if name is None:
        for known in known_recipes():
            try:
                about = find_recipe(known).about
            except RecipeError as error:  # of another package, which may be incomplete
                about = f"not available: {error}"
            console.print(f"{known}: {about}", highlight=False, markup=False)
        return
    recipe = find_recipe(name)
    lines = [f"{recipe.name}: {recipe.about}"]
    lines += [f"  {stage.name}: {stage.about}" for stage in recipe.stages]
    if recipe.options is not None:
        lines.append("options (--set KEY=VALUE):")
        lines += [f"  {key} = {value}" for key, value in to_plain(recipe.options).items()]
    console.print("\n".join(lines), highlight=False, markup=False)


def _print_summary(record: dict[str, Any]) -> None:
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
