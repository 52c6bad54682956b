"""Reading images of any kind as RGB, and preparing them for the image encoder."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ..errors import ImageError
from .picture_files import read_samples
from .pixel_values import Array, SourceRange, to_uint8
from .samples import ImageLike, check_tensor, samples_of_any

__all__ = ["ImageLike", "normalize", "read_rgb", "read_rgb_of_size"]


def read_rgb(
    image: ImageLike, source: SourceRange | None = None, *, page: int | None = None
) -> Tensor:
    """Read any image as RGB. Transparency is dropped, and EXIF's rotation is applied.

    Values of 8 bits are taken as they are. Others are scaled to 8 bits by one rule, whether they
    come from a file, a PIL image, an array or a tensor; see ``io.pixel_values``.

    Args:
        image: A path; a PIL image of any mode; a numpy array (H, W), (H, W, 1), (H, W, 3) RGB
            or (H, W, 4) RGBA of bool, integers or floats; a tensor (C, H, W) of the same. NaN and
            infinite values count as 0.
        source: The range of values of all pictures of one source; None: the image is a source of
            its own.
        page: Number of the page or frame of a file, from 0; None: the first, with a warning where
            the file has several.

    Returns:
        (3, H, W) uint8 RGB.

    Raises:
        ImageError: The file cannot be decoded, or the value is not an image.
    """
    if isinstance(image, Tensor):
        tensor = check_tensor(image)
        if tensor.dtype == torch.bool:
            return _three_channels(tensor.to(torch.uint8) * 255)
        if tensor.dtype == torch.uint8:
            return _three_channels(tensor)
    return _to_tensor(to_uint8(samples_of_any(image, page), source))


def read_rgb_of_size(path: ImageLike, size: tuple[int, int]) -> Tensor:
    """Read an image with the pixels that its annotators saw.

    Some data sets were annotated before the rotation that EXIF says was applied. If the image has
    the right size only without the rotation, it is not rotated.

    Args:
        path: The file, or an image as ``read_rgb`` takes it.
        size: (height, width) that the image has in its annotation.

    Returns:
        (3, H, W) uint8 RGB.

    Raises:
        ImageError: The file cannot be decoded, or has another size.
    """
    rgb = read_rgb(path)
    found = (int(rgb.shape[1]), int(rgb.shape[2]))
    if found == size:
        return rgb
    if found == size[::-1]:
        as_stored = read_samples(path, rotate=False)
        if as_stored.values.shape[:2] == size:
            return _to_tensor(to_uint8(as_stored))
    raise ImageError(
        f"{path} has {found[0]} x {found[1]} pixels (height x width), but its annotation says "
        f"{size[0]} x {size[1]}: it was resized, or is another image"
    )


def _to_tensor(array: Array) -> Tensor:
    """An array (H, W, C) uint8 as a tensor (3, H, W)."""
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return _three_channels(tensor.permute(2, 0, 1))


def _three_channels(image: Tensor) -> Tensor:
    return image.expand(3, -1, -1) if image.shape[0] == 1 else image[:3]


def normalize(rgb: Tensor, resolution: int, mean: float, std: float) -> Tensor:
    """Prepare an image for the encoder.

    It is resized as uint8 with antialiasing and without keeping its aspect, as in SAM3's training.

    Args:
        rgb: (3, H, W) uint8.
        resolution: Rows and columns of the result.
        mean: Subtracted from values in [0, 1].
        std: Divides what is left.

    Returns:
        (1, 3, resolution, resolution) float32.
    """
    small = transforms.resize(rgb[None].contiguous(), [resolution, resolution], antialias=True)
    return small.float().div_(255).sub_(mean).div_(std)
