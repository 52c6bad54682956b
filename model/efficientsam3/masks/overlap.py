"""Overlap of masks, boxes and tracks: intersection over union of all with all.

Masks are (N, H, W) bool arrays or N COCO run lengths, {"size": [H, W], "counts": ...}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import MaskError
from ..io.rle import Rle, compress, encode, mask_size
from ..types import Array

Masks = Array | Sequence[Rle]
"""Masks of one image: (N, H, W) bool, or N run lengths."""
Track = Sequence[Rle | None]
"""The masks of one object in all frames of a clip; None where it is not visible."""


def mask_iou(found: Masks, truth: Masks, crowd: Sequence[bool] | None = None) -> Array:
    """Compute the IoU of masks.

    Args:
        found: N predicted masks.
        truth: M true masks, of the same size.
        crowd: M flags. The instances of a crowd are not told apart, so that the overlap with a
            crowd is the part of the predicted mask that lies in it (COCO's rule). None: no crowds.

    Returns:
        (N, M) float64 in [0, 1].

    Raises:
        MaskError: The masks have different sizes.
    """
    shape = (len(found), len(truth))
    if 0 in shape:
        return np.zeros(shape)
    sizes = _sizes(found) | _sizes(truth)
    if len(sizes) > 1:
        (h, w), (h2, w2) = sorted(sizes)[:2]
        raise MaskError(
            f"masks of one image have one size; got {h} x {w} and {h2} x {w2} (height x width)"
        )
    if isinstance(found, np.ndarray) and isinstance(truth, np.ndarray):
        return _dense_iou(found, truth, crowd)
    from pycocotools import mask as coco

    flags = [bool(flag) for flag in crowd] if crowd is not None else [False] * len(truth)
    overlap: Array = coco.iou(_run_lengths(found), _run_lengths(truth), flags)
    return np.asarray(overlap, np.float64).reshape(shape)


def _dense_iou(found: Array, truth: Array, crowd: Sequence[bool] | None) -> Array:
    # float32 counts pixels exactly up to 2 ** 24, and its matrix product is the fastest.
    exact = np.float32 if found[0].size <= 1 << 24 else np.float64
    rows, columns = ((m != 0).reshape(len(m), -1).astype(exact) for m in (found, truth))
    shared = np.matmul(rows, columns.T).astype(np.float64)
    return _ratio(shared, rows.sum(1, np.float64), columns.sum(1, np.float64), crowd)


def _ratio(shared: Array, found: Array, truth: Array, crowd: Sequence[bool] | None = None) -> Array:
    """Intersections (N, M) and areas (N,), (M,) -> IoU (N, M); 0 where there is no area."""
    union = found[:, None] + truth[None] - shared
    if crowd is not None:
        union = np.where(np.asarray(crowd, bool)[None], found[:, None], union)
    out = np.zeros_like(shared)
    np.divide(shared, union, out=out, where=union > 0)
    return out


def _sizes(masks: Masks) -> set[tuple[int, int]]:
    if isinstance(masks, np.ndarray):
        if masks.ndim != 3:
            raise MaskError(f"masks are (N, H, W); got an array of shape {masks.shape}")
        return {(masks.shape[1], masks.shape[2])}
    return {mask_size(mask) for mask in masks}


def _run_lengths(masks: Masks) -> list[Any]:
    if isinstance(masks, np.ndarray):
        return [encode(mask)[0] for mask in masks]
    return [compress(rle) for rle in masks]


def box_iou(found: Array, truth: Array, crowd: Sequence[bool] | None = None) -> Array:
    """Compute the IoU of boxes.

    Args:
        found: (N, 4) predicted boxes (x0, y0, x1, y1).
        truth: (M, 4) true boxes, in the same unit.
        crowd: M flags, as in ``mask_iou``.

    Returns:
        (N, M) float64 in [0, 1].
    """
    a, b = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (found, truth))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(-1)
    areas = [np.maximum(x[:, 2:] - x[:, :2], 0).prod(-1) for x in (a, b)]
    return _ratio(shared, areas[0], areas[1], crowd)


def track_iou(found: Sequence[Track], truth: Sequence[Track]) -> Array:
    """Compute the IoU of tracks in space and time.

    It is the sum of the intersections in all frames over the sum of the unions in all frames; 1 for
    two tracks without a pixel.

    Args:
        found: N predicted tracks.
        truth: M true tracks, of the same length.

    Returns:
        (N, M) float64 in [0, 1].

    Raises:
        MaskError: The tracks have different lengths, or their masks different sizes.
    """
    from pycocotools import mask as coco

    shape = (len(found), len(truth))
    shared, union = np.zeros(shape), np.zeros(shape)
    if 0 in shape:
        return shared
    lengths = {len(track) for track in (*found, *truth)}
    if len(lengths) > 1:
        raise MaskError(
            "tracks of one clip have one entry a frame, so one length; "
            f"got {' and '.join(map(str, sorted(lengths)))}"
        )
    for t in range(lengths.pop()):
        rows, masks = _visible(found, t)
        columns, others = _visible(truth, t)
        areas = np.zeros(shape[0]), np.zeros(shape[1])
        areas[0][rows] = coco.area(masks)
        areas[1][columns] = coco.area(others)
        sums = areas[0][:, None] + areas[1][None]
        both = np.zeros(shape)
        if rows and columns:
            here = np.ix_(rows, columns)
            overlap = mask_iou(masks, others)
            # IoU = i / (sum - i), so that i = IoU * sum / (1 + IoU), which is a whole number.
            both[here] = np.rint(overlap * sums[here] / (1 + overlap))
        shared += both
        union += sums - both
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0)


def _visible(tracks: Sequence[Track], t: int) -> tuple[list[int], list[dict[str, Any]]]:
    """The tracks that are visible in frame ``t``, and their masks."""
    masks = {i: compress(rle) for i, track in enumerate(tracks) if (rle := track[t]) is not None}
    return list(masks), list(masks.values())


def box_track_iou(found: Array, truth: Array) -> Array:
    """Compute the IoU of tracks of boxes in space and time, as ``track_iou`` does of masks.

    Args:
        found: (N, T, 4) boxes (x0, y0, x1, y1), all 0 where an object is not visible.
        truth: (M, T, 4) boxes, in the same unit.

    Returns:
        (N, M) float64 in [0, 1].
    """
    a, b = np.asarray(found, np.float64)[:, None], np.asarray(truth, np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(sides, 0).prod(-1).sum(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1).sum(-1) for x in (a, b)]
    union = areas[0] + areas[1] - shared
    out = np.ones_like(union)
    np.divide(shared, union, out=out, where=union > 0)
    return out


def suppress(masks: Array, limit: float) -> Array:
    """Select masks by non-maximum suppression.

    Args:
        masks: (N, h, w) bool, best first.
        limit: Masks with a larger IoU with a better selected mask are dropped.

    Returns:
        (M,) int64 rows of the selected masks, rising.
    """
    overlap = _dense_iou(masks, masks, None) if len(masks) else np.zeros((0, 0))
    kept: list[int] = []
    for i in range(len(overlap)):
        if not kept or overlap[i, kept].max() <= limit:
            kept.append(i)
    return np.array(kept, np.int64)


def suppress_packed(bits: Array, scores: Array, limit: float) -> Array:
    """Select masks by non-maximum suppression, of many that are often the same.

    Args:
        bits: (N, K) uint8, the cells of each mask as ``np.packbits`` packs them.
        scores: (N,) scores.
        limit: Masks with a larger IoU with a better selected mask are dropped.

    Returns:
        (M,) int64 rows of the selected masks, by decreasing scores.
    """
    areas = _count_bits(bits)
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable").tolist():
        others = np.array(kept, np.int64)
        # Masks whose areas differ more than that cannot have a larger IoU.
        low, high = np.minimum(areas[others], areas[row]), np.maximum(areas[others], areas[row])
        others = others[low > limit * high]
        shared = _count_bits(bits[others] & bits[row])
        if not (shared > limit * (areas[others] + areas[row] - shared)).any():
            kept.append(row)
    return np.array(kept, np.int64)


_BITS = np.array([bin(value).count("1") for value in range(256)], np.uint8)


def _count_bits(packed: Array) -> Array:
    """(N, K) uint8 -> (N,) int64, the bits that are set."""
    return np.asarray(_BITS[packed].sum(1, dtype=np.int64))
