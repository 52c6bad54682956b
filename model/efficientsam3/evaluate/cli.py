"""`efficientsam3 evaluate`: a model, or predictions that it made before, against ground truth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import Dtype, Speed

if TYPE_CHECKING:
    from rich.table import Table

    from ..image import ImageModel
    from .score import Progress, Report
    from .truth import Truth

OUT = Path("out/evaluate")

SHOWN = (
    *("cgF1", "pmF1", "IL_MCC", "positive_macro_F1", "precision", "recall", "cgF1@50"),
    *("AP", "AP50", "pHOTA", "DetA", "AssA", "J&F", "J", "F", "mIoU"),
)
"""Figures that the table shows, where they are defined; the JSON file has all."""

SHORT = {"positive_macro_F1": "macroF1", "precision": "P", "recall": "R"}


class Prompt(str, Enum):
    text = "text"
    exemplar = "exemplar"
    box = "box"


class Overlap(str, Enum):
    mask = "mask"
    box = "box"


def evaluate(
    annotations: Annotated[
        list[str],
        typer.Option(
            "--annotations",
            "-a",
            help="Ground truth: SA-Co (Gold: a, b and c, or a pattern in quotes), COCO, LVIS, or "
            "SA-Co/VEval. Again for more. A folder: masks of objects in videos, as DAVIS' "
            "Annotations/480p or SA-V's Annotations_6fps.",
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            "-i",
            help="Folder of the pictures; again for more. Of videos: as DAVIS' JPEGImages/480p.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A name of `efficientsam3 models`, or a saved folder. Without it, --predictions "
            "are scored.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            "-p",
            help="With a model: where they go (.jsonl; .json: COCO's result list too; or a "
            "folder), out/evaluate if omitted. Without: what is scored.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every figure to this file.")
    ] = None,
    prompt: Annotated[
        Prompt,
        typer.Option(
            help="text: the phrase. exemplar: the box of one instance. box: the box of each "
            "instance, to the interactive head; gives mIoU."
        ),
    ] = Prompt.text,
    iou: Annotated[Overlap, typer.Option(help="What overlaps.")] = Overlap.mask,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Instances count that score at least this.")
    ] = 0.5,
    floor: Annotated[
        float,
        typer.Option(min=0, max=1, help="Predictions are kept from this score, for AP."),
    ] = 0.05,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first pictures, or videos, only.")
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(help="Objects in videos: a file of names, one a line (DAVIS' val.txt)."),
    ] = None,
    negatives: Annotated[
        int | None,
        typer.Option(min=0, help="COCO: ask for at most so many absent categories a picture."),
    ] = None,
    precision: Annotated[bool, typer.Option("--ap/--no-ap", help="COCO's AP too.")] = True,
    contours: Annotated[
        bool, typer.Option("--contours", help="Clips: J&F too; takes longer.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on with a run that was stopped.")
    ] = True,
    skip_missing: Annotated[
        bool,
        typer.Option("--skip-missing", help="Leave out pictures that are missing or broken."),
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A local weight file instead of the hub's.", exists=True)
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="A second file, for parts that the first lacks.", exists=True),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Another text encoder.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of a phrase: 16, 32 or 77.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best here if omitted.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="The best here if omitted.")] = None,
    speed: Annotated[
        Speed, typer.Option(help="fast: pooled keys and values, slightly other masks.")
    ] = Speed.exact,
) -> None:
    """Measure a model: cgF1, pmF1, IL_MCC, AP; for clips pHOTA too, for objects in videos J&F.

    Run it again after an interruption: what is done stays done.

    Example: efficientsam3 evaluate -a "gold_food_merged_*.json" -i photos/ -m sam3 --json food.json

    Example: efficientsam3 evaluate -a Annotations/480p -i JPEGImages/480p --videos val.txt -m sam3
    """
    from .. import cli
    from .errors import AnnotationError
    from .images import evaluate_images, find_pictures
    from .predictions import read_predictions, write_results
    from .records import find_files, read_json
    from .score import score_images
    from .truth import group_splits, layout_of, parse_truth

    if model is None and predictions is None:
        raise cli.UsageError("name a --model to ask, or a file of --predictions to score")
    loading = (checkpoint, base, text, context, device, dtype, speed)
    if any(Path(given).is_dir() for given in annotations):
        if len(annotations) > 1 or len(images or ()) > 1:
            raise cli.UsageError("of objects in videos, one folder of annotations and pictures")
        load = None if model is None else partial(cli._load, model, *loading)
        reports = [
            _objects(Path(annotations[0]), images, videos, limit, predictions, model, load, resume)
        ]
        _show(reports, json_file)
        return
    splits = group_splits(find_files(annotations, AnnotationError))
    if model is None and len(splits) > 1:
        raise cli.UsageError(
            f"these annotations are of {len(splits)} splits ({', '.join(splits)}), but a file of "
            "predictions is of one"
        )
    options: dict[str, Any] = {"prompt": prompt.value, "iou": iou.value, "threshold": threshold}
    loaded: ImageModel | None = None
    reports = []
    for name, paths in splits.items():
        with cli._errors().status(f"reading {name}"):
            contents = [(path, read_json(path)) for path in paths]
        if layout_of(*contents[0]) == "veval":
            if model is not None or predictions is None:
                raise cli.UsageError(
                    f"{paths[0]} is of clips: name a file of --predictions, without --model"
                )
            reports.append(_clips(contents[0], predictions, iou.value, threshold, contours))
            continue
        with cli._errors().status(f"reading {name}"):
            truth = parse_truth(contents, limit, negatives)
        _describe(truth)
        if model is None:
            found = read_predictions(predictions or "", truth)
            with cli._errors().status("scoring"):
                reports.append(score_images(truth, found, precision=precision, **options))
            continue
        if not images:
            raise cli.UsageError("--model needs the pictures: --images FOLDER")
        target = _target(predictions, model, name, len(splits))
        # Before the model is loaded, which takes its time.
        find_pictures(truth, images, skip_missing=skip_missing)
        if loaded is None:
            loaded = cli._load(model, *loading)
        with _stoppable(), _bar(name) as progress:
            report = evaluate_images(
                loaded,
                truth,
                images,
                target.with_suffix(".jsonl"),
                floor=min(floor, threshold),
                restart=not resume,
                skip_missing=skip_missing,
                precision=precision,
                progress=progress,
                **options,
            )
        if target.suffix == ".json":
            write_results(target, target.with_suffix(".jsonl"))
        reports.append(report)
    _show(reports, json_file)


def _show(reports: Sequence[Report], json_file: Path | None) -> None:
    """The table, what failed, and the file of all figures."""
    from .. import cli

    cli._console().print(_table(reports))
    for report in reports:
        if report.failed:
            cli._say(f"{cli._count(len(report.failed), 'picture')} of {report.name} left out:")
            for reason in list(report.failed.values())[:3]:
                cli._say(f"  {reason}", "yellow")
    if json_file is not None:
        _write(json_file, reports)
        cli._say(f"all figures in {json_file}", "green")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C ends the run with a word about going on."""
    from .. import cli

    try:
        yield
    except KeyboardInterrupt:
        cli._say("stopped. What is done is kept: run the same command again to go on", "yellow")
        raise typer.Exit(cli.STOPPED) from None


