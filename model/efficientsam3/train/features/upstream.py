"""Features in the files of upstream's trainer, read and written."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...io.atomic import replacing
from ...types import Array
from ..errors import FeatureFileError
from .source import FeatureSource


class UpstreamFeatures(FeatureSource):
    """Features that upstream's ``save_embedding`` scripts wrote.

    ``rank{r}-keys.txt`` has one key a line. ``rank{r}-values.bin`` has one record a key: an int32
    (little-endian) seed of the augmentation, then float16 values.

    Args:
        folder: Folder of these files.
        shape: Shape of one record, (1024, 72, 72) for SAM3's image encoder. The files do not
            state it.

    Raises:
        FeatureFileError: There are no such files, or values that do not fit keys and shape.
    """

    def __init__(self, folder: str | Path, shape: tuple[int, ...] = (1024, 72, 72)) -> None:
        super().__init__(folder)
        self._shape = shape
        self._record = np.dtype([("seed", "<i4"), ("values", "<f2", shape)])
        self._paths: list[Path] = []
        for names in sorted(self.folder.glob("rank*-keys.txt")):
            values = names.with_name(names.name.replace("-keys.txt", "-values.bin"))
            keys = names.read_text(encoding="utf-8").splitlines()
            size = values.stat().st_size if values.is_file() else 0
            if size != len(keys) * self._record.itemsize:
                raise FeatureFileError(
                    f"{values} has {size:,} bytes, but {len(keys):,} keys of {shape} in float16 "
                    f"need {len(keys) * self._record.itemsize:,}: it is cut short, or of another "
                    "shape (a text teacher's is (context, 256))"
                )
            for row, key in enumerate(keys):
                self._places[key] = len(self._paths), row
            self._paths.append(values)
        if not self._paths:
            raise FeatureFileError(f"{self.folder} has no rank*-keys.txt of upstream's features")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        return self._shape

    def _row(self, key: str) -> Any:
        rank, row = self._place(key)
        if rank not in self._open_files:
            self._open_files[rank] = np.memmap(self._paths[rank], self._record, mode="r")
        return self._open_files[rank][row]

    def __getitem__(self, key: str) -> Array:
        """Read a record.

        Args:
            key: Key of the image or phrase.

        Returns:
            Its features, float16, read-only.

        Raises:
            FeatureFileError: There is no such key.
        """
        values: Array = self._row(key)["values"]
        return values

    def seed(self, key: str) -> int:
        """The seed with which upstream augmented this sample.

        Args:
            key: Key of the image or phrase.

        Raises:
            FeatureFileError: There is no such key.
        """
        return int(self._row(key)["seed"])


def write_upstream(
    folder: str | Path, items: Iterable[tuple[str, Array]], *, rank: int = 0, seed: int = 0
) -> None:
    """Write features for upstream's trainer.

    Args:
        folder: Folder for the two files; it is created if it is missing.
        items: Pairs of a key and its features, stored as float16.
        rank: Number in the files' names.
        seed: Seed of the augmentation, written with every record.

    Raises:
        FeatureFileError: A key has a line break, which the format cannot hold.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        replacing(folder / f"rank{rank}-keys.txt") as names,
        replacing(folder / f"rank{rank}-values.bin") as values,
        names.open("w", encoding="utf-8") as keys,
        values.open("wb") as records,
    ):
        for key, record in items:
            if len(key.splitlines()) != 1:
                raise FeatureFileError(f"upstream's keys are one line each; got {key!r}")
            keys.write(key + "\n")
            records.write(struct.pack("<i", seed))
            records.write(np.ascontiguousarray(record, "<f2").tobytes())
