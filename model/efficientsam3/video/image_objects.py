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

ONE_IOU, APART_IOU = 0.8, 0.5
"""IoU from which the masks of two tracked objects show one thing, and below which they do not."""

UNLIKELY = 0.3
"""Probability below which an object of the frame does not continue one that the memory does not
find."""


class ImageObjects:
    """Which objects of a stream's frames are the tracked ones."""

    def __init__(self) -> None:
        self._tracks = ObjectTracks()
        self._leaders: dict[int, int] = {}  # of identities that are another one's object, too
        self._drawn: dict[int, Tensor] = {}  # the masks of the last frame, by identity

    def adopt(
        self, frame: int, parts: TrackerParts, features: TrackerFeatures, output: TrackerOutput
    ) -> TrackerOutput:
        """Replace masks of tracked objects by those of the objects that a frame shows.

        A mask is replaced by that of an object that continues it by motion and look, or else that
        has at least the IoU ``MemoryConfig.adopt_object_iou`` with it and does not look different.
        Each object of the frame goes to one tracked object, or to several that are one thing. An
        unlikely one continues no object that the memory does not find. A mask that lies on an
        object of another track is dropped: the tracked object is hidden, or elsewhere. So is a mask
        on nothing that the frame shows, except for what a person pointed at and no frame shows.
        Other masks of the memory lose the pixels of objects that other tracks follow.

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
        for id, leader in self._leaders.items():
            if id in output.ids and leader in followed:
                followed[id] = followed[leader]
        unlikely = (found.scores < UNLIKELY).tolist()
        absent = [id for id, seen in zip(output.ids, output.presence > 0, strict=True) if not seen]
        for id in absent:
            if id in followed and unlikely[followed[id]]:
                del followed[id]
        rest = [i for i, id in enumerate(output.ids) if id not in followed]
        overlap = _overlap(found, output, rest)
        near = overlap >= parts.config.memory.adopt_object_iou
        taken = self._tracks.taken()
        free = np.zeros_like(overlap)
        for row, i in np.argwhere(near).tolist():
            id = output.ids[rest[i]]
            if row not in taken and not self._tracks.knows(self._leaders.get(id, id)):
                free[row, i] = overlap[row, i]
        for row, i in assign(free):
            self._tracks.bind(row, output.ids[rest[i]])
            followed[output.ids[rest[i]]] = row
        hidden = np.any(near[sorted(taken)], axis=0)
        leaders = [self._leaders.get(output.ids[i], output.ids[i]) for i in rest]
        known = np.array([self._tracks.has_look(id) for id in leaders], bool)
        hidden |= known & (overlap < LEAST_SUPPORT).all(axis=0)
        logits, presence = output.logits.clone(), output.presence.clone()
        for place, id in enumerate(output.ids):
            if id in followed:
                logits[place] = found.logits[followed[id]].to(logits)
                presence[place] = presence[place].abs()
        others = (found.logits[sorted(set(followed.values()))] > 0).any(0).to(logits.device)
        for i, place in enumerate(rest):
            if output.ids[place] in followed:
                continue
            mask = logits[place] > 0
            left = int((mask & ~others).sum())
            if hidden[i] or left < LEAST_LEFT * int(mask.sum()):
                logits[place] = NO_OBJECT
                presence[place] = -presence[place].abs()
            else:
                logits[place][mask & others] = NO_OBJECT
        # A copy: the tracker may change the masks that it is given.
        self._drawn = dict(zip(output.ids, logits.clone(), strict=True))
        return output._replace(logits=logits, presence=presence)

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
        self._compare(output, decided)
        decided = [row for row in decided if output.ids[row] not in self._leaders]
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
        self._leaders.pop(id, None)
        self._drawn.pop(id, None)
        heirs = [other for other, leader in self._leaders.items() if leader == id]
        for heir in heirs:
            self._leaders[heir] = heirs[0]
        if heirs:
            del self._leaders[heirs[0]]
            self._tracks.rename(id, heirs[0])
        else:
            self._tracks.forget(id)

    def _compare(self, output: TrackerOutput, decided: Sequence[int]) -> None:
        """Find new objects that are one thing with another, as with two concepts that both mean it.

        The first of them is followed, and the others are where it is, until a person or a
        detection draws them elsewhere. Objects that come to have one mask later are not one thing:
        one of them follows the wrong one.
        """
        masks = (output.logits > 0).numpy(force=True)
        overlap = mask_iou(masks, masks)
        places = {id: place for place, id in enumerate(output.ids)}
        for row in decided:
            id = output.ids[row]
            leader = self._leaders.get(id)
            if leader in places and overlap[row, places[leader]] < APART_IOU and masks[row].any():
                del self._leaders[id]
        for row in decided:
            id = output.ids[row]
            if id in self._leaders or self._tracks.knows(id):
                continue
            for other in output.ids[:row]:
                if overlap[row, places[other]] >= ONE_IOU and other not in self._leaders:
                    self._leaders[id] = other
                    break

    def _read(self, frame: int, parts: TrackerParts, features: TrackerFeatures) -> FoundObjects:
        if features.found is None:
            features.found = distinct(parts.find_objects(features.encoded))
        self._tracks.read(frame, features.found)
        return features.found


def _overlap(found: FoundObjects, output: TrackerOutput, places: Sequence[int]) -> Array:
    """(F, N) IoU of the objects of a frame and some tracked ones."""
    shown = (found.logits > 0).numpy(force=True)
    return mask_iou(shown, (output.logits[list(places)] > 0).numpy(force=True))
