"""Objects followed by the model's video memory, with the convention of the `trackers` package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from efficientsam3.image import ImageModel
from efficientsam3.pixels import read_rgb
from efficientsam3.types import Array, Instances, join
from efficientsam3.video.cells import cells_of, overlaps
from efficientsam3.video.concepts import ConceptTracker
from efficientsam3.video.settings import TrackSettings

from .detections import BoxSource, MaskFormat, check_formats, from_detections, to_detections
from .detector import Colour, ConceptDetector, check_color, flip
from .errors import AdapterError
from .tracking import PENDING, identified

DET_INDEX = "det_index"
"""Key of the row of the given detections that an object is; -1 where it is none of them."""


class MemoryTracker:
    """Follows objects by what they look like, through occlusions and without a detection.

    It finds the concepts itself, or takes the detections of any detector; either way it gives
    every object that is in the frame, detected there or not. Each frame is answered at once.

    >>> tracker = MemoryTracker(es3.load("efficientsam3-tinyvit-11m"), ["person"])
    >>> detections = tracker.update(frame=frame)

    Args:
        model: whose weights have a video memory ("video" in its ``abilities``).
        concepts: that it looks for itself, where no detections are given.
        detect_every: it looks for them in every n-th frame.
        color: order of the channels in frames, as in ``ConceptDetector``.
        settings: of ``efficientsam3.TrackSettings``; with ``hotstart=0``, for what waits is no
            answer to this frame (``es3.track`` can wait).
        mask_format, box_source: as ``to_detections`` takes them.

    Attributes:
        core: the ``efficientsam3.ConceptTracker``: ``core.add_object(points=...)``,
            ``core.remove_object(id)``, ``core.add_concept(...)``, ``core.add_exemplars(...)``.

    Raises:
        MissingAbilityError: the weights have no memory; ``MaskTracker`` needs none.
    """

    def __init__(
        self,
        model: ImageModel,
        concepts: str | Sequence[str] = (),
        *,
        detect_every: int = 1,
        color: Colour = "rgb",
        settings: TrackSettings | None = None,
        mask_format: MaskFormat | None = "compact",
        box_source: BoxSource = "mask",
    ) -> None:
        check_color(color)
        check_formats(mask_format, box_source)
        self.model, self.color = model, color
        self.mask_format: MaskFormat | None = mask_format
        self.box_source: BoxSource = box_source
        self.settings = settings or TrackSettings(hotstart=0)
        if self.settings.hotstart:
            raise AdapterError(
                f"hotstart={self.settings.hotstart} lets results wait, and update answers at once: "
                "TrackSettings(hotstart=0); or es3.track, whose results may wait"
            )
        self._detector = ConceptDetector(model, concepts, color=color)
        self._every = detect_every
        self._last: Any = None
        self.reset()

    @property
    def class_names(self) -> list[str]:
        """By ``class_id``: the concepts, and what other detectors' detections are called."""
        return list(self._numbers)

    def update(
        self, detections: Any = None, frame: Array | None = None, timestamp: float | None = None
    ) -> Any:
        """Take the next frame: ``sv.Detections`` of the objects in it, with ``tracker_id``.

        Args:
            detections: of another detector; those without masks get them first. None: the
                tracker looks for its concepts itself. frame: (H, W, 3) uint8.
            timestamp: not used.

        Returns:
            Objects, then the given detections that are none, with ``tracker_id`` -1.
            ``data["det_index"]`` is the row among the given ones, -1 where an object is followed
            without one. The input is not changed.
        """
        if frame is None:
            raise AdapterError(
                "a memory tracker looks at each frame: update(detections, frame), or "
                "update(frame=frame) to let it detect"
            )
        if detections is None and not self.core.concepts:
            raise AdapterError(
                "nothing to look for: MemoryTracker(model, ['person']), or give detections"
            )
        rgb = read_rgb(flip(frame) if self.color == "bgr" else frame).permute(1, 2, 0).numpy()
        given = None
        if detections is not None:
            if detections.mask is None:
                detections = self._detector.segment_boxes(frame, detections)
            given = from_detections(detections, (rgb.shape[0], rgb.shape[1]))
            if detections.class_id is not None:
                self._learn(given.labels, detections.class_id.tolist())
        (tracked,) = self.core.step(rgb, given)
        shown, rows = tracked.instances, np.full(len(tracked.instances), -1)
        if shown.track_ids is None:
            shown = replace(shown, track_ids=np.full(len(shown), PENDING))
        if given is not None and len(given):
            rows = rows_of(shown, given, self.settings.support)
            rest = np.setdiff1d(np.arange(len(given)), rows)
            ids = np.concatenate([shown.track_ids, np.full(len(rest), PENDING)])
            shown = replace(join([shown, given[rest]]), track_ids=ids)
            rows = np.concatenate([rows, rest])
        self._learn(shown.labels)
        out = to_detections(
            shown,
            class_names=list(dict.fromkeys(shown.labels)),
            mask_format=self.mask_format,
            box_source=self.box_source,
        )
        out.class_id = np.array([self._numbers[label] for label in shown.labels], int)
        out.data[DET_INDEX] = rows.astype(int)
        self._last = out
        return out

    def reset(self) -> None:
        """Forget everything: identities start from 0 again. Concepts are those of the start."""
        self.core = ConceptTracker(
            self.model,
            self._detector.class_names or None,
            tracker="memory",
            settings=self.settings,
            every=self._every,
        )
        self._numbers = {name: i for i, name in enumerate(self._detector.class_names)}
        self._last = None

    @property
    def tracked_objects(self) -> Any:
        """The last frame's objects that have an identity."""
        return identified(self._last)

    def _learn(self, labels: Sequence[str], numbers: Sequence[int] | None = None) -> None:
        """Numbers of classes: those that detections say, else the next that is free."""
        for row, label in enumerate(labels):
            if label not in self._numbers:
                free = max(self._numbers.values(), default=-1) + 1
                self._numbers[label] = free if numbers is None else int(numbers[row])


def rows_of(shown: Instances, given: Instances, least: float) -> Array:
    """(N,) the row of ``given`` that each shown object is, by class and mask; -1: none."""
    from scipy.optimize import linear_sum_assignment

    out = np.full(len(shown), -1)
    if not len(shown) or not len(given):
        return out
    targets = cells_of(given)
    ours = [cells.onto(targets[0].grid) for cells in cells_of(shown)]
    score = overlaps(ours, targets)
    score[np.not_equal.outer(np.array(shown.labels), np.array(given.labels))] = 0
    for row, column in zip(*linear_sum_assignment(score, maximize=True), strict=True):
        if score[row, column] >= least:
            out[row] = column
    return out
