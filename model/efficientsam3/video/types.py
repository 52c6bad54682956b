"""What the parts of a tracker pass to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..types import Array, Instances, Patch

if TYPE_CHECKING:
    from torch import Tensor

    from ..nn.interactive import InteractiveFeatures

NO_OBJECT = -1024.0
"""Mask logits of an object that is absent (SAM3: ``NO_OBJ_SCORE``)."""


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """The tracked objects of one frame."""

    index: int
    """Number of the frame in its source, from 0."""
    time: float | None
    """Seconds since the first frame of the source; None where the source has no times."""
    instances: Instances
    """Objects with ``track_ids``, which count from 0 and are unique over all concepts of a video.
    ``scores`` are those of the detections that began the objects; ``presence`` says how certain
    the tracker is that an object is in this frame."""
    image: Array | None = field(default=None, repr=False)
    """(H, W, 3) uint8 RGB, where it was asked for."""
    cut: bool = False
    """Whether the frame begins another scene than the frame before."""
    lost: tuple[int, ...] = ()
    """Identities of the objects that ended with the scene before."""


# The memory tracker ----------------------------------------------------------------------------


@dataclass(eq=False)
class TrackerFeatures:
    """What the memory tracker computes of a frame, once for all objects."""

    image: InteractiveFeatures
    """Features in which objects are found again. SAM3 also reads prompts with them."""
    size: tuple[int, int]
    """(height, width) of the image in pixels."""
    attention_input: Tensor | None = None
    """(1, N, C) the frame before it attends to memories; computed when it is first needed."""
    projected: Tensor | None = None
    """(1, C, h, w) what the image adds to the memories of it; computed when it is first needed."""
    remembered: Tensor | None = None
    """SAM3.1: (N, C) the coarse features, as they are stored with the memories of the frame."""
    map: Any = None
    """SAM3.1: the image encoder's map, from which ``prompted`` is computed."""
    prompted: InteractiveFeatures | None = None
    """SAM3.1: features with which prompts are read; computed when they are first needed."""
    encoded: Any = None
    """Features of ``EncodedImage``, where tracked objects take the masks of objects that the image
    encoder finds (``MemoryConfig.adopt_object_iou``)."""
    found: FoundObjects | None = None
    """These objects; computed when they are first needed."""


class FoundObjects(NamedTuple):
    """Q objects that the image encoder finds on a frame, without a prompt."""

    logits: Tensor
    """(Q, 4g, 4g) mask logits, for a feature grid of g."""
    scores: Tensor
    """(Q,) probabilities that they are objects."""
    looks: Tensor | None = None
    """(Q, C) vectors that say what they are, see ``video.looks``; None: nothing is known."""


class TrackerOutput(NamedTuple):
    """N objects on one frame."""

    ids: list[int]
    """N identities."""
    logits: Tensor
    """(N, 4g, 4g) mask logits, for a feature grid of g; ``NO_OBJECT`` where an object is absent."""
    presence: Tensor
    """(N,) logits that the object is in the frame."""
    quality: Tensor
    """(N,) predicted IoU of the mask, in [0, 1]; SAM3.1 may exceed these limits a little."""
    pointers: Tensor
    """(N, C) object pointers."""

    def take(self, rows: Sequence[int]) -> TrackerOutput:
        """Some of the objects, by row.

        Args:
            rows: Rows of the objects to keep.
        """
        kept = list(rows)
        parts = (self.logits, self.presence, self.quality, self.pointers)
        return TrackerOutput([self.ids[i] for i in kept], *(p[kept] for p in parts))


@dataclass
class MemoryEntry:
    """What is remembered of one object, or of one bucket of SAM3.1, on one frame."""

    tokens: Tensor | None
    """(T, memory width) spatial memory; None once no later frame can read it."""
    pointer: Tensor
    """(C,) object pointer; (S, C) those of a bucket's slots."""
    score: float
    """Presence times predicted IoU, in [0, 1]; the mean of a bucket's objects."""
    image: Tensor | None = None
    """SAM3.1: (T, C) image features, which all buckets share."""
    given: set[int] = field(default_factory=set)
    """SAM3.1: slots of the objects whose masks were given on this frame."""

    def forget_space(self) -> None:
        """Drop what no later frame can read of a frame whose pointer is still read."""
        self.tokens = self.image = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        tensors = [t for t in (self.tokens, self.pointer, self.image) if t is not None]
        return sum(t.untyped_storage().nbytes() for t in tensors)


class MemoryRead(NamedTuple):
    """What a frame reads of the memory of one object or bucket."""

    tokens: list[Tensor]
    """Spatial memories of F frames, (T, memory width) each."""
    positions: list[int]
    """F temporal positions: 0 for a conditioning frame, else the rank among the frames before,
    1 for the last. SAM3.1: for a conditioning frame ``num_maskmem`` less its age, or 0 where that
    is out of range."""
    pointers: list[Tensor]
    """Object pointers of P frames, (C,) each."""
    ages: list[int]
    """P ages of the pointers, in frames."""
    images: list[Tensor]
    """SAM3.1: image features of the F frames."""


# The concept tracker ---------------------------------------------------------------------------


class TrackedObject(NamedTuple):
    """One object in one frame."""

    label: str
    """The class."""
    patch: Patch
    """The mask."""
    score: float
    """Score of the detection that began the object."""
    presence: float
    """Probability that the object is in the frame."""
    from_detection: bool = False
    """Whether the mask is that of a detection. It then keeps the pixels that it shares with masks
    of the memory."""
    phrase: str | None = None
    """The phrase that found the object; None: the label."""


@dataclass(eq=False)
class FrameObjects:
    """The objects of one frame, by identity."""

    objects: dict[int, TrackedObject] = field(default_factory=dict)
    """The objects that have a pixel."""
    removed: set[int] = field(default_factory=set)
    """Objects that are removed from all frames that are still delayed."""
    hidden: set[int] = field(default_factory=set)
    """Objects that are tracked and not shown on this frame."""
    unconfirmed: set[int] = field(default_factory=set)
    """Objects that are not yet confirmed on this frame."""
    confirmed: dict[int, float] = field(default_factory=dict)
    """Scores of the detections that confirm objects; 0 for visible objects that none confirms.
    It lacks objects that a person pointed at, and is empty where the detector did not run."""
