"""Tracking by overlap of masks alone: no weights, no pixels, about a millisecond a frame.

Detections are assigned to the tracks of their concept by the overlap with their predicted masks
(Hungarian method), and what is left to tracks of a similar shape nearby, as SORT and ByteTrack do
with boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import TrackError
from ..masks.coarse import CoarseMask, coarse_masks, iou, iou_matrix
from ..types import Array, BitPatch, Instances, LogitPatch, Patch, join
from .association import assign
from .settings import IoUSettings

SMOOTHING = 0.5
"""Share of the earlier velocity in a track's velocity after a new measurement."""
DAMPING = 0.8
"""Factor by which a track's velocity decreases on each frame on which it is not detected."""
NO_ID = -1
"""Identity of a detection that belongs to no track, or to one that is not confirmed."""


@dataclass(eq=False)
class _Track:
    """An object."""

    label: str
    mask: CoarseMask  # when it was last detected
    found: Instances  # that detection, one instance
    frame: int  # on which it was last detected
    hits: int = 1  # updates in which it was detected
    missed: int = 0  # updates since it was detected
    id: int = NO_ID  # until it is confirmed
    velocity: Array | None = None  # (2,) rows and columns a frame, in shares of the image

    def displacement(self, frame: int) -> Array:
        """(2,) rows and columns since it was detected, in shares of the image."""
        if self.velocity is None or frame == self.frame:
            return np.zeros(2)
        gap = frame - self.frame
        return self.velocity * np.sign(gap) * (1 - DAMPING ** abs(gap)) / (1 - DAMPING)

    def predict(self, frame: int) -> CoarseMask:
        """Its mask, moved to where it is expected on a frame."""
        rows, columns = np.rint(self.displacement(frame) * self.mask.grid).astype(int)
        return self.mask.moved(int(rows), int(columns))

    def update(self, mask: CoarseMask, found: Instances, frame: int) -> None:
        """Continue with a detection."""
        if self.mask.area and mask.area and frame != self.frame:
            measured = _displacement(self.mask, mask) / (frame - self.frame)
            earlier = measured if self.velocity is None else self.velocity
            self.velocity = SMOOTHING * earlier + (1 - SMOOTHING) * measured
        self.mask, self.found, self.frame = mask, found, frame
        self.hits, self.missed = self.hits + 1, 0


def _displacement(old: CoarseMask, new: CoarseMask) -> Array:
    """(2,) rows and columns from one mask to another, in shares of the image.

    It is the median of both edges and the center. When one side of an object is being covered,
    that edge and the center move, and the other edge shows the true motion.
    """
    old = old.resized(new.grid)
    before, after = (np.array(mask.box, float).reshape(2, 2) for mask in (old, new))
    edges = (after - before) / np.array(new.grid)
    center = np.subtract(new.center, old.center)
    return np.median(np.vstack([edges, center]), axis=0)


