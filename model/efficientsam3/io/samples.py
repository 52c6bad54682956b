"""Samples of images of any kind, without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from .picture_files import read_samples, samples_of
from .pixel_values import Array, Samples, SourceRange, check_type, to_uint8

ImageLike = Any
"""A path, a PIL image, a numpy array (H, W[, C]) or a tensor (C, H, W)."""


def read_rgb_array(
    image: ImageLike, source: SourceRange | None = None, *, page: int | None = None
) -> Array:
    """Read any image as RGB, as ``io.images.read_rgb`` does.

    Args:
        image: As ``io.images.read_rgb`` takes it.
        source: The range of values of all pictures of one source; None: the image is a source of
            its own.
        page: Number of the page or frame of a file, from 0; None: the first, with a warning where
            the file has several.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: The file cannot be decoded, or the value is not an image.
    """
    pixels = to_uint8(samples_of_any(image, page), source)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, 2)
    return pixels[:, :, :3]


def samples_of_any(image: ImageLike, page: int | None = None) -> Samples:
    """The samples of any image, before they are scaled.

    Args:
        image: As ``read_rgb`` takes it.
        page: Number of the page or frame of a file, from 0; None: the first, with a warning where
            the file has several.

    Raises:
        ImageError: The file cannot be decoded, or the value is not an image.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_samples(Path(image), page)
    if isinstance(image, Image.Image):
        return samples_of(image)
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3:
            raise ImageError(f"an array image is (H, W) or (H, W, C); got shape {image.shape}")
        if image.shape[2] not in (1, 3, 4):
            raise ImageError(
                f"an array image is (H, W, C) with 1, 3 or 4 channels; got {image.shape}. "
                "For (C, H, W) pass a torch tensor, or transpose it."
            )
        check_type(image.dtype)
        return Samples(_with_pixels(image))
    if is_tensor(image):
        tensor = check_tensor(image).detach()
        if tensor.is_complex() or tensor.is_quantized:
            raise ImageError(f"values of an image are bool, integers or floats; got {tensor.dtype}")
        if tensor.is_floating_point() and str(tensor.dtype)[6:] not in ("float32", "float64"):
            tensor = tensor.float()
        return Samples(_with_pixels(tensor.permute(1, 2, 0).cpu().numpy()))
    raise ImageError(
        f"an image is a path, a PIL image, a numpy array or a tensor; got {type(image).__name__}"
    )


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch, which is not imported for it.

    Args:
        value: Anything.
    """
    return type(value).__module__.partition(".")[0] == "torch" or hasattr(value, "detach")


def check_tensor(image: Any) -> Any:
    """Check a tensor image.

    Args:
        image: (C, H, W), (H, W) or (1, C, H, W).

    Returns:
        (C, H, W).

    Raises:
        ImageError: It has another shape.
    """
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise ImageError(
            f"a tensor image is (C, H, W) with 1, 3 or 4 channels; got {tuple(image.shape)}. "
            "For (H, W, C) pass a numpy array."
        )
    _with_pixels(image[0])
    return image


def _with_pixels(image: Any) -> Any:
    if not image.shape[0] or not image.shape[1]:
        raise ImageError(
            f"an image has at least one pixel; got {image.shape[0]} x {image.shape[1]}"
        )
    return image
