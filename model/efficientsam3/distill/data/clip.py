"""Short stretches of video with objects through them: what every source of clips gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...scenes.clips import film
from ...scenes.compose import World
from ...types import Array
from ..errors import DataError
from .batches import split
from .masks import Mask, decode_mask, mask_size
from .sample import TrainingSample


@dataclass(frozen=True, eq=False)
class TrainingClip:
    """Frames in order, and objects through them. Checked when made.

    key: for errors. images: T of (H, W, 3) uint8 RGB, of one size. masks: of each frame those of
    the same N objects (see ``Mask``), empty where an object is out of sight.
    """

    key: str
    images: tuple[Array, ...]
    masks: tuple[tuple[Mask, ...], ...]

    def __post_init__(self) -> None:
        if not self.images or len(self.images) != len(self.masks):
            raise DataError(
                f"{self.key}: {len(self.images)} frames and masks of {len(self.masks)}; a clip "
                "has masks of each of its frames, and at least one"
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
                found = mask_size(mask, f"{self.key}, frame {t}, object {n}")
                if found != size:
                    raise DataError(
                        f"{self.key}: the mask of object {n} on frame {t} is of {found[1]} x "
                        f"{found[0]} pixels, but the frames have {size[1]} x {size[0]}: the "
                        "annotation belongs to another copy of the video"
                    )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def objects(self) -> int:
        """How many there are."""
        return len(self.masks[0])

    def backwards(self) -> TrainingClip:
        """The same, the last frame first."""
        return TrainingClip(self.key, self.images[::-1], self.masks[::-1])

    def mask_at(self, frame: int, index: int, side: int) -> Tensor:
        """A mask squashed to a square as the frames are: (side, side) bool, more than half covered.

        Without the object it is all False; so is what is smaller than half a cell.
        """
        dense = decode_mask(self.masks[frame][index], f"{self.key}, frame {frame}, object {index}")
        covered = torch.from_numpy(np.ascontiguousarray(dense, np.float32))[None, None]
        size = (side, side)
        small = F.interpolate(covered, size, mode="bilinear", antialias=True)[0, 0]
        return small > 0.5

    def pixels(self, resolution: int, mean: float = 0.5, std: float = 0.5) -> Tensor:
        """(T, 3, R, R) float32 as the image encoder reads frames."""
        from ...pixels import normalise

        out = []
        for image in self.images:
            rgb = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
            out.append(normalise(rgb, resolution, mean, std))
        return torch.cat(out)


class ClipSource(Protocol):
    """Videos by index, of which stretches can be had."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The name of a video, without reading it."""
        ...

    def cut(self, index: int, frames: int, random: np.random.Generator) -> TrainingClip:
        """A stretch of at most so many frames, somewhere in a video."""
        ...


class ClipSubset:
    """Some videos of a source, by index."""

    def __init__(self, source: ClipSource, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        """As the source says."""
        return self.source.key(self.indices[index])

    def cut(self, index: int, frames: int, random: np.random.Generator) -> TrainingClip:
        """As the source does."""
        return self.source.cut(self.indices[index], frames, random)


def hold_out_clips(source: ClipSource, count: int, seed: int) -> tuple[ClipSubset, ClipSubset]:
    """A source in two, at random: for training, and ``count`` videos held out.

    Raises:
        DataError: nothing would be left for training.
    """
    train, held = split(len(source), count, seed, "videos")
    return ClipSubset(source, train), ClipSubset(source, held)


@dataclass(frozen=True)
class Stills:
    """Images as clips of one frame: many more objects a second than clips have.

    Args:
        draw: samples with masks, by number. count: of them.
    """

    draw: Callable[[int], TrainingSample]
    count: int = 1 << 40

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        """Its number."""
        return f"still {index}"

    def cut(self, index: int, frames: int, random: np.random.Generator) -> TrainingClip:
        """The image.

        Raises:
            DataError: more than one frame is asked for; the sample has no masks.
        """
        sample = self.draw(index)
        if frames != 1 or sample.masks is None:
            what = "has boxes, but no masks" if sample.masks is None else f"has not {frames} frames"
            raise DataError(f"{sample.key}: an image {what}")
        return TrainingClip(sample.key, (sample.image,), (sample.masks,))


@dataclass(frozen=True)
class StickerClips:
    """Clips of stickers, made when asked for, never written. Picklable, for workers.

    Args:
        world: what clips are made of. length: frames of a whole clip: things move as fast as in
            those. first: seed of number 0. count: clips.
    """

    world: World
    length: int = 16
    first: int = 0
    count: int = 1 << 40

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        """The seed."""
        return f"clip {self.first + index}"

    def cut(self, index: int, frames: int, random: np.random.Generator) -> TrainingClip:
        """Frames in a row, from a random one on."""
        clip = film(self.world, self.first + index, max(self.length, frames, 2))
        start = int(random.integers(len(clip) - frames + 1))
        shown = [clip.frame(t) for t in range(start, start + frames)]
        images, masks = tuple(f.image for f in shown), tuple(tuple(f.masks) for f in shown)
        return TrainingClip(self.key(index), images, masks)
