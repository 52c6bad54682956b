"""`annotate`: the images or videos of a source, on the machines of a Ray cluster, each once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..concepts import Concepts, plain_concepts
from ..errors import ArgumentError, PromptError, join_names
from ..prompts import check_batch_size, check_segment_arguments
from ..values import is_whole
from .cluster import Pool, connected, import_ray
from .folder import RunFolder
from .settings import Work, model_asked
from .shards import Counts
from .sources import ROWS, Columns, Plan, make_plan
from .videos import track_settings

logger = logging.getLogger(__name__)

TRACKERS = ("auto", "memory", "iou")


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        partitions: Number of all partitions.
        done: Number of those that are done, also by an earlier run.
        counts: What this run did.
        seconds: Since its first worker was ready to work.
        note: A sentence for the user; "" for none.
        unit: What is counted: "image" or "frame".
    """

    partitions: int
    done: int
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    note: str = ""
    unit: str = "image"

    @property
    def images_per_second(self) -> float:
        """Images of this run in a second; 0 before the first partition is done."""
        return self.counts.images / self.seconds if self.seconds > 0 else 0.0


@dataclass
class AnnotationSummary:
    """What is in the folder of results.

    Attributes:
        target: Path or URI of the folder.
        partitions: Number of partitions.
        before: Number of those that an earlier run did.
        counts: What all shards hold.
        failed_partitions: Number and reason of each partition that has no shard.
        images: Number of images or frames that this run annotated, failed ones among them.
        seconds: Time of this run from the first worker on.
        workers: Number of workers; 0 where nothing was to be done.
        unit: What is counted: "image" or "frame".
    """

    target: str
    partitions: int
    before: int
    counts: Counts
    failed_partitions: list[tuple[str, str]] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0
    workers: int = 0
    unit: str = "image"


def annotate(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    concepts: Concepts | None = None,
    *,
    model: str,
    load: Mapping[str, Any] | None = None,
    threshold: float = 0.5,
    max_instances: int | None = None,
    nms: float | None = None,
    class_agnostic: bool = False,
    overlap_metric: str = "iou",
    tile: Any = None,
    tracker: str = "auto",
    stride: int = 1,
    image_column: str = "image",
    key_column: str | None = None,
    concept_column: str | None = None,
    rows: int = ROWS,
    coco: bool = False,
    ray: str | None = None,
    workers: int | None = None,
    cpus: int = 1,
    gpus: float | None = None,
    batch_size: int | None = None,
    retry_failed: bool = False,
    restart: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> AnnotationSummary:
    """Find concepts in images, or track them in videos, and write Parquet shards; each once.

    The same call continues a run that was stopped, whatever stopped it.

    Args:
        sources: Image files, folders and patterns of them; videos; Parquet files; or tar files in
            the form of WebDataset. As paths that all machines have, or as URIs.
        out: Path or URI of the folder of results.
        concepts: As ``ImageModel.segment`` takes them.
        model: A name of ``list_models()``, or the folder of a saved model, on all machines.
        load: Further arguments of ``efficientsam3.load``.
        threshold: See ``ImageModel.segment``.
        max_instances: See ``ImageModel.segment``.
        nms: See ``ImageModel.segment``.
        class_agnostic: See ``ImageModel.segment``.
        overlap_metric: See ``ImageModel.segment``.
        tile: See ``ImageModel.segment``.
        tracker: See ``efficientsam3.track``; for videos.
        stride: See ``efficientsam3.track``; for videos.
        image_column: Column of Parquet with images, as bytes or as paths.
        key_column: Column of Parquet with the keys of rows; None: paths, or the file and the row.
        concept_column: Column of Parquet, or field of the JSON in a tar ("txt": the text beside
            the image), with the concepts of each row, in place of ``concepts``.
        rows: Images of a partition, the part of the work that is done or not done.
        coco: Whether COCO JSON is written for each shard too.
        ray: "auto" or the address of a Ray cluster; None: the cores of this machine.
        workers: Number of workers; None: as many as the cluster has room for.
        cpus: Cores of a worker.
        gpus: GPUs of a worker; None: 1 where the cluster has GPUs.
        batch_size: Images that a worker encodes together; None: 4 on a CPU, 16 elsewhere.
        retry_failed: Do partitions again that have failed images.
        restart: Delete results that are there, and do everything again.
        report: Called when work begins, with each finished partition, and with sentences.

    Returns:
        What is in the folder.

    Raises:
        ArgumentError: An argument is wrong, or not one for such a source; or there is no cluster
            at the address.
        DataError: The source has no images, or cannot be read.
        PromptError: A concept is wrong, or there is none.
        RunFileError: The folder has results of other arguments.
        TargetError: Results cannot be written.
        MissingPackageError: Ray is not installed.
    """
    import_ray()
    names = [sources] if isinstance(sources, (str, Path)) else list(sources)
    arguments: dict[str, Any] = {
        "threshold": threshold,
        "max_instances": max_instances,
        "nms": nms,
        "class_agnostic": class_agnostic,
        "overlap_metric": overlap_metric,
        "tile": tile,
    }
    classes = _check(concepts, concept_column, coco, arguments)
    tracking = {"tracker": tracker, "stride": stride}
    for name, value in (("cpus", cpus), ("workers", 1 if workers is None else workers)):
        if not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name} is a whole number from 1; got {value}")
    if batch_size is not None:
        check_batch_size(batch_size)
    if classes is not None:
        arguments["concepts"] = classes
    if Path(model).is_dir():
        model = str(Path(model).absolute())  # workers have folders of their own
    work = Work(model, dict(load or {}), arguments, batch_size, cpus)
    columns = Columns(image_column, key_column, concept_column)
    asked = {**model_asked(work), **arguments, "columns": dict(columns._asdict()), "rows": rows}
    plan = make_plan([str(name) for name in names], out=str(out), rows=rows, columns=columns)
    _check_kind(plan, arguments, tracking)
    if plan.kind == "video":
        asked["tracking"] = tracking
        work = replace(work, tracking=tracking)
    asked["source"] = plan.identity
    folder = RunFolder(str(out), asked, len(plan), coco=coco, restart=restart)

    counts = dict(folder.counts(sorted(folder.done())))
    before = {n for n, held in counts.items() if not (retry_failed and held.failed)}
    todo = [number for number in range(len(plan)) if number not in before]
    unit = "frame" if plan.kind == "video" else "image"
    result = AnnotationSummary(folder.target, len(plan), len(before), Counts(), unit=unit)
    if todo:
        progress = Progress(len(plan), len(before), unit=unit)
        with connected(ray) as module:
            pool = Pool(module, work, workers, gpus)
            result.workers = min(pool.size, len(todo))
            _run(pool, plan, todo, folder, progress, counts, result, report)
    for number in sorted(counts):
        result.counts.add(counts[number])
    if coco:
        folder.complete_coco()
    folder.remove_strangers()
    return result


