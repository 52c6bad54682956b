"""The `efficientsam3` program: registers the commands.

Commands import torch only when they compute, so that `efficientsam3 --help` is printed at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from ..runtime.threads import share_processors
from .annotate import annotate
from .common import CommandGroup
from .distill import distill
from .doctor import doctor
from .evaluate import evaluate
from .export import export
from .finetune import finetune
from .models import benchmark, convert, models
from .segment import segment
from .track import track
from .web import web

app = typer.Typer(
    cls=CommandGroup,
    help="Segment everything you can name, in images and videos, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"efficientsam3 {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of the program itself; CommandGroup handles ``--debug``."""
    share_processors()


def version() -> None:
    """Print the versions of this package and of torch."""
    from .doctor_checks import installed_version

    typer.echo(
        f"efficientsam3 {__version__}, torch {installed_version('torch') or 'not installed'}"
    )


for command in (
    segment,
    track,
    annotate,
    web,
    models,
    convert,
    export,
    doctor,
    benchmark,
    evaluate,
    finetune,
    distill,
    version,
):
    app.command()(command)


if __name__ == "__main__":
    app()
