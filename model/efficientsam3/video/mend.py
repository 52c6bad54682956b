"""Masks of objects put right: holes, specks, and who a shared pixel belongs to.

The rules are SAM3's. Objects that are given together are of one concept: what is a wheel may be
of a car too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Array, Box, LogitPatch
from .lives import NEVER

NOTHING = -10.0
"""Mask logits of what is suppressed."""
MENDED = 0.1
"""Mask logits of a hole that was filled; of a speck that was removed, the negative."""
REFERENCE = 288
"""Rows of the masks that areas to mend are given for."""


def mend(logits: Array, area: int) -> Array:
    """Fill holes and remove specks of up to ``area`` cells of a 288 x 288 mask.

    Args:
        logits: (h, w) float32; given back itself where there is nothing to mend.
    """
    least = round(area * (logits.shape[0] / REFERENCE) ** 2)
    inside = logits > 0
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if least < 1 or not len(rows):
        return logits
    # One cell around the mask is enough: what lies beyond is joined to it.
    top, left = max(int(rows[0]) - 1, 0), max(int(columns[0]) - 1, 0)
    part = logits[top : rows[-1] + 2, left : columns[-1] + 2]
    before = (top > 0, rows[-1] + 2 <= logits.shape[0])
    beside = (left > 0, columns[-1] + 2 <= logits.shape[1])
    holes = _small(part <= 0, least, (before, beside))
    filled = np.where(holes, np.float32(MENDED), part)
    covered = filled > 0
    specks = _small(covered, min(least, int(np.count_nonzero(covered)) // 2))
    if not (holes.any() or specks.any()):
        return logits
    out = logits.copy()
    out[top : rows[-1] + 2, left : columns[-1] + 2] = np.where(specks, -MENDED, filled)
    return out


Open = tuple[tuple[bool, bool], tuple[bool, bool]]
"""Whether cells go on beyond the first and last row, and the first and last column."""


def _small(cells: Array, least: int, goes_on: Open = ((False, False), (False, False))) -> Array:
    """(h, w) bool: cells of regions (corners join) of up to ``least`` cells that end here."""
    from scipy import ndimage

    labels, count = ndimage.label(cells, np.ones((3, 3)))
    small = np.bincount(labels.ravel(), minlength=count + 1) <= least
    small[0] = False
    for axis, ends in enumerate(goes_on):
        for beyond, at in zip(ends, (0, -1), strict=True):
            if beyond:
                small[np.take(labels, at, axis)] = False
    return np.asarray(small[labels])


def mend_all(logits: Tensor, area: int) -> Tensor:
    """As ``mend``, of (N, h, w) masks on any device."""
    if not len(logits) or not area:
        return logits
    arrays = logits.float().cpu().numpy()
    mended = [mend(mask, area) for mask in arrays]
    if all(new is old for new, old in zip(mended, arrays, strict=True)):
        return logits
    return torch.from_numpy(np.stack(mended)).to(logits)


def dense(patch: LogitPatch) -> Array:
    """The logits of a mask on all of its grid: (h, w) float32."""
    out = np.full(patch.grid, NOTHING, np.float32)
    height, width = patch.logits.shape
    out[patch.top : patch.top + height, patch.left : patch.left + width] = patch.logits
    return out


def hide_occluded(overlap: Array, hidden: Sequence[int], limit: float) -> list[int]:
    """Which of N objects give way to one that has the same mask.

    When one object covers another, the tracker may take the one in front for both. The one that
    was out of sight more recently is that other, if either ever was.

    Args:
        overlap: (N, N) mask IoU. hidden: when each was last out of sight, ``NEVER`` if never.
    """
    out = set()
    for i, j in zip(*np.nonzero(np.triu(overlap >= limit, 1)), strict=True):
        if hidden[i] > hidden[j] > NEVER:
            out.add(int(i))
        elif hidden[j] > hidden[i] > NEVER:
            out.add(int(j))
    return sorted(out)


def shrunk(logits: Tensor, side: int, keep: float) -> tuple[Array, Array]:
    """Which of N objects lose most of their mask where each pixel goes to the strongest.

    Args:
        logits: (N, h, h). side: a multiple of h, at which pixels are counted.

    Returns:
        (N,) bool, whether less than ``keep`` is left; (N,) bool, whether there is any.
    """
    scale = side // logits.shape[1]
    area, left = np.zeros(len(logits)), np.zeros(len(logits))
    boxes = _boxes(logits)

    def enlarge(row: int, box: Sequence[int]) -> Tensor:
        part = logits[row, box[0] : box[2], box[1] : box[3]].float()
        size = (part.shape[0] * scale, part.shape[1] * scale)
        return F.interpolate(part[None, None], size, mode="bilinear")[0, 0]

    for i, box in enumerate(boxes.tolist()):
        if box[2] <= box[0]:
            continue
        own = enlarge(i, box)
        inside = own > 0
        area[i] = float(inside.count_nonzero())
        # Where an object is, only those whose boxes meet its own can be. Of equals, the first.
        for j in meeting(boxes, i):
            if j != i:
                theirs = enlarge(j, box)
                inside &= own > theirs if j < i else own >= theirs
        left[i] = float(inside.count_nonzero())
    return left / np.maximum(area, 1) < keep, area > 0


def _boxes(logits: Tensor) -> Array:
    """(N, 4) int: top, left, foot and right of masks and of one cell around; 0 for none."""
    inside = logits > 0
    out = np.zeros((len(logits), 4), np.int64)
    for axis, cells in enumerate((inside.any(2).cpu().numpy(), inside.any(1).cpu().numpy())):
        there = cells.any(1)
        count = cells.shape[1]
        out[there, axis] = np.maximum(cells[there].argmax(1) - 1, 0)
        out[there, axis + 2] = np.minimum(count - cells[there, ::-1].argmax(1) + 1, count)
    return out


def meeting(boxes: Array, index: int) -> list[int]:
    """Rows of boxes (N, 4), low corners first, that share an area with one of them."""
    low = np.maximum(boxes[:, :2], boxes[index, :2])
    high = np.minimum(boxes[:, 2:], boxes[index, 2:])
    return [int(j) for j in np.flatnonzero((high > low).all(1))]


def share_out(crops: Sequence[tuple[Array, Box]], strength: Sequence[float]) -> dict[int, Array]:
    """Give each pixel that masks share to the strongest object; the first, of equals.

    Args:
        crops: pixels (h, w) bool of masks, and their boxes x0, y0, x1, y1.

    Returns:
        What is left of the masks that lose some, by their place.
    """
    out: dict[int, Array] = {}
    boxes = np.array([box for _, box in crops])
    rank = {
        i: place for place, i in enumerate(sorted(range(len(crops)), key=lambda i: -strength[i]))
    }
    for i, (pixels, (x0, y0, _, _)) in enumerate(crops):
        for j in meeting(boxes, i):
            if rank[j] >= rank[i]:
                continue
            theirs, (u0, v0, _, _) = crops[j]
            left, top = np.maximum(boxes[i, :2], boxes[j, :2]).tolist()
            right, foot = np.minimum(boxes[i, 2:], boxes[j, 2:]).tolist()
            shared = theirs[top - v0 : foot - v0, left - u0 : right - u0]
            here = (slice(top - y0, foot - y0), slice(left - x0, right - x0))
            if (pixels[here] & shared).any():
                out.setdefault(i, pixels.copy())[here] &= ~shared
    return out
