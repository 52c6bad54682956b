"""Masks as COCO run lengths: encoding, checked decoding, boxes.

Run lengths are the alternating numbers of pixels outside and inside a mask, column by column. COCO
stores them as a list of numbers, or compressed as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MaskError

Array = npt.NDArray[Any]
Rle = Mapping[str, Any]
"""{"size": [H, W], "counts": text, bytes or a list of numbers}."""
Mask = Array | Rle
"""A mask as an array (H, W) bool, or as run lengths."""

MAX_PIXELS = 2**28
"""The most pixels of a mask that is decoded, which any machine can hold."""
MAX_RUN_PIXELS = 2**32 - 1
"""The most pixels of a mask of run lengths, which pycocotools counts in 32 bits."""
MAX_COORDINATE = 1e5
"""Pixels by which a corner of a polygon may lie outside the image."""


def encode(mask: Array) -> tuple[dict[str, Any], tuple[float, float, float, float]]:
    """Compress a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        The run lengths, with ``counts`` as bytes, and the box (x0, y0, x1, y1) of the mask.
    """
    from pycocotools import mask as coco

    rle: dict[str, Any] = coco.encode(np.asfortranarray(mask, np.uint8))
    return rle, box_of(rle)


def encode_cut(
    pixels: Array, box: tuple[int, int, int, int], size: tuple[int, int]
) -> dict[str, Any]:
    """Compress a mask that is given as a crop, without making the full array.

    Args:
        pixels: (h, w) bool, the mask inside ``box``.
        box: (x0, y0, x1, y1) of the crop, in pixels of the image.
        size: (height, width) of the image.

    Returns:
        {"size": [H, W], "counts": str}, equal to what pycocotools gives for the full mask.
    """
    from pycocotools import mask as coco

    (height, width), (left, top, _, _) = size, box
    rows = np.zeros((pixels.shape[0] + 2, pixels.shape[1]), bool)
    rows[1:-1] = pixels
    row, column = np.nonzero(rows[1:] != rows[:-1])
    edges, times = np.unique((left + column) * height + top + row, return_counts=True)
    edges = edges[times == 1]  # A run that reaches the last row continues in the next column.
    counts = np.diff(np.r_[0, edges, height * width])
    if not counts[-1]:
        counts = counts[:-1]
    packed = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def compress(rle: Rle) -> dict[str, Any]:
    """Check run lengths and bring them to COCO's compressed form.

    Counts that are bytes come from pycocotools or from this module and are not checked again.
    Counts that are text or a list come from a file.

    Args:
        rle: Run lengths in any form.

    Returns:
        {"size": [H, W], "counts": bytes}.

    Raises:
        MaskError: The value is not run lengths, or they do not cover exactly their size.
    """
    from pycocotools import mask as coco

    height, width = mask_size(rle)
    counts = rle["counts"]
    if isinstance(counts, bytes):
        return {"size": [height, width], "counts": counts}
    if isinstance(counts, (list, tuple)):
        if not all(isinstance(n, int) and n >= 0 for n in counts):
            raise MaskError(f"run lengths are whole numbers from 0; got {_short(counts)}")
        _check_pixels(sum(counts), height, width)
        uncompressed = {"size": [height, width], "counts": list(counts)}
        packed: dict[str, Any] = coco.frPyObjects(uncompressed, height, width)
        return packed
    if not isinstance(counts, str):
        raise MaskError(f"counts are text or a list of numbers; got {_short(counts)}")
    try:
        raw = counts.encode("ascii")
    except UnicodeEncodeError as error:
        raise MaskError("counts contain characters that are not ASCII") from error
    _check_pixels(_count_pixels(_read_runs(raw)), height, width)
    return {"size": [height, width], "counts": raw}


def decode(mask: Mask) -> Array:
    """Turn a mask of either form into an array.

    Args:
        mask: Run lengths, or an array, which is returned as it is.

    Returns:
        (H, W) bool.

    Raises:
        MaskError: The run lengths are damaged, or do not cover exactly their size.
    """
    height, width = mask_size(mask)
    if isinstance(mask, np.ndarray):
        return np.asarray(mask, bool)
    if height * width > MAX_PIXELS:
        raise MaskError(
            f"a mask of at most {MAX_PIXELS:,} pixels is decoded; got {height} x {width}. Crop it"
        )
    runs = _checked_runs(mask)
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def mask_size(mask: Mask) -> tuple[int, int]:
    """Read the (height, width) of a mask of either form, without decoding it.

    Args:
        mask: An array (H, W) or run lengths.

    Raises:
        MaskError: The value is not a mask.
    """
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2:
            raise MaskError(f"a mask is (H, W); got shape {mask.shape}")
        return mask.shape[0], mask.shape[1]
    if not isinstance(mask, Mapping) or not {"size", "counts"} <= set(mask):
        raise MaskError(f"run lengths are {{size, counts}}; got {_short(mask)}")
    size = mask["size"]
    if (
        not isinstance(size, (list, tuple))
        or len(size) != 2
        or not all(isinstance(n, (int, np.integer)) and n > 0 for n in size)
    ):
        raise MaskError(f"size of run lengths is [height, width]; got {_short(size)}")
    if size[0] * size[1] > MAX_RUN_PIXELS:
        raise MaskError(
            f"a mask has at most {MAX_RUN_PIXELS:,} pixels; got the size {_short(size)}"
        )
    return int(size[0]), int(size[1])


def from_segmentation(value: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Read COCO's field "segmentation": polygons, or run lengths of either form.

    Polygons of fewer than three corners have no area; COCO contains a few.

    Args:
        value: The field's value.
        size: (height, width) of the image.

    Returns:
        Compressed run lengths.

    Raises:
        MaskError: The value is neither, is damaged, or is of another size than the image.
    """
    if isinstance(value, list):
        return _from_polygons(value, size)
    rle = compress(value)
    height, width = rle["size"]
    if (height, width) != size:
        raise MaskError(
            f"it has {height} x {width} pixels (height x width), but the image has "
            f"{size[0]} x {size[1]}"
        )
    return rle


