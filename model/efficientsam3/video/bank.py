"""What one object's past leaves to be read, and no more: memory that does not grow.

Which memories a frame reads is SAM3's rule. What no later frame can read is dropped at once;
what is read is the same as if all had been kept, in a stream that goes one way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .settings import TrackError, check


@dataclass(frozen=True)
class MemorySettings:
    """How much of the past a frame reads; the defaults are SAM3's.

    conditioning: frames with a given mask or clicks that are read, the nearest in time.
    pointers: frames whose object pointers are read, today's included; upstream takes the clip's
        length where that is less.
    selection: read the latest frames on which the object was seen well, instead of the latest.
    seen_well: presence times mask quality, in [0, 1], above which it was.
    mask_size: where logits become probabilities before they are remembered: "input", at the
        size of the model's input, as SAM3 tracks clicked objects; or "memory", at the memory's
        own, as it tracks concepts (one enlargement less).
    both_ways: keep all conditioning frames, for a tracker that goes back and forth in time;
        else those that frames in the direction of travel can still read.
    """

    conditioning: int = 4
    pointers: int = 16
    selection: bool = True
    seen_well: float = 0.01
    mask_size: str = "input"
    both_ways: bool = False

    def __post_init__(self) -> None:
        check(self, shares=("seen_well",), least_one=("conditioning",))
        if not isinstance(self.pointers, int) or self.pointers < 2:
            raise TrackError(f"pointers is a whole number from 2; got {self.pointers!r}")
        if self.mask_size not in ("input", "memory"):
            raise TrackError(f"mask_size is 'input' or 'memory'; got {self.mask_size!r}")


@dataclass
class Memento:
    """What one frame left of one object.

    tokens: (T, memory width), None once only the pointer can be read. pointer: (C,).
    score: how well the object was seen, in [0, 1].
    """

    tokens: Tensor | None
    pointer: Tensor
    score: float

    @property
    def nbytes(self) -> int:
        tensors = [self.pointer] if self.tokens is None else [self.tokens, self.pointer]
        return sum(t.untyped_storage().nbytes() for t in tensors)


class Reading(NamedTuple):
    """What a frame reads of one object.

    tokens: of F frames. when: F times, 0 for a conditioning frame, else its rank among those
    before, 1 the last. pointers: of P frames. ages: P ages in frames.
    """

    tokens: list[Tensor]
    when: list[int]
    pointers: list[Tensor]
    ages: list[int]


class Bank:
    """The memories of one object, by frame.

    Args:
        frames: memories with a place that are read at once, conditioning frames counting as one.
    """

    def __init__(self, settings: MemorySettings, frames: int) -> None:
        self.settings, self.frames = settings, frames
        self.conditioning: dict[int, Memento] = {}
        self.others: dict[int, Memento] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that the memories hold."""
        return sum(m.nbytes for m in (*self.conditioning.values(), *self.others.values()))

    def condition(self, frame: int, memento: Memento) -> None:
        """Keep what a frame with a given mask or clicks left."""
        self.conditioning[frame] = memento
        self.others.pop(frame, None)
        self._drop(frame)

    def remember(self, frame: int, memento: Memento) -> None:
        """Keep what a tracked frame left."""
        self.others[frame] = memento
        self._drop(frame)

    def rewind(self, frame: int, sign: int) -> None:
        """Forget tracked frames that are not in the near past of ``frame``."""
        near = range(1, self.settings.pointers)
        self.others = {f: m for f, m in self.others.items() if (frame - f) * sign in near}

    def read(self, frame: int, *, reverse: bool = False) -> Reading:
        """What ``frame`` reads; ``reverse``: time is travelled backwards."""
        near = self._nearest(frame)
        unread = {f: m for f, m in self.conditioning.items() if f not in near}
        sign = -1 if reverse else 1
        out = Reading([], [], [], [])
        for when, there in [(0, f) for f in near] + list(self._before(frame, sign)):
            memento = self.conditioning[there] if when == 0 else self._at(there, unread)
            if memento is not None and memento.tokens is not None:
                out.tokens.append(memento.tokens)
                out.when.append(when)
        for there in near:
            age = (frame - there) * sign
            if age >= 0:
                out.pointers.append(self.conditioning[there].pointer)
                out.ages.append(age)
        for age, there in self._pointed(frame, sign):
            memento = self._at(there, unread)
            if memento is not None:
                out.pointers.append(memento.pointer)
                out.ages.append(age)
        return out

    def _at(self, frame: int, unread: dict[int, Memento]) -> Memento | None:
        """A tracked frame; or a conditioning frame that is too far to be read as one."""
        return self.others.get(frame, unread.get(frame))

    def _nearest(self, frame: int) -> list[int]:
        """The conditioning frames that are read: one before and one after, then the nearest."""
        most = self.settings.conditioning
        if len(self.conditioning) <= most:
            return list(self.conditioning)
        before = [f for f in self.conditioning if f < frame]
        after = [f for f in self.conditioning if f >= frame]
        chosen = ([max(before)] if before else []) + ([min(after)] if after else [])
        rest = [f for f in self.conditioning if f not in chosen]
        rest.sort(key=lambda f: abs(f - frame))
        return (chosen + rest)[:most]

    def _well_seen(self, frame: int, sign: int) -> list[int]:
        """Tracked frames on which the object was seen well, and the last, whatever it was like.

        From the furthest to the nearest, as many as pointers are read, less today's.
        """
        past = sorted((f for f in self.others if (frame - f) * sign > 0), key=lambda f: f * sign)
        good = [f for f in past if self.others[f].score > self.settings.seen_well]
        good = good[-(self.settings.pointers - 1) :]
        last = frame - sign
        return good if last in good else [*good, last]

    def _before(self, frame: int, sign: int) -> Iterator[tuple[int, int]]:
        """Rank, 1 the last, and frame of what is read with its place."""
        known = self._well_seen(frame, sign) if self.settings.selection else None
        for rank in range(self.frames - 1, 0, -1):
            if known is None:
                yield rank, frame - rank * sign
            elif rank <= len(known):
                yield rank, known[-rank]

    def _pointed(self, frame: int, sign: int) -> Iterator[tuple[int, int]]:
        """Age and frame of the pointers that are read. A selected frame's age is its rank."""
        if not self.settings.selection:
            yield from ((age, frame - age * sign) for age in range(1, self.settings.pointers))
            return
        known = self._well_seen(frame, sign)
        # SAM3 leaves out the furthest that was selected.
        for age in range(1, min(self.settings.pointers, len(known))):
            yield age, known[-age]

    def _drop(self, now: int) -> None:
        """Forget what no frame after ``now`` reads."""
        reach = self.settings.pointers - 1
        if self.settings.selection:
            self._drop_ill_seen(now, reach)
        else:
            for frame in list(self.others):
                if abs(now - frame) >= reach:
                    del self.others[frame]
                elif abs(now - frame) >= self.frames - 1:
                    self.others[frame].tokens = None
        if self.settings.both_ways:
            return
        nearest = sorted(self.conditioning, key=lambda f: abs(now - f))
        for frame in nearest[self.settings.conditioning :]:
            if abs(now - frame) >= reach:
                del self.conditioning[frame]

    def _drop_ill_seen(self, now: int, reach: int) -> None:
        nearest = sorted(self.others, key=lambda f: abs(now - f))
        good = [f for f in nearest if self.others[f].score > self.settings.seen_well]
        for frame in set(nearest) - set(good[:reach]) - {now}:
            del self.others[frame]
        for frame in good[self.frames - 1 : reach]:
            self.others[frame].tokens = None
