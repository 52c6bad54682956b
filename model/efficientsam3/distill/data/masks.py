"""Masks as annotations hold them: arrays, polygons, run lengths; checked before they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...types import Array
from ..errors import DataError

Mask = Array | Mapping[str, Any]
"""(H, W) bool, or COCO run lengths: {"size": [H, W], "counts": str, bytes or list}."""


def mask_size(mask: Mask, name: str = "the mask") -> tuple[int, int]:
    """Height and width of a mask in either form."""
    if isinstance(mask, Mapping):
        try:
            height, width = mask["size"]
            return int(height), int(width)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{name}: run lengths are 'size' [height, width] and 'counts'; "
                f"got {sorted(map(str, mask))}"
            ) from error
    if mask.ndim != 2:
        raise DataError(f"{name}: a mask is (H, W); got shape {mask.shape}")
    return mask.shape[0], mask.shape[1]


def decode_mask(mask: Mask, name: str = "the mask") -> Array:
    """Either form -> (H, W) bool.

    Raises:
        DataError: run lengths that do not fill their size.
    """
    if not isinstance(mask, Mapping):
        return np.asarray(mask, bool)
    height, width = mask_size(mask, name)
    runs = _runs(mask.get("counts"), name)
    covered = int(runs.sum())
    if covered != height * width:
        raise DataError(
            f"{name}: run lengths cover {covered:,} pixels, but a mask of {width} x {height} has "
            f"{height * width:,}: of another image, or cut short"
        )
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _runs(counts: Any, name: str) -> Array:
    """Run lengths from plain ones or COCO's text form: outside, inside, outside, ...

    Our own: pycocotools fills what the runs leave with whatever was in memory.
    """
    if isinstance(counts, list):
        if not all(isinstance(c, int) and c >= 0 for c in counts):
            raise DataError(f"{name}: run lengths are whole numbers of at least 0")
        return np.array(counts, np.int64)
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    if not isinstance(counts, bytes) or not counts:
        raise DataError(f"{name}: 'counts' of run lengths is a text or a list; got {counts!r}")
    # Five bits a character from "0" up, the sixth says that more follow; signed.
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((codes & 0x20) == 0)
    if codes.min() < 0 or codes.max() > 63 or not len(last) or last[-1] != len(codes) - 1:
        raise DataError(f"{name}: 'counts' is not COCO's text form of run lengths, or is cut short")
    starts = np.r_[0, last[:-1] + 1]
    place = np.arange(len(codes)) - np.repeat(starts, last - starts + 1)
    if place.max() > 6:
        raise DataError(f"{name}: 'counts' holds a run that is longer than any image")
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    negative = (codes[last] & 0x10) != 0
    values -= np.where(negative, 1 << (5 * (place[last] + 1)), 0)
    # From the fourth on, each is the difference to the run two before.
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    if runs.min() < 0:
        raise DataError(f"{name}: 'counts' holds runs of negative length")
    return runs


def read_segmentation(value: Any, size: tuple[int, int], name: str) -> Mask:
    """COCO's ``segmentation``, polygons or run lengths, -> run lengths of (H, W) pixels.

    Polygons of fewer than three corners cover nothing.
    """
    from pycocotools import mask as coco

    height, width = size
    if isinstance(value, Mapping):
        found = mask_size(value, name)
        if found != size:
            raise DataError(
                f"{name}: the run lengths are of {found[1]} x {found[0]} pixels, but the image "
                f"has {width} x {height}: the annotation belongs to another copy of the image"
            )
        return value
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(f"{name}: a segmentation is run lengths or polygons; got {value!r:.60}")
    polygons = [p for p in value if len(p) >= 6]
    if not polygons:
        return {"size": [height, width], "counts": [height * width]}
    packed: dict[str, Any] = coco.merge(coco.frPyObjects(polygons, height, width))
    return packed


def box_of(mask: Array) -> tuple[float, float, float, float]:
    """xyxy pixels around a (H, W) mask; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
