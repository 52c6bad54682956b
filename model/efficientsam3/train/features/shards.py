"""Teacher features as safetensors shards.

A folder holds ``features.json``, which states the shape of a record and the teacher, and shards
``RANK-NUMBER.safetensors``. A shard has one float16 tensor for each key. Its metadata has
``format`` and ``crc32``, a JSON object from each key to the checksum of its bytes; and ``inputs``,
one from each key to a digest of size and times of the image's file, where there is one. A shard is
written at once and renamed into place, so a killed process leaves complete shards only. The first
number of a shard's name is the rank that wrote it, so processes never write the same file.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ...data.json_records import read_json
from ...io.atomic import replacing
from ...types import Array
from ..errors import FeatureFileError
from .source import FeatureSource

_log = logging.getLogger(__name__)

DESCRIPTION_FILE = "features.json"
FORMAT = "efficientsam3-features-2"
# Default size of a shard, 256 MiB: what a killed process has to compute again at most.
SHARD_BYTES = 1 << 28


@dataclass(frozen=True)
class Description:
    """What a folder of features holds.

    Attributes:
        shape: Shape of one record: (C, h, w) of an image, (L, C) of a phrase.
        teacher: The teacher by name and digest of its weights, and the preparation of its input.
    """

    shape: tuple[int, ...]
    teacher: dict[str, Any]

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return 2 * math.prod(self.shape)

    def write(self, folder: Path) -> None:
        """Write ``features.json``.

        Args:
            folder: Folder of the features.
        """
        content = {"format": FORMAT, "shape": list(self.shape), "teacher": self.teacher}
        with replacing(folder / DESCRIPTION_FILE) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Read ``features.json``.

        Args:
            folder: Folder of the features.

        Raises:
            FeatureFileError: It is missing, damaged, or of another format.
        """
        path = folder / DESCRIPTION_FILE
        if not path.is_file():
            raise FeatureFileError(
                f"{folder} has no {DESCRIPTION_FILE}: it is not a folder of saved features"
            )
        try:
            content = read_json(path)
            if content["format"] != FORMAT:
                raise FeatureFileError(
                    f"{path} has format {content['format']!r}; this version reads {FORMAT!r}. "
                    "Delete the folder and save the features again"
                )
            return cls(tuple(int(n) for n in content["shape"]), dict(content["teacher"]))
        except FeatureFileError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FeatureFileError(
                f"{path} does not describe teacher features: {error!r}. Delete the folder and "
                "save the features again"
            ) from error


def list_shards(folder: Path) -> list[Path]:
    """The shards of a folder, in the order of their names.

    Args:
        folder: Folder of the features.
    """
    return sorted(folder.glob("[0-9]*-[0-9]*.safetensors"))


def read_inputs(path: Path) -> dict[str, str]:
    """Digests of the files that the records of a shard were computed of.

    Args:
        path: The shard.

    Returns:
        Key -> digest; empty where none is known.

    Raises:
        FeatureFileError: The shard is cut short, or another kind of file.
    """
    try:
        with safe_open(path, "np") as file:
            content = json.loads((file.metadata() or {}).get("inputs", "{}"))
        return {str(key): str(value) for key, value in content.items()}
    except Exception as error:  # whatever damaged metadata lead to
        raise FeatureFileError(
            f"{path} is damaged or cut short ({error}). Delete it{ShardFeatures.remedy}"
        ) from error


def read_checksums(path: Path) -> dict[str, int]:
    """Keys and checksums of a shard, without reading its records.

    Args:
        path: The shard.

    Returns:
        Key -> CRC-32 of its record.

    Raises:
        FeatureFileError: The shard is cut short, or another kind of file.
    """
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            keys = set(file.keys())
        if metadata.get("format") != FORMAT:
            raise FeatureFileError(
                f"{path} is not a shard of features (its format is {metadata.get('format')!r}, "
                f"not {FORMAT!r}). Delete it{ShardFeatures.remedy}"
            )
        checksums = {str(k): int(v) for k, v in json.loads(metadata["crc32"]).items()}
        if checksums.keys() != keys:
            raise FeatureFileError(
                f"{path} has other tensors than its metadata names. Delete it{ShardFeatures.remedy}"
            )
        return checksums
    except FeatureFileError:
        raise
    except Exception as error:  # whatever damaged metadata lead to
        raise FeatureFileError(
            f"{path} is damaged or cut short ({error}). Delete it{ShardFeatures.remedy}"
        ) from error


