"""Objects that lose most of their mask to others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..types import Array
from .postprocess import overlapping


def find_shrunk(logits: Array, scale: int, min_area_kept: float) -> tuple[Array, Array]:
    """Objects that lose most of their mask when each pixel goes to the object with most logit.

    This is SAM3's ``_suppress_shrinked_masks`` after ``_apply_non_overlapping_constraints``.

    Args:
        logits: (N, h, h) float32 mask logits.
        scale: Factor by which masks are enlarged before pixels are counted.
        min_area_kept: Least share of its pixels that an object must keep, in [0, 1].

    Returns:
        (N,) bool, whether the object keeps less; (N,) bool, whether it has a pixel at all.
    """
    area, kept = np.zeros(len(logits)), np.zeros(len(logits))
    boxes = _padded_boxes(logits)

    def enlarge(row: int, box: Sequence[int]) -> torch.Tensor:
        part = torch.from_numpy(logits[row, box[0] : box[2], box[1] : box[3]])
        size = (part.shape[0] * scale, part.shape[1] * scale)
        return F.interpolate(part[None, None], size, mode="bilinear")[0, 0]

    for i, box in enumerate(boxes.tolist()):
        if box[2] <= box[0]:
            continue
        own = enlarge(i, box)
        inside = own > 0
        area[i] = float(inside.count_nonzero())
        # Only objects whose boxes overlap its box can take pixels. Of equal logits the first wins.
        for j in overlapping(boxes, i):
            if j != i:
                other = enlarge(j, box)
                inside &= own > other if j < i else own >= other
        kept[i] = float(inside.count_nonzero())
    return kept / np.maximum(area, 1) < min_area_kept, area > 0


def _padded_boxes(logits: Array) -> Array:
    """(N, 4) int: top, left, bottom, right of masks with a margin of one pixel; 0 for none."""
    inside = logits > 0
    out = np.zeros((len(logits), 4), np.int64)
    for axis, other in enumerate((2, 1)):
        covered: Array = np.asarray(inside.any(other))
        there = covered.any(1)
        count = covered.shape[1]
        out[there, axis] = np.maximum(covered[there].argmax(1) - 1, 0)
        out[there, axis + 2] = np.minimum(count - covered[there, ::-1].argmax(1) + 1, count)
    return out
