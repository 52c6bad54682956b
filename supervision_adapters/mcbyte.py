"""McByte of the `trackers` package with one light model in the place of SAM and Cutie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from efficientsam3.image import ImageModel
from efficientsam3.types import Array, Box, LogitPatch
from efficientsam3.video.memory import MemoryTracker, Tracked, TrackerFeatures

from .detector import ConceptDetector
from .errors import AdapterError, require


class Crop(NamedTuple):
    """A mask cut to its own extents. pixels: (h, w) bool. box: x0, y0, x1, y1 in the frame."""

    pixels: Array
    box: Box


def build_mcbyte(model: ImageModel, **options: Any) -> Any:
    """McByte whose masks are made and carried on by ``model``.

    >>> tracker = build_mcbyte(es3.load("efficientsam3-tinyvit-11m"))
    >>> detections = tracker.update(detections, frame)  # RGB

    Its masks settle which box is whose; what it returns are the detections that it was given.
    ``tracker.mask_manager.mask_propagator.masks`` are its own of the last frame, by identity.

    Args:
        model: whose weights have a video memory ("video" in its ``abilities``).
        options: of ``trackers.McByteTracker``. Frames are RGB there.
    """
    trackers = require("trackers", "trackers")
    manager = require("trackers.core.mcbyte.mask_manager", "trackers").MaskManager
    return trackers.McByteTracker(
        mask_manager=manager(MaskGenerator(model), MaskPropagator(model)), **options
    )


class MaskGenerator:
    """Masks for McByte's boxes, as its interface asks: frame (H, W, 3) uint8 RGB."""

    def __init__(self, model: ImageModel) -> None:
        self._detector = ConceptDetector(model)

    def generate(self, frame: Array, tracklets: Iterable[Any]) -> Any:
        """``MaskOutput`` with a mask for each tracklet, empty where nothing was found."""
        sv = require("supervision", "supervision")
        given = list(tracklets)
        boxes = np.array([t.xyxy for t in given], np.float32).reshape(-1, 4)
        found = self._detector.segment_boxes(frame, sv.Detections(xyxy=boxes))
        ids = [int(t.tracker_id) for t in given]
        scores = found.data["mask_score"].tolist()
        return _output(np.asarray(found.mask), ids, scores)


class MaskPropagator:
    """Carries masks from frame to frame by the model's video memory, as McByte's interface asks.

    Attributes:
        masks: of the last frame, by identity; objects that are not in it are left out.
    """

    def __init__(self, model: ImageModel) -> None:
        self._tracker = MemoryTracker(model)
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
        """Begin with the masks of a frame."""
        self.reset()
        self.add_masks(frame, mask_output)

    def add_masks(self, frame: Array, mask_output: Any) -> None:
        """Take objects of the last frame: new ones, or known ones again."""
        if mask_output.masks is None or not len(mask_output.masks):
            return
        masks = np.asarray(mask_output.masks, bool)
        rows = {id: row for id, row in mask_output.tracklet_mask_dict.items() if masks[row].any()}
        if not rows:
            return
        if masks.shape[1:] != frame.shape[:2]:
            raise AdapterError(f"masks of {masks.shape[1:]} are not of the frame {frame.shape[:2]}")
        given = torch.from_numpy(masks[list(rows.values())])
        self._tracker.add_masks(self._number, self._read(frame), list(rows), given)

    def propagate(self, frame: Array) -> Any:
        """``MaskOutput`` of the next frame; None where there is no object."""
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
        return _output(dense, found.ids, _certainty(found))

    def remove_masks(self, tracklet_ids: Iterable[int]) -> None:
        """Forget some objects; those that have no mask are none."""
        for id in set(tracklet_ids) & set(self._tracker.ids):
            self._tracker.remove(id)
            self.masks.pop(id, None)

    @property
    def nbytes(self) -> int:
        """Bytes of all memories: bounded for each object."""
        return self._tracker.nbytes

    def _read(self, frame: Array) -> TrackerFeatures:
        """Features of a frame. McByte asks twice of the same one: for its objects, and new ones."""
        if self._features is None or self._frame is not frame:
            self._frame, self._features = frame, self._tracker.read(frame)
        return self._features


def _certainty(found: Tracked) -> list[float]:
    """Mean probability of each mask's cells; 0 without any."""
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