class ShardWriter:
    """Collects records, and writes a shard whenever there are enough of them.

    Args:
        folder: Folder of the features; it has a ``features.json``.
        description: What that file holds.
        rank: Number of this process; its shards are named by it.
        shard_bytes: Size at which a shard is written.
    """

    def __init__(
        self, folder: Path, description: Description, rank: int = 0, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.folder, self.description, self.rank = folder, description, rank
        self.capacity = max(1, shard_bytes // description.record_bytes)
        self._records: dict[str, Array] = {}
        self._inputs: dict[str, str] = {}
        numbers = [int(p.stem.split("-")[1]) for p in folder.glob(f"{rank:03d}-*.safetensors")]
        self._number = max(numbers, default=-1) + 1

    def append(self, key: str, record: Array, digest: str | None = None) -> None:
        """Add one record.

        Args:
            key: Key of the image or phrase.
            record: Its features, of the folder's shape; stored as float16.
            digest: What tells whether the file of the image has changed since; None: there is none.

        Raises:
            FeatureFileError: Another shape; values beyond float16; the shard cannot be written.
        """
        if record.shape != self.description.shape:
            raise FeatureFileError(
                f"{key}: features have shape {record.shape}, but {self.folder} holds "
                f"{self.description.shape}"
            )
        half = np.ascontiguousarray(record, np.float16)
        if not np.isfinite(half).all():
            raise FeatureFileError(
                f"{key}: the teacher's features are not finite in float16 (largest: "
                f"{float(np.abs(record).max()):g}, limit 65504)"
            )
        self._records[key] = half
        if digest is not None:
            self._inputs[key] = digest
        if len(self._records) >= self.capacity:
            self.flush()

    def flush(self) -> None:
        """Write the collected records as a shard, if there are any.

        Raises:
            FeatureFileError: It cannot be written, as on a full disk.
        """
        if not self._records:
            return
        path = self.folder / f"{self.rank:03d}-{self._number:05d}.safetensors"
        checksums = {k: zlib.crc32(v.data) for k, v in self._records.items()}
        metadata = {
            "format": FORMAT,
            "crc32": json.dumps(checksums, ensure_ascii=False),
            "inputs": json.dumps(self._inputs, ensure_ascii=False),
        }
        try:
            with replacing(path) as temporary:
                save_file(self._records, temporary, metadata)
        except (OSError, SafetensorError) as error:
            raise FeatureFileError(
                f"{path} could not be written ({error}). Free some space and run the same command "
                "again: complete shards are kept"
            ) from error
        self._number += 1
        self._records, self._inputs = {}, {}


class ShardFeatures(FeatureSource):
    """Features in safetensors shards.

    Args:
        folder: What ``extract_image_features`` or ``extract_text_features`` wrote, complete or not.
        check: Compare each record with its checksum when it is read.

    Raises:
        FeatureFileError: There is no such folder; a shard is damaged.
    """

    remedy = ". Run the command that saved the features again: it computes what is missing"

    def __init__(self, folder: str | Path, *, check: bool = True) -> None:
        super().__init__(folder)
        self.check = check
        self.description = Description.read(self.folder)
        self._paths = list_shards(self.folder)
        for shard, path in enumerate(self._paths):
            for key, checksum in read_checksums(path).items():
                self._places[key] = shard, checksum

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        return self.description.shape

    def __getitem__(self, key: str) -> Array:
        """Read a record.

        Args:
            key: Key of the image or phrase.

        Returns:
            Its features, float16.

        Raises:
            FeatureFileError: There is no such key; the record differs from its checksum.
        """
        shard, checksum = self._place(key)
        path = self._paths[shard]
        if shard not in self._open_files:
            self._open_files[shard] = safe_open(path, "np")
        record: Array = self._open_files[shard].get_tensor(key)
        if record.shape != self.shape or (self.check and zlib.crc32(record.data) != checksum):
            raise FeatureFileError(
                f"{path}: the record of {key!r} differs from its checksum. Delete this file"
                f"{self.remedy}"
            )
        return record

    def verify(self) -> None:
        """Compare every record with its checksum.

        Raises:
            FeatureFileError: Names the shard and record that differ.
        """
        for key in self:
            self[key]
