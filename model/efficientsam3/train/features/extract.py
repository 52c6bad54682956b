"""Computing a teacher's features and saving them; a later run computes what is missing."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...data.sample import SampleSource, sample_files
from ...errors import DataError
from ...io.identity import identity
from ..errors import FeatureFileError
from ..teachers import ImageTeacher, TextTeacher
from .shards import (
    DESCRIPTION_FILE,
    SHARD_BYTES,
    Description,
    ShardWriter,
    list_shards,
    read_checksums,
    read_inputs,
)

_log = logging.getLogger(__name__)

# Called with the number of records that are done, and the number of all.
OnProgress = Callable[[int, int], None]


def extract_image_features(
    teacher: ImageTeacher,
    dataset: SampleSource,
    folder: str | Path,
    *,
    batch: int = 8,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    shard_bytes: int = SHARD_BYTES,
    on_progress: OnProgress | None = None,
) -> int:
    """Compute a teacher's maps of all images of a data set, and save them by key.

    A later call computes the images whose features are not saved yet. The features of images whose
    files have changed since are computed again, with those of the same shard, and a warning says
    how many have changed.

    Args:
        teacher: The teacher, on the device where it computes.
        dataset: The images.
        folder: Folder of the features; it is created if it is missing.
        batch: Images that the teacher reads at once.
        workers: Processes that read images ahead; 0: none.
        rank: Number of this process, from 0; it computes every ``world``-th image.
        world: Number of processes that share the images.
        shard_bytes: Size at which a shard is written.
        on_progress: Called after each batch.

    Returns:
        Number of records that this call wrote.

    Raises:
        FeatureFileError: The folder is of another teacher; the disk is full.
        DataError: The data set is empty, or a sample cannot be read.
    """
    if not len(dataset):
        raise DataError("there is no image to compute features of: the data set is empty")
    inputs = {}
    for i in range(len(dataset)):
        if (digest := _input_digest(dataset, i)) is not None:
            inputs[dataset.key(i)] = digest
    writer, done = _open_folder(Path(folder), teacher, rank, world, shard_bytes, inputs)
    own = range(rank, len(dataset), world)
    missing = [i for i in own if dataset.key(i) not in done]
    loader = torch.utils.data.DataLoader(
        _TeacherImages(dataset, missing, teacher.resolution, teacher.mean, teacher.std),
        batch_size=batch,
        num_workers=workers,
        collate_fn=_collate,
        # A forked process can wait for ever on a lock that another thread of its parent held.
        multiprocessing_context="spawn" if workers else None,
    )
    batches = ((keys, teacher(pixels, sizes)) for keys, pixels, sizes in loader)
    return _write(writer, batches, len(missing), len(own), on_progress, inputs)


def _input_digest(dataset: SampleSource, index: int) -> str | None:
    """What tells whether the image's file has changed; None where it has none."""
    file = next((path for path in sample_files(dataset, index)[:1] if path.is_file()), None)
    if file is None:
        return None
    values = {key: value for key, value in identity(file).items() if key != "path"}
    return " ".join(map(str, values.values()))


def extract_text_features(
    teacher: TextTeacher,
    phrases: Sequence[str],
    folder: str | Path,
    *,
    batch: int = 256,
    rank: int = 0,
    world: int = 1,
    shard_bytes: int = SHARD_BYTES,
    on_progress: OnProgress | None = None,
) -> int:
    """Compute a text teacher's tokens of phrases, and save them by phrase.

    A later call computes the phrases whose features are not saved yet.

    Args:
        teacher: The teacher, on the device where it computes.
        phrases: The phrases; each different one is computed once.
        folder: Folder of the features; it is created if it is missing.
        batch: Phrases that the teacher reads at once.
        rank: Number of this process, from 0; it computes every ``world``-th phrase.
        world: Number of processes that share the phrases.
        shard_bytes: Size at which a shard is written.
        on_progress: Called after each batch.

    Returns:
        Number of records that this call wrote.

    Raises:
        FeatureFileError: The folder is of another teacher; the disk is full.
        DataError: There are no phrases.
    """
    if not len(phrases):
        raise DataError("there is no phrase to compute features of: the source is empty")
    writer, done = _open_folder(Path(folder), teacher, rank, world, shard_bytes)
    own = dict.fromkeys(phrases[i] for i in range(rank, len(phrases), world))
    missing = [phrase for phrase in own if phrase not in done]
    some = (missing[start : start + batch] for start in range(0, len(missing), batch))
    batches = ((keys, teacher.encode(keys)[0]) for keys in some)
    return _write(writer, batches, len(missing), len(own), on_progress)


