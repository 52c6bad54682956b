"""Buckets of SAM3.1's tracker: which objects share one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .memory_bank import MemoryBank


@dataclass(eq=False)
class Bucket:
    """Some objects that share a memory and are found together."""

    bank: MemoryBank
    """The memory of the bucket."""
    size: int
    """Number of slots S."""
    shared: str | None
    """Objects of this name share buckets; None: the bucket has one object."""
    group: int
    """Buckets of one group began on the same frame, and new objects go to any of them."""
    slots: list[int | None] = field(default_factory=list)
    """Identities of the objects by slot; None for one that was removed. Its slot stays empty."""
    frame: int | None = None
    """The frame of ``masks``, ``pointers`` and ``given``."""
    masks: dict[int, tuple[Tensor, bool]] = field(default_factory=dict)
    """By slot, mask logits (4g, 4g) before any correction, and whether the object is there."""
    pointers: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(S, C) object pointers, 0 for empty slots."""
    given: set[int] = field(default_factory=set)
    """Slots of the objects whose masks were given on this frame."""

    @property
    def free(self) -> int:
        """Slots that never had an object."""
        return self.size - len(self.slots)

    @property
    def used(self) -> list[int]:
        """Slots that have an object."""
        return [slot for slot, id in enumerate(self.slots) if id is not None]

    def slot(self, id: int) -> int:
        """The slot of an object.

        Args:
            id: Its identity.
        """
        return self.slots.index(id)

    def begin_frame(self, frame: int, pointers: Tensor) -> None:
        """Start a frame without masks.

        Args:
            frame: Number of the frame.
            pointers: (S, C) object pointers.
        """
        self.frame, self.masks, self.pointers, self.given = frame, {}, pointers, set()

    def remove(self, id: int) -> None:
        """Empty the slot of an object.

        Args:
            id: Its identity.
        """
        slot = self.slot(id)
        self.slots[slot] = None
        self.masks.pop(slot, None)


def fitting_group(buckets: Sequence[Bucket], shared: str, count: int, frame: int) -> list[Bucket]:
    """The group that new objects join: the fullest that has room for all; none if no group has.

    Args:
        buckets: All buckets, in the order in which they began.
        shared: The objects share buckets of this name.
        count: Number of the objects.
        frame: The frame on which they begin, which the group must have reached.
    """
    groups: dict[int, list[Bucket]] = {}
    for bucket in buckets:
        if bucket.shared == shared and bucket.frame == frame:
            groups.setdefault(bucket.group, []).append(bucket)
    room = {group: sum(bucket.free for bucket in some) for group, some in groups.items()}
    fit = [group for group in groups if room[group] >= count]
    return groups[min(fit, key=lambda group: room[group])] if fit else []
