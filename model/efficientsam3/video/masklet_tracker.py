"""Tracking of masklets: what SAM3 decides on one frame, for several concepts at once.

A masklet is the masks of one object over time. Concepts are independent: detections and masks are
compared with objects of their own concept only. They share the cost: a frame is encoded once, and
all objects are propagated together. The mask logits of a frame are copied to the host once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..errors import TrackError
from ..masks.coarse import CoarseMask, coarse_masks, iom_matrix, iou_matrix
from ..masks.postprocess import (
    NEVER_OCCLUDED,
    SUPPRESSED,
    dense_logits,
    fill_holes,
    find_occluded,
)
from ..masks.shrunk import find_shrunk
from ..types import Array, Instances, LogitPatch, Patch
from .association import Association, associate, away_from_border, best_rows
from .motion import MotionLinks
from .settings import TrackSettings
from .track_state import TrackManager
from .types import FrameObjects, TrackedObject, TrackerFeatures, TrackerOutput

if TYPE_CHECKING:
    from .memory_tracker import MemoryTracker

BATCH = 64
"""Objects that begin together; the mask of each takes a megabyte meanwhile."""
REMOVED = 1 << 60
"""Frame in which a removed object was last occluded: later than any other, so that it gives way.
SAM3 uses 100,000."""
MEMORY_SCALE = 4
"""SAM3 enlarges masks by this factor before the memory encoder."""


class _Detections(NamedTuple):
    """The detections of a frame."""

    instances: Instances
    coarse: list[CoarseMask]
    span: int
    """Number of frames that they stand for."""


class _Decisions(NamedTuple):
    """What the detections of one concept decide."""

    label: str
    new: dict[int, int]
    """By identity, the rows of the detections that begin objects."""
    recondition: dict[int, int]
    """By identity, the rows of the detections that become conditioning frames."""
    adopted: dict[int, int]
    """By row of an object, the row of the detection whose mask it takes over."""


class _FrameMasks:
    """The masks of the tracked objects on one frame, on the host.

    Attributes:
        ids: N identities.
        logits: (N, h, w) float32 mask logits.
        presence: N presence logits.
        coarse: N masks, for overlaps.
        changed: Whether ``logits`` differ from those of the tracker's output.
    """

    def __init__(self, output: TrackerOutput, fill_hole_area: int) -> None:
        self.ids = output.ids
        self._output = output
        self.logits: Array = output.logits.float().cpu().numpy().copy()
        self.presence: list[float] = output.presence.float().tolist()
        self.changed = False
        self.coarse: list[CoarseMask] = []
        for row, logits in enumerate(self.logits):
            filled = fill_holes(logits, fill_hole_area)
            if filled is not logits:
                self.set(row, filled)
            self.coarse.append(CoarseMask.cut(filled > 0, 0, 0, filled.shape))

    def set(self, row: int, logits: Array | float) -> None:
        """Replace the mask of an object."""
        self.logits[row] = logits
        self.changed = True

    def to_remember(self, absent: Array, rows: list[int]) -> TrackerOutput:
        """Some rows for the memory encoder, the masks of absent objects suppressed.

        Args:
            absent: (N,) bool.
            rows: The objects to keep.
        """
        output, logits = self._output, self.logits
        if absent.any():
            logits = logits.copy()
            logits[absent] = logits[absent].clip(max=SUPPRESSED)
        if absent.any() or self.changed:
            output = output._replace(logits=torch.from_numpy(logits).to(output.logits))
        return output.take(rows)


class MaskletTracker:
    """Tracks masklets frame by frame, by detections and the memory tracker.

    One frame follows ``Sam3VideoBase._det_track_one_frame`` of sam3/model/sam3_video_base.py.

    Args:
        engine: Remembers objects and finds them on later frames.
        settings: Thresholds and numbers of frames.

    Attributes:
        engine: As given.
        settings: As given; ``adopt_detection_iou`` is that of the model where it was None.
        tracks: The state of each object, by identity.
    """

    def __init__(self, engine: MemoryTracker, settings: TrackSettings) -> None:
        if settings.adopt_detection_iou is None:
            settings = replace(settings, adopt_detection_iou=engine.adopt_detection_iou)
        self.engine, self.settings = engine, settings
        self._later = settings.rules == "sam3.1"
        self._motion = MotionLinks(settings.iou) if settings.adopt_detection_iou else None
        self.tracks = TrackManager(settings)
        self._next_id = 0
        self._frame = -1
        self._features: TrackerFeatures | None = None
        self._logits: dict[int, Array] = {}  # by identity, on the last frame

    def step(
        self,
        frame: int,
        image: Any,
        detections: Instances | None,
        concepts: Sequence[str],
        span: int = 1,
    ) -> FrameObjects:
        """Track one frame.

        Args:
            frame: 0, 1, ... in the direction of travel.
            image: An image of any kind that the engine reads.
            detections: Instances that were detected; None where the detector did not run.
            concepts: The concepts that were looked for.
            span: Number of frames that the detections stand for: up to the next detection.

        Returns:
            The objects of the frame.
        """
        s = self.settings
        self._frame, self._features = frame, self.engine.read(image)
        output = self.engine.propagate(frame, self._features)
        masks = _FrameMasks(output, s.fill_hole_area)
        out, decided = FrameObjects(), list[_Decisions]()
        adopted: dict[int, Patch] = {}
        if detections is not None:
            found = _Detections(detections, coarse_masks(detections), span)
            if self._motion is not None:
                self._motion.read(frame, detections)
            decided = [self._associate(label, found, masks, out) for label in concepts]
            for one in decided:
                self._adopt(one.adopted, found, masks, adopted)
            if s.recondition_every and frame % s.recondition_every == 0:
                for one in decided:
                    self._recondition(one.label, one.recondition, found, masks)
        self._suppress_occluded(masks, out.removed)
        self._remember(masks, out.removed)
        if detections is not None:
            for one in decided:
                self._begin(one.label, one.new, detections, out)
        self._add_objects(masks, adopted, out)
        self.remove([*out.removed])
        self.remove(self.tracks.expired(frame))
        out.hidden, out.unconfirmed = self.tracks.hidden(), self.tracks.unconfirmed()
        return out

    # One frame, step by step -----------------------------------------------------------

    def _associate(
        self, label: str, found: _Detections, masks: _FrameMasks, out: FrameObjects
    ) -> _Decisions:
        """Match the detections of a concept with its objects, and update the objects' states."""
        s, detections = self.settings, found.instances
        rows = [row for row, name in enumerate(detections.labels) if name == label]
        objects = [i for i, id in enumerate(masks.ids) if self.tracks[id].label == label]
        if self._later and objects:
            rows = self._inside(detections, rows)
        ids = [masks.ids[i] for i in objects]
        overlap = np.zeros((len(rows), len(objects)), np.float32)
        if overlap.size:
            grid = masks.coarse[0].grid
            coarse = [found.coarse[row].resized(grid) for row in rows]
            compare = iom_matrix if self._later else iou_matrix
            overlap[:] = compare(coarse, [masks.coarse[i] for i in objects])
            if self._motion is not None:
                overlap = self._motion.apply(overlap, rows, ids)
        visible = np.array([masks.coarse[i].area > 0 for i in objects], bool)
        match = associate(overlap, detections.scores[rows], visible, s)
        matched = [[ids[t] for t in of] for of in match.matched]
        unmatched = [ids[t] for t in match.unmatched]
        new_rows = self._admit(detections, rows, match)
        out.removed |= self.tracks.update_matches(self._frame, matched, unmatched, found.span)
        new = {self._new_id(): row for row in new_rows}
        for id, row in new.items():
            score, phrase = float(detections.scores[row]), detections.phrases[row]
            self.tracks.begin(id, label, score, self._frame, phrase)
            out.confirmed[id] = score
        for t, id in enumerate(ids):
            if not self.tracks[id].from_person and (visible[t] or t in match.confirmed):
                out.confirmed[id] = match.confirmed.get(t, 0.0)
        self.tracks.update_hits([*ids, *new], {id for of in matched for id in of} | {*new})
        recondition = {
            ids[t]: rows[d]
            for t, d in match.recondition.items()
            if masks.presence[objects[t]] > s.recondition_presence and ids[t] not in out.removed
        }
        kept = {t: d for t, d in match.adopted.items() if ids[t] not in out.removed}
        if self._motion is not None:
            for id, row in [*new.items(), *((ids[t], rows[d]) for t, d in kept.items())]:
                self._motion.bind(row, id)
        adopted = {objects[t]: rows[d] for t, d in kept.items()}
        return _Decisions(label, new, recondition, adopted)

    def _admit(self, detections: Instances, rows: Sequence[int], match: Association) -> list[int]:
        """Rows of the detections that may begin objects."""
        new = [rows[d] for d in match.new]
        if not self._later:
            new = self._inside(detections, new)
        return best_rows(new, detections.scores, self.settings.max_objects - len(self.tracks))

    def _inside(self, detections: Instances, rows: list[int]) -> list[int]:
        """Those of some rows that are not close to the border."""
        margin = self.settings.border_margin
        if not margin or not rows:
            return rows
        inside = away_from_border(detections.boxes[rows], detections.size, margin)
        return [row for row, keep in zip(rows, inside, strict=True) if keep]

    def _adopt(
        self,
        rows: dict[int, int],
        found: _Detections,
        masks: _FrameMasks,
        adopted: dict[int, Patch],
    ) -> None:
        """Let objects take over the masks of detections, by row."""
        for row, detection in rows.items():
            patch, logits = self._logits_of(found.instances, detection, masks)
            masks.set(row, logits)
            masks.coarse[row] = found.coarse[detection].resized(masks.coarse[row].grid)
            adopted[masks.ids[row]] = patch

    def _logits_of(self, found: Instances, row: int, masks: _FrameMasks) -> tuple[Patch, Array]:
        """A detection's mask without holes, and its logits in the size of the tracked ones."""
        patch, logits = self._filled(found, row)
        if logits is None or logits.shape != masks.logits.shape[1:]:
            mask = torch.from_numpy(found.mask(row))
            logits = self.engine.mask_to_logits(mask[None])[0].float().cpu().numpy()
        return patch, logits

    def _filled(self, detections: Instances, row: int) -> tuple[Patch, Array | None]:
        """A detection's mask without holes, and its logits, if it has any."""
        patch = detections._patch(row)
        if not isinstance(patch, LogitPatch):
            return patch, None
        logits = fill_holes(dense_logits(patch), self.settings.fill_hole_area)
        return LogitPatch.cut(logits), logits

    def _recondition(
        self, label: str, rows: dict[int, int], found: _Detections, masks: _FrameMasks
    ) -> None:
        """Make detections conditioning frames of objects (SAM3: ``_recondition_masklets``)."""
        sets = [rows] if self._later else [{id: row} for id, row in rows.items()]
        for one in sets:
            self._condition(label, [*one], [*one.values()], found.instances)
        for id, row in rows.items():
            self.tracks[id].conditioned.add(self._frame)
            if self._later:
                place = masks.ids.index(id)
                old, new = masks.logits[place], self._logits_of(found.instances, row, masks)[1]
                masks.set(place, np.where((old > 0) == (new > 0), old, new))
                masks.coarse[place] = CoarseMask.cut(new > 0, 0, 0, new.shape)

    def _condition(
        self, label: str, ids: Sequence[int], rows: Sequence[int], detections: Instances
    ) -> None:
        features = self._current_features()
        for first in range(0, len(ids), BATCH):
            some = slice(first, first + BATCH)
            masks = np.stack([_enlarged(detections, row) for row in rows[some]])
            given = torch.from_numpy(masks)
            self.engine.add_masks(self._frame, features, list(ids[some]), given, label)

    def _suppress_occluded(self, masks: _FrameMasks, removed: set[int]) -> None:
        """Empty the masks of objects that have the mask of another.

        SAM3: ``_suppress_overlapping_based_on_recent_occlusion``.
        """
        threshold = self.settings.occlusion_iou
        for rows in self._rows_by_label(masks.ids).values():
            states = [self.tracks[masks.ids[row]] for row in rows]
            occluded = [
                REMOVED
                if masks.ids[row] in removed and (self._later or state.last_occluded is None)
                else (NEVER_OCCLUDED if state.last_occluded is None else state.last_occluded)
                for row, state in zip(rows, states, strict=True)
            ]
            hidden: list[int] = []
            if threshold and len(rows) > 1:
                coarse = [masks.coarse[row] for row in rows]
                overlap = iou_matrix(coarse, coarse).astype(np.float32)
                hidden = find_occluded(overlap, occluded, threshold)
            for place, (row, state) in enumerate(zip(rows, states, strict=True)):
                if not masks.coarse[row].area or place in hidden:
                    state.last_occluded = self._frame
                else:
                    state.last_occluded, state.last_visible = occluded[place], self._frame
            for place in hidden:
                masks.set(rows[place], SUPPRESSED)

    def _rows_by_label(self, ids: Sequence[int]) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, id in enumerate(ids):
            rows.setdefault(self.tracks[id].label, []).append(row)
        return rows

    def _remember(self, masks: _FrameMasks, removed: set[int]) -> None:
        """Encode the masks into the memory; objects that others mostly cover are absent.

        SAM3: ``_tracker_update_memories``.
        """
        absent, present = np.zeros((2, len(masks.ids)), bool)
        for rows in self._rows_by_label(masks.ids).values():
            absent[rows], present[rows] = find_shrunk(
                masks.logits[rows], MEMORY_SCALE, self.settings.min_area_kept
            )
        # The objects of a bucket of SAM3.1 are remembered together.
        kept = [row for row, id in enumerate(masks.ids) if self._later or id not in removed]
        if kept:
            self.engine.remember(
                self._frame,
                self._current_features(),
                masks.to_remember(absent, kept),
                present=torch.from_numpy((present & ~absent)[kept]),
                overwrite=True,
            )

    def _begin(
        self, label: str, new: dict[int, int], detections: Instances, out: FrameObjects
    ) -> None:
        self._condition(label, [*new], [*new.values()], detections)
        adopts = bool(self.settings.adopt_detection_iou)
        for id, row in new.items():
            patch, logits = self._filled(detections, row)
            if logits is not None:
                self._logits[id] = logits
            score = float(detections.scores[row])
            phrase = detections.phrases[row]
            out.objects[id] = TrackedObject(label, patch, score, score, adopts, phrase)

    def _add_objects(
        self, masks: _FrameMasks, adopted: dict[int, Patch], out: FrameObjects
    ) -> None:
        """Add the objects that were tracked, those with a pixel."""
        presence = torch.tensor(masks.presence).sigmoid().tolist()
        self._logits = {id: logits for id, logits in self._logits.items() if id in out.objects}
        for row, id in enumerate(masks.ids):
            self._logits[id] = masks.logits[row]
            patch = LogitPatch.cut(masks.logits[row])
            if patch.logits.size and id not in out.removed:
                state = self.tracks[id]
                out.objects[id] = TrackedObject(
                    state.label,
                    adopted.get(id, patch),
                    state.score,
                    presence[row],
                    id in adopted,
                    state.phrase,
                )

    def remove(self, ids: Sequence[int]) -> None:
        """Track objects no more.

        Args:
            ids: Identities of the objects; unknown ones are ignored.
        """
        known = set(self.engine.ids)
        self.engine.remove([id for id in ids if id in known])
        for id in ids:
            self.tracks.pop(id, None)
            self._logits.pop(id, None)
            if self._motion is not None:
                self._motion.forget(id)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _current_features(self) -> TrackerFeatures:
        if self._features is None:
            raise TrackError("no frame was given yet; call step with the frame that you point at")
        return self._features

    # Prompts of a person on the last frame ----------------------------------------------

    def add_points(
        self, id: int | None, label: str, xy: Array, point_labels: Array
    ) -> tuple[int, TrackedObject]:
        """Point at an object on the last frame.

        Args:
            id: Identity of an object, to correct it; None: a new object.
            label: Concept of a new object.
            xy: (K, 2) points in [0, 1] of width and height.
            point_labels: (K,) labels of ``nn.interactive``.

        Returns:
            The identity and the object.
        """
        features = self._current_features()
        id, label = self._identify(id, label)
        previous = self._logits.get(id)
        output = self.engine.add_points(
            self._frame,
            features,
            id,
            torch.from_numpy(np.asarray(xy, np.float32)),
            torch.from_numpy(np.asarray(point_labels, np.int64)),
            None if previous is None else torch.from_numpy(previous),
        )
        return id, self._add_prompted(id, label, output)

    def add_mask(self, id: int | None, label: str, mask: Array) -> tuple[int, TrackedObject]:
        """Give the mask of an object on the last frame.

        Args:
            id: Identity of an object, to correct it; None: a new object.
            label: Concept of a new object.
            mask: (H, W) bool.

        Returns:
            The identity and the object.
        """
        features = self._current_features()
        id, label = self._identify(id, label)
        given = torch.from_numpy(np.ascontiguousarray(mask, bool))[None]
        output = self.engine.add_masks(self._frame, features, [id], given)
        return id, self._add_prompted(id, label, output)

    def _identify(self, id: int | None, label: str) -> tuple[int, str]:
        if id is None:
            if len(self.tracks) >= self.settings.max_objects:
                raise TrackError(
                    f"{len(self.tracks)} objects are tracked, as many as settings.max_objects "
                    "allows; remove one first"
                )
            return self._new_id(), label
        if id not in self.tracks:
            known = ", ".join(map(str, self.tracks)) or "none"
            raise TrackError(f"no object {id} is tracked; these are: {known}")
        return id, self.tracks[id].label

    def _add_prompted(self, id: int, label: str, output: TrackerOutput) -> TrackedObject:
        state = self.tracks.get(id) or self.tracks.begin(id, label, 1.0, self._frame)
        state.from_person, state.score, state.last_visible = True, 1.0, self._frame
        window = self.settings.correction_window
        near = {f for f in state.conditioned if abs(f - self._frame) <= window}
        for frame in near - {self._frame}:
            if frame in self.engine.conditioned(id):
                self.engine.release(frame, id)
        state.conditioned -= near
        logits = output.logits[0].float().cpu().numpy()
        self._logits[id] = logits = fill_holes(logits, self.settings.fill_hole_area)
        return TrackedObject(label, LogitPatch.cut(logits), 1.0, 1.0, phrase=state.phrase)


def _enlarged(detections: Instances, row: int) -> Array:
    """A detection's mask for the engine, (H, W) bool: SAM3 enlarges its logits four times.

    A mask without logits keeps its size.
    """
    patch = detections._patch(row)
    if not isinstance(patch, LogitPatch):
        return detections.mask(row)
    height, width = patch.grid
    size = (MEMORY_SCALE * height, MEMORY_SCALE * width)
    out = np.zeros(size, bool)
    pixels, (x0, y0, x1, y1) = patch.crop(size)
    out[y0:y1, x0:x1] = pixels
    return out