def _objects(
    annotations: Path,
    images: Sequence[Path] | None,
    videos: Path | None,
    limit: int | None,
    predictions: Path | None,
    model: str | None,
    load: Callable[[], ImageModel] | None,
    resume: bool,
) -> Report:
    """Objects in videos: follow them, or read who did, and score."""
    from ..cli import UsageError
    from .objects import predict_objects, read_videos, score_objects

    if load is not None and not images:
        raise UsageError("--model needs the pictures: --images FOLDER")
    asked = read_videos(annotations, images[0] if images and load else None, videos)[:limit]
    name = annotations.resolve().name
    folder = predictions or OUT / f"{Path(model or '').name}-{name}"
    if load is not None:
        loaded = load()
        with _stoppable(), _bar(name) as progress:
            predict_objects(loaded, asked, folder, restart=not resume, progress=progress)
    with _bar(f"scoring {name}") as progress:
        return score_objects(asked, folder, progress=progress)


def _target(predictions: Path | None, model: str, split: str, splits: int) -> Path:
    """Where the predictions for a split go."""
    from ..cli import UsageError

    place = OUT if predictions is None else predictions
    if place.suffix not in (".json", ".jsonl"):
        return place / f"{Path(model).name}-{split}.jsonl"
    if splits > 1:
        raise UsageError(f"predictions for {splits} splits go to a folder, not to {place}")
    return place


