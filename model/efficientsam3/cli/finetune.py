"""The command `efficientsam3 finetune`: adapt a model to a small data set."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import output_console, print_status
from .model_options import (
    DEFAULT_MODEL,
    BaseOption,
    CheckpointOption,
    ContextOption,
    ModelOption,
    TextOption,
)
from .training_display import parse_overrides, training_display

if TYPE_CHECKING:
    from ..train.finetune import FinetuneResult

SHOWN = ("cgF1", "pmF1", "IL_MCC", "precision", "recall")


def finetune(
    data: Annotated[
        Path,
        typer.Option(help="Annotations: COCO JSON, whose categories are the phrases, or SA-Co."),
    ],
    images: Annotated[Path, typer.Option(help="Folder of the images.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    model: ModelOption = DEFAULT_MODEL,
    checkpoint: CheckpointOption = None,
    base: BaseOption = None,
    text: TextOption = None,
    context: ContextOption = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Images that are held out for the figures; a tenth, but at least 30 or a fifth, "
            "if omitted. 0: no figures.",
        ),
    ] = None,
    held_out_data: Annotated[
        Path | None, typer.Option(help="Annotations of other images for the figures.")
    ] = None,
    held_out_images: Annotated[Path | None, typer.Option(help="Folder of these images.")] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help="Parts that train whole, with commas: trunk,neck,text,geometry,fusion,decoder,"
            "scoring,masks. Without it all parts get low-rank changes."
        ),
    ] = None,
    adapt: Annotated[
        str | None, typer.Option(help="Parts that get low-rank changes, named likewise.")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the changes.")] = 8,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of training; by the number of images.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another option of the recipe (`efficientsam3 distill --list --recipe finetune`), "
            "or loop.KEY: a setting of training. Repeat for more.",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete the run in the folder, and start again.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Continue although options or data differ.")
    ] = False,
) -> None:
    """Adapt a model to the phrases of your annotated images.

    The result is a small file, the adapter, for `--adapter` of other commands. Figures on images
    that are held out are measured before and after. A stopped run continues when the same command
    is run again.

    Example: efficientsam3 finetune --data coco.json --images photos --out runs/boats
    """
    texts = parse_overrides(overrides or ())
    from ..train.finetune import finetune as run

    with training_display() as display:
        result = run(
            model,
            data,
            images,
            out,
            checkpoint=checkpoint,
            base=base,
            text=text,
            context=context,
            held_out=held_out,
            held_out_data=held_out_data,
            held_out_images=held_out_images,
            parts=_split(parts) or (),
            adapt=_split(adapt),
            rank=rank,
            steps=steps,
            overrides=texts,
            restart=restart,
            accept_changes=accept_changes,
            **display,
        )
    if os.environ.get("RANK", "0") == "0":  # of several processes one writes
        _print_result(result)


def _split(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(w.strip() for w in text.split(",") if w.strip())


def _print_result(result: FinetuneResult) -> None:
    from rich.table import Table

    if result.before:
        table = Table("held out", "before", "after", box=None, pad_edge=False)
        for name in SHOWN:
            table.add_row(name, _figure(result.before, name), _figure(result.after, name))
        output_console().print(table)
    size = result.adapter.stat().st_size / 1e6
    print_status(f"adapter: {result.adapter}, {size:.1f} MB; load it with --adapter", "green")


def _figure(figures: Mapping[str, Any], name: str) -> str:
    value = figures.get(name, math.nan)
    return "-" if math.isnan(value) else f"{value:.3f}" if name == "IL_MCC" else f"{value:.2f}"