def _write(
    writer: ShardWriter,
    batches: Iterable[tuple[list[str], Tensor]],
    missing: int,
    total: int,
    on_progress: OnProgress | None,
    inputs: Mapping[str, str] | None = None,
) -> int:
    """Write the features of batches of keys; the number of records."""
    inputs = inputs or {}
    record_bytes = writer.description.record_bytes
    free = shutil.disk_usage(writer.folder).free
    if missing * record_bytes > free:
        raise FeatureFileError(
            f"{missing:,} records of {record_bytes / 2**20:.1f} MiB need "
            f"{missing * record_bytes / 2**30:.1f} GiB, but the disk of {writer.folder} has "
            f"{free / 2**30:.1f} GiB free. Choose another folder, or a subset; or train without "
            "saved features: the teacher then computes them at every step"
        )
    done = total - missing
    for keys, features in batches:
        for key, record in zip(keys, features.float().cpu().numpy(), strict=True):
            writer.append(key, record, inputs.get(key))
        done += len(keys)
        if on_progress is not None:
            on_progress(done, total)
    writer.flush()
    return missing


def _open_folder(
    folder: Path,
    teacher: ImageTeacher | TextTeacher,
    rank: int,
    world: int,
    shard_bytes: int,
    inputs: Mapping[str, str] | None = None,
) -> tuple[ShardWriter, set[str]]:
    """Describe a new folder, or compare an old one; a writer, and the keys that are saved already.

    A shard that is damaged, or that has a record of a file which has changed, is deleted, by one
    process alone, and its records are computed again.
    """
    inputs = inputs or {}
    description = Description(teacher.shape, teacher.describe())
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / DESCRIPTION_FILE).is_file():
        description.write(folder)
    found = Description.read(folder)
    if found != description:
        raise FeatureFileError(
            f"{folder} holds features of {found.teacher} with records {found.shape}, not of "
            f"{description.teacher} with {description.shape}. Choose another folder, or "
            "delete this one"
        )
    done: set[str] = set()
    for path in list_shards(folder):
        try:
            keys = read_checksums(path).keys()
            before = read_inputs(path)
            changed = [k for k, v in before.items() if inputs.get(k, v) != v]
            if not changed:
                done.update(keys)
                continue
            reason = (
                f"{path}: {len(changed)} of {len(keys)} images changed since their features were "
                f"saved, the first of them {changed[0]}"
            )
        except FeatureFileError as error:
            reason = str(error)
        if int(path.stem.split("-")[0]) % world == rank:  # an earlier run may have had more
            _log.warning("%s; its records are computed again", reason)
            path.unlink(missing_ok=True)
    return ShardWriter(folder, description, rank, shard_bytes), done


# Key, (1, 3, R, R) pixels, and (height, width) of the original image.
Item = tuple[str, Tensor, tuple[int, int]]


class _TeacherImages(torch.utils.data.Dataset[Item]):
    """Some samples of a data set as the teacher reads them; picklable, for workers."""

    def __init__(
        self, dataset: SampleSource, indices: list[int], resolution: int, mean: float, std: float
    ) -> None:
        self.dataset, self.indices = dataset, indices
        self.resolution, self.mean, self.std = resolution, mean, std

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> Item:
        sample = self.dataset[self.indices[row]]
        return sample.key, sample.pixels(self.resolution, self.mean, self.std), sample.size


def _collate(items: list[Item]) -> tuple[list[str], Tensor, list[tuple[int, int]]]:
    return [i[0] for i in items], torch.cat([i[1] for i in items]), [i[2] for i in items]
