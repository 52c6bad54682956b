"""Masks on a coarse lattice, cut to their box: overlaps of many objects in little time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..types import Array, Instances, LogitPatch

FINEST = 320
"""Rows or columns at most of the lattice that masks made of pixels are brought to."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Which cells of a lattice a mask covers.

    bits: (h, w) bool, tight. top, left: of ``bits`` in the lattice, outside of it where a mask
    was moved there. grid: rows and columns of the lattice, which spans the image.
    """

    bits: Array
    top: int
    left: int
    grid: tuple[int, int]

    @cached_property
    def area(self) -> int:
        return int(np.count_nonzero(self.bits))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """top, left, bottom, right."""
        height, width = self.bits.shape
        return self.top, self.left, self.top + height, self.left + width

    @cached_property
    def centre(self) -> tuple[float, float]:
        """Mean row and column, as shares of the image's height and width."""
        rows, columns = self.bits.sum(1), self.bits.sum(0)
        whole = max(self.area, 1)
        y = float(rows @ np.arange(len(rows))) / whole + self.top + 0.5
        x = float(columns @ np.arange(len(columns))) / whole + self.left + 0.5
        return y / self.grid[0], x / self.grid[1]

    def moved(self, rows: int, columns: int) -> Cells:
        """The same shape elsewhere."""
        out = Cells(self.bits, self.top + rows, self.left + columns, self.grid)
        out.__dict__["area"] = self.area
        return out

    def onto(self, grid: tuple[int, int]) -> Cells:
        """The mask on another lattice, by its nearest cells."""
        if grid == self.grid:
            return self
        if not self.bits.size:
            return Cells(self.bits, 0, 0, grid)
        high, wide = grid[0] / self.grid[0], grid[1] / self.grid[1]
        top, left, bottom, right = self.box
        rows = np.arange(round(top * high), max(round(bottom * high), round(top * high) + 1))
        columns = np.arange(round(left * wide), max(round(right * wide), round(left * wide) + 1))
        y = np.clip(((rows + 0.5) / high - top).astype(int), 0, bottom - top - 1)
        x = np.clip(((columns + 0.5) / wide - left).astype(int), 0, right - left - 1)
        return tight(self.bits[np.ix_(y, x)], int(rows[0]), int(columns[0]), grid)


def tight(bits: Array, top: int, left: int, grid: tuple[int, int]) -> Cells:
    """Cut to what is covered. bits: (h, w) bool at row ``top`` and column ``left``."""
    rows = np.flatnonzero(bits.any(1))
    if not len(rows):
        return Cells(np.zeros((0, 0), bool), 0, 0, grid)
    columns = np.flatnonzero(bits.any(0))
    inside = bits[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Cells(inside, top + int(rows[0]), left + int(columns[0]), grid)


def cells_of(found: Instances) -> list[Cells]:
    """Masks of instances; their boxes where the weights have no mask head."""
    if found.patches is None:
        return [_of_box(box, found.size) for box in found.boxes]
    out = []
    for patch in found.patches:
        if isinstance(patch, LogitPatch):
            out.append(tight(patch.logits > 0, patch.top, patch.left, patch.grid))
        else:
            out.append(_pooled(patch.pixels, patch.top, patch.left, found.size))
    return out


def _pooled(pixels: Array, top: int, left: int, size: tuple[int, int]) -> Cells:
    """A cell is covered where any of its pixels is: thin objects do not vanish."""
    step = -(-max(size) // FINEST)
    grid = (-(-size[0] // step), -(-size[1] // step))
    if step == 1 or not pixels.size:
        return tight(pixels, top, left, grid)
    row, column = top // step, left // step
    high = -(-(top + pixels.shape[0]) // step) - row
    wide = -(-(left + pixels.shape[1]) // step) - column
    whole = np.zeros((high * step, wide * step), bool)
    y, x = top - row * step, left - column * step
    whole[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    covered = np.asarray(whole.reshape(high, step, wide, step).any((1, 3)))
    return tight(covered, row, column, grid)


def _of_box(box: Array, size: tuple[int, int]) -> Cells:
    scale = min(1.0, FINEST / max(size))
    grid = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    high, wide = grid[0] / size[0], grid[1] / size[1]
    x0, y0, x1, y1 = box.tolist()
    if x1 <= x0 or y1 <= y0:
        return Cells(np.zeros((0, 0), bool), 0, 0, grid)
    top, left = min(int(y0 * high), grid[0] - 1), min(int(x0 * wide), grid[1] - 1)
    rows, columns = max(1, round(y1 * high) - top), max(1, round(x1 * wide) - left)
    return Cells(np.ones((rows, columns), bool), top, left, grid)


def shared(a: Cells, b: Cells) -> int:
    """Cells of one lattice that two masks share."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.bits.shape[0], b.top + b.bits.shape[0])
    right = min(a.left + a.bits.shape[1], b.left + b.bits.shape[1])
    if bottom <= top or right <= left:
        return 0
    ours = a.bits[top - a.top : bottom - a.top, left - a.left : right - a.left]
    theirs = b.bits[top - b.top : bottom - b.top, left - b.left : right - b.left]
    return int(np.count_nonzero(ours & theirs))


def iou(a: Cells, b: Cells) -> float:
    """Intersection over union of two masks on one lattice; 0 where both are empty."""
    both = shared(a, b)
    return both / (a.area + b.area - both) if both else 0.0


def overlaps(rows: Sequence[Cells], columns: Sequence[Cells]) -> Array:
    """IoU of all with all: (N, M) float64. Masks are on one lattice."""
    out = np.zeros((len(rows), len(columns)))
    if not out.size:
        return out
    a, b = (np.array([c.box for c in side]) for side in (rows, columns))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    # Only masks whose boxes meet can: of a thousand objects, some thousand pairs, not a million.
    for i, j in zip(*np.nonzero((high > low).all(-1)), strict=True):
        out[i, j] = iou(rows[i], columns[j])
    return out
