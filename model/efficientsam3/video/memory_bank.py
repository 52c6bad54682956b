"""The memory of one object, or of one bucket of SAM3.1: what later frames can read, and no more.

Which memories a frame reads is SAM3's rule (sam3/model/sam3_tracker_base.py,
``Sam3TrackerBase._prepare_memory_conditioned_features``). What no later frame can read is dropped
at once, so that memory does not grow; in a stream that goes one way, reads are the same as if
everything had been kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .settings import MemorySettings
from .types import MemoryEntry, MemoryRead


class MemoryBank:
    """The memory of one object or bucket, by frame.

    Args:
        settings: How much is read.
        frames: Number of spatial memories that a frame reads, of which all conditioning frames
            together count as one (SAM3: ``num_maskmem``).
        aged: Whether conditioning frames have a position in time, as in SAM3.1
            (``use_maskmem_tpos_v2``), and pointers of later conditioning frames are read too.

    Attributes:
        settings: As given.
        frames: As given.
        aged: As given.
        conditioning: Entries of frames on which the object was given by a mask or points.
        tracked: Entries of frames on which it was tracked.
    """

    def __init__(self, settings: MemorySettings, frames: int, *, aged: bool = False) -> None:
        self.settings, self.frames, self.aged = settings, frames, aged
        self.conditioning: dict[int, MemoryEntry] = {}
        self.tracked: dict[int, MemoryEntry] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(e.nbytes for e in (*self.conditioning.values(), *self.tracked.values()))

    def entry(self, frame: int) -> MemoryEntry | None:
        """The entry of a frame, of either kind.

        Args:
            frame: Number of the frame.
        """
        return self.conditioning.get(frame, self.tracked.get(frame))

    def condition(self, frame: int, entry: MemoryEntry) -> None:
        """Add the entry of a frame on which the object was given by a mask or points.

        Args:
            frame: Number of the frame.
            entry: What is remembered of it.
        """
        self.conditioning[frame] = entry
        self.tracked.pop(frame, None)
        self._drop_unreadable(frame)

    def remember(self, frame: int, entry: MemoryEntry) -> None:
        """Add the entry of a frame on which the object was tracked.

        Args:
            frame: Number of the frame.
            entry: What is remembered of it.
        """
        self.tracked[frame] = entry
        self._drop_unreadable(frame)

    def rewind(self, frame: int, direction: int) -> None:
        """Drop tracked frames that are not shortly before ``frame`` in the direction, 1 or -1.

        Args:
            frame: Number of the frame that is tracked next.
            direction: 1 forward, -1 backward in time.
        """
        near = range(1, self.settings.max_object_pointers)
        self.tracked = {f: e for f, e in self.tracked.items() if (frame - f) * direction in near}

    def read(self, frame: int, *, reverse: bool = False) -> MemoryRead:
        """What a frame reads.

        Args:
            frame: Number of the frame.
            reverse: Whether frames are tracked backward in time.
        """
        nearest = self._nearest_conditioning(frame)
        # A conditioning frame that is not among the nearest is read like a tracked frame.
        others = {f: e for f, e in self.conditioning.items() if f not in nearest} | self.tracked
        direction = -1 if reverse else 1
        out = MemoryRead([], [], [], [], [])
        spatial = [(self._position((frame - f) * direction), self.conditioning[f]) for f in nearest]
        spatial += [(p, others[f]) for p, f in self._spatial(frame, direction) if f in others]
        for position, entry in spatial:
            if entry.tokens is not None:
                out.tokens.append(entry.tokens)
                out.positions.append(position)
                if entry.image is not None:
                    out.images.append(entry.image)
        for there in nearest:
            age = (frame - there) * direction
            if age >= 0 or self.aged:
                out.pointers.append(self.conditioning[there].pointer)
                out.ages.append(abs(age))
        for age, there in self._pointers(frame, direction):
            if there in others:
                out.pointers.append(others[there].pointer)
                out.ages.append(age)
        return out

    def _position(self, age: int) -> int:
        """The temporal position of a conditioning frame of an age."""
        return self.frames - age if self.aged and 0 < age < self.frames else 0

    def _nearest_conditioning(self, frame: int) -> list[int]:
        """The conditioning frames that are read: one before and one after, then the nearest.

        SAM3: ``select_closest_cond_frames`` in sam3/model/sam3_tracker_utils.py.
        """
        limit = self.settings.max_cond_frames
        if len(self.conditioning) <= limit:
            return list(self.conditioning)
        before = [f for f in self.conditioning if f < frame]
        after = [f for f in self.conditioning if f >= frame]
        chosen = ([max(before)] if before else []) + ([min(after)] if after else [])
        rest = [f for f in self.conditioning if f not in chosen]
        rest.sort(key=lambda f: abs(f - frame))
        return (chosen + rest)[:limit]

    def _selected(self, frame: int, direction: int) -> list[int]:
        """The frames of memory selection, from the furthest to the nearest.

        Those are the latest frames with more than ``min_memory_score``, one fewer than pointers
        are read, and the previous frame in any case. SAM3: ``Sam3TrackerBase.frame_filter``.
        """
        past = (f for f in self.tracked if (frame - f) * direction > 0)
        good = [f for f in sorted(past, key=lambda f: f * direction) if self._is_good(f)]
        good = good[-(self.settings.max_object_pointers - 1) :]
        previous = frame - direction
        return good if previous in good else [*good, previous]

    def _is_good(self, frame: int) -> bool:
        return self.tracked[frame].score > self.settings.min_memory_score

    def _spatial(self, frame: int, direction: int) -> Iterator[tuple[int, int]]:
        """Position, 1 for the last, and frame of the spatial memories that are read."""
        selected = self._selected(frame, direction) if self.settings.memory_selection else None
        for position in range(self.frames - 1, 0, -1):
            if selected is None:
                yield position, frame - position * direction
            elif position <= len(selected):
                yield position, selected[-position]

    def _pointers(self, frame: int, direction: int) -> Iterator[tuple[int, int]]:
        """Age and frame of the pointers that are read. A selected frame's age is its position."""
        count = self.settings.max_object_pointers
        if not self.settings.memory_selection:
            yield from ((age, frame - age * direction) for age in range(1, count))
            return
        selected = self._selected(frame, direction)
        # SAM3 leaves out the furthest selected frame.
        for age in range(1, min(count, len(selected))):
            yield age, selected[-age]

    def _drop_unreadable(self, now: int) -> None:
        """Drop what no frame after ``now`` reads."""
        reach = self.settings.max_object_pointers - 1
        if self.settings.memory_selection:
            nearest = sorted(self.tracked, key=lambda f: abs(now - f))
            good = [f for f in nearest if self._is_good(f)]
            for frame in set(nearest) - set(good[:reach]) - {now}:
                del self.tracked[frame]
            for frame in good[self.frames - 1 : reach]:
                self.tracked[frame].forget_space()
        else:
            for frame in list(self.tracked):
                if abs(now - frame) >= reach:
                    del self.tracked[frame]
                elif abs(now - frame) >= self.frames - 1:
                    self.tracked[frame].forget_space()
        if self.settings.bidirectional:
            return
        nearest = sorted(self.conditioning, key=lambda f: abs(now - f))
        for frame in nearest[self.settings.max_cond_frames :]:
            if abs(now - frame) >= reach:
                del self.conditioning[frame]


def stack_reads(
    reads: Sequence[MemoryRead], oldest: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Stack the memories of B objects, their pointers padded to one length.

    Args:
        reads: What a frame reads of each object, equally many frames.
        oldest: Age of the oldest pointer that is read.
        width: Channels of a pointer.
        device: Device of the results.

    Returns:
        The arguments of ``nn.memory.Memory.gather``.
    """
    count = max(len(r.pointers) for r in reads)
    padding = torch.zeros(width, device=device)
    pointers = [r.pointers + [padding] * (count - len(r.pointers)) for r in reads]
    ages = [[a / oldest for a in r.ages] + [0.0] * (count - len(r.ages)) for r in reads]
    valid = None
    if any(len(r.pointers) < count for r in reads):
        counts = torch.tensor([[len(r.pointers)] for r in reads], device=device)
        valid = torch.arange(count, device=device) < counts
    stacked = (
        torch.stack([torch.stack(p) for p in pointers])
        if count
        else padding.expand(len(reads), 0, -1)
    )
    return (
        torch.stack([torch.stack(r.tokens) for r in reads]),
        torch.tensor([r.positions for r in reads], device=device),
        stacked,
        torch.tensor(ages, dtype=torch.float32, device=device).reshape(len(reads), count),
        valid,
    )
