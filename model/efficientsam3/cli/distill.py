"""The command `efficientsam3 distill`: run a recipe and show its progress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import UsageError, output_console
from .training_display import parse_overrides, print_summary, training_display


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
    texts = parse_overrides(overrides or ())
    from ..train.recipe import find_recipe, run_recipe

    found = find_recipe(recipe)
    with training_display() as display:
        record = run_recipe(
            found,
            out,
            stages=stage or (),
            steps=steps,
            overrides=texts,
            restart=restart,
            accept_changes=accept_changes,
            **display,
        )
    print_summary(record)


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
