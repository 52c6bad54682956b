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
"""IoU from which a new object and a tracked one are the same thing, and below which they no longer
are."""

UNLIKELY = 0.3
"""Probability below which an object of the frame does not continue one that the memory does not
find."""


class ImageObjects:
    """Which objects of a stream's frames are the tracked ones."""

    def __init__(self) -> None:
        self._tracks = ObjectTracks()
        self._drawn: dict[int, Tensor] = {}  # the masks of the last frame, by identity
        self._frame: int | None = None
        self._masks: dict[int, Tensor] = {}  # latest masks of that frame, by identity
        # The followed identity, by each other identity of the same thing.
        self._same: dict[int, int] = {}

    def adopt(
        self, frame: int, parts: TrackerParts, features: TrackerFeatures, output: TrackerOutput
    ) -> TrackerOutput:
        """Replace masks of tracked objects by those of the objects that a frame shows.

        A mask is replaced by that of an object that continues it by motion and look, or else that
        has at least the IoU ``MemoryConfig.adopt_object_iou`` with it and does not look different.
        Each object of the frame goes to one tracked object, or to several that are the same thing;
        an unlikely one continues none that the memory does not find. A mask that lies on an object
        of another track is dropped: the tracked object is hidden, or elsewhere. So is a mask on
        nothing that the frame shows, except for what a person pointed at and no frame shows. Other
        masks of the memory lose the pixels of objects that other tracks follow.

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
        thing = {id: self._same.get(id, id) for id in output.ids}
        rows = self._tracks.rows_of(list(thing.values()))
        followed = {id: rows[of] for id, of in thing.items() if of in rows}
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
            if row not in taken and not self._tracks.knows(thing[id]):
                free[row, i] = overlap[row, i]
        for row, i in assign(free):
            self._tracks.bind(row, output.ids[rest[i]])
            followed[output.ids[rest[i]]] = row
        hidden = np.any(near[sorted(taken)], axis=0)
        known = np.array([self._tracks.has_look(thing[output.ids[i]]) for i in rest], bool)
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
        self._masks_of(frame).update(self._drawn)
        return output._replace(logits=logits, presence=visible)

    def note(
        self, frame: int, parts: TrackerParts, features: TrackerFeatures, output: TrackerOutput
    ) -> None:
        """Note where objects are on a frame whose masks a person or a detection has decided.

        These masks tell more than motion does: an object that followed a neighbor is corrected.
        Masks that are still those of ``adopt`` tell nothing new. A new object with the mask of a
        tracked one is the same thing, as with two phrases that both mean it. One of them is
        followed and the others are where it is, until their masks are decided to be different.

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
        self._compare(frame, output, decided)
        decided = [row for row in decided if output.ids[row] not in self._same]
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
        self._drawn.pop(id, None)
        self._masks.pop(id, None)
        self._same.pop(id, None)
        heirs = [other for other, of in self._same.items() if of == id]
        if not heirs:
            self._tracks.forget(id)
            return
        del self._same[heirs[0]]
        self._same.update(dict.fromkeys(heirs[1:], heirs[0]))
        self._tracks.rename(id, heirs[0])

    def _masks_of(self, frame: int) -> dict[int, Tensor]:
        """The latest masks of a frame, by identity."""
        if frame != self._frame:
            self._frame, self._masks = frame, {}
        return self._masks

    def _compare(self, frame: int, output: TrackerOutput, decided: Sequence[int]) -> None:
        """Find the new objects that are the same thing as others, and those that no longer are.

        Objects that come to have one mask later are two things: one follows the wrong one.
        """
        masks = self._masks_of(frame)
        earlier = set(masks)
        masks.update({output.ids[row]: output.logits[row].clone() for row in decided})
        places = {id: place for place, id in enumerate(masks)}
        shown = (torch.stack(list(masks.values())) > 0).numpy(force=True)
        new = [output.ids[row] for row in decided]
        overlap = dict(zip(new, mask_iou(shown[[places[id] for id in new]], shown), strict=True))
        for id in new:
            for one, other in list(self._same.items()):
                if id not in (one, other):
                    continue
                place = places.get(other if id == one else one)
                if place is not None and overlap[id][place] < APART_IOU:
                    del self._same[one]
            if not self._tracks.knows(self._same.get(id, id)):
                alike = {other: float(overlap[id][places[other]]) for other in earlier - {id}}
                best = max(alike, key=alike.__getitem__, default=id)
                if alike.get(best, 0.0) >= ONE_IOU:
                    self._same[id] = self._same.get(best, best)
            earlier.add(id)

    def _read(self, frame: int, parts: TrackerParts, features: TrackerFeatures) -> FoundObjects:
        if features.found is None:
            features.found = distinct(parts.find_objects(features.encoded))
        self._tracks.read(frame, features.found)
        return features.found


def _overlap(found: FoundObjects, output: TrackerOutput, places: Sequence[int]) -> Array:
    """(F, N) IoU of the objects of a frame and some tracked ones."""
    shown = (found.logits > 0).numpy(force=True)
    return mask_iou(shown, (output.logits[list(places)] > 0).numpy(force=True))
