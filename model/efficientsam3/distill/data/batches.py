"""From data sets to batches: which sample comes when, alone, joined, or in part."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import DataError
from .sample import SampleSource, TrainingSample

Item = TypeVar("Item")
Batch = TypeVar("Batch")

LARGEST_SHUFFLE = 1 << 25
"""Above, a data set (a stream of scenes) is drawn from, not shuffled: an order takes memory."""


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Any:
    return np.random.default_rng([seed, epoch]).permutation(count)


def index_at(position: int, count: int, seed: int) -> int:
    """Which of ``count`` samples comes at a position: each epoch has each once."""
    epoch, offset = divmod(position, count)
    if count > LARGEST_SHUFFLE:
        return int(np.random.default_rng([seed, position]).integers(count))
    return int(_order(count, seed, epoch)[offset])


@dataclass(frozen=True)
class Batches(Generic[Item, Batch]):
    """Makes batch number n of a source; what ``stream.stream`` calls.

    Args:
        source: samples or phrases, by index. prepare: makes one of them an item; what is
            random about it comes from the generator. collate: items -> a batch.
        size: items of a batch. seed: of the order.

    Raises:
        DataError: the source is empty.
    """

    source: Any
    prepare: Callable[[Any, np.random.Generator], Item]
    collate: Callable[[list[Item]], Batch]
    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.source):
            raise DataError("there is nothing to train on: the data set is empty")

    def __call__(self, number: int, random: np.random.Generator) -> Batch:
        first = number * self.size
        indices = [
            index_at(p, len(self.source), self.seed) for p in range(first, first + self.size)
        ]
        return self.collate([self.prepare(self.source[i], random) for i in indices])

    def once(self, most: int) -> Iterator[Batch]:
        """Once through the first ``most``, in order, always the same: for validation."""
        count = min(most, len(self.source))
        for first in range(0, count, self.size):
            random = np.random.default_rng([self.seed, first])
            rows = range(first, min(first + self.size, count))
            yield self.collate([self.prepare(self.source[i], random) for i in rows])


class Joined:
    """Several data sets as one; keys get the number of their data set in front."""

    def __init__(self, *sources: SampleSource) -> None:
        self.sources = sources
        self._starts = list(itertools.accumulate(map(len, sources), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect.bisect_right(self._starts, index) - 1
        return part, index - self._starts[part]

    def key(self, index: int) -> str:
        """Number of the data set and key in it, ``0/sa_1``."""
        part, row = self._place(index)
        return f"{part}/{self.sources[part].key(row)}"

    def __getitem__(self, index: int) -> TrainingSample:
        part, row = self._place(index)
        return replace(self.sources[part][row], key=self.key(index))


class Subset:
    """Some samples of a data set, by index."""

    def __init__(self, source: SampleSource, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        """As the data set says."""
        return self.source.key(self.indices[index])

    def __getitem__(self, index: int) -> TrainingSample:
        return self.source[self.indices[index]]


def hold_out(source: SampleSource, count: int, seed: int) -> tuple[Subset, Subset]:
    """A data set in two, at random: for training, and ``count`` samples held out.

    Raises:
        DataError: nothing would be left for training.
    """
    train, held = split(len(source), count, seed, "images")
    return Subset(source, train), Subset(source, held)


def split(total: int, count: int, seed: int, things: str) -> tuple[list[int], list[int]]:
    """Indices of ``total`` things in two, at random: for training, and ``count`` held out.

    Raises:
        DataError: nothing would be left for training.
    """
    if total <= count:
        raise DataError(
            f"the data have {total} {things}, and {count} are to be held out: say "
            "--set held_out=NUMBER"
        )
    order = np.random.default_rng(seed).permutation(total).tolist()
    return sorted(order[: total - count]), order[total - count :]


@dataclass(frozen=True)
class Shuffled:
    """Samples by position, without end: each epoch has each once, in an order of its own.

    Raises:
        DataError: the data set is empty.
    """

    source: SampleSource
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.source):
            raise DataError("there is nothing to train on: the data set is empty")

    def __call__(self, position: int) -> TrainingSample:
        return self.source[index_at(position, len(self.source), self.seed)]


@dataclass(frozen=True)
class Made:
    """Samples made by number when asked for, such as scenes.

    Args:
        make: picklable, for workers. count: how many there are; beyond 33 million they are
            drawn, not shuffled.
    """

    make: Callable[[int], TrainingSample]
    count: int = 1 << 40

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        """The number."""
        return str(index)

    def __getitem__(self, index: int) -> TrainingSample:
        return replace(self.make(index), key=self.key(index))
