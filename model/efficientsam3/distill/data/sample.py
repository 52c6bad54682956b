"""One image with what is in it: what every data set gives and every stage reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...types import Array
from ..errors import DataError
from .masks import Mask, decode_mask, mask_size


@dataclass(frozen=True)
class PhraseQuery:
    """A phrase and the objects of the sample that it names.

    objects: indices of the sample's objects; none: the phrase is true of nothing here (a
    negative). exhaustive: no instance is left out, so that what is found beyond is false.
    kind: where the phrase comes from, "name", "synonym", "category", ...; for statistics.
    """

    phrase: str
    objects: tuple[int, ...] = ()
    exhaustive: bool = True
    kind: str = "name"


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """An image, its objects, and phrases about them. Checked when made.

    Attributes:
        key: its name, unique in the data set; teacher features are found by it.
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) float32, xyxy, pixels.
        masks: N masks (see ``Mask``), or None where the data set has boxes alone.
        queries: phrases; none where the data set has no words (SA-1B).
        crowd: (N,) bool, regions of many instances: no target, but no error either.
        points: (N, 2) float32 xy pixels, a point on each object, or None.
    """

    key: str
    image: Array
    boxes: Array
    masks: tuple[Mask, ...] | None = None
    queries: tuple[PhraseQuery, ...] = ()
    crowd: Array | None = field(default=None, repr=False)
    points: Array | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise DataError(
                f"{self.key}: an image is (H, W, 3) uint8; got {self.image.shape} "
                f"{self.image.dtype}"
            )
        n = len(self.boxes)
        if self.boxes.shape != (n, 4):
            raise DataError(f"{self.key}: boxes are (N, 4) xyxy pixels; got {self.boxes.shape}")
        for name, shape in (("crowd", (n,)), ("points", (n, 2))):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise DataError(f"{self.key}: {name} has shape {value.shape}, not {shape}")
        if self.masks is not None:
            if len(self.masks) != n:
                raise DataError(f"{self.key}: {len(self.masks)} masks for {n} boxes")
            for index, mask in enumerate(self.masks):
                size = mask_size(mask, f"{self.key}, mask {index}")
                if size != self.size:
                    raise DataError(
                        f"{self.key}: mask {index} is of {size[1]} x {size[0]} pixels, but the "
                        f"image has {self.size[1]} x {self.size[0]}: the annotation belongs to "
                        "another copy of the image"
                    )
        for query in self.queries:
            beyond = [i for i in query.objects if not 0 <= i < n]
            if beyond:
                raise DataError(
                    f"{self.key}: {query.phrase!r} names object {beyond[0]}, but there are {n}"
                )

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape[0], self.image.shape[1]

    def mask(self, index: int) -> Array:
        """Mask of one object, (H, W) bool."""
        if self.masks is None:
            raise DataError(f"{self.key} has boxes and no masks; use data with masks here")
        return decode_mask(self.masks[index], f"{self.key}, mask {index}")

    def masks_at(self, size: int, objects: tuple[int, ...] | None = None) -> Tensor:
        """Masks squashed to a square grid as the image is.

        Args:
            size: cells a side, 4 * grid for what the mask head answers.
            objects: which; None: all.

        Returns: (N, size, size) float32 in [0, 1], how much of each cell is covered.
        """
        chosen = range(len(self)) if objects is None else objects
        out = torch.zeros(len(chosen), size, size)
        for row, index in enumerate(chosen):  # one dense mask at a time: SA-1B has hundreds
            dense = torch.from_numpy(self.mask(index).astype(np.float32))
            out[row] = F.interpolate(
                dense[None, None], (size, size), mode="bilinear", antialias=True
            )[0, 0]
        return out.clamp_(0, 1)

    def boxes_in_unit(self) -> Tensor:
        """Boxes as the model speaks of them: (N, 4) float32 cxcywh in [0, 1]."""
        height, width = self.size
        boxes = torch.from_numpy(np.asarray(self.boxes, np.float32)) / torch.tensor(
            [width, height, width, height]
        )
        low, high = boxes[:, :2].clamp(0, 1), boxes[:, 2:].clamp(0, 1)
        return torch.cat([(low + high) / 2, high - low], 1)

    def pixels(self, resolution: int, mean: float = 0.5, std: float = 0.5) -> Tensor:
        """(1, 3, R, R) float32 as SAM3 reads it: squashed to a square, without padding."""
        from ...pixels import normalise

        rgb = torch.from_numpy(np.ascontiguousarray(self.image)).permute(2, 0, 1)
        return normalise(rgb, resolution, mean, std)


class SampleSource(Protocol):
    """A data set: any number of samples by index, each with a key that costs nothing."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The key of a sample, without reading its image."""
        ...

    def __getitem__(self, index: int) -> TrainingSample: ...
