"""Concepts followed through a stream of frames: detect, associate, show."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingAbilityError, PromptError
from ..pixels import read_rgb
from ..prompts import (
    check_labelled,
    read_array,
    read_boxes,
    read_concepts,
    read_labels,
    read_phrase,
    read_points,
)
from ..types import Array, BitPatch, Instances, join
from .frames import Frame
from .mask_tracker import NONE, MaskTracker
from .mend import share_out
from .objects import MemoryFollower, Outcome, Part
from .settings import TrackError, TrackSettings

if TYPE_CHECKING:
    from ..image import EncodedImage, ImageModel
    from .memory import MemoryTracker

TRACKERS = ("auto", "memory", "masks")

OBJECT = "object"
"""The label of what is pointed at, where no concept is named."""


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """What is known of a frame.

    index: of the frame in its source. time: seconds, None where the source has no clock.
    instances: with ``track_ids``, unique over all concepts of a stream, from 0. A track's score
    is that of the detection that began it; ``presence`` says how sure the tracker is of it in
    this frame. image: (H, W, 3) uint8 RGB, where it was asked for.
    """

    index: int
    time: float | None
    instances: Instances
    image: Array | None = field(default=None, repr=False)


@dataclass(eq=False)
class _Draft:
    """A frame that waits until it is decided what it shows."""

    frame: Frame
    size: tuple[int, int]
    outcome: Outcome
    presence: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Exemplars:
    """Boxes that show a concept in one frame: (K, 4) xyxy pixels, (K,) signs."""

    concept: str | None
    boxes: Array
    labels: Array


class ConceptTracker:
    """Follows concepts through frames that are given one at a time, forward or backward.

    By memory it goes SAM3's way, with results that wait for ``settings.hotstart`` frames; by
    masks, results leave at once. Either way memory holds the last frame, the objects that are
    followed, and what waits.

    Args:
        model: that finds concepts; None where all detections are given to ``step``, which goes
            with tracker="masks".
        concepts: phrases; more can be added, and any removed, at any time.
        tracker: "memory" follows objects by the model's video memory, "masks" by the overlap of
            detections; "auto": by memory where the weights have one. Or a ``MemoryTracker``.
        settings: thresholds and delays, each explained there.
        every: the detector runs on every n-th frame; between them objects go on by what the
            tracker knows of them.
        keep_images: give the pixels with the results.

    Raises:
        TrackError, MissingAbilityError, PromptError: the message says the way out.
    """

    def __init__(
        self,
        model: ImageModel | None,
        concepts: str | Sequence[str] | None = None,
        *,
        tracker: str | MemoryTracker = "auto",
        settings: TrackSettings | None = None,
        every: int = 1,
        keep_images: bool = False,
    ) -> None:
        if isinstance(tracker, str) and tracker not in TRACKERS:
            raise TrackError(f"tracker is {', '.join(map(repr, TRACKERS))}; got {tracker!r}")
        if not isinstance(every, int) or every < 1:
            raise TrackError(f"every is a whole number of frames from 1; got {every!r}")
        self.model = model
        self.settings = settings or TrackSettings()
        self.every, self.keep_images = every, keep_images
        self._concepts = read_concepts(concepts) or []
        self._exemplars: dict[int | None, list[_Exemplars]] = {}
        self._masks = MaskTracker(self.settings.masks)
        self._objects = _follower(model, tracker, self.settings)
        self._drafts: deque[_Draft] = deque()
        self._last: Frame | None = None
        self._way = 0
        self._count = 0
        self._detected = 0

    @property
    def tracker(self) -> str:
        """ "memory" or "masks": what objects are followed by."""
        return "masks" if self._objects is None else "memory"

    # Prompts ---------------------------------------------------------------------------

    @property
    def concepts(self) -> tuple[str, ...]:
        """Phrases that are looked for in each frame."""
        return tuple(self._concepts)

    def add_concept(self, concept: str) -> None:
        """Look for one more concept, from the next frame on."""
        name = read_phrase(concept)
        if name not in self._concepts:
            self._concepts.append(name)
            self._detected = 0  # the detector runs on the next frame, whatever ``every`` says

    def remove_concept(self, concept: str) -> None:
        """Look for a concept no more, and forget its objects, in frames that wait too."""
        name = read_phrase(concept)
        if name not in self._concepts:
            raise PromptError(
                f"{name!r} is not followed; concepts are {', '.join(self._concepts) or 'none'}"
            )
        self._concepts.remove(name)
        self._masks.remove_label(name)
        if self._objects is not None:
            self._take_back([i for i, life in self._objects.lives.items() if life.label == name])

    def add_exemplars(
        self,
        boxes: Any,
        box_labels: Any = None,
        *,
        concept: str | None = None,
        frame: int | None = None,
    ) -> None:
        """Show what to look for by boxes in one frame that is still to come.

        Args:
            boxes: (K, 4) xyxy pixels. box_labels: (K,) 1 like this, 0 not like this.
            concept: that they refine, in that frame; None: they alone say what is looked for,
                and what they find there is followed.
            frame: index of the frame that they are drawn on; the next one if omitted.
        """
        check_labelled(box_labels, boxes, "box_labels", "boxes")
        if concept is None and self._objects is None:
            raise MissingAbilityError(
                "what exemplars alone show is found in their frame, and followed from there by "
                "memory; this stream is followed by masks (tracker='masks', or weights without a "
                "memory). Name a concept that the boxes refine"
            )
        last, way = self._last, self._way or 1
        if frame is not None and last is not None and (frame - last.index) * way <= 0:
            raise TrackError(
                f"frame {frame} has passed (the last was {last.index}) and frames are not kept; "
                "draw exemplars on a frame to come, or point at an object in the last one with "
                "add_object"
            )
        name = None if concept is None else read_phrase(concept)
        corners = read_array(boxes, 4, "boxes")
        signs = read_labels(box_labels, (len(corners),), "box_labels")
        self._exemplars.setdefault(frame, []).append(_Exemplars(name, corners, signs))

    def add_object(
        self,
        *,
        points: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask: Any = None,
        track_id: int | None = None,
        concept: str = OBJECT,
    ) -> Instances:
        """Point at an object in the last frame: a new one, or one that is followed, to correct it.

        Args:
            points: (K, 2) xy pixels. point_labels: (K,) 1 on it, 0 off it; all 1 if omitted.
            box: (4,) xyxy pixels around it. mask: (H, W) bool, instead of points and box.
            track_id: of the object to correct; None: a new one.
            concept: label of a new object.

        Returns:
            The object in the last frame, with its identity.
        """
        if self._objects is None:
            raise MissingAbilityError(
                "objects that are pointed at are followed by memory; this stream is followed by "
                "masks (tracker='masks', or weights without a memory)"
            )
        if self._last is None:
            raise TrackError("no frame was given yet; call step with the frame that you point at")
        check_labelled(point_labels, points, "point_labels", "points")
        size = _size(self._last)
        label = read_phrase(concept)
        if mask is not None:
            if points is not None or box is not None:
                raise PromptError("mask says all: pass it without points and box")
            drawn = np.asarray(mask)
            if drawn.shape != size:
                raise PromptError(f"mask is of the frame, {size}; got shape {drawn.shape}")
            id, part = self._objects.draw(track_id, label, drawn.astype(bool))
        else:
            xy, signs = _clicks(size, points, point_labels, box)
            id, part = self._objects.point(track_id, label, xy, signs)
        for draft in self._drafts:
            if draft.frame is self._last:
                draft.outcome.parts[id] = part
                draft.outcome.hidden.discard(id)
            draft.outcome.unconfirmed.discard(id)
        return _instances({id: part}, size, self._concepts, {})

    def remove_object(self, track_id: int) -> None:
        """Follow an object no more, and drop it from frames that wait."""
        self._masks.remove(track_id)
        if self._objects is not None:
            self._take_back([track_id])

    def _take_back(self, ids: Sequence[int]) -> None:
        if self._objects is not None:
            self._objects.remove(ids)
        for draft in self._drafts:
            for id in ids:
                draft.outcome.parts.pop(id, None)

    @property
    def ids(self) -> list[int]:
        """Identities that are followed at present, in rising order."""
        return self._masks.ids if self._objects is None else sorted(self._objects.lives)

    # Frames ----------------------------------------------------------------------------

    def step(self, frame: Any, found: Instances | None = None) -> list[TrackedFrame]:
        """Take the next frame; give those that are decided, in order.

        Args:
            frame: a ``Frame``, or an image of any kind, which gets the next index. Indices rise,
                or all fall, and may skip some.
            found: detections of another detector, instead of the model's.
        """
        taken = self._turn(frame)
        image: EncodedImage | Array = taken.image
        asked, frames = self._asked(found), 1
        if found is None and (self._detected % self.every == 0 or self._drawn(taken.index)):
            found, image = self._detect(taken)
            asked, frames = list(dict.fromkeys(found.concepts)), self.every
        self._detected += 1
        if self._objects is None:
            return [self._by_masks(taken, found)]
        outcome = self._objects.follow(self._count, image, found, asked, frames)
        self._count += 1
        presence = {} if found is None else found.concept_presence
        self._drafts.append(_Draft(taken, _size(taken), outcome, presence))
        for draft in self._drafts:
            for id in outcome.gone:
                draft.outcome.parts.pop(id, None)
        done = []
        while self._drafts and len(self._drafts) >= self.settings.hotstart:
            done.append(self._finish())
        return done

    def flush(self) -> list[TrackedFrame]:
        """The frames that still wait when the stream ends."""
        return [self._finish() for _ in range(len(self._drafts))]

    def _by_masks(self, frame: Frame, found: Instances | None) -> TrackedFrame:
        if found is None:
            shown = self._masks.expected(frame.index)
        else:
            shown = self._masks.update(found, frame.index)
            shown = shown[shown.track_ids != NONE]
        if shown is None:
            shown = _instances({}, _size(frame), self._concepts, {})
        return TrackedFrame(
            frame.index, frame.time, shown, frame.image if self.keep_images else None
        )

    def _finish(self) -> TrackedFrame:
        """The oldest of the waiting frames."""
        # Whether an object is confirmed is asked of the frame that could confirm it.
        ahead = min(max(self.settings.confirm, 1), len(self._drafts)) - 1
        unconfirmed = self._drafts[ahead].outcome.unconfirmed
        draft = self._drafts.popleft()
        hide = unconfirmed | draft.outcome.hidden
        parts = {id: p for id, p in sorted(draft.outcome.parts.items()) if id not in hide}
        apart = not self.settings.overlap
        shown = _instances(parts, draft.size, self._concepts, draft.presence, apart=apart)
        image = draft.frame.image if self.keep_images else None
        return TrackedFrame(draft.frame.index, draft.frame.time, shown, image)

    def _turn(self, frame: Any) -> Frame:
        """The frame, which comes after the last."""
        last = self._last
        if not isinstance(frame, Frame):
            index = 0 if last is None else last.index + (self._way or 1)
            frame = Frame(index, None, read_rgb(frame).permute(1, 2, 0).numpy())
        if last is not None:
            way = int(np.sign(frame.index - last.index))
            if not way or (self._way and way != self._way):
                raise TrackError(
                    f"frame {frame.index} after frame {last.index}: a stream has each frame once, "
                    "in one direction"
                )
            self._way = way
        self._last = frame
        return frame

    def _drawn(self, index: int) -> list[_Exemplars]:
        return [*self._exemplars.get(None, ()), *self._exemplars.get(index, ())]

    def _detect(self, frame: Frame) -> tuple[Instances, EncodedImage]:
        """Instances of all concepts, by the boxes that are drawn on this frame."""
        if self.model is None:
            raise TrackError("there is no model to detect with; give step(frame, found=...)")
        image = self.model.encode(frame.image)
        drawn = self._drawn(frame.index)
        self._exemplars.pop(None, None)
        self._exemplars.pop(frame.index, None)
        threshold = self.settings.detection
        nms = self.settings.nms if "masks" in self.model.abilities else None
        shown: dict[str | None, list[_Exemplars]] = {}
        for exemplars in drawn:
            shown.setdefault(exemplars.concept, []).append(exemplars)
        plain = [c for c in self._concepts if c not in shown]
        parts = []
        if plain:
            parts.append(self.model.segment(image, plain, threshold=threshold, nms=nms))
        for concept, sets in shown.items():
            boxes = np.concatenate([e.boxes for e in sets])
            signs = np.concatenate([e.labels for e in sets])
            parts.append(
                self.model.segment(
                    image, concept, boxes=boxes, box_labels=signs, threshold=threshold, nms=nms
                )
            )
        if not parts:
            return _instances({}, image.size, [], {}), image
        found = join(parts)
        order = [*self._concepts, *found.labels]
        rows = sorted(range(len(found)), key=lambda i: order.index(found.labels[i]))
        return found[rows], image

    def _asked(self, found: Instances | None) -> list[str]:
        """Concepts that another detector looked for: all that it ever found."""
        if found is None or self._objects is None:
            return []
        known = [life.label for life in self._objects.lives.values() if not life.given]
        return list(dict.fromkeys((*self._concepts, *found.concepts, *found.labels, *known)))


def _follower(
    model: ImageModel | None, tracker: str | MemoryTracker, settings: TrackSettings
) -> MemoryFollower | None:
    """What follows objects by memory; None where masks are to do."""
    if not isinstance(tracker, str):
        return MemoryFollower(tracker, settings)
    if tracker == "masks" or (tracker == "auto" and (model is None or not _remembers(model))):
        return None
    if model is None or not _remembers(model):
        raise MissingAbilityError(
            f"{'no model' if model is None else model.name} has no video memory, so "
            "tracker='memory' cannot follow objects by it; take tracker='masks', which needs "
            "none, or a model that has one (`efficientsam3 models`)"
        )
    from .bank import MemorySettings
    from .memory import MemoryTracker

    return MemoryFollower(MemoryTracker(model, MemorySettings(mask_size="memory")), settings)


def _remembers(model: ImageModel) -> bool:
    return {"video", "masks"} <= model.abilities


def _size(frame: Frame) -> tuple[int, int]:
    return frame.image.shape[0], frame.image.shape[1]


def _clicks(size: tuple[int, int], points: Any, point_labels: Any, box: Any) -> tuple[Array, Array]:
    """Points (K, 2) in [0, 1] and their meaning (K,) to the interactive head."""
    from ..nn.interactive import BOTTOM_RIGHT, TOP_LEFT

    scale = np.array([size[1], size[0]], np.float32)
    xy: list[Array] = []
    signs: list[Array] = []
    if box is not None:
        corners = read_boxes(np.asarray(box, np.float32).reshape(-1, 4), size)
        if len(corners) != 1:
            raise PromptError(f"box is of one object, (4,) xyxy pixels; got {len(corners)}")
        xy.append(corners.reshape(2, 2) / scale)
        signs.append(np.array([TOP_LEFT, BOTTOM_RIGHT]))
    if points is not None:
        clicks = read_points(points, size)
        xy.append(clicks / scale)
        signs.append(read_labels(point_labels, (len(clicks),), "point_labels"))
    if not xy:
        raise PromptError("nothing is pointed at: pass points, a box or a mask")
    return np.concatenate(xy), np.concatenate(signs)


def _instances(
    parts: dict[int, Part],
    size: tuple[int, int],
    concepts: Sequence[str],
    presence: dict[str, float],
    *,
    apart: bool = False,
) -> Instances:
    """Objects as instances; those without a pixel are left out.

    Args:
        apart: objects of one concept share no pixel.
    """
    crops = {id: part.patch.crop(size) for id, part in parts.items()}
    patches = {id: part.patch for id, part in parts.items()}
    for label in {part.label for part in parts.values()} if apart else ():
        ids = [id for id, part in parts.items() if part.label == label]
        strength = [parts[id].presence + parts[id].detected for id in ids]
        for place, pixels in share_out([crops[id] for id in ids], strength).items():
            left, top = crops[ids[place]][1][:2]
            cut = BitPatch.cut(pixels)
            patches[ids[place]] = moved = BitPatch(cut.pixels, cut.top + top, cut.left + left)
            crops[ids[place]] = moved.crop(size)
    ids = [id for id, (pixels, _) in crops.items() if pixels.size]
    return Instances(
        boxes=np.array([crops[id][1] for id in ids], np.float32).reshape(len(ids), 4),
        scores=np.array([parts[id].score for id in ids], np.float32),
        presence=np.array([parts[id].presence for id in ids], np.float32),
        labels=[parts[id].label for id in ids],
        size=size,
        patches=[patches[id] for id in ids],
        concepts=tuple(dict.fromkeys((*concepts, *(parts[id].label for id in ids)))),
        concept_presence=presence,
        track_ids=np.array(ids, np.int64),
    )
