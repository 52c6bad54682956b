"""Objects that are shown on frames of a video: by masks, polygons, boxes or points, or by files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..concepts import read_phrase
from ..data.coco import CocoAnnotations
from ..data.json_records import read_json
from ..data.object_videos import VOID, object_numbers, read_gray
from ..errors import AnnotationError, PromptError, TrackError, shorten
from ..masks.shapes import read_shape
from ..outputs import OBJECT
from ..types import Instances
from ..values import is_whole
from .clicks import read_clicks
from .concept_tracker import ConceptTracker
from .types import TrackedFrame

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ObjectPrompt:
    """An object that is shown on one frame, by a mask, or by a box or points or both.

    Attributes:
        frame: Index of the frame, from 0.
        mask: A mask, run lengths or a polygon; see ``masks.shapes.read_shape``.
        box: (4,) xyxy pixels around the object.
        points: (K, 2) xy pixels.
        point_labels: (K,) 1 on the object, 0 off it; all 1 if omitted.
        label: Class of the object.
        key: Prompts with one key show one object, on several frames; None: an object of its own.

    Raises:
        PromptError: Nothing is shown, or a mask and more; or the frame is no index.
    """

    frame: int
    mask: Any = None
    box: Any = None
    points: Any = None
    point_labels: Any = None
    label: str = OBJECT
    key: Any = None

    def __post_init__(self) -> None:
        if not is_whole(self.frame):
            raise PromptError(f"frame is the index of a frame, from 0; got {shorten(self.frame)}")
        if self.mask is None and self.box is None and self.points is None:
            raise PromptError(f"no object is shown on frame {self.frame}: pass mask, box or points")
        if self.mask is not None and (self.box is not None or self.points is not None):
            raise PromptError("a mask says all: pass it without points and box")
        read_phrase(self.label)


# From files -----------------------------------------------------------------------------------


def read_object_map(path: str | Path, frame: int) -> list[ObjectPrompt]:
    """Read the objects of a label map, as DAVIS and ``efficientsam3 segment`` write them.

    Args:
        path: A palette or gray image with the number of an object at each pixel. 255 is no object,
            unless it is the only number, as in a black and white picture.
        frame: Index of the frame that it is of.

    Returns:
        A prompt for each number, in their order, with the number as key.

    Raises:
        AnnotationError: The file cannot be read, has colors, or shows no object.
    """
    numbers = read_gray(Path(path))
    found = object_numbers(numbers) or ([VOID] if (numbers == VOID).any() else [])
    if not found:
        raise AnnotationError(f"{path} shows no object: all of its pixels are 0")
    return [ObjectPrompt(frame, mask=numbers == number, key=number) for number in found]


def read_coco_objects(
    path: str | Path, frame: int | None = None, file_names: Sequence[str] | None = None
) -> list[ObjectPrompt]:
    """Read the objects of a COCO file: masks, or boxes where there are none.

    Annotations with one "track_id" show one object, on several frames.

    Args:
        path: Such as ``instances.json`` of ``efficientsam3 segment``.
        frame: Index of the frame that its only image is of. None: images are found in
            ``file_names``.
        file_names: Names of the frames of the video, for a folder of images.

    Returns:
        A prompt for each annotation, with its category as label.

    Raises:
        AnnotationError: The file cannot be read, shows no object, or is of other images.
    """
    content = read_json(Path(path))
    reader = CocoAnnotations(path, content)
    if frame is not None and len(reader) > 1:
        raise AnnotationError(
            f"{path} has {len(reader)} images, and one frame is named: write a file of one image, "
            "or track a folder of images, whose names say which frame each is"
        )
    places = {PurePosixPath(n).name: i for i, n in enumerate(file_names or ())}
    out = []
    for index in range(len(reader)):
        record = reader[index]
        if not record.objects:
            continue
        place = frame if frame is not None else places.get(PurePosixPath(record.file).name)
        if place is None:
            raise AnnotationError(
                f"{path} has objects of {record.file}, which is no frame of this video: name the "
                "frame, as in --object 0:instances.json, or track the folder of its images"
            )
        names = {i: q.phrase for q in record.queries for i in q.objects if q.kind == "name"}
        image = content["images"][index]["id"]
        rows = [row for row in content["annotations"] if row["image_id"] == image]
        for number, (one, row) in enumerate(zip(record.objects, rows, strict=True)):
            prompt = ObjectPrompt(place, box=one.box, label=names[number], key=row.get("track_id"))
            out.append(prompt if one.mask is None else replace(prompt, mask=one.mask, box=None))
    if not out:
        raise AnnotationError(f"{path} shows no object: it has no annotation")
    return out


# Checks ---------------------------------------------------------------------------------------


def check_objects(
    prompts: Iterable[ObjectPrompt],
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    size: tuple[int, int] | None = None,
) -> None:
    """Check objects as far as possible before a video is read.

    Args:
        prompts: The objects.
        start: Index of the first frame.
        stop: Index of the frame to end before; None: not known.
        stride: Every n-th frame is read.
        size: (height, width) of the frames; None: not known.

    Raises:
        PromptError: A value is no ``ObjectPrompt``, or a shape does not fit the frames.
        TrackError: The frame of an object is not read.
    """
    for prompt in prompts:
        if not isinstance(prompt, ObjectPrompt):
            raise PromptError(
                f"objects are a list of ObjectPrompt(frame, mask=...); got {shorten(prompt)}"
            )
        frame = prompt.frame
        if frame < start or (stop is not None and frame >= stop) or (frame - start) % stride:
            end = "the end" if stop is None else str(stop - 1)
            end += f", with a stride of {stride}" if stride > 1 else ""
            raise TrackError(
                f"an object is shown on frame {frame}, which is not read: frames are from {start} "
                f"to {end}. Show it on one of them, or change start, stop and stride"
            )
        if size is None:
            continue
        try:
            if prompt.mask is not None:
                read_shape(prompt.mask, size)
            else:
                read_clicks(size, prompt.points, prompt.point_labels, prompt.box)
        except PromptError as error:
            raise PromptError(f"an object on frame {frame} is wrong: {error}") from error


# In a stream ----------------------------------------------------------------------------------


class ObjectAdder:
    """Adds objects to a tracker when their frames come.

    Args:
        tracker: Gets the objects.
        prompts: In any order.

    Raises:
        MissingAbilityError: The tracker has no memory.
    """

    def __init__(self, tracker: ConceptTracker, prompts: Iterable[ObjectPrompt]) -> None:
        tracker.require_memory()
        self._tracker = tracker
        self._waiting: dict[int, list[ObjectPrompt]] = {}
        self._ids: dict[Any, int] = {}
        for prompt in prompts:
            self._waiting.setdefault(int(prompt.frame), []).append(prompt)

    def add(self, frame: int, done: list[TrackedFrame]) -> None:
        """Add the objects of the frame that the tracker took last.

        Args:
            frame: Index of the frame.
            done: What the tracker's step gave; a frame that is not delayed gets the objects.

        Raises:
            PromptError: A shape is wrong, or does not fit the frame.
        """
        for prompt in self._waiting.pop(frame, ()):
            known = None if prompt.key is None else self._ids.get(prompt.key)
            try:
                found = self._tracker.add_object(
                    points=prompt.points,
                    point_labels=prompt.point_labels,
                    box=prompt.box,
                    mask=prompt.mask,
                    track_id=known if known in self._tracker.ids else None,
                    concept=prompt.label,
                )
            except PromptError as error:
                raise PromptError(f"an object on frame {frame} is wrong: {error}") from error
            if found.track_ids is not None and len(found) and prompt.key is not None:
                self._ids[prompt.key] = int(found.track_ids[0])
            if done and done[-1].index == frame:
                shown = _joined(done[-1].instances, found)
                done[-1] = replace(done[-1], instances=shown)

    def warn_of_missed(self, last: int | None) -> None:
        """Warn, when the video ends, of objects that were not shown.

        Args:
            last: Index of the last frame; None: there was none.
        """
        if self._waiting:
            logger.warning(
                "an object is shown on frame %d, and the last frame of the video is %s: it is not "
                "tracked. Frames count from 0",
                *(min(self._waiting), last),
            )


def _joined(shown: Instances, added: Instances) -> Instances:
    """Instances of a frame with an object that is new, or that replaces its earlier mask."""
    ids = shown.track_ids if shown.track_ids is not None else np.zeros(0, np.int64)
    new = added.track_ids if added.track_ids is not None else np.zeros(0, np.int64)
    kept = shown[~np.isin(ids, new)]
    patches = None
    if kept.patches is not None and added.patches is not None:
        patches = [*kept.patches, *added.patches]
    return Instances(
        boxes=np.concatenate([kept.boxes, added.boxes]),
        scores=np.concatenate([kept.scores, added.scores]),
        presence=np.concatenate([kept.presence, added.presence]),
        labels=[*kept.labels, *added.labels],
        size=shown.size,
        patches=patches,
        concepts=tuple(dict.fromkeys((*shown.concepts, *added.concepts))),
        concept_presence=shown.concept_presence,
        track_ids=np.concatenate([ids[~np.isin(ids, new)], new]),
        phrases=[*kept.phrases, *added.phrases],
    )
