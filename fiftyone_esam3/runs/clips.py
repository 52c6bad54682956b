"""Clips, which are videos or images in order, and how a run writes the labels of a whole clip.

The labels of a clip are written after all of its frames are tracked, so that a clip that fails or
is cancelled keeps what it had. Until then they are in a temporary file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import bson
import fiftyone.core.labels as fol
from bson import ObjectId

from efficientsam3 import EfficientSam3Error

from ..ownership.merge import (
    Found,
    Writing,
    count_at_stake,
    group_by_class,
    list_staying,
)
from .checks import check_field
from .label_writer import LabelWriter
from .steps import RunError

FRAMES_AT_ONCE = 50
"""The number of frames that are written together."""


@dataclass(frozen=True)
class Clip:
    """Frames in their order.

    Attributes:
        source: the path of a video, or the paths of images.
        name: the name of the clip, for people.
        samples: the id of the video's sample, or the ids of the images' samples.
        is_video: whether the frames belong to a video sample.
        frames: the number of frames; 0 where it is not known.
    """

    source: Any
    name: str
    samples: list[str]
    is_video: bool
    frames: int = 0

    @property
    def files(self) -> list[str]:
        """The files of the clip."""
        return [self.source] if isinstance(self.source, str) else list(self.source)


def read_clips(
    samples: Any, is_video: bool, order_field: str | None = None, sequence_field: str | None = None
) -> Iterator[Clip]:
    """The clips of samples.

    Args:
        samples: videos or images.
        is_video: whether they are videos.
        order_field: the field by which images are sorted.
        sequence_field: a field whose values tell which clip an image belongs to. None: all images
            are one clip.

    Raises:
        RunError: a field does not exist, or images have no order.
    """
    if is_video:
        names = ["id", "filepath", "metadata.total_frame_count"]
        for one, path, frames in zip(*samples.values(names), strict=True):
            yield Clip(path, path, [one], True, frames or count_frames(path))
        return
    if order_field is None:
        raise RunError(
            "these are images, which have no order of their own; name the field to sort them by "
            "(order_field), such as filepath"
        )
    for name in (order_field, sequence_field):
        if name is not None:
            check_field(samples, name)
    ordered = samples.sort_by(order_field)
    groups: dict[Any, tuple[list[str], list[str]]] = {}
    sequences = ordered.values(sequence_field) if sequence_field else [None] * len(ordered)
    for name, one, path in zip(sequences, *ordered.values(["id", "filepath"]), strict=True):
        ids, paths = groups.setdefault(name, ([], []))
        ids.append(one)
        paths.append(path)
    for name, (ids, paths) in groups.items():
        yield Clip(paths, "images" if name is None else str(name), ids, False, len(ids))


def count_frames(path: str) -> int:
    """The number of frames of a video as its file tells it; 0 if it does not.

    Args:
        path: the file.
    """
    from efficientsam3.io.frames import read_frames

    try:
        with read_frames(path) as reader:
            return reader.expected or 0
    except (EfficientSam3Error, OSError):
        return 0  # the error is recorded when the clip is tracked


class Existing(NamedTuple):
    """What the field of a clip holds before it is tracked.

    Attributes:
        at_stake: the number of labels of people because of which a run refuses.
        next_index: an identity that no label has that stays.
    """

    at_stake: int
    next_index: int


def inspect_clip(dataset: Any, clip: Clip, asked: Iterable[str], how: Writing) -> Existing:
    """Read what the field holds in all frames of a clip.

    Args:
        dataset: the dataset.
        clip: the clip.
        asked: the sources of the questions that are asked.
        how: how labels are written.
    """
    query: dict[str, Any]
    if clip.is_video:
        collection, query = dataset._frame_collection, {"_sample_id": ObjectId(clip.samples[0])}
    else:
        collection = dataset._sample_collection
        query = {"_id": {"$in": [ObjectId(id) for id in clip.samples]}}
    sources, at_stake, indices = list(asked), 0, [-1]
    for document in collection.find(query, {how.field: True}):
        held = document.get(how.field)
        at_stake += count_at_stake(held, sources, how)
        indices += [
            i for d in list_staying(held, sources, how) if (i := d.get("index")) is not None
        ]
    return Existing(at_stake, max(indices) + 1)


class ClipLabels:
    """The labels of the frames of a clip, in a temporary file."""

    def __init__(self) -> None:
        self._file: Any = tempfile.TemporaryFile(prefix="efficientsam3-")  # noqa: SIM115
        self._places: dict[int, list[int]] = {}

    def __enter__(self) -> ClipLabels:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, index: int, labels: fol.Detections) -> None:
        """Add the labels of a frame.

        Args:
            index: the index of the frame, from 0.
            labels: its labels; those of an earlier call for the frame are kept.
        """
        self._places.setdefault(index, []).append(self._file.tell())
        self._file.write(bson.encode(labels.to_dict()))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[tuple[int, fol.Detections]]:
        for index, places in sorted(self._places.items()):
            parts = [self._read(place) for place in places]
            whole = parts[0]
            # Tracking in both directions gives a frame twice, with different objects.
            whole.detections = [label for part in parts for label in part.detections]
            yield index, whole

    def _read(self, place: int) -> fol.Detections:
        self._file.seek(place)
        return fol.Detections.from_dict(next(bson.decode_file_iter(self._file)))


def write_clip(
    dataset: Any,
    writer: LabelWriter,
    clip: Clip,
    labels: Iterable[tuple[int, fol.Detections]],
    settings: Mapping[str, str],
    source: str | None = None,
) -> None:
    """Join the labels of a clip with those that its frames have, and save them.

    A video's sample is read anew for each part: otherwise it would keep all its frames in memory.

    Args:
        dataset: the dataset.
        writer: writes the labels.
        clip: the clip.
        labels: the labels of each frame, by its index from 0.
        settings: the settings of each question that was asked, by source.
        source: the question of all labels. None: their class.
    """
    video: Any = None
    for count, (index, found) in enumerate(labels):
        if clip.is_video and count % FRAMES_AT_ONCE == 0:
            if video is not None:
                video.save()
            video = dataset[clip.samples[0]]
        document = video.frames[index + 1] if clip.is_video else dataset[clip.samples[index]]
        answers = group_by_class(found, settings)
        if source is not None:
            answers = Found({source: list(found.detections)})
        writer.answer(document, answers, settings)
        if not clip.is_video:
            document.save()
    if video is not None:
        video.save()
