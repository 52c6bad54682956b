"""Overlap of FiftyOne detections: of their masks where both have one, else of their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fiftyone.core.labels as fol
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from efficientsam3.io.rle import encode_cut
from efficientsam3.masks.overlap import mask_iou

from .record import Box


def label_iou(first: Sequence[fol.Detection], second: Sequence[fol.Detection]) -> NDArray[Any]:
    """The IoU of all pairs of two lists of detections of one image.

    Args:
        first: N detections.
        second: M detections.

    Returns:
        (N, M) float64 in [0, 1]: of the masks where both have one, else of the boxes.
    """
    shape = (len(first), len(second))
    if 0 in shape:
        return np.zeros(shape)
    out = box_iou([d.bounding_box for d in first], [d.bounding_box for d in second])
    rows = [i for i in range(shape[0]) if out[i].any() and first[i].has_mask]
    columns = [j for j in range(shape[1]) if out[:, j].any() and second[j].has_mask]
    if rows and columns:
        masks = encode_masks([*(first[i] for i in rows), *(second[j] for j in columns)])
        out[np.ix_(rows, columns)] = mask_iou(masks[: len(rows)], masks[len(rows) :])
    return out


def box_iou(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> NDArray[Any]:
    """The IoU of all pairs of two lists of boxes.

    Args:
        first: N boxes, (x, y, width, height).
        second: M boxes.

    Returns:
        (N, M) float64 in [0, 1].
    """
    a = np.asarray(first, np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, np.float64).reshape(1, -1, 4)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = (high - low).clip(0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def encode_masks(
    detections: Sequence[fol.Detection], size: tuple[int, int] | None = None
) -> list[Any]:
    """Masks as run lengths on one grid.

    Args:
        detections: detections of one image, all with masks.
        size: (height, width) of the grid. None: about as fine as the stored masks.
    """
    if not detections:
        return []
    masks = [np.asarray(d.get_mask(), bool) for d in detections]
    size = size or _grid(detections, masks)
    out = []
    for detection, mask in zip(detections, masks, strict=True):
        x, y, w, h = detection.bounding_box
        x0, y0 = (min(max(round(p * n), 0), n - 1) for p, n in ((x, size[1]), (y, size[0])))
        x1 = min(max(round((x + w) * size[1]), x0 + 1), size[1])
        y1 = min(max(round((y + h) * size[0]), y0 + 1), size[0])
        fitted = Image.fromarray(mask).resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST)
        out.append(encode_cut(np.asarray(fitted), (x0, y0, x1, y1), size))
    return out


def _grid(detections: Sequence[fol.Detection], masks: Sequence[NDArray[Any]]) -> tuple[int, int]:
    """(height, width) of the image, computed from the largest mask and its box."""
    sides = []
    for detection, mask in zip(detections, masks, strict=True):
        (rows, columns), (_, _, w, h) = mask.shape, detection.bounding_box
        if w > 0 and h > 0:
            sides.append((rows * columns, round(rows / h), round(columns / w)))
    if not sides:
        return 1, 1
    _, height, width = max(sides)
    return max(1, height), max(1, width)


def overlapping(boxes: Sequence[Box], label: fol.Detection) -> float:
    """The largest IoU of a detection's box with some boxes; 0 where there are none.

    Args:
        boxes: the boxes.
        label: the detection.
    """
    return float(box_iou([label.bounding_box], boxes).max()) if boxes else 0.0
