"""The tracked objects of a frame as instances."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..masks.postprocess import resolve_overlaps
from ..types import BitPatch, Instances
from .types import TrackedObject


def to_instances(
    objects: dict[int, TrackedObject],
    size: tuple[int, int],
    concepts: Iterable[str],
    presence: dict[str, float],
    *,
    allow_overlap: bool = True,
    least_left: float = 0.0,
) -> Instances:
    """Objects as instances; those without a pixel are left out.

    Args:
        objects: The objects of a frame by identity.
        size: (height, width) of the frame.
        concepts: Classes that were looked for.
        presence: Presence by concept.
        allow_overlap: Whether objects of one concept may share pixels; else a pixel belongs to the
            object of which the tracker is more certain.
        least_left: An object is left out, too, where others leave less than this share of its
            mask, in [0, 1].
    """
    crops = {id: o.patch.crop(size) for id, o in objects.items()}
    patches = {id: o.patch for id, o in objects.items()}
    for label in set() if allow_overlap else {o.label for o in objects.values()}:
        ids = [id for id, o in objects.items() if o.label == label]
        scores = [objects[id].presence + objects[id].from_detection for id in ids]
        for row, pixels in resolve_overlaps([crops[id] for id in ids], scores).items():
            whole, (left, top, *_) = crops[ids[row]]
            if np.count_nonzero(pixels) < least_left * np.count_nonzero(whole):
                pixels = np.zeros_like(pixels)
            cut = BitPatch.cut(pixels)
            patches[ids[row]] = moved = BitPatch(cut.pixels, cut.top + top, cut.left + left)
            crops[ids[row]] = moved.crop(size)
    ids = [id for id, (pixels, _) in crops.items() if pixels.size]
    return Instances(
        boxes=np.array([crops[id][1] for id in ids], np.float32).reshape(len(ids), 4),
        scores=np.array([objects[id].score for id in ids], np.float32),
        presence=np.array([objects[id].presence for id in ids], np.float32),
        labels=[objects[id].label for id in ids],
        size=size,
        patches=[patches[id] for id in ids],
        concepts=tuple(dict.fromkeys((*concepts, *(objects[id].label for id in ids)))),
        concept_presence=presence,
        track_ids=np.array(ids, np.int64),
        phrases=[objects[id].phrase or objects[id].label for id in ids],
    )
