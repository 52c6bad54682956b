"""Identities by overlap alone: no weights, no pixels, a millisecond a frame.

Detections go to the tracks of their concept whose masks, moved on as they were moving, they
overlap best (Hungarian); what is left goes to tracks of a like shape near by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..types import Array, BitPatch, Instances, LogitPatch, Patch, join
from .association import assign
from .cells import Cells, cells_of, iou, overlaps
from .settings import MaskSettings, TrackError

STEADY = 0.5
"""Share of what was known of a track's speed that a new measurement leaves."""
FADING = 0.8
"""Share of its speed that a track keeps from frame to frame while it is not seen."""
NONE = -1
"""The identity of an instance that has none, or none yet."""


@dataclass(eq=False)
class _Track:
    """An object.

    cells, found: its mask and detection when last seen, in ``frame``. hits, missed: updates
    that it was seen in, and since. speed: (2,) rows and columns in shares of the image, a frame;
    None until it was seen twice. id: ``NONE`` until confirmed.
    """

    label: str
    cells: Cells
    found: Instances
    frame: int
    hits: int = 1
    missed: int = 0
    id: int = NONE
    speed: Array | None = None

    def way(self, frame: int) -> Array:
        """(2,) how far it has gone since it was seen, in shares of the image."""
        if self.speed is None or frame == self.frame:
            return np.zeros(2)
        gap = frame - self.frame
        return self.speed * np.sign(gap) * (1 - FADING ** abs(gap)) / (1 - FADING)

    def expected(self, frame: int) -> Cells:
        """Its mask, moved on to a frame."""
        rows, columns = np.rint(self.way(frame) * self.cells.grid).astype(int)
        return self.cells.moved(int(rows), int(columns))

    def see(self, cells: Cells, found: Instances, frame: int) -> None:
        """Go on with a detection."""
        if self.cells.area and cells.area and frame != self.frame:
            measured = _moved(self.cells, cells) / (frame - self.frame)
            known = measured if self.speed is None else self.speed
            self.speed = STEADY * known + (1 - STEADY) * measured
        self.cells, self.found, self.frame = cells, found, frame
        self.hits, self.missed = self.hits + 1, 0


def _moved(old: Cells, new: Cells) -> Array:
    """(2,) how far a mask went, in shares of the image.

    Of an object that is being covered on one side, that side's edge and the centre move, and the
    other edge tells the truth: the median of the three.
    """
    old = old.onto(new.grid)
    before, after = (np.array(c.box, float).reshape(2, 2) for c in (old, new))
    edges = (after - before) / np.array(new.grid)
    middle = np.subtract(new.centre, old.centre)
    return np.median(np.vstack([edges, middle]), axis=0)