def _check(
    concepts: Concepts | None, column: str | None, coco: bool, arguments: Mapping[str, Any]
) -> list[str] | dict[str, list[str]] | None:
    """The concepts as plain values; None where each row has its own."""
    if column is None:
        classes = check_segment_arguments(concepts, **arguments)
        return plain_concepts(classes or {})
    if concepts is not None:
        raise PromptError(
            f"concepts are named once: for all rows, or by the column {column!r}. Leave one out"
        )
    if coco:
        raise ArgumentError(
            "COCO numbers its categories before the first image, and concepts of a column are "
            "known after the last: read the Parquet shards, or name concepts for all rows"
        )
    check_segment_arguments(["object"], **arguments)
    return None


OF_IMAGES: dict[str, Any] = {"max_instances": None, "tile": None}
OF_VIDEOS: dict[str, Any] = {"tracker": "auto", "stride": 1}
"""Arguments that only images and only videos have, with their default values."""


def _check_kind(plan: Plan, arguments: Mapping[str, Any], tracking: Mapping[str, Any]) -> None:
    """Refuse arguments that have no meaning for the source, and wrong values of tracking."""
    is_video = plan.kind == "video"
    given, defaults = (arguments, OF_IMAGES) if is_video else (tracking, OF_VIDEOS)
    for name, default in defaults.items():
        if given[name] != default:
            has, needs = ("videos", "images") if is_video else ("images", "videos")
            raise ArgumentError(
                f"{name} is for {needs}, and the source has {has}; got {given[name]!r}. Leave it "
                "out"
            )
    if tracking["tracker"] not in TRACKERS:
        raise ArgumentError(f"tracker is {join_names(TRACKERS)}; got {tracking['tracker']!r}")
    if not is_whole(tracking["stride"], 1):
        raise ArgumentError(f"stride is a whole number from 1; got {tracking['stride']!r}")
    if is_video:
        track_settings(arguments)


def _run(
    pool: Pool,
    plan: Any,
    todo: Sequence[int],
    folder: RunFolder,
    progress: Progress,
    counts: dict[int, Counts],
    result: AnnotationSummary,
    report: Callable[[Progress], None] | None,
) -> None:
    """Do partitions; ``counts`` and ``result`` get what became of them."""

    def tell(note: str = "") -> None:
        progress.note = note
        if report is not None:
            report(progress)

    tell()
    started = time.monotonic()
    for finished in pool.run(plan, todo, folder):
        if isinstance(finished, str):
            tell(finished)
            continue
        progress.seconds = time.monotonic() - (pool.ready_at or started)
        progress.done += 1
        if finished.counts is None:
            reason = finished.error or "unknown"
            result.failed_partitions.append((plan[finished.number].name, reason))
        else:
            counts[finished.number] = finished.counts
            progress.counts.add(finished.counts)
        tell()
    result.images, result.seconds = progress.counts.images, progress.seconds
