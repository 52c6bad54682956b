"""`efficientsam3 annotate`: find concepts in many images or videos, on a Ray cluster."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    EXIT_FAILED,
    ProgressBar,
    RestartOption,
    exit_stopped,
    pluralize,
    print_status,
)
from .concept_options import (
    ClassAgnosticOption,
    ConceptOption,
    ConceptsFileOption,
    NmsOption,
    OverlapMetric,
    OverlapMetricOption,
    TileOption,
    parse_concepts,
)
from .model_options import ModelOptions, with_model_options
from .track import Tracker

if TYPE_CHECKING:
    from ..distributed.run import AnnotationSummary, Progress

MOST_NAMED = 20
"""Failed images that are named at the end."""


@with_model_options()
def annotate(
    *,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Images (files, folders, patterns), videos, Parquet files or WebDataset tar "
            "files, as paths or URIs such as s3://bucket/photos.",
        ),
    ],
    concept: ConceptOption = None,
    concepts_file: ConceptsFileOption = None,
    concept_column: Annotated[
        str | None,
        typer.Option(
            help="Concepts of each row: a column of Parquet, a field of the JSON beside an image "
            "in a tar, or txt, the text beside it."
        ),
    ] = None,
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URI of the results.")] = "out",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A Ray cluster: auto, or its address. This machine's cores if omitted.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers; as many as there is room for if omitted.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, help="Cores of a worker.")] = 1,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs of a worker; 1 where the cluster has GPUs if omitted."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images that a worker encodes together.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Images of a partition and its shard.")] = 256,
    image_column: Annotated[
        str, typer.Option(help="Column of Parquet with images: bytes or paths.")
    ] = "image",
    key_column: Annotated[
        str | None, typer.Option(help="Column of Parquet with the keys of rows.")
    ] = None,
    options: ModelOptions,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Keep instances that score more than this.")
    ] = 0.5,
    max_instances: Annotated[
        int | None, typer.Option(min=0, help="Keep at most this many instances of an image.")
    ] = None,
    nms: NmsOption = None,
    class_agnostic: ClassAgnosticOption = False,
    overlap_metric: OverlapMetricOption = OverlapMetric.iou,
    tile: TileOption = None,
    tracker: Annotated[
        Tracker, typer.Option(help="Of videos: follow objects by memory or overlap.")
    ] = Tracker.auto,
    stride: Annotated[int, typer.Option(min=1, help="Of videos: take every n-th frame.")] = 1,
    coco: Annotated[bool, typer.Option("--coco", help="Write COCO JSON shards too.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do partitions with failed images again.")
    ] = False,
    restart: RestartOption = False,
) -> None:
    """Find concepts in many images or videos, on many machines; write Parquet shards, each once.

    Run it again after an interruption: it does the partitions that are missing. With other
    arguments it refuses a folder that has results; --restart deletes them.

    Example: efficientsam3 annotate s3://bucket/photos -c person --out s3://bucket/labels --ray auto
    """
    from ..distributed.run import annotate as annotate_all
    from ..masks.tiles import parse_tile

    with ExitStack() as stack:
        shown: list[ProgressBar] = []

        def report(progress: Progress) -> None:
            if not shown:  # a mistake of the user is said without a bar
                shown.append(stack.enter_context(ProgressBar("annotate")))
            (bar,) = shown
            if progress.note:
                bar.console.print(progress.note, style="yellow", markup=False, soft_wrap=True)
            bar.update(progress.done, progress.partitions, _describe(progress))

        arguments: dict[str, Any] = {
            "threshold": threshold,
            "max_instances": max_instances,
            "nms": nms,
            "class_agnostic": class_agnostic,
            "overlap_metric": overlap_metric.value,
            "tile": None if tile is None else parse_tile(tile),
        }
        try:
            result = annotate_all(
                sources,
                out,
                parse_concepts(concept, concepts_file),
                model=options.model,
                load=_load_options(options),
                **arguments,
                tracker=tracker.value,
                stride=stride,
                image_column=image_column,
                key_column=key_column,
                concept_column=concept_column,
                rows=rows,
                coco=coco,
                ray=ray,
                workers=workers,
                cpus=cpus,
                gpus=gpus,
                batch_size=batch_size,
                retry_failed=retry_failed,
                restart=restart,
                report=report,
            )
        except KeyboardInterrupt:
            stopped = True
        else:
            stopped = False
    if stopped:
        exit_stopped()
    _print_result(result)


def _load_options(options: ModelOptions) -> dict[str, Any]:
    """The arguments of ``load`` that are given; paths are absolute, as workers need them."""
    values: dict[str, Any] = {
        "checkpoint": options.checkpoint and str(Path(options.checkpoint).absolute()),
        "base": options.base and str(Path(options.base).absolute()),
        "text": options.text,
        "context": options.context,
        "device": options.device,
        "dtype": options.dtype.value if options.dtype else None,
        "speed": options.speed.value,
    }
    return {name: value for name, value in values.items() if value is not None}


def _describe(progress: Progress) -> str:
    counts = progress.counts
    if not counts.images:
        return "starting workers"
    note = f"{pluralize(counts.images, progress.unit)}, {progress.images_per_second:.1f} a second"
    return note + (f", {counts.failed} failed" if counts.failed else "")


def _print_result(result: AnnotationSummary) -> None:
    counts = result.counts
    if result.before:
        print_status(f"{pluralize(result.before, 'partition')} of {result.partitions} done before")
    if result.images:
        print_status(
            f"{pluralize(result.images, result.unit)} in {result.seconds:.1f} s by "
            f"{pluralize(result.workers, 'worker')}: "
            f"{result.images / max(result.seconds, 1e-9):.1f} {result.unit}s a second"
        )
    # A video that cannot be read to the end has a row for the error, which is no frame.
    rows = counts.images - (counts.failed if result.unit == "frame" else 0)
    print_status(
        f"{pluralize(rows, result.unit)} with {pluralize(counts.instances, 'instance')} "
        f"in {result.target}",
        "green",
    )
    if counts.left_out:
        from ..masks.extent import describe_left_out

        print_status(describe_left_out(counts.left_out))
    named = counts.reasons[:MOST_NAMED] + result.failed_partitions[:MOST_NAMED]
    for name, reason in named:
        print_status(f"failed: {reason if name in reason else f'{name}: {reason}'}", "red")
    failed = "videos" if result.unit == "frame" else "images"
    if counts.failed > len(counts.reasons):
        print_status(
            f"the other failed {failed} have their reason in the column error",
            "red",
        )
    if counts.failed and result.unit == "frame":
        print_status(
            f"{pluralize(counts.failed, 'video')} of {result.partitions} could not be read to the "
            "end; --retry-failed tries again",
            "red",
        )
    elif counts.failed:
        print_status(
            f"{pluralize(counts.failed, 'image')} of {counts.images} failed; --retry-failed tries "
            "them again",
            "red",
        )
    if result.failed_partitions:
        print_status(
            f"{pluralize(len(result.failed_partitions), 'partition')} of {result.partitions} "
            "failed: run the same command to try them again",
            "red",
        )
    if counts.failed or result.failed_partitions:
        raise typer.Exit(EXIT_FAILED)
