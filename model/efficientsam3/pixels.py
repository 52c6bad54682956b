"""Images of any kind -> RGB pixels -> what the image encoder reads."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from .errors import ImageError

ImageLike = Any
"""A path, a PIL image, a numpy array (H, W[, C]) or a tensor (C, H, W)."""


def read_rgb(image: ImageLike) -> Tensor:
    """Any image -> (3, H, W) uint8 RGB, upright.

    Args:
        image: a path; a PIL image of any mode; a numpy array (H, W), (H, W, 1), (H, W, 3) RGB
            or (H, W, 4) RGBA, uint8, bool, or float in [0, 1]; a tensor (C, H, W) of the same.
            Transparency is dropped, EXIF rotation applied.

    Raises:
        ImageError: the file cannot be decoded; the array is not an image.
    """
    if isinstance(image, (str, os.PathLike)):
        with _open(Path(image)) as opened:  # some formats' files stay open otherwise
            return _from_pil(opened, str(image))
    if isinstance(image, Image.Image):
        return _from_pil(image, "the image")
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
        if image.dtype.byteorder not in "=|" or any(s < 0 for s in image.strides):
            image = np.ascontiguousarray(image.astype(image.dtype.newbyteorder("=")))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            image = torch.from_numpy(image)
        return _from_tensor(image.permute(2, 0, 1))
    if isinstance(image, Tensor):
        if image.ndim == 4 and image.shape[0] == 1:
            image = image[0]
        if image.ndim == 2:
            image = image[None]
        if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
            raise ImageError(
                f"a tensor image is (C, H, W) with 1, 3 or 4 channels; got {tuple(image.shape)}. "
                "For (H, W, C) pass a numpy array."
            )
        return _from_tensor(image)
    raise ImageError(
        f"an image is a path, a PIL image, a numpy array or a tensor; got {type(image).__name__}"
    )


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Panoramas are welcome; what PIL refuses outright is still refused.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except FileNotFoundError as error:
        raise ImageError(f"there is no image at {path}") from error
    except (OSError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} cannot be read as an image: {error}") from error
    except ImportError as error:  # Ultralytics lets Pillow ask for pi_heif where it knows no kind
        raise ImageError(f"{path} cannot be read as an image: its kind is not known") from error


def _from_pil(image: Image.Image, name: str) -> Tensor:
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: convert() would clip
            values = np.asarray(image, np.float64)
            top = 255 if values.max(initial=0) <= 255 else 65535
            image = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
        array = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name} cannot be decoded: {error}") from error
    return _from_tensor(torch.from_numpy(array).permute(2, 0, 1))


def _from_tensor(image: Tensor) -> Tensor:
    channels, height, width = image.shape
    if not height or not width:
        raise ImageError(f"an image has at least one pixel; got {height} x {width}")
    if image.dtype == torch.bool:
        image = image.to(torch.uint8) * 255
    elif image.is_floating_point():
        low, high = image.aminmax()
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise ImageError(
                f"a float image has values in [0, 1]; got {low.item():g} to {high.item():g}. "
                "Divide by the largest value, or pass uint8."
            )
        image = (image * 255).round().to(torch.uint8)
    elif image.dtype != torch.uint8:
        raise ImageError(
            f"an image is uint8 in [0, 255] or float in [0, 1]; got {image.dtype}. "
            "Scale it and convert it to uint8."
        )
    if channels == 1:
        image = image.expand(3, -1, -1)
    return image[:3]


def normalise(rgb: Tensor, resolution: int, mean: float, std: float) -> Tensor:
    """(3, H, W) uint8 -> (1, 3, resolution, resolution) float32 for the encoder.

    Resized as uint8 with antialiasing, without keeping the aspect, as SAM3 was trained.
    """
    small = transforms.resize(rgb[None].contiguous(), [resolution, resolution], antialias=True)
    return small.float().div_(255).sub_(mean).div_(std)
