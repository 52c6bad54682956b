"""McByte of the `trackers` package, with one of our models in the place of SAM and Cutie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from efficientsam3.predictor import ImageModel
from efficientsam3.types import Array, Box, LogitPatch
from efficientsam3.video.multiplex_tracker import make_tracker
from efficientsam3.video.types import TrackerFeatures, TrackerOutput

from .detector import ConceptDetector
from .errors import AdapterError, require


class Crop(NamedTuple):
    """A mask cut to its own extent."""

    pixels: Array
    """(h, w) bool."""
    box: Box
    """x0, y0, x1, y1 of the cut in the frame."""


def build_mcbyte(model: ImageModel, **options: Any) -> Any:
    """Make a McByte tracker whose masks are made and propagated by ``model``.

    McByte uses the masks to decide which box belongs to which track, and returns the detections
    that it was given. ``tracker.mask_manager.mask_propagator.masks`` are the masks of the last
    frame by identity.

    >>> tracker = build_mcbyte(es3.load("efficientsam3-tinyvit-11m"))
    >>> detections = tracker.update(detections, frame)  # RGB

    Args:
        model: A model with a video memory ("video" in its ``abilities``).
        **options: Options of ``trackers.McByteTracker``.

    Returns:
        The ``trackers.McByteTracker``. Its frames are RGB.
    """
    trackers = require("trackers", "trackers")
    manager = require("trackers.core.mcbyte.mask_manager", "trackers").MaskManager
    return trackers.McByteTracker(
        mask_manager=manager(MaskGenerator(model), MaskPropagator(model)), **options
    )


class MaskGenerator:
    """Makes masks for McByte's boxes. Implements the `trackers` package's mask generator.

    Args:
        model: A model of ``efficientsam3.load``.
    """

    def __init__(self, model: ImageModel) -> None:
        self._detector = ConceptDetector(model)

    def generate(self, frame: Array, tracklets: Iterable[Any]) -> Any:
        """Segment the boxes of tracklets.

        Args:
            frame: (H, W, 3) uint8 RGB.
            tracklets: Tracklets with ``xyxy`` and ``tracker_id``.

        Returns:
            ``MaskOutput`` with a mask for each tracklet, empty where nothing was found.
        """
        sv = require("supervision", "supervision")
        rows = list(tracklets)
        boxes = np.array([t.xyxy for t in rows], np.float32).reshape(-1, 4)
        found = self._detector.segment_boxes(frame, sv.Detections(xyxy=boxes))
        ids = [int(t.tracker_id) for t in rows]
        scores = found.data["mask_score"].tolist()
        return _output(np.asarray(found.mask), ids, scores)


class MaskPropagator:
    """Propagates masks by the model's video memory.

    Implements the `trackers` package's mask propagator. Frames are (H, W, 3) uint8 RGB.

    Args:
        model: A model with a video memory.

    Attributes:
        masks: Masks of the last frame by identity; objects without a pixel are left out.
    """

    def __init__(self, model: ImageModel) -> None:
        self._tracker = make_tracker(model)
        self.reset()

    def reset(self) -> None:
        """Forget all objects."""
        for id in self._tracker.ids:
            self._tracker.remove(id)
        self.masks: dict[int, Crop] = {}
        self._number = 0
        self._frame: Array | None = None
        self._features: TrackerFeatures | None = None

    def initialize(self, frame: Array, mask_output: Any) -> None:
        """Start with the masks of a frame.

        Args:
            frame: (H, W, 3) uint8 RGB.
            mask_output: ``MaskOutput`` of the frame.
        """
        self.reset()
        self.add_masks(frame, mask_output)

    def add_masks(self, frame: Array, mask_output: Any) -> None:
        """Add or replace objects of the last frame.

        Args:
            frame: (H, W, 3) uint8 RGB, the last frame.
            mask_output: ``MaskOutput`` of the frame. Empty masks are ignored.

        Raises:
            AdapterError: The masks have another size than the frame.
        """
        if mask_output.masks is None or not len(mask_output.masks):
            return
        masks = np.asarray(mask_output.masks, bool)
        rows = {id: row for id, row in mask_output.tracklet_mask_dict.items() if masks[row].any()}
        if not rows:
            return
        if masks.shape[1:] != frame.shape[:2]:
            raise AdapterError(
                f"the masks have shape {masks.shape[1:]} and the frame {frame.shape[:2]}: pass "
                "masks of this frame"
            )
        given = torch.from_numpy(masks[list(rows.values())])
        self._tracker.add_masks(self._number, self._read(frame), list(rows), given, "mask")

    def propagate(self, frame: Array) -> Any:
        """Find the objects in the next frame.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            ``MaskOutput`` of the frame; None where there is no object.
        """
        if not self._tracker.ids:
            return None
        self._number += 1
        self._frame = None
        features = self._read(frame)
        found = self._tracker.propagate(self._number, features)
        self._tracker.remember(self._number, features, found)
        size = frame.shape[:2]
        crops = [Crop(*LogitPatch.cut(m).crop(size)) for m in found.logits.float().cpu().numpy()]
        self.masks = {
            id: crop for id, crop in zip(found.ids, crops, strict=True) if crop.pixels.any()
        }
        dense = np.zeros((len(crops), *size), bool)
        for row, (pixels, (x0, y0, x1, y1)) in zip(dense, crops, strict=True):
            row[y0:y1, x0:x1] = pixels
        return _output(dense, found.ids, _mean_probability(found))

    def remove_masks(self, tracklet_ids: Iterable[int]) -> None:
        """Forget some objects.

        Args:
            tracklet_ids: Identities; unknown ones are ignored.
        """
        for id in set(tracklet_ids) & set(self._tracker.ids):
            self._tracker.remove(id)
            self.masks.pop(id, None)

    @property
    def nbytes(self) -> int:
        """Bytes of all memories; bounded for each object."""
        return self._tracker.nbytes

    def _read(self, frame: Array) -> TrackerFeatures:
        """Return the features of a frame, computed once though McByte asks twice for a frame."""
        if self._features is None or self._frame is not frame:
            self._frame, self._features = frame, self._tracker.read(frame)
        return self._features


def _mean_probability(found: TrackerOutput) -> list[float]:
    """Mean probability of each mask's foreground cells; 0 for an empty mask."""
    inside = (found.logits > 0).float()
    sums = (found.logits.float().sigmoid() * inside).sum((1, 2))
    means: list[float] = (sums / inside.sum((1, 2)).clamp(min=1)).tolist()
    return means


def _output(masks: Array, ids: Iterable[int], scores: Iterable[float]) -> Any:
    kind = require("trackers.core.mcbyte.masks.base", "trackers").MaskOutput
    names = list(ids)
    return kind(
        masks=masks,
        tracklet_mask_dict={id: row for row, id in enumerate(names)},
        mask_avg_prob_dict=dict(zip(names, map(float, scores), strict=True)),
    )
