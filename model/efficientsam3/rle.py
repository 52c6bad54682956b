"""Masks as COCO's run lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import EfficientSam3Error

Array = npt.NDArray[Any]
Rle = Mapping[str, Any]
"""{"size": [H, W], "counts": text, bytes or numbers}."""


def encode_cut(
    pixels: Array, box: tuple[int, int, int, int], size: tuple[int, int]
) -> dict[str, Any]:
    """Run lengths of a mask from its cut, so that the whole mask is never made.

    Args:
        pixels: (h, w) bool. box: x0, y0, x1, y1 of the cut in the image. size: (H, W) of it.

    Returns:
        {"size": [H, W], "counts": str}, as pycocotools encodes the whole mask.
    """
    from pycocotools import mask as coco

    (height, width), (left, top, _, _) = size, box
    rows = np.zeros((pixels.shape[0] + 2, pixels.shape[1]), bool)
    rows[1:-1] = pixels
    row, column = np.nonzero(rows[1:] != rows[:-1])
    edges, times = np.unique((left + column) * height + top + row, return_counts=True)
    edges = edges[times == 1]  # a run to the foot of the image goes on in the next column
    counts = np.diff(np.r_[0, edges, height * width])
    if not counts[-1]:
        counts = counts[:-1]
    packed = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def compress(rle: Rle) -> dict[str, Any]:
    """Run lengths in COCO's compressed form, checked: {"size": [H, W], "counts": bytes}.

    Counts that are bytes come from pycocotools or from here, and are taken as they are; what was
    read from a file is text or numbers.

    Raises:
        EfficientSam3Error: they are no run lengths, or of another size than they say.
    """
    from pycocotools import mask as coco

    if not isinstance(rle, Mapping) or not {"size", "counts"} <= set(rle):
        raise EfficientSam3Error(f"run lengths are {{size, counts}}; got {_short(rle)}")
    size, counts = rle["size"], rle["counts"]
    if not _is_size(size):
        raise EfficientSam3Error(f"size of run lengths is [height, width]; got {_short(size)}")
    height, width = int(size[0]), int(size[1])
    if isinstance(counts, (list, tuple)):
        if not all(isinstance(n, int) and n >= 0 for n in counts):
            raise EfficientSam3Error(f"run lengths are whole numbers from 0; got {_short(counts)}")
        pixels = sum(counts)
        if pixels == height * width:
            packed: dict[str, Any] = coco.frPyObjects(
                {"size": [height, width], "counts": list(counts)}, height, width
            )
            return packed
    elif isinstance(counts, bytes):
        return {"size": [height, width], "counts": counts}
    elif isinstance(counts, str):
        try:
            raw = counts.encode("ascii")
        except UnicodeEncodeError as error:
            raise EfficientSam3Error("run lengths are ASCII text; these are not") from error
        pixels = _count_pixels(raw)
        if pixels == height * width:
            return {"size": [height, width], "counts": raw}
    else:
        raise EfficientSam3Error(f"counts are text or a list of numbers; got {_short(counts)}")
    raise EfficientSam3Error(
        f"run lengths cover {pixels} pixels, but their size {height} x {width} has {height * width}"
    )


def encode(mask: Array) -> tuple[dict[str, Any], tuple[float, float, float, float]]:
    """Compressed run lengths of a (H, W) bool mask, and its box x0, y0, x1, y1."""
    from pycocotools import mask as coco

    rle: dict[str, Any] = coco.encode(np.asfortranarray(mask, np.uint8))
    return rle, box_of(rle)


def box_of(rle: Rle) -> tuple[float, float, float, float]:
    """The box of compressed run lengths: x0, y0, x1, y1; all 0 without a pixel."""
    from pycocotools import mask as coco

    x, y, w, h = (float(v) for v in coco.toBbox(rle))
    return x, y, x + w, y + h


def decode(rle: Rle) -> Array:
    """The mask of run lengths: (H, W) bool."""
    packed = compress(rle)
    runs = _read_runs(packed["counts"])
    inside = np.arange(len(runs)) % 2 == 1
    height, width = packed["size"]
    return np.repeat(inside, runs).reshape(width, height).T


def _is_size(size: object) -> bool:
    return (
        isinstance(size, (list, tuple))
        and len(size) == 2
        and all(isinstance(n, (int, np.integer)) and n > 0 for n in size)
    )


def _count_pixels(counts: bytes) -> int:
    """Pixels that compressed run lengths cover; -1 if they are cut short or no run lengths."""
    # pycocotools does not look: a wrong total makes it read and write beyond its memory.
    runs = _read_runs(counts)
    return int(runs.sum()) if (runs >= 0).all() else -1


def _read_runs(counts: bytes) -> Array:
    """(K,) lengths of runs; [-1] if these are none.

    A number is groups of five bits, the lowest first; 32 in a group says that one more follows,
    16 in the last is the sign. From the third run on it is the difference to the run before last.
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
    # Runs 1, 3, 5, ... and 2, 4, 6, ... each are a running sum; only the first run is not in one.
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
