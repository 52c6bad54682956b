"""From data sets to batches: which sample comes when, and what is made of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor, device

from ..data.augment import Augment
from ..data.sample import TrainingSample
from ..errors import DataError

T = TypeVar("T")

LARGEST_SHUFFLE = 1 << 25
"""Longer data sets (a stream of scenes) are drawn from, not shuffled: an order takes memory."""
TRIES = 8
"""Samples that are read for one place of a batch, until one is usable."""


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Any:
    return np.random.default_rng([seed, epoch]).permutation(count)


def index_at(position: int, count: int, seed: int) -> int:
    """Which sample comes at a position of the endless sequence of a data set.

    Each epoch has each sample once, in an order of its own.

    Args:
        position: from 0.
        count: samples of the data set.
        seed: of the orders.
    """
    epoch, offset = divmod(position, count)
    if count > LARGEST_SHUFFLE:
        return int(np.random.default_rng([seed, position]).integers(count))
    return int(_order(count, seed, epoch)[offset])


@dataclass(frozen=True)
class Batches(Generic[T]):
    """Make batch number n of a data set. Picklable, for worker processes.

    Attributes:
        source: Samples or phrases, by index.
        collate: Makes a batch of samples; all that is random comes from the generator.
        size: Samples of a batch.
        seed: Of the order of samples.
        usable: Whether a sample can be in a batch; others are replaced by samples at random. None:
            all.
        augment: Changes samples for training, by the seed and their position; None: not at all.

    Raises:
        DataError: the data set is empty.
    """

    source: Any
    collate: Callable[[Iterable[Any], np.random.Generator], T]
    size: int
    seed: int = 0
    usable: Callable[[Any], bool] | None = None
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if not len(self.source):
            raise DataError("there is nothing to train on: the data set is empty")

    def __call__(self, number: int, rng: np.random.Generator) -> T:
        """Batch ``number``; samples are read one after the other, as ``collate`` takes them."""
        first = number * self.size
        positions = range(first, first + self.size)
        return self.collate((self._sample(p, rng) for p in positions), rng)

    def _sample(self, position: int, rng: np.random.Generator) -> Any:
        for _ in range(TRIES):
            sample = self.source[index_at(position, len(self.source), self.seed)]
            if self.augment is not None:
                sample = self.augment(sample, self.seed, position)
            if self.usable is None or self.usable(sample):
                break
            position = int(rng.integers(1 << 40))
        return sample

    def once(self, most: int) -> Iterator[T]:
        """Go through the first samples once, for validation.

        Args:
            most: samples, at most.

        Yields:
            Batches in order, the same in every call.
        """
        count = min(most, len(self.source))
        for first in range(0, count, self.size):
            rng = np.random.default_rng([self.seed, first])
            rows = range(first, min(first + self.size, count))
            yield self.collate((self.source[i] for i in rows), rng)


def to_device(batch: T, where: device) -> T:
    """Move a tensor, or all tensors of a named tuple and those in it, to a device.

    Args:
        batch: what is moved; other values stay as they are.
        where: the device.
    """
    if isinstance(batch, Tensor):
        return batch.to(where)  # type: ignore[return-value]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, where) for value in batch))
    return batch


@dataclass(frozen=True)
class Generated:
    """A data set of samples that are made by number when they are read, such as scenes.

    Attributes:
        make: Makes a sample; picklable, for worker processes.
        count: How many samples there are. Of more than 33 million, samples are drawn, not shuffled.
    """

    make: Callable[[int], TrainingSample]
    count: int = 1 << 40

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        """The number of a sample.

        Args:
            index: of the sample.
        """
        return str(index)

    def __getitem__(self, index: int) -> TrainingSample:
        return replace(self.make(index), key=self.key(index))
