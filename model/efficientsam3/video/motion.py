"""Detections are joined with tracked objects by motion, before the masks of the memory are asked.

A small memory draws masks that drift onto neighbors. Where objects take over the masks of
detections, the overlap of these masks from frame to frame, moved as they moved before, is the
better evidence of who is who; the memory joins what is left, as an object that comes back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import Array, Instances
from .iou_tracker import NO_ID, IoUTracker
from .settings import IoUSettings


class MotionLinks:
    """Which detections continue which objects, by the overlap of masks that move.

    Args:
        settings: Settings of the tracker by overlap.
    """

    def __init__(self, settings: IoUSettings) -> None:
        self._tracker = IoUTracker(settings)
        self._tracks: Array = np.zeros(0, np.int64)  # of the detections of the frame
        self._objects: dict[int, int] = {}  # by track
        self._reads = 0  # frames so far, in either direction of travel
        self._first: dict[int, int] = {}  # frame on which each track was seen first
        self._seen: dict[int, tuple[int, int]] = {}  # track and frame that an object had last

    def read(self, frame: int, detections: Instances) -> None:
        """Take the detections of a frame.

        Args:
            frame: Number of the frame.
            detections: All that was detected.
        """
        tracks = self._tracker.update(detections, frame).track_ids
        self._tracks = np.zeros(0, np.int64) if tracks is None else tracks
        alive = set(self._tracker.ids)
        self._objects = {track: id for track, id in self._objects.items() if track in alive}
        self._reads += 1
        self._first = {track: self._first.get(track, self._reads) for track in alive}

    def apply(self, overlap: Array, rows: Sequence[int], ids: Sequence[int]) -> Array:
        """Let detections that continue objects overlap with these alone.

        A detection whose track is as old as an object's place in another track is not that object:
        both were seen on the same frame.

        Args:
            overlap: (D, T) overlap of detections and masks of the memory.
            rows: D rows of the detections, in ``read``.
            ids: T identities of the objects.

        Returns:
            (D, T) overlap, 1 for pairs that are joined by motion, 0 for all others of these
            detections and objects, and 0 for detections and objects that were seen beside each
            other.
        """
        places = {id: place for place, id in enumerate(ids)}
        pairs = [
            (i, places[id])
            for i, row in enumerate(rows)
            if (id := self._objects.get(int(self._tracks[row]))) in places
        ]
        out = overlap.copy()
        for id, place in places.items():
            for i, row in enumerate(rows):
                if self._were_apart(int(self._tracks[row]), id):
                    out[i, place] = 0
        for i, place in pairs:
            out[i] = out[:, place] = 0
        for i, place in pairs:
            out[i, place] = 1
        return out

    def bind(self, row: int, id: int) -> None:
        """Note that a detection is of an object.

        Args:
            row: Row of the detection, in ``read``.
            id: Identity of the object.
        """
        track = int(self._tracks[row])
        if track != NO_ID:
            self._objects = {other: of for other, of in self._objects.items() if of != id}
            self._objects[track] = id
            self._seen[id] = (track, self._reads)

    def forget(self, id: int) -> None:
        """Forget an object.

        Args:
            id: Its identity.
        """
        self._objects = {track: of for track, of in self._objects.items() if of != id}
        self._seen.pop(id, None)

    def _were_apart(self, track: int, id: int) -> bool:
        """Whether a track was there on a frame on which an object was in another track."""
        if track not in self._first or id not in self._seen:
            return False
        other, frame = self._seen[id]
        return other != track and self._first[track] <= frame
