"""What all saved features have in common, whoever wrote them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...types import Array
from ..errors import FeatureFileError


class FeatureSource(Mapping[str, Array]):
    """Records by key: arrays of one shape, float16, read-only.

    Args:
        folder: Folder of the files.
    """

    remedy = ""
    """Sentence of error messages: how missing records are computed."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._places: dict[str, Any] = {}
        """Key -> file and position in it, as the subclass reads it."""
        self._open_files: dict[int, Any] = {}
        """Number of a file -> its memory map."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one record: (C, h, w) of an image, (L, C) of a phrase."""

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def _place(self, key: str) -> Any:
        try:
            return self._places[key]
        except KeyError:
            raise FeatureFileError(
                f"{self.folder} has no features of {key!r} (it has {len(self):,} records)"
                f"{self.remedy}"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_files": {}}  # each worker maps the files itself

    def batch(self, keys: Sequence[str]) -> Tensor:
        """Stack the records of some keys.

        Args:
            keys: B keys.

        Returns:
            (B, *shape) float32.

        Raises:
            FeatureFileError: A key is missing, or its record is damaged.
        """
        return torch.from_numpy(np.stack([self[k] for k in keys]).astype(np.float32))

    def require(self, keys: Iterable[str]) -> None:
        """Check before training that there are features of all keys.

        Args:
            keys: Keys of the samples to train on.

        Raises:
            FeatureFileError: Some are missing.
        """
        missing = [k for k in keys if k not in self]
        if missing:
            raise FeatureFileError(
                f"{self.folder} lacks the features of {len(missing):,} samples, such as "
                f"{', '.join(map(repr, missing[:3]))}{self.remedy}"
            )