class IoUTracker:
    """Tracks the detections of one stream of frames; a track keeps its concept.

    It holds one mask of each object that was detected in the last ``settings.max_age`` frames.

    Args:
        settings: Thresholds and numbers of frames.

    Attributes:
        settings: As given.
    """

    def __init__(self, settings: IoUSettings | None = None) -> None:
        self.settings = settings or IoUSettings()
        self.reset()

    def reset(self) -> None:
        """Forget all tracks; identities start from 0 again."""
        self._tracks: list[_Track] = []
        self._next_id = 0
        self._frame: int | None = None

    def end_tracks(self) -> None:
        """End all tracks, as at a cut. Identities go on."""
        self._tracks = []

    @property
    def ids(self) -> list[int]:
        """Identities of the present tracks, in rising order."""
        return sorted(t.id for t in self._tracks if t.id != NO_ID)

    def update(self, found: Instances, index: int | None = None) -> Instances:
        """Give the detections of a frame their identities.

        Args:
            found: Detections. Where they have no masks, boxes are used as masks.
            index: Index of the frame; the one after the last if omitted. Indices rise, or all
                fall, and may skip frames.

        Returns:
            The same instances with ``track_ids``; -1 for those of tracks that are not confirmed,
            and those with a score too low to begin a track.

        Raises:
            TrackError: The frame was given before.
        """
        if index is None:
            index = 0 if self._frame is None else self._frame + 1
        elif index == self._frame:
            raise TrackError(
                f"frame {index} was given before; each frame is updated once, with all it shows"
            )
        self._frame = index
        masks = coarse_masks(found)
        owners: list[_Track | None] = [None] * len(found)
        for label in dict.fromkeys(found.labels):
            rows = [row for row, name in enumerate(found.labels) if name == label]
            tracks = [track for track in self._tracks if track.label == label]
            for track, place in self._match(tracks, [masks[row] for row in rows], index):
                owners[rows[place]] = track
                track.update(masks[rows[place]], found[rows[place]], index)
        for track in self._tracks:
            track.missed += track.frame != index
        for row, owner in enumerate(owners):
            if owner is None and found.scores[row] >= self.settings.new_track_threshold:
                owners[row] = new = _Track(found.labels[row], masks[row], found[row], index)
                self._tracks.append(new)
        self._tracks = [track for track in self._tracks if self._continues(track, index)]
        ids = [NO_ID if owner is None else self._identify(owner) for owner in owners]
        return replace(found, track_ids=np.array(ids, np.int64))

    def expected(self, index: int) -> Instances | None:
        """The objects of the last update, moved to a frame without detections.

        Args:
            index: Index of the frame.

        Returns:
            The objects; None where there are none, or all have left the image.
        """
        shown = [t for t in self._tracks if t.id != NO_ID and t.frame == self._frame]
        moved = [(t.id, _moved(t.found, t.displacement(index))) for t in shown]
        visible = [(id, instance) for id, instance in moved if len(instance)]
        if not visible:
            return None
        ids = np.array([id for id, _ in visible], np.int64)
        return replace(join([instance for _, instance in visible]), track_ids=ids)

    def remove(self, track_id: int) -> None:
        """End a track. Its object begins another track when it is detected again.

        Args:
            track_id: Identity of the track.
        """
        self._tracks = [t for t in self._tracks if t.id != track_id]

    def remove_label(self, label: str) -> None:
        """End all tracks of a concept.

        Args:
            label: The concept.
        """
        self._tracks = [t for t in self._tracks if t.label != label]

    def _match(
        self, tracks: Sequence[_Track], masks: Sequence[CoarseMask], frame: int
    ) -> list[tuple[_Track, int]]:
        """Tracks and the places of their detections in ``masks``."""
        if not tracks or not masks:
            return []
        predicted = [track.predict(frame).resized(masks[0].grid) for track in tracks]
        waiting, free = set(range(len(tracks))), set(range(len(masks)))
        pairs = []
        # Tracks that were just detected are assigned first, because the others can be anywhere.
        for score_of in (self._overlap_scores, self._shape_scores):
            for lost in (False, True):
                rows = sorted(i for i in waiting if bool(tracks[i].missed) == lost)
                columns = sorted(free)
                if not rows or not columns:
                    continue
                scores = score_of(
                    [tracks[i] for i in rows],
                    [predicted[i] for i in rows],
                    [masks[j] for j in columns],
                )
                for i, j in assign(scores):
                    pairs.append((tracks[rows[i]], columns[j]))
                    waiting.discard(rows[i])
                    free.discard(columns[j])
        return pairs

    def _overlap_scores(
        self, _: Sequence[_Track], predicted: Sequence[CoarseMask], masks: Sequence[CoarseMask]
    ) -> Array:
        """(N, M) IoU of predicted masks with detections; 0 below ``match_iou``."""
        scores = iou_matrix(predicted, masks)
        return np.where(scores >= self.settings.match_iou, scores, 0)

    def _shape_scores(
        self,
        tracks: Sequence[_Track],
        predicted: Sequence[CoarseMask],
        masks: Sequence[CoarseMask],
    ) -> Array:
        """(N, M) IoU of masks that are moved onto each other, lower with distance; else 0."""
        scores = np.zeros((len(tracks), len(masks)))
        if not self.settings.max_distance:
            return scores
        sizes = zip(tracks, predicted, strict=True)
        lengths = np.array([max(m.bits.shape) * (t.missed + 1) ** 0.5 for t, m in sizes])
        starts, ends = (
            np.array([m.center for m in side]) * masks[0].grid for side in (predicted, masks)
        )
        ways = ends[None] - starts[:, None]
        limits = np.maximum(self.settings.max_distance * lengths, 1)[:, None]
        distance = np.hypot(ways[..., 0], ways[..., 1]) / limits
        for i, j in zip(*np.nonzero(distance <= 1), strict=True):
            rows, columns = np.rint(ways[i, j]).astype(int)
            similarity = iou(predicted[i].moved(int(rows), int(columns)), masks[j])
            if similarity >= self.settings.shape_iou:
                scores[i, j] = similarity * (1 - distance[i, j] / 2)
        return scores

    def _identify(self, track: _Track) -> int:
        if track.id == NO_ID and track.hits >= self.settings.min_hits:
            track.id, self._next_id = self._next_id, self._next_id + 1
        return track.id

    def _continues(self, track: _Track, frame: int) -> bool:
        age = abs(frame - track.frame)
        # A track that was never confirmed ends as soon as it is missed.
        return age <= self.settings.max_age and not (track.id == NO_ID and track.missed)


def _moved(found: Instances, displacement: Array) -> Instances:
    """One instance moved by shares of the image; none if nothing of it remains inside."""
    height, width = found.size
    down, right = float(displacement[0]) * height, float(displacement[1]) * width
    patches: list[Patch] | None = None
    if found.patches is not None:
        patch = found.patches[0]
        grid = patch.grid if isinstance(patch, LogitPatch) else found.size
        rows, columns = (round(d * n) for d, n in zip(displacement, grid, strict=True))
        moved = _moved_patch(patch, rows, columns, grid)
        if not moved.crop(found.size)[0].size:
            return found[[]]
        patches = [moved]
    limits = np.array([width, height, width, height], np.float32)
    boxes = np.clip(found.boxes + np.array([right, down, right, down], np.float32), 0, limits)
    if patches is None and ((boxes[:, 2:] - boxes[:, :2]) <= 0).any():
        return found[[]]
    return replace(found, boxes=boxes, patches=patches)


def _moved_patch(patch: Patch, rows: int, columns: int, grid: tuple[int, int]) -> Patch:
    """A patch moved on its grid, and cut at the borders."""
    values = patch.logits if isinstance(patch, LogitPatch) else patch.pixels
    top, left = patch.top + rows, patch.left + columns
    y, x = max(-top, 0), max(-left, 0)
    inside = values[y : max(grid[0] - top, 0), x : max(grid[1] - left, 0)]
    if isinstance(patch, LogitPatch):
        return LogitPatch(inside, top + y, left + x, grid)
    return BitPatch(inside, top + y, left + x)
