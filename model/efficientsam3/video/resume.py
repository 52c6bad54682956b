"""Identities of objects before and after a run was stopped.

The memory of a tracker ends with its process. The next run tracks the last frames before the stop
again, compares its objects with those in the file, and gives them their old identities.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..io.jsonl import Record
from ..masks.overlap import box_iou, mask_iou
from ..types import Array
from .association import assign
from .track_file import to_record
from .types import TrackedFrame

OVERLAP_FRAMES = 32
"""Frames that are tracked again: twice SAM3's hotstart, within which objects can be removed."""
MIN_OVERLAP = 0.5
"""Least mean IoU, over the frames with either object, of two objects that are the same."""


class IdentityMatcher:
    """Replaces the identities of this run's tracker by those of the file.

    Args:
        records: The last frames of the file.
        next_id: The first identity that the file does not use.
    """

    def __init__(self, records: Sequence[Record] = (), next_id: int = 0) -> None:
        self._records = {record["frame"]: record["objects"] for record in records}
        self._next_id = next_id
        self._overlap: dict[tuple[int, int], float] = defaultdict(float)  # (old, new): sum of IoU
        self._together: Counter[tuple[int, int]] = Counter()  # (old, new): frames with both
        self._frames: Counter[tuple[str, int]] = Counter()  # ("old" or "new", id): frames
        self._names: dict[int, int] | None = None if records else {}

    def compare(self, tracked: TrackedFrame) -> None:
        """Compare a frame with the file, where the file has it.

        Args:
            tracked: A frame with the identities of this run's tracker.
        """
        old = self._records.get(tracked.index)
        if old is None:
            return
        new = to_record(tracked)["objects"]
        for side, objects in (("old", old), ("new", new)):
            self._frames.update((side, o["id"]) for o in objects)
        overlap = _overlap(old, new)
        for i, a in enumerate(old):
            for j, b in enumerate(new):
                if a["concept"] == b["concept"] and a["id"] >= 0 and b["id"] >= 0:
                    self._together[a["id"], b["id"]] += 1
                    self._overlap[a["id"], b["id"]] += overlap[i, j]

    def rename(self, tracked: TrackedFrame) -> TrackedFrame:
        """A frame with the file's identities; new objects get unused ones.

        Args:
            tracked: A frame with the identities of this run's tracker.
        """
        if self._names is None:
            self._names = self._match()
            self._records = {}
        ids = tracked.instances.track_ids
        if ids is None:
            return tracked
        renamed = np.array([self._name(int(id), self._names) for id in ids], np.int64)
        lost = tuple(self._names[id] for id in tracked.lost if id in self._names)
        instances = replace(tracked.instances, track_ids=renamed)
        return replace(tracked, instances=instances, lost=lost)

    def _name(self, id: int, names: dict[int, int]) -> int:
        if id < 0:  # not confirmed
            return id
        if id not in names:
            names[id] = self._next_id
            self._next_id += 1
        return names[id]

    def _match(self) -> dict[int, int]:
        """Old identities by new ones: the assignment with the largest overlap."""
        old, new = (sorted({pair[side] for pair in self._together}) for side in (0, 1))
        overlap = np.zeros((len(old), len(new)))
        for (a, b), total in self._overlap.items():
            frames = self._frames["old", a] + self._frames["new", b] - self._together[a, b]
            overlap[old.index(a), new.index(b)] = total / frames
        pairs = assign(overlap) if overlap.size else []
        return {new[j]: old[i] for i, j in pairs if overlap[i, j] >= MIN_OVERLAP}


def _overlap(old: Sequence[Record], new: Sequence[Record]) -> Array:
    """IoU of masks, or of boxes where an object has no mask: (N, M)."""
    sizes = {tuple(o["mask"]["size"]) for o in (*old, *new) if "mask" in o}
    if len(sizes) == 1 and all("mask" in o for o in (*old, *new)):
        return mask_iou([o["mask"] for o in old], [o["mask"] for o in new])
    return box_iou(_boxes(old), _boxes(new))


def _boxes(objects: Sequence[Record]) -> Array:
    return np.array([o["box"] for o in objects], np.float64).reshape(-1, 4)
