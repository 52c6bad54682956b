"""`efficientsam3 evaluate`: score a model, or predictions that it made before, on annotations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    ProgressBar,
    RestartOption,
    UsageError,
    output_console,
    pluralize,
    print_status,
    resumable,
    status_console,
)
from .concept_options import ConceptsFileOption, parse_concepts
from .model_options import BatchSizeOption, ModelOptions, with_model_options

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluate.ground_truth import GroundTruth
    from ..evaluate.report import Progress, Report

OUT = Path("out/evaluate")
NO_IMAGES = "--model needs the images: --images FOLDER"

SHOWN = (
    *("cgF1", "pmF1", "IL_MCC", "positive_macro_F1", "precision", "recall", "cgF1@50"),
    *("AP", "AP50", "pHOTA", "DetA", "AssA", "J&F", "J", "F", "mIoU"),
)
"""Metrics in the table, where they are defined; the JSON file has all."""

SHORT = {"positive_macro_F1": "macroF1", "precision": "P", "recall": "R"}
"""Titles of columns, where they are not the names of the metrics."""


class Prompt(str, Enum):
    """How the model is prompted."""

    text = "text"
    exemplar = "exemplar"
    box = "box"


class Overlap(str, Enum):
    """What is compared with the annotations."""

    mask = "mask"
    box = "box"


EvaluatedModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A name that `efficientsam3 models` lists, or a folder. Without it, --predictions "
        "are scored.",
    ),
]


@with_model_options(EvaluatedModelOption, default=None)
def evaluate(
    *,
    annotations: Annotated[
        list[str],
        typer.Option(
            "--annotations",
            "-a",
            help="SA-Co (Gold: files a, b and c, or a pattern in quotes), COCO, LVIS or SA-Co/VEval"
            "; repeat it for several files. A folder: masks of objects in videos, such as DAVIS' "
            "Annotations/480p or SA-V's Annotations_6fps.",
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            "-i",
            help="Folder of the images; repeat it for several. For objects in videos: the folder "
            "of frames, such as DAVIS' JPEGImages/480p.",
        ),
    ] = None,
    options: ModelOptions | None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            "-p",
            help="With a model: where predictions are written: a .jsonl file, a .json file (COCO's "
            "result list too), or a folder; out/evaluate if omitted. Without: what is scored.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all metrics to this file.")
    ] = None,
    prompt: Annotated[
        Prompt,
        typer.Option(
            help="text: the phrase. exemplar: the box of one instance. box: the box of each "
            "instance, to the interactive head; gives mIoU."
        ),
    ] = Prompt.text,
    iou: Annotated[Overlap, typer.Option(help="What is compared.")] = Overlap.mask,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Predictions count that score at least this.")
    ] = 0.5,
    min_score: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Keep predictions that score more than this, for average precision."
        ),
    ] = 0.05,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first images or videos.")
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(
            help="Objects in videos: a file of names, one a line, such as DAVIS' val.txt."
        ),
    ] = None,
    negatives: Annotated[
        int | None,
        typer.Option(min=0, help="COCO: at most this many absent categories for each image."),
    ] = None,
    concepts_file: ConceptsFileOption = None,
    ap: Annotated[bool, typer.Option(help="Compute COCO's average precision.")] = True,
    jf: Annotated[
        bool, typer.Option("--jf", help="Clips: compute J&F too, which takes longer.")
    ] = False,
    skip_missing: Annotated[
        bool,
        typer.Option("--skip-missing", help="Leave out images that are missing or damaged."),
    ] = False,
    batch_size: BatchSizeOption = None,
    restart: RestartOption = False,
) -> None:
    """Measure a model: cgF1, pmF1, IL_MCC, AP; for clips pHOTA too, for objects in videos J&F.

    Run it again after an interruption: it continues where it stopped. Images that have changed are
    predicted again; with another model or other options all are.

    Example: efficientsam3 evaluate -a "gold_food_merged_*.json" -i photos/ -m sam3 --json food.json

    Example: efficientsam3 evaluate -a Annotations/480p -i JPEGImages/480p --videos val.txt -m sam3
    """
    from ..data.formats import annotation_format
    from ..data.json_records import read_json
    from ..data.veval import read_clip_annotations
    from ..errors import AnnotationError
    from ..evaluate.clips import evaluate_clips
    from ..evaluate.ground_truth import group_splits, parse_ground_truth
    from ..evaluate.images import (
        check_concepts,
        describe_passed_over,
        evaluate_images,
        find_image_files,
        warn_of_changes,
    )
    from ..evaluate.predictions import read_predictions, write_coco_results
    from ..evaluate.score import score_images
    from ..io.paths import find_files
    from ..prompts import read_batch_size

    if options is None and predictions is None:
        raise UsageError("name a --model to evaluate, or a file of --predictions to score")
    if any(Path(given).is_dir() for given in annotations):
        if len(annotations) > 1 or len(images or ()) > 1:
            raise UsageError("objects in videos need one folder of annotations and one of frames")
        reports = [
            _evaluate_objects(
                Path(annotations[0]), images, videos, limit, predictions, options, restart
            )
        ]
        _print_reports(reports, json_file)
        return
    splits = group_splits(find_files(annotations, AnnotationError))
    if options is None and len(splits) > 1:
        raise UsageError(
            f"these annotations are of {len(splits)} splits ({', '.join(splits)}), but a file of "
            "predictions is of one"
        )
    settings: dict[str, Any] = {
        "prompt": prompt.value,
        "iou": iou.value,
        "threshold": threshold,
        "ap": ap,
    }
    concepts = parse_concepts(None, concepts_file)
    loaded, reports = None, []
    for name, paths in splits.items():
        with status_console().status(f"reading {name}"):
            contents = [(path, read_json(path)) for path in paths]
            is_clips = annotation_format(*contents[0]) == "veval"
            truth = None if is_clips else parse_ground_truth(contents, limit, negatives)
        if truth is None:
            if options is not None or predictions is None:
                raise UsageError(
                    f"{paths[0]} is of clips: name a file of --predictions, without --model"
                )
            clips = read_clip_annotations(*contents[0])
            with _progress_bar(name) as progress:
                report = evaluate_clips(
                    clips,
                    predictions,
                    iou=iou.value,
                    threshold=threshold,
                    jf=jf,
                    progress=progress,
                )
            reports.append(report)
            continue
        _print_split(truth)
        if options is None:
            with status_console().status("scoring"):
                found = read_predictions(predictions or "", truth)
                reports.append(score_images(truth, found, **settings))
            warn_of_changes(predictions or "", truth, images or ())
            continue
        if not images:
            raise UsageError(NO_IMAGES)
        target = _prediction_file(predictions, options.title, name, len(splits))
        # Missing images are reported before the model is loaded.
        files = find_image_files(truth, images, skip_missing=skip_missing)
        if limit is None and (others := describe_passed_over(images, files.values())):
            print_status(others)
        if concepts is not None:
            check_concepts(concepts, truth, prompt.value)
        loaded = loaded or options.load()
        with resumable(), _progress_bar(name) as progress:
            report = evaluate_images(
                loaded,
                truth,
                images,
                target.with_suffix(".jsonl"),
                min_score=min(min_score, threshold),
                restart=restart,
                skip_missing=skip_missing,
                concepts=concepts,
                batch_size=read_batch_size(batch_size, loaded.device),
                progress=progress,
                **settings,
            )
        if target.suffix == ".json":
            write_coco_results(target, target.with_suffix(".jsonl"))
        reports.append(report)
    _print_reports(reports, json_file)


def _evaluate_objects(
    annotations: Path,
    images: Sequence[Path] | None,
    videos: Path | None,
    limit: int | None,
    predictions: Path | None,
    options: ModelOptions | None,
    restart: bool,
) -> Report:
    """Track the objects of annotated videos, unless predictions are given; then score the masks."""
    from ..data.object_videos import read_object_videos
    from ..evaluate.objects import predict_objects, score_objects

    if options is not None and not images:
        raise UsageError(NO_IMAGES)
    frames = images[0] if images and options else None
    chosen = read_object_videos(annotations, frames, videos)[:limit]
    name = annotations.resolve().name
    folder = predictions or OUT / f"{options.title if options else ''}-{name}"
    if options is not None:
        model = options.load()
        with resumable(), _progress_bar(name) as progress:
            predict_objects(model, chosen, folder, restart=restart, progress=progress)
    with _progress_bar(f"scoring {name}") as progress:
        return score_objects(chosen, folder, progress=progress)


def _prediction_file(predictions: Path | None, model: str, split: str, splits: int) -> Path:
    """The file for the predictions of a split."""
    place = OUT if predictions is None else predictions
    if place.suffix not in (".json", ".jsonl"):
        return place / f"{model}-{split}.jsonl"
    if splits > 1:
        raise UsageError(f"predictions for {splits} splits go to a folder, not to {place}")
    return place


@contextmanager
def _progress_bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """A progress bar with the rate and the number of failures."""
    with ProgressBar(title) as bar:

        def show(now: Progress) -> None:
            note = f"{now.rate:.2f}/s" + (f", {now.failed} failed" if now.failed else "")
            bar.update(now.done, now.total, note)

        yield show


def _print_split(truth: GroundTruth) -> None:
    positive = sum(bool(pair.targets) for pair in truth.pairs)
    annotators = len(truth.pairs[0].annotators)
    by = f" by {annotators} annotators" if annotators > 1 else ""
    print_status(
        f"{truth.name}: {pluralize(len(truth.images), 'image')}, "
        f"{pluralize(len(truth.pairs), 'pair')} with a phrase, {positive} positive{by}"
    )


def _print_reports(reports: Sequence[Report], json_file: Path | None) -> None:
    """Print the table and the images that were left out, and write all metrics to a file."""
    from ..evaluate.report import reports_to_dict
    from ..io.atomic import replacing

    output_console().print(_table(reports))
    for report in reports:
        if report.failed:
            print_status(f"{pluralize(len(report.failed), 'image')} of {report.name} left out:")
            for reason in list(report.failed.values())[:3]:
                print_status(f"  {reason}", "yellow")
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(json.dumps(reports_to_dict(reports), indent=1) + "\n")
        print_status(f"all metrics in {json_file}", "green")


def _table(reports: Sequence[Report]) -> Table:
    """A row for each split, and their mean."""
    from rich.table import Table

    from ..evaluate.report import mean_metrics

    shown = [name for name in SHOWN if any(name in report.metrics for report in reports)]
    counted = ("pairs", "positive_pairs", "instances")
    table = Table(box=None, pad_edge=False)
    table.add_column("split")
    for name in (*(SHORT.get(name, name) for name in shown), "pairs", "positive", "instances"):
        table.add_column(name, justify="right")
    for report in reports:
        cells = [_cell(report.metrics, name) for name in shown]
        table.add_row(report.name, *cells, *(str(report.counts.get(key, "")) for key in counted))
    if len(reports) > 1:
        mean = mean_metrics(reports)
        table.add_row("mean", *(_cell(mean, name) for name in shown), style="bold")
    return table


def _cell(metrics: dict[str, float], name: str) -> str:
    value = metrics.get(name, math.nan)
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if name == "IL_MCC" else f"{value:.2f}"
