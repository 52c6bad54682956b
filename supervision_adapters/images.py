"""Order of the color channels of images."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from efficientsam3.io.images import read_rgb
from efficientsam3.types import Array

from .errors import AdapterError

ColorOrder = Literal["rgb", "bgr"]


def check_color(color: object) -> None:
    """Check the name of a channel order.

    Args:
        color: "rgb" or "bgr".

    Raises:
        AdapterError: It is neither.
    """
    if color not in ("rgb", "bgr"):
        raise AdapterError(f"color is 'rgb' or 'bgr', the order of channels; got {color!r}")


def to_rgb(image: Any, color: ColorOrder) -> Any:
    """Return an image with its channels in RGB order.

    Args:
        image: Array (H, W, 3) or (H, W, 4), whose channels are reordered; anything else (a path,
            a PIL image, an encoded image) has a known order and is returned as it is.
        color: Order of an array's channels.

    Returns:
        The image, in RGB order.
    """
    reorder = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (3, 4)
    return image[..., [2, 1, 0]] if reorder and color == "bgr" else image


def read_pixels(image: Any, color: ColorOrder, out: ColorOrder = "rgb") -> Array:
    """Read an image of any kind as an array.

    Args:
        image: A path, PIL image, array or tensor, as ``ImageModel.segment`` takes it.
        color: Order of the channels, if ``image`` is an array.
        out: Order of the channels of the result.

    Returns:
        (H, W, 3) uint8.
    """
    rgb = read_rgb(to_rgb(image, color)).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(rgb[..., ::-1] if out == "bgr" else rgb)
