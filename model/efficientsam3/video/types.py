"""What the parts of a tracker pass to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..nn.interactive import InteractiveFeatures
from ..types import Array, Instances, Patch


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
    """Features of the image encoder."""
    size: tuple[int, int]
    """(height, width) of the image in pixels."""
    attention_input: Tensor | None = None
    """(1, N, C) the frame before it attends to memories; computed when it is first needed."""
    projected: Tensor | None = None
    """(1, C, h, w) what the image adds to the memories of it; computed when it is first needed."""


class TrackerOutput(NamedTuple):
    """N objects on one frame."""

    ids: list[int]
    """N identities."""
    logits: Tensor
    """(N, 4g, 4g) mask logits, for a feature grid of g; ``NO_OBJECT`` where an object is absent."""
    presence: Tensor
    """(N,) logits that the object is in the frame."""
    quality: Tensor
    """(N,) predicted IoU of the mask, in [0, 1]."""
    pointers: Tensor
    """(N, C) object pointers."""

    def take(self, rows: Sequence[int]) -> TrackerOutput:
        """Some of the objects, by row.

        Args:
            rows: Rows of the objects to keep.
        """
        index = torch.as_tensor(list(rows), dtype=torch.long, device=self.logits.device)
        parts = (self.logits, self.presence, self.quality, self.pointers)
        return TrackerOutput([self.ids[i] for i in rows], *(p[index] for p in parts))


@dataclass
class MemoryEntry:
    """What is remembered of one object on one frame."""

    tokens: Tensor | None
    """(T, memory width) spatial memory; None once no later frame can read it."""
    pointer: Tensor
    """(C,) object pointer."""
    score: float
    """Presence times predicted IoU, in [0, 1]."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        tensors = [self.pointer] if self.tokens is None else [self.tokens, self.pointer]
        return sum(t.untyped_storage().nbytes() for t in tensors)


class MemoryRead(NamedTuple):
    """What a frame reads of the memory of one object."""

    tokens: list[Tensor]
    """Spatial memories of F frames, (T, memory width) each."""
    positions: list[int]
    """F temporal positions: 0 for a conditioning frame, else the rank among the frames before,
    1 for the last."""
    pointers: list[Tensor]
    """Object pointers of P frames, (C,) each."""
    ages: list[int]
    """P ages of the pointers, in frames."""


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
