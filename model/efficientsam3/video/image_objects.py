"""Tracked objects take the masks of objects that the image encoder finds on the frame.

Models with late fusion find the objects of an image before any prompt is read. Where such an object
continues a tracked one by motion, or is in the place in which the memory expects it, its mask
follows the image better than that of a small memory.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..masks.overlap import mask_iou
from ..types import Array, Instances, LogitPatch, Patch
from .association import assign
from .motion import MotionLinks
from .settings import IoUSettings
from .tracker_parts import TrackerParts
from .types import FoundObjects, TrackerFeatures, TrackerOutput

LEAST_SCORE = 0.1
"""Probability below which what the image encoder finds is not taken for an object."""
MOTION = IoUSettings(match_iou=0.3, max_distance=0.0, new_track_threshold=0.0, max_age=2)
"""How these objects are joined from frame to frame."""


class ImageObjects:
    """Which objects of a stream's frames are the tracked ones.

    It is empty again where frames are skipped, or the direction of travel changes.
    """

    def __init__(self) -> None:
        self._links = MotionLinks(MOTION)
        self._frame: int | None = None
        self._way = 0
        self._drawn: dict[int, Tensor] = {}  # the masks of the last frame, by identity

    def adopt(
        self, frame: int, parts: TrackerParts, features: TrackerFeatures, output: TrackerOutput
    ) -> TrackerOutput:
        """Replace masks of tracked objects by those of the objects that a frame shows.

        A mask is replaced by that of an object that continues it by motion, or else that has at
        least the IoU ``MemoryConfig.adopt_object_iou`` with it. Each object of the frame goes to
        one tracked object.

        Args:
            frame: Number of the frame.
            parts: The parts of the model.
            features: The frame, which keeps the objects that are found on it.
            output: N tracked objects on the frame.

        Returns:
            The output with these masks; as it is for models that adopt none.
        """
        if features.encoded is None or not output.ids:
            return output
        found, overlap = self._compare(frame, parts, features, output)
        visible = (output.logits > 0).flatten(1).any(1).numpy(force=True)
        overlap = self._links.apply(overlap, range(len(overlap)), output.ids) * visible
        logits = output.logits.clone()
        for row, tracked_row in assign(overlap):
            self._links.bind(row, output.ids[tracked_row])
            logits[tracked_row] = found.logits[row].to(logits)
        # A copy: the tracker may change the masks that it is given.
        self._drawn = dict(zip(output.ids, logits.clone(), strict=True))
        return output._replace(logits=logits)

    def note(
        self, frame: int, parts: TrackerParts, features: TrackerFeatures, output: TrackerOutput
    ) -> None:
        """Note where objects are on a frame whose masks a person or a detection has decided.

        These masks tell more than motion does: an object that followed a neighbor is corrected.
        Masks that are still those of ``adopt`` tell nothing new.

        Args:
            frame: Number of the frame.
            parts: The parts of the model.
            features: The frame.
            output: The objects, whose masks stay as they are.
        """
        if features.encoded is None:
            return
        decided = [
            row
            for row, id in enumerate(output.ids)
            if id not in self._drawn or not torch.equal(self._drawn[id], output.logits[row])
        ]
        if not decided:
            return
        output = output.take(decided)
        _, overlap = self._compare(frame, parts, features, output)
        for row, tracked_row in assign(overlap):
            self._links.bind(row, output.ids[tracked_row])

    def forget(self, id: int) -> None:
        """Forget an object.

        Args:
            id: Its identity.
        """
        self._links.forget(id)
        self._drawn.pop(id, None)

    def _compare(
        self, frame: int, parts: TrackerParts, features: TrackerFeatures, output: TrackerOutput
    ) -> tuple[FoundObjects, Array]:
        """The F objects of the frame, and their (F, N) IoU with the tracked ones, 0 if too low."""
        if features.found is None:
            found = parts.find_objects(features.encoded)
            keep = found.scores > LEAST_SCORE
            features.found = FoundObjects(found.logits[keep], found.scores[keep])
        found = features.found
        self._read(frame, found)
        tracked, shown = ((x.logits > 0).numpy(force=True) for x in (output, found))
        overlap = mask_iou(shown, tracked)
        return found, overlap * (overlap >= parts.config.memory.adopt_object_iou)

    def _read(self, frame: int, found: FoundObjects) -> None:
        if frame == self._frame:
            return
        way = 0 if self._frame is None else frame - self._frame
        if abs(way) != 1 or (self._way and way != self._way):
            self._links = MotionLinks(MOTION)
            way = 0
        self._frame, self._way = frame, way
        self._links.read(frame, _instances(found))


def _instances(found: FoundObjects) -> Instances:
    """Objects as detections of one class."""
    logits: Array = found.logits.float().numpy(force=True)
    patches: list[Patch] = [LogitPatch.cut(one) for one in logits]
    size = (logits.shape[1], logits.shape[2])
    boxes = np.array([p.crop(size)[1] for p in patches], np.float32).reshape(-1, 4)
    scores = found.scores.float().numpy(force=True)
    return Instances(boxes, scores, scores, ["object"] * len(boxes), size, patches)
