"""`efficientsam3 distill`: runs a recipe, shows how it goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .logs import Progress
    from .recipe import Stage

_LINE_EVERY = 30.0  # seconds, where no bar can be drawn


def distill(
    recipe: Annotated[
        str | None, typer.Option(help="A name of --list, or package.module:NAME of your own.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on at the stage and step where the run was.")
    ] = False,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage; again for more.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each stage, for a trial.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An option of the recipe; loop.KEY: a setting of every stage's training, "
            "STAGE.KEY: of one stage's. Again for more.",
        ),
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although settings differ.")
    ] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
) -> None:
    """Train a model by a recipe: stage after stage, resumable at any step.

    Example: efficientsam3 distill --recipe stickers --out runs/stickers
    """
    from .. import cli

    if listing:
        _list(recipe)
        return
    if recipe is None or out is None:
        raise cli.UsageError("say --recipe NAME and --out FOLDER, or --list")
    words = _words(changes)
    from .loop import Stopped
    from .recipe import Asked, find_recipe, run_recipe

    asked = Asked(stage or None, steps, words, resume, accept_changes)
    found = find_recipe(recipe)
    try:
        with _Display() as display:
            record = run_recipe(
                found, out, asked, on_stage=display.stage, on_progress=display.progress
            )
    except Stopped as error:
        cli._say(f"{error}: run the same command again with --resume", "yellow")
        raise typer.Exit(cli.STOPPED) from error
    _summarise(record)


def _words(changes: Sequence[str] | None) -> dict[str, str]:
    from ..cli import UsageError

    words = {}
    for change in changes or ():
        key, equals, value = change.partition("=")
        if not (key and equals):
            raise UsageError(f"--set takes KEY=VALUE; got {change!r}")
        words[key] = value
    return words


def _list(recipe: str | None) -> None:
    from ..cli import _console
    from .recipes import RECIPES

    console = _console()
    if recipe is None:
        for name, (_, about) in RECIPES.items():
            console.print(f"{name}: {about}", highlight=False)
        return
    from .recipe import find_recipe
    from .settings import plain

    found = find_recipe(recipe)
    console.print(f"{found.name}: {found.about}", highlight=False)
    for stage in found.stages:
        console.print(f"  {stage.name}: {stage.about}", highlight=False)
    if found.options is not None:
        console.print("options (--set KEY=VALUE):", highlight=False)
        for key, value in plain(found.options).items():
            console.print(f"  {key} = {value}", highlight=False)


def _summarise(record: dict[str, Any]) -> None:
    from rich.table import Table

    from ..cli import _console

    table = Table("stage", "steps", "time", "s/step", "figures", box=None, pad_edge=False)
    for name, entry in record["stages"].items():
        figures = ", ".join(f"{k} {v:.4g}" for k, v in entry.get("figures", {}).items())
        each = entry.get("seconds_per_step")
        table.add_row(
            name,
            str(entry.get("steps", "")),
            _clock(entry["seconds"]),
            "" if each is None else f"{each:.3f}",
            figures,
        )
    _console().print(table)


class _Display:
    """A bar on a terminal; in a file a line now and then. Figures always have a line."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        from ..cli import _errors

        self.console = _errors()
        self.live = self.console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
        )
        self.bars = Bars(*columns, console=self.console, disable=not self.live)
        self.bar: Any = None
        self.said = 0.0

    def __enter__(self) -> _Display:
        self.bars.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bars.__exit__(*error)

    def stage(self, stage: Stage, done: bool) -> None:
        if self.bar is not None:
            self.bars.remove_task(self.bar)
            self.bar = None
        about = f": {stage.about}" if stage.about else ""
        self._line(f"{stage.name}: done before" if done else f"{stage.name}{about}")
        self.said = 0.0

    def progress(self, stage: Stage, p: Progress) -> None:
        loss = "-" if p.loss is None else f"{p.loss:.4g}"
        speed = f"{p.rate:.3g} steps/s" if p.rate >= 1 else f"{1 / max(p.rate, 1e-9):.3g} s/step"
        said = f"loss {loss}, {speed}, {_clock(p.eta)} left"
        if p.skipped:
            said += f", {p.skipped} skipped"
        if self.bar is None:
            self.bar = self.bars.add_task(stage.name, total=p.steps, said=said)
        self.bars.update(self.bar, completed=p.step, said=said)
        place = f"{stage.name} {p.step}/{p.steps}"
        if p.figures:
            figures = ", ".join(f"{k} {v:.4g}" for k, v in p.figures.items())
            self._line(f"{place}: {figures}")
        elif not self.live and time.monotonic() - self.said >= _LINE_EVERY:
            self.said = time.monotonic()
            self._line(f"{place}: {said}")

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    if not seconds < 1e7:
        return "?"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
