"""`efficientsam3 segment`: find concepts in image files; write overlays, masks and COCO JSON."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    EXIT_FAILED,
    ProgressBar,
    RestartOption,
    UsageError,
    exit_stopped,
    parse_boxes,
    parse_points,
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
from .example_options import (
    ExampleOption,
    NotExampleOption,
    Presence,
    PresenceOption,
    parse_examples,
)
from .model_options import BatchSizeOption, ModelOptions, with_model_options
from .polygon_options import PolygonsOption, ToleranceOption, read_coco_masks

if TYPE_CHECKING:
    from ..predictor import ImageModel
    from ..segment_files import SegmentRun, Task


class Pages(str, Enum):
    """Which pages of a file are segmented."""

    first = "first"
    all = "all"


@with_model_options()
def segment(
    *,
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, folders, and patterns in quotes."),
    ],
    concept: ConceptOption = None,
    concepts_file: ConceptsFileOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("out"),
    options: ModelOptions,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Keep instances that score more than this: 0.5 by default, 0.8 with --everything.",
        ),
    ] = None,
    presence: PresenceOption = Presence.multiply,
    max_instances: Annotated[
        int | None, typer.Option(min=0, help="Keep at most this many instances of an image.")
    ] = None,
    nms: NmsOption = None,
    class_agnostic: ClassAgnosticOption = False,
    overlap_metric: OverlapMetricOption = OverlapMetric.iou,
    tile: TileOption = None,
    batch_size: BatchSizeOption = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--everything", help="Segment all things without a word, from a grid of points."
        ),
    ] = False,
    points_per_side: Annotated[
        int | None,
        typer.Option(min=1, help="With --everything: points along each side, 32 by default."),
    ] = None,
    stability_threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="With --everything: the lowest stability of a mask, 0.95 by default."
        ),
    ] = None,
    masks: Annotated[
        bool, typer.Option(help="Write a PNG of instance numbers for each image.")
    ] = True,
    overlay: Annotated[
        bool, typer.Option(help="Write a picture with the instances drawn on each image.")
    ] = True,
    polygons: PolygonsOption = False,
    tolerance: ToleranceOption = 0.0,
    pages: Annotated[
        Pages,
        typer.Option(
            help="Of a TIFF of several pages or an animation: segment its first page, or all pages "
            "as images of their own."
        ),
    ] = Pages.first,
    box: Annotated[
        list[str] | None,
        typer.Option(help="x0,y0,x1,y1 in pixels: an example of what to find.", metavar="BOX"),
    ] = None,
    not_box: Annotated[
        list[str] | None, typer.Option(help="An example of what not to find.", metavar="BOX")
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            help="x,y in pixels. With a concept or a box: an example; alone: a click on one "
            "object.",
            metavar="POINT",
        ),
    ] = None,
    not_point: Annotated[
        list[str] | None, typer.Option(help="A point that is not on the object.", metavar="POINT")
    ] = None,
    example: ExampleOption = None,
    not_example: NotExampleOption = None,
    restart: RestartOption = False,
) -> None:
    """Find concepts in images; write overlays, masks and a COCO JSON.

    Run it again after an interruption: it continues where it stopped. Images that have changed are
    done again; with other options all are.

    Example: efficientsam3 segment photos/ "more/*.png" -c person -c "yellow bus" --out out/
    Everything like one thing: efficientsam3 segment photos/ --example one.jpg:10,20,210,220
    """
    from ..masks.extent import describe_left_out
    from ..masks.tiles import parse_tile
    from ..segment_files import SegmentRun, find_images

    form = read_coco_masks(polygons, tolerance)
    boxes, box_labels = parse_boxes(box, not_box)
    points, point_labels = parse_points(point, not_point)
    arguments: dict[str, Any] = {
        "concepts": parse_concepts(concept, concepts_file),
        "boxes": boxes or None,
        "box_labels": box_labels or None,
        "points": points or None,
        "point_labels": point_labels or None,
        "exemplars": parse_examples(example, not_example) or None,
        "threshold": 0.5 if threshold is None else threshold,
        "presence": presence.value,
        "max_instances": max_instances,
        "nms": nms,
        "class_agnostic": class_agnostic,
        "overlap_metric": overlap_metric.value,
    }
    grid = {"points_per_side": points_per_side, "stability_threshold": stability_threshold}
    if everything:
        arguments = _everything_arguments(arguments, {**grid, "threshold": threshold})
    elif unused := [name for name, value in grid.items() if value is not None]:
        raise UsageError(f"--{unused[0].replace('_', '-')} goes with --everything")
    if tile is not None:
        arguments["tile"] = parse_tile(tile)
    sources = find_images(images, out, pages=pages.value)
    stopped, failed = False, list[tuple[str, str]]()
    with SegmentRun(
        *(out, arguments, options.identity()), masks=masks, overlays=overlay, restart=restart
    ) as results:
        tasks = results.pending(sources)
        if done := len(sources) - len(tasks):
            print_status(f"{pluralize(done, 'image')} of {len(sources)} done before")
        if tasks:
            try:
                _segment_all(options.load(), results, tasks, batch_size, failed)
            except KeyboardInterrupt:
                stopped = True
        written = results.write_coco(masks=form.masks, tolerance=form.tolerance)
        several = results.several_pages(sources)
    print_status(
        f"{pluralize(written.images, 'image')} with {pluralize(written.annotations, 'instance')} "
        f"in {written.path}",
        "green",
    )
    if written.images and not written.annotations:
        print_status(_describe_nothing_found(arguments))
    if written.left_out:
        print_status(describe_left_out(written.left_out))
    if several:
        path, count = next(iter(several.items()))
        print_status(
            f"{pluralize(len(several), 'file')} with several pages: the first page of each is "
            f"segmented, such as page 1 of {count} of {path}. --pages all takes all pages"
        )
    for name, reason in failed:
        print_status(f"failed: {reason if name in reason else f'{name}: {reason}'}", "red")
    if stopped:
        exit_stopped()
    if failed:
        print_status(f"{pluralize(len(failed), 'image')} of {len(sources)} failed", "red")
        raise typer.Exit(EXIT_FAILED)


def _describe_nothing_found(arguments: dict[str, Any]) -> str:
    """A sentence about options that find more.

    Args:
        arguments: Those of ``segment`` or ``segment_everything``.
    """
    if "everything" in arguments:
        return (
            "no mask passes --threshold (0.8 by default) and --stability-threshold (0.95 by "
            "default): lower values keep more"
        )
    return (
        f"nothing scores more than the threshold of {arguments['threshold']}: a lower --threshold "
        "keeps more"
    )


def _everything_arguments(arguments: dict[str, Any], grid: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``segment_everything``; those of concepts and prompts must not be given.

    Args:
        arguments: Those of ``segment``.
        grid: Further ones, None where the default holds.

    Raises:
        UsageError: A concept, a prompt or an option that is of no use is given.
    """
    kept = ("nms", "max_instances")
    defaults = {"threshold": arguments["threshold"], "presence": "multiply"}
    defaults |= {"class_agnostic": False, "overlap_metric": "iou"}
    for name, value in arguments.items():
        if name not in kept and value != defaults.get(name):
            raise UsageError(
                f"--everything finds all things, and takes no {name.replace('_', ' ')}: leave one "
                "of the two out"
            )
    given = {**grid, **{name: arguments[name] for name in kept}}
    return {"everything": True, **{k: v for k, v in given.items() if v is not None}}


def _segment_all(
    model: ImageModel,
    results: SegmentRun,
    tasks: Sequence[Task],
    batch_size: int | None,
    failed: list[tuple[str, str]],
) -> None:
    """Process the images under a progress bar; failures are added to ``failed``."""
    from ..prompts import read_batch_size

    found, together = 0, read_batch_size(batch_size, model.device)
    with ProgressBar("segment", len(tasks)) as bar:
        for task, outcome in results.segment(model, tasks, together):
            if isinstance(outcome, Exception):
                failed.append((task.image.key, str(outcome) or type(outcome).__name__))
            else:
                found += len(outcome)
            note = pluralize(found, "instance") + (f", {len(failed)} failed" if failed else "")
            bar.advance(note)