class MaskTracker:
    """Tracks of one stream of frames; a track never takes a detection of another concept.

    Memory holds a mask of each object that was seen in the last ``settings.forget`` frames.
    """

    def __init__(self, settings: MaskSettings | None = None) -> None:
        self.settings = settings or MaskSettings()
        self.reset()

    def reset(self) -> None:
        """Forget all tracks; identities start from 0."""
        self._tracks: list[_Track] = []
        self._next = 0
        self._frame: int | None = None

    @property
    def ids(self) -> list[int]:
        """Identities of the tracks that are alive, in rising order."""
        return sorted(t.id for t in self._tracks if t.id != NONE)

    def update(self, found: Instances, index: int | None = None) -> Instances:
        """Give the detections of a frame their identities.

        Args:
            found: detections, with or without masks; without, boxes stand for them.
            index: of the frame; the one after the last if omitted. Indices rise, or all fall,
                and may skip frames.

        Returns:
            The same instances with ``track_ids``: -1 for those that are not confirmed yet, and
            those that score too little to begin a track.
        """
        frame = self._turn(index)
        cells = cells_of(found)
        owners: list[_Track | None] = [None] * len(found)
        for label in dict.fromkeys(found.labels):
            rows = [row for row, name in enumerate(found.labels) if name == label]
            tracks = [track for track in self._tracks if track.label == label]
            for track, row in self._match(tracks, [cells[row] for row in rows], frame):
                owners[rows[row]] = track
                track.see(cells[rows[row]], found[rows[row]], frame)
        for track in self._tracks:
            track.missed += track.frame != frame
        for row, owner in enumerate(owners):
            if owner is None and found.scores[row] >= self.settings.start:
                owners[row] = new = _Track(found.labels[row], cells[row], found[row], frame)
                self._tracks.append(new)
        self._tracks = [track for track in self._tracks if self._alive(track, frame)]
        ids = [NONE if owner is None else self._confirm(owner) for owner in owners]
        return replace(found, track_ids=np.array(ids, np.int64))

    def expected(self, index: int) -> Instances | None:
        """The objects of the last update, moved on to a frame that has no detections.

        None where there are none, or all have moved out of the image.
        """
        shown = [t for t in self._tracks if t.id != NONE and t.frame == self._frame]
        there = [(t, moved) for t in shown if len(moved := _carry(t.found, t.way(index)))]
        if not there:
            return None
        ids = np.array([track.id for track, _ in there], np.int64)
        return replace(join([moved for _, moved in there]), track_ids=ids)

    def remove(self, track_id: int) -> None:
        """End a track. Its object, if it is detected again, begins another."""
        self._tracks = [t for t in self._tracks if t.id != track_id]

    def remove_label(self, label: str) -> None:
        """End all tracks of a concept."""
        self._tracks = [t for t in self._tracks if t.label != label]

    def _turn(self, index: int | None) -> int:
        last = self._frame
        if index is None:
            index = 0 if last is None else last + 1
        elif index == last:
            raise TrackError(
                f"frame {index} was given before; each frame is updated once, with all it shows"
            )
        self._frame = index
        return index

    def _match(
        self, tracks: Sequence[_Track], cells: Sequence[Cells], frame: int
    ) -> list[tuple[_Track, int]]:
        """Tracks and the detections that are theirs, by their place in ``cells``."""
        if not tracks or not cells:
            return []
        expected = [track.expected(frame).onto(cells[0].grid) for track in tracks]
        waiting, free = set(range(len(tracks))), set(range(len(cells)))
        pairs = []
        # Who was just seen chooses first: what is long gone may be anywhere.
        for stage in (self._overlap, self._likeness):
            for lost in (False, True):
                rows = sorted(i for i in waiting if bool(tracks[i].missed) == lost)
                columns = sorted(free)
                if not rows or not columns:
                    continue
                score = stage(
                    [tracks[i] for i in rows],
                    [expected[i] for i in rows],
                    [cells[j] for j in columns],
                )
                for i, j in assign(score):
                    pairs.append((tracks[rows[i]], columns[j]))
                    waiting.discard(rows[i])
                    free.discard(columns[j])
        return pairs

    def _overlap(
        self, _: Sequence[_Track], expected: Sequence[Cells], cells: Sequence[Cells]
    ) -> Array:
        """(N, M) IoU with where tracks are expected; 0 where it is too little."""
        score = overlaps(expected, cells)
        return np.where(score >= self.settings.overlap, score, 0)

    def _likeness(
        self, tracks: Sequence[_Track], expected: Sequence[Cells], cells: Sequence[Cells]
    ) -> Array:
        """(N, M) likeness of shapes that are near enough; 0 for the others."""
        score = np.zeros((len(tracks), len(cells)))
        if not self.settings.reach:
            return score
        lengths = np.array(
            [
                max(c.bits.shape) * (t.missed + 1) ** 0.5
                for t, c in zip(tracks, expected, strict=True)
            ]
        )
        starts, ends = (
            np.array([c.centre for c in side]) * cells[0].grid for side in (expected, cells)
        )
        ways = ends[None] - starts[:, None]
        far = (
            np.hypot(ways[..., 0], ways[..., 1])
            / np.maximum(self.settings.reach * lengths, 1)[:, None]
        )
        for i, j in zip(*np.nonzero(far <= 1), strict=True):
            rows, columns = np.rint(ways[i, j]).astype(int)
            like = iou(expected[i].moved(int(rows), int(columns)), cells[j])
            if like >= self.settings.likeness:
                score[i, j] = like * (1 - far[i, j] / 2)
        return score

    def _confirm(self, track: _Track) -> int:
        if track.id == NONE and track.hits >= self.settings.confirm:
            track.id, self._next = self._next, self._next + 1
        return track.id

    def _alive(self, track: _Track, frame: int) -> bool:
        unseen = abs(frame - track.frame)
        # What was never confirmed was noise, as soon as it is missed.
        return unseen <= self.settings.forget and not (track.id == NONE and track.missed)


def _carry(found: Instances, way: Array) -> Instances:
    """One instance moved by shares of the image; none if nothing of it is left there."""
    height, width = found.size
    down, right = float(way[0]) * height, float(way[1]) * width
    patches: list[Patch] | None = None
    if found.patches is not None:
        patch = found.patches[0]
        grid = patch.grid if isinstance(patch, LogitPatch) else found.size
        moved = _shift(patch, round(way[0] * grid[0]), round(way[1] * grid[1]), grid)
        if not moved.crop(found.size)[0].size:
            return found[[]]
        patches = [moved]
    limits = np.array([width, height, width, height], np.float32)
    boxes = np.clip(found.boxes + np.array([right, down, right, down], np.float32), 0, limits)
    if patches is None and ((boxes[:, 2:] - boxes[:, :2]) <= 0).any():
        return found[[]]
    return replace(found, boxes=boxes, patches=patches)


def _shift(patch: Patch, rows: int, columns: int, grid: tuple[int, int]) -> Patch:
    """A patch elsewhere on its grid, cut where it leaves it."""
    values = patch.logits if isinstance(patch, LogitPatch) else patch.pixels
    top, left = patch.top + rows, patch.left + columns
    y, x = max(-top, 0), max(-left, 0)
    inside = values[y : max(grid[0] - top, 0), x : max(grid[1] - left, 0)]
    if isinstance(patch, LogitPatch):
        return LogitPatch(inside, top + y, left + x, grid)
    return BitPatch(inside, top + y, left + x)
