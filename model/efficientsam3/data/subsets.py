"""Parts and unions of data sets, and what is held out of them for validation."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from ..errors import DataError
from .clip import ClipSource, TrainingClip
from .sample import SampleSource, TrainingSample, sample_files, source_files


class Joined:
    """Several data sets as one; the number of its data set comes before each key.

    Args:
        sources: The data sets.
    """

    def __init__(self, *sources: SampleSource) -> None:
        self.sources = sources
        self._starts = list(itertools.accumulate(map(len, sources), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect.bisect_right(self._starts, index) - 1
        return part, index - self._starts[part]

    def key(self, index: int) -> str:
        """Number of the data set and key in it, such as ``0/sa_1``.

        Args:
            index: Which sample.
        """
        part, row = self._place(index)
        return f"{part}/{self.sources[part].key(row)}"

    def files(self, index: int) -> list[Path]:
        """The files that the data set gives; none where it does not know them.

        Args:
            index: Which sample.
        """
        part, row = self._place(index)
        return sample_files(self.sources[part], row)

    def all_files(self) -> Iterator[Path]:
        """The files of all data sets."""
        return itertools.chain.from_iterable(map(source_files, self.sources))

    def __getitem__(self, index: int) -> TrainingSample:
        part, row = self._place(index)
        return replace(self.sources[part][row], key=self.key(index))


Source = TypeVar("Source", SampleSource, ClipSource)


class _Part(Generic[Source]):
    """Some members of a data set, with their names and files.

    Args:
        source: The data set.
        indices: Which of its members, in order.
    """

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source: Source = source
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        """The name that the data set gives.

        Args:
            index: Which member.
        """
        return self.source.key(self.indices[index])

    def files(self, index: int) -> list[Path]:
        """The files that the data set gives; none where it does not know them.

        Args:
            index: Which member.
        """
        return sample_files(self.source, self.indices[index])

    def all_files(self) -> Iterator[Path]:
        """The files of all members; none where the data set has none."""
        if next(source_files(self.source), None) is not None:
            for index in range(len(self)):
                yield from self.files(index)


class Subset(_Part[SampleSource]):
    """Some samples of a data set."""

    def __getitem__(self, index: int) -> TrainingSample:
        return self.source[self.indices[index]]


class ClipSubset(_Part[ClipSource]):
    """Some videos of a source of clips."""

    def cut(self, index: int, frames: int, random: np.random.Generator) -> TrainingClip:
        """Cut a clip as the source does.

        Args:
            index: Which video.
            frames: Frames of the clip, at most.
            random: What decides the place.
        """
        return self.source.cut(self.indices[index], frames, random)


def hold_out(source: SampleSource, count: int, seed: int) -> tuple[Subset, Subset]:
    """Split a data set at random.

    Args:
        source: The data set.
        count: How many samples are held out.
        seed: Of the choice.

    Returns:
        Samples for training, and samples held out.

    Raises:
        DataError: Nothing is left for training.
    """
    train, held_out = split_indices(len(source), count, seed, "images")
    return Subset(source, train), Subset(source, held_out)


def hold_out_clips(source: ClipSource, count: int, seed: int) -> tuple[ClipSubset, ClipSubset]:
    """Split a source of clips at random, as ``hold_out`` splits samples.

    Args:
        source: The source.
        count: How many videos are held out.
        seed: Of the choice.
    """
    train, held_out = split_indices(len(source), count, seed, "videos")
    return ClipSubset(source, train), ClipSubset(source, held_out)


def split_indices(total: int, count: int, seed: int, things: str) -> tuple[list[int], list[int]]:
    """Split indices at random.

    Args:
        total: How many there are.
        count: How many are held out.
        seed: Of the choice.
        things: What is counted, for errors.

    Returns:
        Indices for training, in order, and indices held out.

    Raises:
        DataError: Nothing is left for training.
    """
    if total <= count:
        raise DataError(
            f"the data have {total} {things}, and {count} are to be held out: set fewer with "
            "--set held_out=NUMBER"
        )
    order = np.random.default_rng(seed).permutation(total).tolist()
    return sorted(order[: total - count]), order[total - count :]