def _from_polygons(polygons: list[Any], size: tuple[int, int]) -> dict[str, Any]:
    from pycocotools import mask as coco

    limit = MAX_COORDINATE + max(size)
    for polygon in polygons:
        if (
            not isinstance(polygon, list)
            or len(polygon) % 2
            # Also false for NaN. pycocotools makes a point for each pixel of an edge.
            or not all(isinstance(v, (int, float)) and abs(v) <= limit for v in polygon)
        ):
            raise MaskError(
                f"a polygon is [x, y, x, y, ...] in pixels, at most {limit:,.0f} from 0; got "
                f"{_short(polygon)}"
            )
    with_area = [polygon for polygon in polygons if len(polygon) >= 6]
    if not with_area:
        return encode(np.zeros(size, bool))[0]
    merged: dict[str, Any] = coco.merge(coco.frPyObjects(with_area, *size))
    return merged


def crop(mask: Mask, box: tuple[int, int, int, int], flip: bool = False) -> Mask:
    """Crop a mask of either form, then flip it; run lengths are not decoded to an array.

    Args:
        mask: A mask of (H, W) pixels.
        box: (x0, y0, x1, y1) in pixels, within the mask.
        flip: Whether left and right are exchanged.

    Returns:
        A mask of (y1 - y0, x1 - x0) pixels, in the form of ``mask``.

    Raises:
        MaskError: The run lengths are damaged.
    """
    x0, y0, x1, y1 = box
    if isinstance(mask, np.ndarray):
        cut = mask[y0:y1, x0:x1]
        return cut[:, ::-1] if flip else cut
    height = mask_size(mask)[0]
    edges = np.cumsum(_checked_runs(mask))
    starts, ends = edges[0:-1:2], edges[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    # A run that covers several columns is split, so that each part is in one column.
    first, last = starts // height, (ends - 1) // height
    parts = last - first + 1
    column = np.repeat(first, parts) + _count_up(parts)
    top = np.maximum(np.repeat(starts, parts) - column * height, y0)
    bottom = np.minimum(np.repeat(ends, parts) - column * height, y1)
    inside = (bottom > top) & (column >= x0) & (column < x1)
    column, top, bottom = column[inside] - x0, top[inside] - y0, bottom[inside] - y0
    rows, columns = y1 - y0, x1 - x0
    if flip:
        column = columns - 1 - column
        order = np.argsort(column, kind="stable")
        column, top, bottom = column[order], top[order], bottom[order]
    changes = np.stack([column * rows + top, column * rows + bottom], 1).ravel()
    values, times = np.unique(changes, return_counts=True)
    values = values[times == 1]  # A part that ends where the next begins is joined with it.
    counts = np.diff(np.r_[0, values, rows * columns])
    if not counts[-1]:
        counts = counts[:-1]
    return compress({"size": [rows, columns], "counts": counts.tolist()})


def _count_up(counts: Array) -> Array:
    """0, 1, ... count - 1 for each count."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def area_of(mask: Mask) -> int:
    """Count the pixels of a mask of either form.

    Args:
        mask: An array (H, W) or run lengths.
    """
    if isinstance(mask, np.ndarray):
        return int(np.count_nonzero(mask))
    return int(_checked_runs(mask)[1::2].sum())


def box_of(mask: Mask) -> tuple[float, float, float, float]:
    """Compute the box (x0, y0, x1, y1) of a mask of either form; all 0 without a pixel.

    Args:
        mask: An array (H, W) or run lengths.
    """
    from pycocotools import mask as coco

    if isinstance(mask, np.ndarray):
        return encode(mask)[1]
    x, y, w, h = (float(v) for v in coco.toBbox(compress(mask)))
    return x, y, x + w, y + h


def _checked_runs(rle: Rle) -> Array:
    height, width = mask_size(rle)
    runs = _read_runs(compress(rle)["counts"])
    _check_pixels(_count_pixels(runs), height, width)
    return runs


def _check_pixels(pixels: int, height: int, width: int) -> None:
    # pycocotools does not check: with a wrong total it reads and writes outside its memory.
    if pixels < 0:
        raise MaskError("counts are not COCO's compressed run lengths, or are cut short")
    if pixels != height * width:
        raise MaskError(
            f"run lengths cover {pixels} pixels, but their size {height} x {width} has "
            f"{height * width}"
        )


def _count_pixels(runs: Array) -> int:
    """Count the pixels that runs cover; -1 if one is negative."""
    return int(runs.sum()) if (runs >= 0).all() else -1


def _read_runs(counts: bytes) -> Array:
    """Decode compressed counts.

    A number is stored in groups of five bits, the lowest first. Bit 32 of a group says that another
    group follows; bit 16 of the last group is the sign. From the fourth number on, a number is the
    difference to the one two places before.

    Returns:
        (K,) lengths of runs; [-1] if the bytes are not in this form.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return np.array([-1])
    ends = np.flatnonzero(~codes & 32)
    starts = np.r_[0, ends[:-1] + 1]
    lengths = ends - starts + 1
    if lengths.max() > 12:
        return np.array([-1])
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    values = np.where(codes[ends] & 16, values - (1 << (5 * lengths)), values)
    # Numbers 1, 3, 5, ... and 2, 4, 6, ... are running sums of their own; the first is in neither.
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
