"""A tracker by the model's video memory, with the interface of the `trackers` package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from efficientsam3.concepts import Concepts
from efficientsam3.masks.coarse import coarse_masks, iou_matrix
from efficientsam3.predictor import ImageModel
from efficientsam3.types import Array, Instances, join
from efficientsam3.video.concept_tracker import ConceptTracker
from efficientsam3.video.settings import TrackSettings

from .detections import BoxSource, MaskFormat, check_formats, from_detections, to_detections
from .detector import ConceptDetector
from .errors import AdapterError
from .images import ColorOrder, check_color, read_pixels
from .tracking import NO_ID, Tracker

DET_INDEX = "det_index"
"""Key in ``Detections.data`` of an object's row in the input; -1 where it has none."""


class VideoMemoryTracker(Tracker):
    """Tracks objects by their appearance, through occlusions and without detections.

    It finds the concepts itself, or takes the detections of any detector. Either way it returns
    every object that is in the frame, detected there or not, at once for each frame.

    >>> tracker = VideoMemoryTracker(es3.load("efficientsam3-tinyvit-11m"), ["person"])
    >>> detections = tracker.update(frame=frame)

    Args:
        model: A model with a video memory ("video" in its ``abilities``).
        concepts: What to find where ``update`` gets no detections, as in ``ConceptDetector``.
        detect_every: The concepts are looked for in every n-th frame.
        color: Order of the channels of frames, as in ``ConceptDetector``.
        settings: Tracking thresholds. ``hotstart_delay`` must be 0, because ``update`` cannot
            wait for later frames; ``es3.track`` can.
        mask_format: See ``to_detections``.
        box_source: See ``to_detections``.

    Attributes:
        core: The ``efficientsam3.ConceptTracker`` behind it, with ``add_object(points=...)``,
            ``remove_object(id)``, ``add_concept(...)`` and ``add_exemplars(...)``.

    Raises:
        MissingAbilityError: The weights have no memory; ``MaskIoUTracker`` needs none.
        AdapterError: The settings delay results.
    """

    def __init__(
        self,
        model: ImageModel,
        concepts: Concepts = (),
        *,
        detect_every: int = 1,
        color: ColorOrder = "rgb",
        settings: TrackSettings | None = None,
        mask_format: MaskFormat | None = "compact",
        box_source: BoxSource = "mask",
    ) -> None:
        check_color(color)
        check_formats(mask_format, box_source)
        self.model, self.color = model, color
        self.mask_format: MaskFormat | None = mask_format
        self.box_source: BoxSource = box_source
        self.settings = settings or TrackSettings.of(model, hotstart_delay=0)
        if self.settings.hotstart_delay:
            raise AdapterError(
                f"hotstart_delay={self.settings.hotstart_delay} delays results, and update returns "
                "at once: pass TrackSettings(hotstart_delay=0), or use es3.track"
            )
        self._detector = ConceptDetector(model, concepts, color=color)
        self._detect_every = detect_every
        self.reset()

    @property
    def class_names(self) -> list[str]:
        """Class names by ``class_id``: the concepts, and classes of given detections.

        A number that no class has is named "class 3".
        """
        names = {number: name for name, number in self._class_ids.items()}
        return [names.get(i, f"class {i}") for i in range(max(names, default=-1) + 1)]

    def update(
        self, detections: Any = None, frame: Array | None = None, timestamp: float | None = None
    ) -> Any:
        """Track the next frame.

        Args:
            detections: ``sv.Detections`` of another detector; boxes without masks get masks
                first. None: the tracker finds its concepts itself.
            frame: (H, W, 3) uint8, in the tracker's channel order.
            timestamp: Not used.

        Returns:
            The objects with ``tracker_id``, then the given detections that belong to no object,
            with ``tracker_id`` -1. ``data["det_index"]`` is the row of the input, -1 where an
            object has no detection. ``class_id`` is the place in ``class_names``: that of the
            given detections, unless another class has the number.

        Raises:
            AdapterError: There is no frame, or nothing to look for.
        """
        if frame is None:
            raise AdapterError(
                "a memory tracker needs each frame: call update(detections, frame), or "
                "update(frame=frame) to detect by itself"
            )
        if detections is None and not self.core.concepts:
            raise AdapterError(
                "nothing to find: VideoMemoryTracker(model, ['person']), or pass detections"
            )
        rgb = read_pixels(frame, self.color)
        given = None
        if detections is not None:
            if detections.mask is None:
                detections = self._detector.segment_boxes(frame, detections)
            given = from_detections(detections, (rgb.shape[0], rgb.shape[1]))
            if detections.class_id is not None:
                self._add_classes(given.labels, detections.class_id.tolist())
        (tracked,) = self.core.step(rgb, given)
        objects, rows = tracked.instances, np.full(len(tracked.instances), -1)
        if objects.track_ids is None:
            objects = replace(objects, track_ids=np.full(len(objects), NO_ID))
        if given is not None and len(given):
            rows = match_objects(objects, given, self.settings.confirm_iou)
            rest = np.setdiff1d(np.arange(len(given)), rows)
            ids = np.concatenate([objects.track_ids, np.full(len(rest), NO_ID)])
            objects = replace(join([objects, given[rest]]), track_ids=ids)
            rows = np.concatenate([rows, rest])
        self._add_classes(objects.labels)
        out = to_detections(
            objects,
            class_names=list(dict.fromkeys(objects.labels)),
            mask_format=self.mask_format,
            box_source=self.box_source,
            keep_empty=True,
        )
        out.class_id = np.array([self._class_ids[label] for label in objects.labels], int)
        out.data[DET_INDEX] = rows.astype(int)
        self._last = out
        return out

    def reset(self) -> None:
        """Forget all objects. Identities start from 0 again; the concepts stay."""
        self.core = ConceptTracker(
            self.model,
            self._detector.classes or None,
            tracker="memory",
            settings=self.settings,
            detect_every=self._detect_every,
        )
        self._class_ids = {name: i for i, name in enumerate(self._detector.class_names)}
        self._last = None

    def _add_classes(self, labels: Sequence[str], numbers: Sequence[int] | None = None) -> None:
        """Number new classes as the detections do, or by the next number where that is taken."""
        for row, label in enumerate(labels):
            if label not in self._class_ids:
                taken = self._class_ids.values()
                number = None if numbers is None else int(numbers[row])
                if number is None or number < 0 or number in taken:
                    number = max(taken, default=-1) + 1
                self._class_ids[label] = number


def match_objects(objects: Instances, given: Instances, min_iou: float) -> Array:
    """Match tracked objects with given detections, by class and mask IoU, one to one.

    Args:
        objects: N tracked objects.
        given: Detections of the same frame.
        min_iou: Least IoU of a match, on a coarse grid.

    Returns:
        (N,) row of ``given`` for each object; -1 without a match.
    """
    from scipy.optimize import linear_sum_assignment

    out = np.full(len(objects), -1)
    if not len(objects) or not len(given):
        return out
    targets = coarse_masks(given)
    masks = [mask.resized(targets[0].grid) for mask in coarse_masks(objects)]
    iou = iou_matrix(masks, targets)
    iou[np.not_equal.outer(np.array(objects.labels), np.array(given.labels))] = 0
    for row, column in zip(*linear_sum_assignment(iou, maximize=True), strict=True):
        if iou[row, column] >= min_iou:
            out[row] = column
    return out
