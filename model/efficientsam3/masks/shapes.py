"""Shapes that a person draws: masks, run lengths and polygons, read as masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import MaskError, PromptError, shorten
from ..io import rle
from ..types import Array

FORMS = "an array (H, W) bool, run lengths {size, counts}, or a polygon [[x, y], [x, y], [x, y]]"


def read_shapes(shapes: Any, size: tuple[int, int]) -> list[Array]:
    """Convert masks and polygons that a user passed.

    Args:
        shapes: One array (H, W), or run lengths; or K shapes as ``read_shape`` takes them, such as
            an array (K, H, W) or a list of polygons.
        size: (height, width) of the image.

    Returns:
        K masks (H, W) bool, each with a pixel.

    Raises:
        PromptError: A shape is wrong, or of another size than the image.
    """
    shapes = _as_array(shapes)
    if isinstance(shapes, Mapping) or (isinstance(shapes, np.ndarray) and shapes.ndim == 2):
        shapes = [shapes]
    if not isinstance(shapes, (list, tuple)) and getattr(shapes, "ndim", 0) != 3:
        raise PromptError(f"masks are a list, each {FORMS}; got {shorten(shapes)}")
    return [read_shape(shape, size) for shape in shapes]


def read_shape(shape: Any, size: tuple[int, int]) -> Array:
    """Convert a mask or polygon that a user passed.

    Args:
        shape: (H, W) bool or 0 and 1; COCO run lengths of either form; or a polygon in pixels:
            (P, 2) corners, x, y, x, y, ... or a list of such, COCO's polygons of one object.
        size: (height, width) of the image.

    Returns:
        (H, W) bool, with a pixel.

    Raises:
        PromptError: The shape is wrong, has no pixel in the image, or is of another size.
    """
    value = _as_array(shape)
    if isinstance(value, Mapping):
        try:
            mask = rle.decode(rle.from_segmentation(value, size))
        except MaskError as error:
            raise PromptError(f"run lengths of a mask are wrong: {error}") from error
    elif isinstance(value, np.ndarray) and _is_mask(value, size):
        mask = _read_mask(value, size)
    else:
        mask = _read_polygons(value, size)
    if not mask.any():
        what = "a mask" if isinstance(value, (np.ndarray, Mapping)) else "a polygon"
        raise PromptError(
            f"{what} has no pixel in the image of {size[1]} x {size[0]} pixels: pass one that "
            "covers the object, in pixels of this image"
        )
    return mask


def _as_array(value: Any) -> Any:
    """Copy a tensor to an array; any other value is returned as it is."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _is_mask(value: Array, size: tuple[int, int]) -> bool:
    """Whether an array is a mask, and not the corners of a polygon.

    An array of two columns is a polygon, unless the image has two.
    """
    is_polygon = value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 2)
    return value.dtype == bool or value.shape == size or not is_polygon


def _read_mask(mask: Array, size: tuple[int, int]) -> Array:
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[2]):  # (1, H, W) or (H, W, 1)
        mask = mask.squeeze(0 if mask.shape[0] == 1 else 2)
    if mask.ndim != 2:
        raise PromptError(f"a mask is (H, W); got shape {mask.shape}")
    if mask.shape != size:
        raise PromptError(
            f"a mask has {mask.shape[1]} x {mask.shape[0]} pixels (width x height), and its image "
            f"{size[1]} x {size[0]}: resize the mask to the image, with nearest neighbors"
        )
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise PromptError(
            "a mask is bool, or 0 and 1: for logits pass logits > 0, for a picture pass picture > 0"
        )
    return mask.astype(bool)


def _read_polygons(value: Any, size: tuple[int, int]) -> Array:
    """The area of a polygon, or of the polygons of one object."""
    polygons = [value]
    if isinstance(value, (list, tuple)) and value:
        items = [_as_array(item) for item in value]
        polygons = [value] if _is_polygon(items) else items
    flat = []
    for polygon in polygons:
        try:
            corners = np.asarray(polygon, np.float64).reshape(-1, 2)
        except (TypeError, ValueError) as error:
            raise PromptError(f"a mask is {FORMS}; got {shorten(polygon)}") from error
        if len(corners) < 3:
            raise PromptError(
                f"a polygon has at least three corners; got {len(corners)}: {shorten(polygon)}. "
                "Several objects are a list of polygons, also where there is only one"
            )
        if (corners.max(0) < 0).any() or (corners.min(0) > [size[1], size[0]]).any():
            raise PromptError(
                f"the polygon from {corners.min(0).tolist()} to {corners.max(0).tolist()} lies "
                f"outside the image of {size[1]} x {size[0]} pixels: corners are x, y in pixels"
            )
        flat.append(corners.ravel().tolist())
    try:
        return rle.decode(rle.from_segmentation(flat, size))
    except MaskError as error:
        raise PromptError(f"a polygon is wrong: {error}") from error


def _is_polygon(value: Any) -> bool:
    """Whether a list is one polygon, of numbers or of pairs of numbers, and not several."""

    def is_number(item: Any) -> bool:
        return not isinstance(item, (list, tuple, np.ndarray))

    return all(is_number(item) or (len(item) == 2 and is_number(item[0])) for item in value)
