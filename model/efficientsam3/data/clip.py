"""Short stretches of video with objects through them: what every video data set gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..io.images import normalize
from ..io.rle import Mask
from ..types import Array
from .sample import TrainingSample, check_mask_size, decode_mask, resize_mask


@dataclass(frozen=True, eq=False)
class TrainingClip:
    """Frames in order, with masks of the same objects in each; checked when it is made.

    Attributes:
        key: Name of the clip, for errors.
        images: T frames of one size, (H, W, 3) uint8 RGB.
        masks: For each frame the masks of the same N objects, arrays (H, W) bool or COCO run
            lengths; a mask is empty where its object is not visible.
    """

    key: str
    images: tuple[Array, ...]
    masks: tuple[tuple[Mask, ...], ...]

    def __post_init__(self) -> None:
        if not self.images or len(self.images) != len(self.masks):
            raise DataError(
                f"{self.key}: {len(self.images)} frames and masks of {len(self.masks)}; a clip "
                "has masks for each of its frames, and at least one frame"
            )
        size = self.images[0].shape[:2]
        for t, (image, masks) in enumerate(zip(self.images, self.masks, strict=True)):
            if image.shape != (*size, 3) or image.dtype != np.uint8:
                raise DataError(
                    f"{self.key}: frame {t} is {image.shape} {image.dtype}; all frames are "
                    f"{(*size, 3)} uint8, as the first"
                )
            if len(masks) != self.objects:
                raise DataError(
                    f"{self.key}: frame {t} has masks of {len(masks)} objects, and the first of "
                    f"{self.objects}"
                )
            for n, mask in enumerate(masks):
                check_mask_size(mask, size, f"{self.key}, frame {t}: the mask of object {n}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def objects(self) -> int:
        """Number of objects."""
        return len(self.masks[0])

    def backwards(self) -> TrainingClip:
        """Make the same clip with the last frame first."""
        return TrainingClip(self.key, self.images[::-1], self.masks[::-1])

    def mask_at(self, frame: int, index: int, side: int) -> Tensor:
        """Resize a mask to a square, without keeping the aspect, as frames are.

        Args:
            frame: Which frame.
            index: Which object.
            side: Rows and columns.

        Returns:
            (side, side) bool, the cells of which more than half is covered. It is empty if the
            object is not visible, or is smaller than half a cell.
        """
        place = f"{self.key}, frame {frame}, object {index}"
        return resize_mask(decode_mask(self.masks[frame][index], place), side) > 0.5

    def pixels(self, resolution: int, mean: float = 0.5, std: float = 0.5) -> Tensor:
        """Prepare all frames for the encoder, as ``TrainingSample.pixels`` does.

        Args:
            resolution: Rows and columns.
            mean: Subtracted from values in [0, 1].
            std: Divides what is left.

        Returns:
            (T, 3, resolution, resolution) float32.
        """
        out = []
        for image in self.images:
            rgb = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
            out.append(normalize(rgb, resolution, mean, std))
        return torch.cat(out)


class ClipSource(Protocol):
    """Videos by index, from which clips are cut."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The name of a video, without reading it.

        Args:
            index: Which video.
        """
        ...

    def cut(self, index: int, frames: int, random: np.random.Generator) -> TrainingClip:
        """Cut a clip at a random place.

        Args:
            index: Which video.
            frames: Frames of the clip, at most.
            random: What decides the place.
        """
        ...


@dataclass(frozen=True)
class Stills:
    """Images as clips of one frame: they show many more objects a second than clips do.

    Attributes:
        draw: Makes a sample with masks by its number; picklable, for workers.
        count: How many samples there are.
    """

    draw: Callable[[int], TrainingSample]
    count: int = 1 << 40

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        """The number of the sample.

        Args:
            index: Which sample.
        """
        return f"still {index}"

    def cut(self, index: int, frames: int, random: np.random.Generator) -> TrainingClip:
        """Make a clip of one image.

        Args:
            index: Which sample.
            frames: Must be 1.
            random: Not used.

        Raises:
            DataError: More than one frame is asked for, or the sample has no masks.
        """
        sample = self.draw(index)
        if frames != 1 or sample.masks is None:
            what = "has boxes, but no masks" if sample.masks is None else f"has not {frames} frames"
            raise DataError(f"{sample.key}: an image {what}")
        return TrainingClip(sample.key, (sample.image,), (sample.masks,))
