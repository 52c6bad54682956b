"""Features in the files of upstream's trainer, read and written."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..types import Array
from ..weights import replacing
from .errors import FeatureFileError
from .feature_source import FeatureSource


class UpstreamFeatures(FeatureSource):
    """Features that upstream's ``save_embedding`` scripts wrote, by key.

    ``rank{r}-keys.txt`` has a key a line, ``rank{r}-values.bin`` a record a key: an int32
    (little-endian) seed of augmentation, then float16 values.

    Args:
        folder: of these files. shape: of a record, (1024, 72, 72) for SAM3's image encoder.
            The files do not say.

    Raises:
        FeatureFileError: no such files; values that do not fit keys and shape.
    """

    def __init__(self, folder: str | Path, shape: tuple[int, ...] = (1024, 72, 72)) -> None:
        self.folder, self._shape = Path(folder), shape
        self._record = np.dtype([("seed", "<i4"), ("values", "<f2", shape)])
        self._paths: list[Path] = []
        self._maps: dict[int, Array] = {}
        self._places: dict[str, tuple[int, int]] = {}
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
        """Of a record."""
        return self._shape

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def _row(self, key: str) -> Any:
        if key not in self._places:
            raise FeatureFileError(
                f"{self.folder} has no features of {key!r} (it has {len(self):,} records)"
            )
        rank, row = self._places[key]
        if rank not in self._maps:
            self._maps[rank] = np.memmap(self._paths[rank], self._record, mode="r")
        return self._maps[rank][row]

    def __getitem__(self, key: str) -> Array:
        """A record, float16, read-only."""
        values: Array = self._row(key)["values"]
        return values

    def seed(self, key: str) -> int:
        """The seed under which upstream augmented this sample."""
        return int(self._row(key)["seed"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


def write_upstream(
    folder: str | Path, items: Iterable[tuple[str, Array]], *, rank: int = 0, seed: int = 0
) -> None:
    """Write (key, record) pairs for upstream's trainer.

    Raises:
        FeatureFileError: a key with a line break, which its format cannot hold.
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
