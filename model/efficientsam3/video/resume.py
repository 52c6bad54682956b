"""A run that goes on: who is who before and after the stop.

A tracker's memory ends with its process. The next run watches the last frames before the stop once
more, compares what it sees with what was written, and gives old objects their old identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..lines import Record
from ..types import Array
from .concepts import TrackedFrame
from .journal import to_record

WATCHED = 32
"""Frames that are watched again: twice what trackers wait before they trust an object."""
SAME = 0.5
"""Mean overlap over the frames in which either is seen, from which two tracks are one."""


class Identities:
    """Turns the identities of this run's tracker into those of the file.

    Args:
        records: the last frames of the file. free: the first identity that it has not used.
    """

    def __init__(self, records: Sequence[Record] = (), free: int = 0) -> None:
        self._past = {record["frame"]: record["objects"] for record in records}
        self._free = free
        self._shared: dict[tuple[int, int], float] = {}  # (old, new): sum of overlaps
        self._seen: dict[tuple[str, int], int] = {}  # ("old" or "new", identity): frames
        self._both: dict[tuple[int, int], int] = {}
        self._names: dict[int, int] | None = None if records else {}

    def compare(self, tracked: TrackedFrame) -> None:
        """Look at a frame that the file has too."""
        old = self._past.get(tracked.index)
        if old is None:
            return
        new = to_record(tracked)["objects"]
        for side, objects in (("old", old), ("new", new)):
            for o in objects:
                self._seen[side, o["id"]] = self._seen.get((side, o["id"]), 0) + 1
        overlaps = _overlaps(old, new)
        for o, row in zip(old, overlaps, strict=True):
            for n, overlap in zip(new, row, strict=True):
                if o["concept"] == n["concept"] and n["id"] >= 0 and o["id"] >= 0:
                    pair = (o["id"], n["id"])
                    self._both[pair] = self._both.get(pair, 0) + 1
                    self._shared[pair] = self._shared.get(pair, 0.0) + float(overlap)

    def rename(self, tracked: TrackedFrame) -> TrackedFrame:
        """A frame with the file's identities; new objects get new ones."""
        if self._names is None:
            self._names = self._match()
            self._past = {}
        ids = tracked.instances.track_ids
        if ids is None:
            return tracked
        named = [self._name(int(i), self._names) for i in ids]
        instances = replace(tracked.instances, track_ids=np.array(named, np.int64))
        return replace(tracked, instances=instances)

    def _name(self, identity: int, names: dict[int, int]) -> int:
        if identity < 0:  # not confirmed yet
            return identity
        if identity not in names:
            names[identity] = self._free
            self._free += 1
        return names[identity]

    def _match(self) -> dict[int, int]:
        """One old identity for each new one, by most overlap."""
        from scipy.optimize import linear_sum_assignment

        pairs = {
            (o, n): shared / (self._seen["old", o] + self._seen["new", n] - self._both[o, n])
            for (o, n), shared in self._shared.items()
        }
        rows, columns = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
        share = np.array([[pairs.get((o, n), 0.0) for n in columns] for o in rows])
        if not share.size:
            return {}
        chosen = zip(*linear_sum_assignment(-share), strict=True)
        return {columns[j]: rows[i] for i, j in chosen if share[i, j] >= SAME}


def _overlaps(old: Sequence[Record], new: Sequence[Record]) -> Array:
    """Intersection over union of masks, or of boxes where one has none: (N, M)."""
    from ..evaluate.overlap import box_iou, mask_iou

    sizes = {tuple(o["mask"]["size"]) for o in (*old, *new) if "mask" in o}
    if len(sizes) == 1 and all("mask" in o for o in (*old, *new)):
        return mask_iou([o["mask"] for o in old], [o["mask"] for o in new])
    return box_iou(_boxes(old), _boxes(new))


def _boxes(objects: Sequence[Record]) -> Array:
    return np.array([o["box"] for o in objects], np.float64).reshape(-1, 4)
