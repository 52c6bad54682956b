"""How much masks, boxes and tracks overlap: intersection over union, of all against all.

Masks are (N, H, W) bool arrays or N COCO run lengths, {"size": [H, W], "counts": ...}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..rle import Rle, compress
from .errors import PredictionError

Array = npt.NDArray[Any]
Masks = Array | Sequence[Rle]
Track = Sequence[Rle | None]
"""One object through a clip: its mask in each frame, None where it is not seen."""


def mask_iou(found: Masks, truth: Masks, crowd: Sequence[bool] | None = None) -> Array:
    """Overlap of masks: (N, M) float64 in [0, 1].

    Args:
        found: N predicted masks. truth: M true masks.
        crowd: M flags. A crowd has no instances to be told apart, so that the overlap with one
            is the part of the predicted mask that lies in it (COCO's rule).

    Raises:
        PredictionError: masks of different sizes.
    """
    shape = (len(found), len(truth))
    if 0 in shape:
        return np.zeros(shape)
    sizes = _sizes(found) | _sizes(truth)
    if len(sizes) > 1:
        (h, w), (h2, w2) = sorted(sizes)[:2]
        raise PredictionError(
            f"masks of one image have one size; got {h} x {w} and {h2} x {w2} (height x width)"
        )
    if isinstance(found, np.ndarray) and isinstance(truth, np.ndarray):
        return _dense_iou(found, truth, crowd)
    from pycocotools import mask as coco

    flags = [bool(flag) for flag in crowd] if crowd is not None else [False] * len(truth)
    overlap: Array = coco.iou(_run_lengths(found), _run_lengths(truth), flags)
    return np.asarray(overlap, np.float64).reshape(shape)


def _dense_iou(found: Array, truth: Array, crowd: Sequence[bool] | None) -> Array:
    # float32 counts pixels exactly up to 2 ** 24, and its product is the fastest there is.
    exact = np.float32 if found[0].size <= 1 << 24 else np.float64
    rows, columns = ((m != 0).reshape(len(m), -1).astype(exact) for m in (found, truth))
    shared = np.matmul(rows, columns.T).astype(np.float64)
    areas = rows.sum(1, np.float64), columns.sum(1, np.float64)
    whole = areas[0][:, None] + areas[1][None] - shared
    if crowd is not None:
        whole = np.where(np.asarray(crowd, bool)[None], areas[0][:, None], whole)
    return shared / np.maximum(whole, 1)


def _sizes(masks: Masks) -> set[tuple[int, int]]:
    if isinstance(masks, np.ndarray):
        if masks.ndim != 3:
            raise PredictionError(f"masks are (N, H, W); got an array of shape {masks.shape}")
        return {(masks.shape[1], masks.shape[2])}
    return {(int(mask["size"][0]), int(mask["size"][1])) for mask in masks}


def _run_lengths(masks: Masks) -> list[Any]:
    if isinstance(masks, np.ndarray):
        from pycocotools import mask as coco

        return [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    return [compress(rle) for rle in masks]


def box_iou(found: Array, truth: Array, crowd: Sequence[bool] | None = None) -> Array:
    """Overlap of boxes: (N, M) float64 in [0, 1].

    Args:
        found: (N, 4) xyxy; truth: (M, 4) xyxy, in the same unit. crowd: as in ``mask_iou``.
    """
    a, b = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (found, truth))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(-1)
    areas = [np.maximum(x[:, 2:] - x[:, :2], 0).prod(-1) for x in (a, b)]
    whole = areas[0][:, None] + areas[1][None] - shared
    if crowd is not None:
        whole = np.where(np.asarray(crowd, bool)[None], areas[0][:, None], whole)
    out = np.zeros_like(shared)
    np.divide(shared, whole, out=out, where=whole > 0)
    return out


def track_iou(found: Sequence[Track], truth: Sequence[Track]) -> Array:
    """Overlap of tracks in space and time: (N, M) float64 in [0, 1].

    The intersections of all frames over the unions of all frames. Tracks of which neither has a
    pixel are alike: 1.

    Raises:
        PredictionError: tracks of different lengths, or masks of different sizes.
    """
    from pycocotools import mask as coco

    shape = (len(found), len(truth))
    shared, whole = np.zeros(shape), np.zeros(shape)
    if 0 in shape:
        return shared
    lengths = {len(track) for track in (*found, *truth)}
    if len(lengths) > 1:
        raise PredictionError(
            "tracks of one clip have one entry a frame, so one length; "
            f"got {' and '.join(map(str, sorted(lengths)))}"
        )
    for t in range(lengths.pop()):
        rows, masks = _seen(found, t)
        columns, others = _seen(truth, t)
        areas = np.zeros(shape[0]), np.zeros(shape[1])
        areas[0][rows] = coco.area(masks)
        areas[1][columns] = coco.area(others)
        sums = areas[0][:, None] + areas[1][None]
        both = np.zeros(shape)
        if rows and columns:
            here = np.ix_(rows, columns)
            overlap = mask_iou(masks, others)
            # o = i / (s - i)  gives  i = o s / (1 + o), a whole number.
            both[here] = np.rint(overlap * sums[here] / (1 + overlap))
        shared += both
        whole += sums - both
    return np.where(whole > 0, shared / np.maximum(whole, 1), 1.0)


def _seen(tracks: Sequence[Track], t: int) -> tuple[list[int], list[dict[str, Any]]]:
    """Tracks that are seen in frame ``t``, and their masks."""
    masks = {i: compress(rle) for i, track in enumerate(tracks) if (rle := track[t]) is not None}
    return list(masks), list(masks.values())


def box_track_iou(found: Array, truth: Array) -> Array:
    """Overlap of tracks of boxes in space and time: (N, M) float64 in [0, 1].

    Args:
        found: (N, T, 4) xyxy, all 0 where an object is not seen. truth: (M, T, 4).
    """
    a, b = np.asarray(found, np.float64)[:, None], np.asarray(truth, np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(sides, 0).prod(-1).sum(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1).sum(-1) for x in (a, b)]
    whole = areas[0] + areas[1] - shared
    out = np.ones_like(whole)
    np.divide(shared, whole, out=out, where=whole > 0)
    return out
