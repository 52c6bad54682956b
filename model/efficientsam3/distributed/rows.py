"""The images of a partition, read ahead by threads."""

from __future__ import annotations

import errno
import json
import os
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ImageError
from ..io.pages import read_first_page
from ..io.paths import is_image_file
from ..types import Array
from .sources import Partition, open_parquet
from .stores import import_pyarrow, is_uri, open_file, read_bytes, retried

PARQUET_BATCH = 16
"""Rows of Parquet that are in memory with their bytes."""
PASSING_CODES = (errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.EAGAIN, errno.ECONNRESET)
"""Errors of a mounted file system that another attempt may change."""


@dataclass
class Row:
    """An image, or why there is none.

    Attributes:
        key: What the row is called.
        path: Path or URI of its file; None where its bytes were in another file.
        concepts: What the source has for this row.
        image: (H, W, 3) uint8 RGB; None where there is an error.
        error: Why there is no image.
    """

    key: str
    path: str | None = None
    concepts: Any = None
    image: Array | None = field(default=None, repr=False)
    error: str | None = None


Job = tuple[Row, Callable[[], Array] | None]
"""A row, and what reads its image; None where the row has an error already."""


def read_rows(partition: Partition, ahead: int, threads: int) -> Iterator[Row]:
    """Read the images of a partition, in order.

    Args:
        partition: The partition.
        ahead: Images that are read before they are asked for, which bounds memory.
        threads: Images that are read at the same time.

    Yields:
        Each row once.

    Raises:
        DataError: The file that holds the images cannot be read.
        OSError: The same, while it is read.
    """
    jobs = {"files": _of_files, "parquet": _of_parquet, "tar": _of_tar}[partition.kind](partition)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Row, Future[Array] | None]] = deque()
        for row, read in jobs:
            waiting.append((row, None if read is None else pool.submit(read)))
            if len(waiting) > ahead:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _finished(row: Row, image: Future[Array] | None) -> Row:
    try:
        row.image = None if image is None else image.result()
    except (ImageError, OSError, MemoryError) as error:
        row.error = str(error) or type(error).__name__
    return row


def _of_files(partition: Partition) -> Iterator[Job]:
    for key, place, concepts in partition.rows:
        row = Row(key, place, concepts)
        if place is None:
            row.error = "the row has no image: its value is missing"
            yield row, None
        else:
            yield row, partial(read_place, place)


def read_place(place: str) -> Array:
    """Read an image, and again where its store fails for a moment.

    Args:
        place: A path or a URI.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: It cannot be read.
        OSError: The same, after several attempts.
    """
    if not is_uri(place):
        return retried(lambda: _read_local(Path(place)), place)
    try:
        content = read_bytes(place)
    except FileNotFoundError as error:
        raise ImageError(f"there is no image at {place}") from error
    except OSError as error:
        raise ImageError(f"{place} cannot be read: {error}") from error
    return read_content(content, place)


def _read_local(path: Path) -> Array:
    try:
        return read_first_page(path)
    except ImageError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in PASSING_CODES:
            raise cause from error  # a mounted store that fails for a moment
        raise