def _describe(truth: Truth) -> None:
    from ..cli import _count, _say

    positive = sum(bool(pair.targets) for pair in truth.pairs)
    annotators = len(truth.pairs[0].truths)
    by = f" by {annotators} annotators" if annotators > 1 else ""
    _say(
        f"{truth.name}: {_count(len(truth.pictures), 'picture')}, "
        f"{_count(len(truth.pairs), 'pair')} with a phrase, {positive} positive{by}"
    )


def _clips(
    content: tuple[Path, Any], predictions: Path, iou: str, threshold: float, contours: bool
) -> Report:
    from .clips import score_clips
    from .veval import parse_clips, read_clip_predictions

    truth = parse_clips(*content)
    found = read_clip_predictions(predictions, truth)
    with _bar(truth.path.stem) as progress:
        return score_clips(
            truth,
            found,
            iou=iou,
            threshold=threshold,
            contours=contours,
            progress=progress,
            settings={"predictions": str(predictions)},
        )


@contextmanager
def _bar(name: str) -> Iterator[Callable[[Progress], None]]:
    """A progress bar with the rate and the time that is left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    from ..cli import _errors

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Bar(*columns, console=_errors()) as bar:
        task = bar.add_task(name, total=None, said="")

        def show(now: Progress) -> None:
            said = f"{now.rate:.2f}/s" + (f", {now.failed} failed" if now.failed else "")
            bar.update(task, total=now.total, completed=now.done, said=said)

        yield show


def _table(reports: Sequence[Report]) -> Table:
    """A row a split, and their mean."""
    from rich.table import Table

    rows = [(report.name, report.figures, report.counts) for report in reports]
    shown = [name for name in SHOWN if any(name in figures for _, figures, _ in rows)]
    table = Table(box=None, pad_edge=False)
    table.add_column("split")
    for name in (*(SHORT.get(name, name) for name in shown), "pairs", "positive", "instances"):
        table.add_column(name, justify="right")
    for name, figures, counts in rows:
        cells = [_cell(figures.get(key, math.nan), key) for key in shown]
        cells += [str(counts.get(key, "")) for key in ("pairs", "positive_pairs", "instances")]
        table.add_row(name, *cells)
    if len(rows) > 1:
        mean = average(reports)
        table.add_row("mean", *(_cell(mean.get(key, math.nan), key) for key in shown), style="bold")
    return table


def _cell(value: float, name: str) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if name == "IL_MCC" else f"{value:.2f}"


def average(reports: Sequence[Report]) -> dict[str, float]:
    """Mean of each figure over the splits, as SA-Co/Gold's average is taken."""
    names = [n for n in reports[0].figures if all(n in report.figures for report in reports)]
    return {n: sum(report.figures[n] for report in reports) / len(reports) for n in names}


def _write(path: Path, reports: Sequence[Report]) -> None:
    """One split: its report. Several: the mean, and a report of each under "splits"."""
    from ..weights import replacing

    content = reports[0].to_dict()
    if len(reports) > 1:
        mean = {k: None if math.isnan(v) else v for k, v in average(reports).items()}
        content = mean | {"name": "mean", "splits": {r.name: r.to_dict() for r in reports}}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
