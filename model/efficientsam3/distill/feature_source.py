"""What all saved features have in common, whoever wrote them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..types import Array
from .errors import FeatureFileError


class FeatureSource(Mapping[str, Array]):
    """Records by key: (*shape) float16, read-only."""

    folder: Path
    again = ""
    """How missing records are made, for messages."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of a record."""

    def batch(self, keys: Sequence[str]) -> Tensor:
        """(B, *shape) float32 of some keys."""
        return torch.from_numpy(np.stack([self[k] for k in keys]).astype(np.float32))

    def require(self, keys: Iterable[str]) -> None:
        """Fail before training, not in the middle of it, where features are missing."""
        missing = [k for k in keys if k not in self]
        if missing:
            raise FeatureFileError(
                f"{self.folder} lacks the features of {len(missing):,} samples, such as "
                f"{', '.join(map(repr, missing[:3]))}{self.again}"
            )
