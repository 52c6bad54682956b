"""Post-processing of masks: holes and specks, occluded and shrunk objects, shared pixels.

The rules are those of SAM3 (sam3_tracker_utils.py, sam3_video_base.py, sam3_tracker_base.py).
Those that compare objects are called with the objects of one concept: pixels of a wheel may belong
to a car too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import Array, Box, LogitPatch

SUPPRESSED = -10.0
"""Mask logit of what is suppressed, as in SAM3."""
FILLED = 0.1
"""Mask logit of a hole that is filled; a removed speck gets the negative. As in SAM3."""
REFERENCE_SIZE = 288
"""Rows of the masks that the area of holes is given for: SAM3's low-resolution masks."""
NEVER_OCCLUDED = -1
"""Frame in which an object was last occluded, when it never was."""


def fill_holes(logits: Array, max_area: int) -> Array:
    """Fill holes and remove specks (SAM3: ``fill_holes_in_mask_scores``).

    Args:
        logits: (h, w) float32 mask logits.
        max_area: Area of holes and specks up to which they are removed, in pixels of a 288 x 288
            mask. A speck is also at most half of the mask.

    Returns:
        (h, w) float32; ``logits`` itself where there is nothing to do.
    """
    limit = round(max_area * (logits.shape[0] / REFERENCE_SIZE) ** 2)
    inside = logits > 0
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if limit < 1 or not len(rows):
        return logits
    # A margin of one pixel around the mask is enough: the background beyond is connected to it.
    top, left = max(int(rows[0]) - 1, 0), max(int(columns[0]) - 1, 0)
    part = logits[top : rows[-1] + 2, left : columns[-1] + 2]
    open_rows = (top > 0, rows[-1] + 2 <= logits.shape[0])
    open_columns = (left > 0, columns[-1] + 2 <= logits.shape[1])
    holes = small_regions(part <= 0, limit, (open_rows, open_columns))
    filled = np.where(holes, np.float32(FILLED), part)
    covered = filled > 0
    specks = small_regions(covered, min(limit, int(np.count_nonzero(covered)) // 2))
    if not (holes.any() or specks.any()):
        return logits
    out = logits.copy()
    out[top : rows[-1] + 2, left : columns[-1] + 2] = np.where(specks, -FILLED, filled)
    return out


OpenEnds = tuple[tuple[bool, bool], tuple[bool, bool]]
"""Whether regions continue beyond the (first, last) row and the (first, last) column."""


def small_regions(
    bits: Array, max_area: int, open_ends: OpenEnds = ((False, False), (False, False))
) -> Array:
    """Find small regions of cells; cells that touch at a corner are connected.

    Args:
        bits: (h, w) bool.
        max_area: Largest area of a small region, in cells.
        open_ends: At which borders regions continue; a region that touches one is not small.

    Returns:
        (h, w) bool, the cells of small regions.
    """
    from scipy import ndimage

    labels, count = ndimage.label(bits, np.ones((3, 3)))
    small = np.bincount(labels.ravel(), minlength=count + 1) <= max_area
    small[0] = False
    for axis, ends in enumerate(open_ends):
        for is_open, at in zip(ends, (0, -1), strict=True):
            if is_open:
                small[np.take(labels, at, axis)] = False
    return np.asarray(small[labels])


def dense_logits(patch: LogitPatch) -> Array:
    """The logits of a mask on all of its grid: (h, w) float32, ``SUPPRESSED`` outside.

    Args:
        patch: A mask, cut to where it is positive.
    """
    out = np.full(patch.grid, SUPPRESSED, np.float32)
    height, width = patch.logits.shape
    out[patch.top : patch.top + height, patch.left : patch.left + width] = patch.logits
    return out


def find_occluded(overlap: Array, last_occluded: Sequence[int], threshold: float) -> list[int]:
    """Objects that are hidden because another object has the same mask.

    When one object covers another, the tracker may draw the front one for both. Of two objects
    with one mask, the one that was occluded more recently is hidden, where both ever were (SAM3:
    ``_get_objects_to_suppress_based_on_most_recently_occluded``).

    Args:
        overlap: (N, N) mask IoU.
        last_occluded: N frames in which the objects were last occluded, or ``NEVER_OCCLUDED``.
        threshold: IoU from which two masks are the same.

    Returns:
        Rows of the objects, rising.
    """
    out = set()
    for i, j in zip(*np.nonzero(np.triu(overlap >= threshold, 1)), strict=True):
        if last_occluded[i] > last_occluded[j] > NEVER_OCCLUDED:
            out.add(int(i))
        elif last_occluded[j] > last_occluded[i] > NEVER_OCCLUDED:
            out.add(int(j))
    return sorted(out)


def overlapping(boxes: Array, index: int) -> list[int]:
    """Find the boxes that share an area with one of them.

    Args:
        boxes: (N, 4), low corners first.
        index: Row of the one.

    Returns:
        Their rows, rising; the row itself is one of them.
    """
    low = np.maximum(boxes[:, :2], boxes[index, :2])
    high = np.minimum(boxes[:, 2:], boxes[index, 2:])
    return [int(j) for j in np.flatnonzero((high > low).all(1))]


def resolve_overlaps(
    crops: Sequence[tuple[Array, Box]], scores: Sequence[float]
) -> dict[int, Array]:
    """Give each shared pixel to the object with the highest score; the first of equals.

    This is SAM3's ``_apply_object_wise_non_overlapping_constraints``.

    Args:
        crops: Pixels (h, w) bool of N masks, and their boxes (x0, y0, x1, y1).
        scores: N scores.

    Returns:
        What remains of the masks that lose pixels, by their row: (h, w) bool.
    """
    out: dict[int, Array] = {}
    boxes = np.array([box for _, box in crops])
    order = sorted(range(len(crops)), key=lambda i: -scores[i])
    rank = {row: place for place, row in enumerate(order)}
    for i, (pixels, (x0, y0, _, _)) in enumerate(crops):
        for j in overlapping(boxes, i):
            if rank[j] >= rank[i]:
                continue
            other, (u0, v0, _, _) = crops[j]
            left, top = np.maximum(boxes[i, :2], boxes[j, :2]).tolist()
            right, bottom = np.minimum(boxes[i, 2:], boxes[j, 2:]).tolist()
            shared = other[top - v0 : bottom - v0, left - u0 : right - u0]
            here = (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
            if (pixels[here] & shared).any():
                out.setdefault(i, pixels.copy())[here] &= ~shared
    return out