def read_content(content: bytes, name: str) -> Array:
    """Read the bytes of a picture file as the file itself is read.

    Args:
        content: The bytes.
        name: What messages call the file; its suffix tells what kind it is.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: It cannot be decoded.
    """
    # Readers of some types need a file: tifffile, and Pillow for its second look at deep pictures.
    suffix = PurePosixPath(name.partition("?")[0]).suffix
    handle, path = tempfile.mkstemp(suffix=suffix if suffix.isascii() else "", prefix="esam3-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        return read_first_page(Path(path))
    except ImageError as error:
        raise ImageError(str(error).replace(path, name)) from error
    finally:
        os.unlink(path)


# Parquet -------------------------------------------------------------------------------------


def _of_parquet(partition: Partition) -> Iterator[Job]:
    """The rows of a partition. Row groups that it does not touch are not read."""
    columns, at = partition.columns, 0
    groups: list[int] = []
    first = 0
    with open_parquet(partition.file) as file:
        for number in range(file.num_row_groups):
            end = at + file.metadata.row_group(number).num_rows
            if end > partition.start and at < partition.stop:
                first = first if groups else at
                groups.append(number)
            at = end
        wanted = list(dict.fromkeys(c for c in columns if c is not None))
        number = first
        for batch in file.iter_batches(PARQUET_BATCH, row_groups=groups, columns=wanted):
            if number >= partition.stop:
                return
            begin = max(number, partition.start)
            end = min(number + len(batch), partition.stop)
            if begin < end:
                yield from _of_batch(partition, batch.slice(begin - number, end - begin), begin)
            number += len(batch)


def _of_batch(partition: Partition, batch: Any, start: int) -> Iterator[Job]:
    columns = partition.columns
    arrow = import_pyarrow("")
    nothing = arrow.nulls(len(batch))
    keys = nothing if columns.key is None else batch.column(columns.key)
    concepts = nothing if columns.concepts is None else batch.column(columns.concepts)
    for i, image in enumerate(batch.column(columns.image)):
        value = image.as_py()
        key = keys[i].as_py()
        name = value.get("path") if isinstance(value, dict) else None
        content = value.get("bytes") if isinstance(value, dict) else value
        row = Row(f"{partition.file}#row={start + i}" if key is None else str(key))
        row.concepts = concepts[i].as_py()
        if content is None:
            row.error = "the row has no image: its value is missing"
            yield row, None
        else:
            yield row, partial(read_content, content, name or row.key)


# WebDataset ----------------------------------------------------------------------------------


def _of_tar(partition: Partition) -> Iterator[Job]:
    """The samples of a tar file: files with one name up to its first dot, one after another."""
    try:
        with open_file(partition.file) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for key, parts in _group(tar):
                yield _of_sample(partition, key, parts)
    except tarfile.TarError as error:
        row = Row(partition.file)
        row.error = f"{partition.file} is damaged here, and what follows is not read: {error}"
        yield row, None


def _group(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    key, parts = "", dict[str, bytes]()
    for member in _members(tar):
        path = PurePosixPath(member.name)
        stem, _, ending = path.name.partition(".")
        if not member.isfile() or not stem:
            continue
        name = str(path.with_name(stem))
        if name != key and parts:
            yield key, parts
            parts = {}
        key = name
        content = tar.extractfile(member)
        parts[ending.lower()] = b"" if content is None else content.read()
        if len(parts[ending.lower()]) < member.size:
            raise tarfile.ReadError(f"{member.name} is cut")
    if parts:
        yield key, parts


def _members(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    """The members, of which none is kept: a list of all would grow with the file."""
    while (member := tar.next()) is not None:
        yield member
        tar.members = []  # type: ignore[attr-defined]


def _of_sample(partition: Partition, key: str, parts: dict[str, bytes]) -> Job:
    row = Row(f"{partition.file}/{key}")
    try:
        row.concepts = _concepts_of(partition.columns.concepts, parts)
    except ImageError as error:
        row.error = str(error)
        return row, None
    images = [ending for ending in parts if is_image_file(Path(f"image.{ending.split('.')[-1]}"))]
    if len(images) != 1:
        has = ", ".join(parts)
        row.error = f"a sample has one image, and this one has {len(images)}: its files are {has}"
        return row, None
    name = f"{row.key}.{images[0]}"
    return row, partial(read_content, parts[images[0]], name)


def _concepts_of(name: str | None, parts: dict[str, bytes]) -> Any:
    """The lines of the sample's text, or a field of its JSON; None where there is none."""
    if name is None:
        return None
    try:
        if name == "txt":
            text = parts.get("txt", b"").decode("utf-8-sig")
            return [line.strip() for line in text.splitlines() if line.strip()] or None
        fields = json.loads(parts.get("json", b"{}"))
        return fields.get(name) if isinstance(fields, dict) else None
    except (ValueError, RecursionError) as error:
        raise ImageError(f"the text beside the image cannot be read: {error}") from error
