"""The files of teacher features: shards of records by key.

A folder holds ``features.json`` and shards, each a pair of files::

    000-00000.values   a 64-byte header, then records of one fixed size, float16, C order
    000-00000.index    a line of JSON a record, in order: {"key": "sa_1", "crc32": 3632233996};
                       and, once the shard is full, {"records": 402, "sha256": "9f86..."}

The header is ``b"ES3FEAT1"``, the number of axes (little-endian uint32), and the lengths of the
axes (uint32 each), filled up with zeros; record i begins at byte 64 + i * 2 * product(axes). The
first number of a shard's name is the rank that wrote it, so ranks never share a file. A record
counts once its line is in the index: after a kill, what lies beyond the last line is cut off
and written anew. ``sha256`` is of the records, without the header.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np

from ..types import Array
from ..weights import replacing
from .errors import FeatureFileError
from .feature_source import FeatureSource

log = logging.getLogger(__name__)

DESCRIPTION = "features.json"
FORMAT = 1
MAGIC, HEADER = b"ES3FEAT1", 64
SHARD_BYTES = 1 << 32


@dataclass(frozen=True)
class Description:
    """What a folder holds.

    shape: of a record: (C, h, w) of an image, (L, C) of a phrase. teacher: who computed it,
    by name and digest of the weights, and what it was shown (resolution, mean, std, ...).
    """

    shape: tuple[int, ...]
    teacher: dict[str, Any]

    def write(self, folder: Path) -> None:
        content = {"format": FORMAT, "dtype": "float16", "shape": list(self.shape)}
        with replacing(folder / DESCRIPTION) as path:
            path.write_text(json.dumps({**content, "teacher": self.teacher}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Description:
        path = folder / DESCRIPTION
        if not path.is_file():
            raise FeatureFileError(
                f"{folder} has no {DESCRIPTION}: it is not a folder that save_features wrote"
            )
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                raise FeatureFileError(
                    f"{path} is of format {content['format']}; this version reads {FORMAT}"
                )
            return cls(tuple(int(n) for n in content["shape"]), dict(content["teacher"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise FeatureFileError(
                f"{path} does not describe teacher features: {error!r}. Delete the folder and "
                "save them again."
            ) from error


# One shard ----------------------------------------------------------------------------------


class Entry(NamedTuple):
    key: str
    crc32: int


@dataclass(frozen=True)
class Index:
    """The lines of an index file: its entries, and the checksum of a shard that is complete."""

    entries: list[Entry]
    sha256: str | None

    @classmethod
    def read(cls, path: Path) -> Index:
        """Read whole lines; the rest of a line that a kill has cut is left out."""
        entries: list[Entry] = []
        sha256 = None
        content = path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                if "sha256" in value:
                    sha256 = str(value["sha256"])
                else:
                    entries.append(Entry(value["key"], int(value["crc32"])))
            except (KeyError, TypeError, ValueError) as error:
                raise FeatureFileError(
                    f"{path}, line {number} is damaged: {error!r}. Delete this file and its "
                    ".values, and save the features again: the other shards are kept."
                ) from error
        return cls(entries, sha256)


def values_of(index: Path) -> Path:
    return index.with_suffix(".values")


def indices_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*-[0-9]*.index"))


def _numbers(index: Path) -> tuple[int, int]:
    """Rank and number of a shard."""
    rank, number = index.stem.split("-")
    return int(rank), int(number)


def _header(shape: tuple[int, ...]) -> bytes:
    packed = MAGIC + struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    return packed.ljust(HEADER, b"\0")


def _check_header(path: Path, file: BinaryIO, shape: tuple[int, ...]) -> None:
    if file.read(HEADER) != _header(shape):
        raise FeatureFileError(
            f"{path} is not a shard of records {' x '.join(map(str, shape))}: its header is "
            "damaged or of other features. Delete it and its .index, and save the features again."
        )


class ShardWriter:
    """Appends records to one rank's shards, going on where an earlier run was killed.

    Args:
        folder: of the features, described by ``features.json``.
        rank: of this process among ``world``; each writes its own shards.
        shard_bytes: a shard is closed, with its checksum, when it has grown to this.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, ...],
        rank: int = 0,
        world: int = 1,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.folder, self.shape, self.rank = folder, shape, rank
        self.record_bytes = 2 * math.prod(shape)
        self.capacity = max(1, (shard_bytes - HEADER) // self.record_bytes)
        self._values: BinaryIO | None = None
        self._index: TextIO | None = None
        numbers = [_numbers(path) for path in indices_of(folder)]
        self._number = 1 + max((n for r, n in numbers if r == rank), default=-1)
        for path in indices_of(folder):
            if _numbers(path)[0] % world == rank:  # an earlier run may have had more ranks
                self._repair(path)

    def _repair(self, path: Path) -> None:
        """Make an index and its values agree; go on with a shard that was not closed."""
        index, values = Index.read(path), values_of(path)
        size = values.stat().st_size if values.is_file() else 0
        whole = max(0, size - HEADER) // self.record_bytes
        kept = min(whole, len(index.entries))
        if index.sha256 is not None and kept == len(index.entries):
            return
        lost = len(index.entries) - kept
        if lost:
            log.warning(
                "%s is cut short: it has %d of the %d records of its index; the other %d are "
                "computed again",
                values,
                kept,
                len(index.entries),
                lost,
            )
        if not kept:
            path.unlink()
            values.unlink(missing_ok=True)
            return
        with values.open("r+b") as file:
            _check_header(values, file, self.shape)
            file.truncate(HEADER + kept * self.record_bytes)
        with replacing(path) as temporary, temporary.open("w") as lines:
            lines.writelines(_line(e._asdict()) for e in index.entries[:kept])
        if kept >= self.capacity or self._values is not None:
            self._seal(path, kept)
        else:
            self._open(path, kept)

    def _open(self, path: Path, records: int) -> None:
        self._path, self._records = path, records
        self._index = path.open("a", encoding="utf-8")
        self._values = values_of(path).open("ab", buffering=0)
        if not records:
            _write(self._values, _header(self.shape))

    def append(self, key: str, record: Array) -> None:
        """Write one record of the folder's shape.

        Raises:
            FeatureFileError: another shape; not finite in float16; a full disk.
        """
        if record.shape != self.shape:
            raise FeatureFileError(
                f"{key}: features have shape {record.shape}, but {self.folder} holds {self.shape}"
            )
        half = np.ascontiguousarray(record, np.float16)
        if not np.isfinite(half).all():
            raise FeatureFileError(
                f"{key}: the teacher's features are not finite in float16 (largest: "
                f"{float(np.abs(record).max()):g}, limit 65504)"
            )
        try:
            if self._values is None:
                self._open(self.folder / f"{self.rank:03d}-{self._number:05d}.index", 0)
                self._number += 1
            content = half.tobytes()
            if self._values is None or self._index is None:
                raise RuntimeError("append after close")
            _write(self._values, content)
            self._index.write(_line({"key": key, "crc32": zlib.crc32(content)}))
            self._index.flush()
        except OSError as error:
            self.close()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise FeatureFileError(
                f"the disk of {self.folder} is full at {key}. Free some space and run the same "
                "command again: what is written is kept."
            ) from error
        self._records += 1
        if self._records >= self.capacity:
            self.close()
            self._seal(self._path, self._records)

    def _seal(self, path: Path, records: int) -> None:
        digest = _digest(values_of(path))
        with path.open("a", encoding="utf-8") as file:
            file.write(_line({"records": records, "sha256": digest}))

    def finish(self) -> None:
        """Close the last shard with its checksum."""
        if self._values is not None:
            self.close()
            self._seal(self._path, self._records)

    def close(self) -> None:
        """Close the files as they are; another writer goes on from there."""
        for file in (self._values, self._index):
            if file is not None:
                file.close()
        self._values = self._index = None


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _write(file: BinaryIO, content: bytes) -> None:
    """All of it: an unbuffered file may take a part where the disk is nearly full."""
    view = memoryview(content)
    while view:
        written = file.write(view)
        view = view[written:]


def _digest(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(HEADER)
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


# Reading ------------------------------------------------------------------------------------


class Features(FeatureSource):
    """Records by key, from memory-mapped shards.

    Args:
        folder: what ``save_features`` or ``save_text_features`` wrote, complete or not.
        check: compare each record with its checksum when it is read.

    Raises:
        FeatureFileError: no such folder; a shard that is cut short or damaged.
    """

    again = ". Run the command that saved them again: it computes what is missing."

    def __init__(self, folder: str | Path, *, check: bool = True) -> None:
        self.folder = Path(folder)
        self.check = check
        self.description = Description.read(self.folder)
        self._places: dict[str, tuple[int, int, int]] = {}
        self._paths: list[Path] = []
        self._maps: dict[int, Array] = {}
        record = 2 * math.prod(self.shape)
        for shard, path in enumerate(indices_of(self.folder)):
            values, index = values_of(path), Index.read(path)
            self._paths.append(values)
            size = values.stat().st_size if values.is_file() else 0
            whole = max(0, size - HEADER) // record
            if whole < len(index.entries):
                raise FeatureFileError(
                    f"{values} is cut short: {len(index.entries)} records are indexed, {whole} "
                    "are there. Run the command that saved the features again: it computes what "
                    "is missing."
                )
            for row, entry in enumerate(index.entries):
                self._places[entry.key] = shard, row, entry.crc32

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a record."""
        return self.description.shape

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Array:
        """A record, float16, read-only; its bytes stay on disk until touched.

        Raises:
            FeatureFileError: no such key; a record that differs from its checksum.
        """
        try:
            shard, row, crc32 = self._places[key]
        except KeyError:
            raise FeatureFileError(
                f"{self.folder} has no features of {key!r} (it has {len(self):,} records). Run "
                "the command that saved them again, for the same data."
            ) from None
        record = self._map(shard)[row]
        if self.check and zlib.crc32(record) != crc32:
            raise FeatureFileError(
                f"{self._paths[shard]}: record {row} ({key!r}) differs from its checksum. Delete "
                "this file, and run the command that saved the features again."
            )
        return record

    def _map(self, shard: int) -> Array:
        if shard not in self._maps:
            path = self._paths[shard]
            with path.open("rb") as file:
                _check_header(path, file, self.shape)
            rows = (path.stat().st_size - HEADER) // (2 * math.prod(self.shape))
            self._maps[shard] = np.memmap(
                path, np.float16, mode="r", offset=HEADER, shape=(rows, *self.shape)
            )
        return self._maps[shard]

    def verify(self) -> None:
        """Compare every complete shard with its sha256 and every other record with its crc32.

        Raises:
            FeatureFileError: names the shard that differs.
        """
        for path in indices_of(self.folder):
            index, values = Index.read(path), values_of(path)
            if index.sha256 is not None:
                if _digest(values) != index.sha256:
                    raise FeatureFileError(
                        f"{values} differs from its sha256. Delete this file, and run the command "
                        "that saved the features again."
                    )
                continue
            with values.open("rb") as file:
                _check_header(values, file, self.shape)
                for row, entry in enumerate(index.entries):
                    if zlib.crc32(file.read(2 * math.prod(self.shape))) != entry.crc32:
                        raise FeatureFileError(
                            f"{values}: record {row} ({entry.key!r}) differs from its checksum"
                        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # each worker maps the files itself
