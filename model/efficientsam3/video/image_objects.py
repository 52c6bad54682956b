"""Tracked objects take the masks of objects that the image encoder finds on the frame.

Models with late fusion find the objects of an image before any prompt is read. Where such an object
continues a tracked one by its motion and its look, or is in the place in which the memory expects
it, its mask follows the image better than that of a small memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..masks.overlap import mask_iou
from ..types import Array
from .association import assign
from .object_tracks import ObjectTracks, distinct
from .tracker_parts import TrackerParts
from .types import NO_OBJECT, FoundObjects, TrackerFeatures, TrackerOutput

LEAST_SUPPORT = 0.2
"""IoU with some object of the frame below which a mask of the memory shows nothing, if the object
was one of the frame's before."""

LEAST_LEFT = 0.5
"""Share of a mask of the memory that other tracked objects must leave, or else it is dropped."""

UNLIKELY = 0.3
"""Probability below which an object of the frame does not continue one that the memory does not
find."""


class ImageObjects:
    """Which objects of a stream's frames are the tracked ones."""

    def __init__(self) -> None:
        self._tracks = ObjectTracks()
        self._drawn: dict[int, Tensor] = {}  # the masks of the last frame, by identity

    def adopt(
        self, frame: int, parts: TrackerParts, features: TrackerFeatures, output: TrackerOutput
    ) -> TrackerOutput:
        """Replace masks of tracked objects by those of the objects that a frame shows.

        A mask is replaced by that of an object that continues it by motion and look, or else that
        has at least the IoU ``MemoryConfig.adopt_object_iou`` with it and does not look different.
        Each object of the frame goes to one tracked object; an unlikely one continues none that
        the memory does not find. A mask that lies on an object of another track is dropped: the
        tracked object is hidden, or elsewhere. So is a mask on nothing that the frame shows, except
        for what a person pointed at and no frame shows. Other masks of the memory lose the pixels
        of objects that other tracks follow.

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
        found = self._read(frame, parts, features)
        followed = self._tracks.rows_of(output.ids)
        for id, presence in zip(output.ids, output.presence.tolist(), strict=True):
            if presence <= 0 and id in followed and found.scores[followed[id]] < UNLIKELY:
                del followed[id]
        rest = [i for i, id in enumerate(output.ids) if id not in followed]
        overlap = _overlap(found, output, rest)
        near = overlap >= parts.config.memory.adopt_object_iou
        taken = self._tracks.taken()
        free = np.zeros_like(overlap)
        for row, i in np.argwhere(near).tolist():
            id = output.ids[rest[i]]
            if row not in taken and not self._tracks.knows(id):
                free[row, i] = overlap[row, i]
        for row, i in assign(free):
            self._tracks.bind(row, output.ids[rest[i]])
            followed[output.ids[rest[i]]] = row
        hidden = np.any(near[sorted(taken)], axis=0)
        known = np.array([self._tracks.has_look(output.ids[i]) for i in rest], bool)
        hidden |= known & (overlap < LEAST_SUPPORT).all(axis=0)
        logits, visible = output.logits.clone(), output.presence.clone()
        for place, id in enumerate(output.ids):
            if id in followed:
                logits[place] = found.logits[followed[id]].to(logits)
                visible[place] = visible[place].abs()
        others = (found.logits[sorted(set(followed.values()))] > 0).any(0).to(logits.device)
        for i, place in enumerate(rest):
            if output.ids[place] in followed:
                continue
            mask = logits[place] > 0
            left = int((mask & ~others).sum())
            if hidden[i] or left < LEAST_LEFT * int(mask.sum()):
                logits[place] = NO_OBJECT
                visible[place] = -visible[place].abs()
            else:
                logits[place][mask & others] = NO_OBJECT
        # A copy: the tracker may change the masks that it is given.
        self._drawn = dict(zip(output.ids, logits.clone(), strict=True))
        return output._replace(logits=logits, presence=visible)

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
        found = self._read(frame, parts, features)
        overlap = _overlap(found, output, decided)
        least = parts.config.memory.adopt_object_iou
        missing = set(decided)
        for row, i in assign(np.where(overlap >= least, overlap, 0)):
            self._tracks.bind(row, output.ids[decided[i]], decided=True)
            missing.discard(decided[i])
        for place in missing:
            self._tracks.place(output.ids[place], (output.logits[place] > 0).numpy(force=True))

    def forget(self, id: int) -> None:
        """Forget an object.

        Args:
            id: Its identity.
        """
        self._tracks.forget(id)
        self._drawn.pop(id, None)

    def _read(self, frame: int, parts: TrackerParts, features: TrackerFeatures) -> FoundObjects:
        if features.found is None:
            features.found = distinct(parts.find_objects(features.encoded))
        self._tracks.read(frame, features.found)
        return features.found


def _overlap(found: FoundObjects, output: TrackerOutput, places: Sequence[int]) -> Array:
    """(F, N) IoU of the objects of a frame and some tracked ones."""
    shown = (found.logits > 0).numpy(force=True)
    return mask_iou(shown, (output.logits[list(places)] > 0).numpy(force=True))
