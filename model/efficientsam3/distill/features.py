"""Teacher features on disk: computed once, read by every epoch and every student."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import DataError, FeatureFileError
from .feature_source import FeatureSource
from .shards import (
    DESCRIPTION,
    HEADER,
    SHARD_BYTES,
    Description,
    Features,
    Index,
    ShardWriter,
    indices_of,
    values_of,
)
from .upstream_features import UpstreamFeatures

if TYPE_CHECKING:
    from .data.sample import SampleSource
    from .teachers import ImageTeacher, TextTeacher

Progress = Callable[[int, int], None]
"""Called with the number of records done, and of all."""


def open_features(folder: str | Path, shape: tuple[int, ...] = (1024, 72, 72)) -> FeatureSource:
    """Features of either format; ``shape`` is asked of upstream's alone."""
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file() and any(folder.glob("rank*-keys.txt")):
        return UpstreamFeatures(folder, shape)
    return Features(folder)


def _open_folder(folder: Path, description: Description) -> set[str]:
    """Describe a new folder, or compare an old one; the keys that are done."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / DESCRIPTION).is_file():
        found = Description.read(folder)
        if found != description:
            raise FeatureFileError(
                f"{folder} holds features of {found.teacher} with records {found.shape}, not of "
                f"{description.teacher} with {description.shape}. Choose another folder, or "
                "delete this one."
            )
    else:
        description.write(folder)
    done: set[str] = set()
    for path in indices_of(folder):
        index, values = Index.read(path), values_of(path)
        size = values.stat().st_size if values.is_file() else 0
        whole = max(0, size - HEADER) // (2 * math.prod(description.shape))
        done.update(e.key for e in index.entries[:whole])
    return done


def _need_space(folder: Path, records: int, record_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    need = records * record_bytes
    if need > free:
        raise FeatureFileError(
            f"{records:,} records of {record_bytes / 2**20:.1f} MiB need {need / 2**30:.1f} GiB, "
            f"but the disk of {folder} has {free / 2**30:.1f} GiB free. Choose another folder, or "
            "a subset; or train without saved features: the teacher then runs at every step."
        )


def save_features(
    teacher: ImageTeacher,
    dataset: SampleSource,
    folder: str | Path,
    *,
    batch: int = 8,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> int:
    """Compute a teacher's maps of a data set's images; run again after a kill, it goes on.

    Args:
        teacher: on the device where it is to compute.
        folder: made if need be; ``shards`` describes it.
        batch: images at once. workers: processes that read images ahead.
        rank, world: this process computes every ``world``-th image from ``rank``.

    Returns: how many records this call wrote.

    Raises:
        FeatureFileError: the folder is of another teacher; the disk is full.
        DataError: an empty data set, or what its samples raise.
    """
    folder = Path(folder)
    if not len(dataset):
        raise DataError("there is no image to compute features of: the data set is empty")
    description = Description(teacher.shape, teacher.describe())
    done = _open_folder(folder, description)
    mine = range(rank, len(dataset), world)
    todo = [i for i in mine if dataset.key(i) not in done]
    writer = ShardWriter(folder, teacher.shape, rank, world, shard_bytes)
    _need_space(folder, len(todo), writer.record_bytes)

    loader = torch.utils.data.DataLoader(
        _Pixels(dataset, todo, teacher.resolution, teacher.mean, teacher.std),
        batch_size=batch,
        num_workers=workers,
        collate_fn=_collate_pixels,
        # A fork of a process whose threads hold locks can wait for them for ever.
        multiprocessing_context="spawn" if workers else None,
    )
    written = 0
    try:
        for keys, pixels, sizes in loader:
            maps = teacher(pixels, sizes).float().cpu().numpy()
            for key, record in zip(keys, maps, strict=True):
                writer.append(key, record)
            written += len(keys)
            if progress is not None:
                progress(len(mine) - len(todo) + written, len(mine))
        writer.finish()
    finally:
        writer.close()
    return written


Shown = tuple[str, Tensor, tuple[int, int]]


class _Pixels(torch.utils.data.Dataset[Shown]):
    """Key, pixels and original size of some samples, for workers."""

    def __init__(
        self, dataset: SampleSource, indices: list[int], resolution: int, mean: float, std: float
    ) -> None:
        self.dataset, self.indices = dataset, indices
        self.resolution, self.mean, self.std = resolution, mean, std

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> Shown:
        sample = self.dataset[self.indices[row]]
        return sample.key, sample.pixels(self.resolution, self.mean, self.std), sample.size


def _collate_pixels(
    items: list[Shown],
) -> tuple[list[str], Tensor, list[tuple[int, int]]]:
    return [i[0] for i in items], torch.cat([i[1] for i in items]), [i[2] for i in items]


def save_text_features(
    teacher: TextTeacher,
    phrases: Sequence[str],
    folder: str | Path,
    *,
    batch: int = 256,
    rank: int = 0,
    world: int = 1,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> int:
    """Compute a text teacher's tokens of phrases; as ``save_features``, keyed by phrase."""
    folder = Path(folder)
    if not len(phrases):
        raise DataError("there is no phrase to compute features of: the source is empty")
    done = _open_folder(folder, Description(teacher.shape, teacher.describe()))
    mine = range(rank, len(phrases), world)
    todo = list(dict.fromkeys(p for i in mine if (p := phrases[i]) not in done))
    writer = ShardWriter(folder, teacher.shape, rank, world, shard_bytes)
    _need_space(folder, len(todo), writer.record_bytes)
    try:
        for start in range(0, len(todo), batch):
            some = todo[start : start + batch]
            features = teacher.read(some)[0].float().cpu().numpy()
            for phrase, record in zip(some, features, strict=True):
                writer.append(phrase, record)
            if progress is not None:
                progress(start + len(some), len(todo))
        writer.finish()
    finally:
        writer.close()
    return len(todo)
