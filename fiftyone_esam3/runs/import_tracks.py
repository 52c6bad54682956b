"""Bring tracks that `efficientsam3 annotate` found in videos into a field of their frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import fiftyone.core.labels as fol
import numpy as np

from efficientsam3.concepts import read_classes
from efficientsam3.distributed.settings import digest
from efficientsam3.distributed.shards import read_first_path, read_shard
from efficientsam3.errors import VideoError
from efficientsam3.io import rle
from efficientsam3.types import BitPatch, Instances

from .checks import check_field
from .clips import Clip, read_clips
from .run import class_settings
from .run_over_clips import run_over_clips
from .steps import RunError, Steps

if TYPE_CHECKING:
    from efficientsam3.video.types import TrackedFrame

Record = dict[str, Any]


def import_tracks(
    samples: Any,
    asked: Mapping[str, Any],
    places: Sequence[str],
    *,
    label_field: str,
    moved: tuple[str, str] | None,
    existing: str,
    overlap: float,
    restart: bool,
) -> Steps:
    """Write the tracks of videos to the frames of the samples of the same files.

    A video of which a frame could not be read fails, and keeps what it had.

    Args:
        samples: videos.
        asked: what was asked of the videos.
        places: the shards, one for each video.
        label_field: the field of the frames, with "frames." or without.
        moved: see ``import_annotations``.
        existing: see ``import_annotations``.
        overlap: see ``import_annotations``.
        restart: see ``import_annotations``.

    Yields:
        a step for each part of a video.

    Returns:
        see ``run_over_clips``, with ``without_results``: the number of videos.

    Raises:
        RunError: the field cannot be used, or no video has results.
        ExistingLabelsError: the field holds labels of people, and ``existing`` is "refuse".
    """
    label_field = label_field.removeprefix("frames.")
    check_field(samples, label_field, kinds=(fol.Detections,), new=True, frames=True)
    by_path: dict[str, str] = {}
    for place in places:
        path = read_first_path(place)
        if path is not None:
            by_path[move_path(path, moved)] = place
    clips = list(read_clips(samples, True))
    matched = [clip for clip in clips if clip.source in by_path]
    if not matched:
        raise RunError(
            f"no video has one of the files of the results, such as {next(iter(by_path), None)}; "
            f"the first has {clips[0].source}. For files at another place pass "
            'moved=("/start/there", "/start/here")'
        )
    classes = read_classes(asked["concepts"]) or {}
    questions = class_settings(classes, digest(asked))

    def track(clip: Clip, names: Sequence[str]) -> Iterator[TrackedFrame]:
        for record in read_shard(by_path[clip.source]):
            if record["error"] is not None:
                raise VideoError(record["error"])
            yield to_frame(record, names)

    summary = yield from run_over_clips(
        samples._root_dataset,
        matched,
        label_field,
        track,
        questions,
        request={"track": questions, "model": asked["model"], "annotations": digest(asked)},
        existing=existing,
        overlap=overlap,
        restart=restart,
    )
    return {**summary, "without_results": len(clips) - len(matched)}


def move_path(path: str, moved: tuple[str, str] | None) -> str:
    """A path of the results as it is on this machine.

    Args:
        path: the path.
        moved: see ``import_annotations``.
    """
    if moved is None or not path.startswith(moved[0]):
        return path
    return moved[1] + path[len(moved[0]) :]


def to_frame(record: Record, classes: Sequence[str]) -> TrackedFrame:
    """Convert a row of a shard to a tracked frame.

    Args:
        record: the row of a frame.
        classes: the classes that are converted.
    """
    from efficientsam3.video.types import TrackedFrame

    found = [one for one in record["instances"] if one["label"] in classes]
    masks = [one["mask"] for one in found]
    instances = Instances(
        boxes=np.array([one["box"] for one in found], np.float32).reshape(-1, 4),
        scores=np.array([one["score"] for one in found], np.float32),
        presence=np.array([one["presence"] for one in found], np.float32),
        labels=[one["label"] for one in found],
        size=(record["height"], record["width"]),
        patches=None if None in masks else [BitPatch.cut(rle.decode(mask)) for mask in masks],
        concepts=tuple(classes),
        concept_presence={
            p["label"]: p["presence"] for p in record["presence"] if p["label"] in classes
        },
        track_ids=np.array([one["track"] for one in found], np.int64),
        phrases=[one["phrase"] for one in found],
    )
    return TrackedFrame(record["frame"], record["time"], instances)
