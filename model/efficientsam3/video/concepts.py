"""Concepts followed through a stream of frames: detect, associate, show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingAbilityError, PromptError
from ..pixels import read_rgb
from ..prompts import check_labelled, read_concepts, read_phrase
from ..types import Array, Instances, join
from .frames import Frame
from .mask_tracker import NONE, MaskTracker
from .settings import TrackError, TrackSettings

if TYPE_CHECKING:
    from ..image import EncodedImage, ImageModel

TRACKERS = ("auto", "memory", "masks")


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """What is known of a frame.

    index: of the frame in its source. time: seconds, None where the source has no clock.
    instances: with ``track_ids``, unique over all concepts of a stream, from 0.
    image: (H, W, 3) uint8 RGB, where it was asked for.
    """

    index: int
    time: float | None
    instances: Instances
    image: Array | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Exemplars:
    """Boxes that show a concept in one frame: (K, 4) xyxy pixels, (K,) signs."""

    concept: str | None
    boxes: Any
    labels: Any


class ConceptTracker:
    """Follows concepts through frames that are given one at a time.

    Args:
        model: that finds concepts.
        concepts: phrases; more can be added, and any removed, at any time.
        tracker: "memory" follows objects by the model's video memory, "masks" by the overlap of
            detections; "auto": by memory where the weights have one.
        settings: thresholds and delays, each explained there.
        every: the detector runs on every n-th frame; between them objects go on by what the
            tracker knows of them.
        keep_images: give the pixels with the results.
    """

    def __init__(
        self,
        model: ImageModel,
        concepts: str | Sequence[str] | None = None,
        *,
        tracker: str = "auto",
        settings: TrackSettings | None = None,
        every: int = 1,
        keep_images: bool = False,
    ) -> None:
        if tracker not in TRACKERS:
            raise TrackError(f"tracker is {', '.join(map(repr, TRACKERS))}; got {tracker!r}")
        if not isinstance(every, int) or every < 1:
            raise TrackError(f"every is a whole number of frames from 1; got {every!r}")
        if tracker == "memory":
            _need_video(model)
        self.model = model
        self.settings = settings or TrackSettings()
        self.every, self.keep_images = every, keep_images
        self._concepts = read_concepts(concepts) or []
        self._exemplars: dict[int | None, list[_Exemplars]] = {}
        self._masks = MaskTracker(self.settings.masks)
        self._last: int | None = None
        self._since = 0

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
            self._since = 0  # the detector runs on the next frame, whatever ``every`` says

    def remove_concept(self, concept: str) -> None:
        """Look for a concept no more, and forget its objects."""
        name = read_phrase(concept)
        if name not in self._concepts:
            raise PromptError(
                f"{name!r} is not followed; concepts are {', '.join(self._concepts) or 'none'}"
            )
        self._concepts.remove(name)
        self._masks.remove_label(name)

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
            concept: that they refine; None: they alone say what is looked for.
            frame: index of the frame that they are drawn on; the next one if omitted.
        """
        check_labelled(box_labels, boxes, "box_labels", "boxes")
        if frame is not None and self._last is not None and frame <= self._last:
            raise TrackError(
                f"frame {frame} has passed (the last was {self._last}) and frames are not kept; "
                "draw exemplars on a frame to come"
            )
        name = None if concept is None else read_phrase(concept)
        self._exemplars.setdefault(frame, []).append(_Exemplars(name, boxes, box_labels))

    def remove_object(self, track_id: int) -> None:
        """Follow an object no more."""
        self._masks.remove(track_id)

    @property
    def ids(self) -> list[int]:
        """Identities that are followed at present."""
        return self._masks.ids

    # Frames ----------------------------------------------------------------------------

    def step(self, frame: Any, found: Instances | None = None) -> list[TrackedFrame]:
        """Take the next frame; give what is decided, in order.

        Args:
            frame: a ``Frame``, or an image of any kind, which gets the next index.
            found: detections of another detector, instead of the model's.
        """
        index, time, pixels = self._turn(frame)
        if found is None and (self._since % self.every == 0 or self._shown(index)):
            found = self._detect(self.model.encode(pixels), index)
        self._since += 1
        if found is None:
            shown = self._masks.expected(index)
        else:
            shown = self._masks.update(found, index)
            shown = shown[shown.track_ids != NONE]
        if shown is None:
            shown = self._nothing((pixels.shape[0], pixels.shape[1]))
        return [TrackedFrame(index, time, shown, pixels if self.keep_images else None)]

    def flush(self) -> list[TrackedFrame]:
        """What is still undecided when the stream ends."""
        return []

    def _turn(self, frame: Any) -> tuple[int, float | None, Array]:
        """Index, time and pixels of a frame that comes after the last."""
        if not isinstance(frame, Frame):
            index = 0 if self._last is None else self._last + 1
            frame = Frame(index, None, read_rgb(frame).permute(1, 2, 0).numpy())
        if frame.index == self._last:
            raise TrackError(f"frame {frame.index} was given before; a stream has each frame once")
        self._last = frame.index
        return frame.index, frame.time, frame.image

    def _shown(self, index: int) -> list[_Exemplars]:
        return [*self._exemplars.get(None, ()), *self._exemplars.get(index, ())]

    def _detect(self, image: EncodedImage, index: int) -> Instances:
        """Instances of all concepts, by the boxes that are drawn on this frame."""
        shown = self._shown(index)
        self._exemplars.pop(None, None)
        self._exemplars.pop(index, None)
        threshold = self.settings.detection
        nms = self.settings.nms if "masks" in self.model.abilities else None
        refined = {e.concept for e in shown}
        plain = [c for c in self._concepts if c not in refined]
        parts = []
        if plain:
            parts.append(self.model.segment(image, plain, threshold=threshold, nms=nms))
        for e in shown:
            prompt = {"boxes": e.boxes, "box_labels": e.labels}
            parts.append(
                self.model.segment(image, e.concept, **prompt, threshold=threshold, nms=nms)
            )
        if not parts:
            return self._nothing(image.size)
        found = join(parts)
        order = [*self._concepts, *found.labels]
        rows = sorted(range(len(found)), key=lambda i: order.index(found.labels[i]))
        return found[rows]

    def _nothing(self, size: tuple[int, int]) -> Instances:
        return Instances(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.float32),
            [],
            size,
            patches=[],
            concepts=tuple(self._concepts),
            track_ids=np.zeros(0, np.int64),
        )


def _need_video(model: ImageModel) -> None:
    if "video" not in model.abilities:
        raise MissingAbilityError(
            f"{model.name} has no video memory, so tracker='memory' cannot follow objects with it; "
            "take tracker='masks', which needs none, or a model that has one (`efficientsam3 "
            "models`)"
        )
