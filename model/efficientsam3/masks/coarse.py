"""Masks on a coarse grid, cut to their bounding box, for fast overlap of many objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..types import Array, Instances, LogitPatch

MAX_GRID = 320
"""Largest number of rows or columns of the grid that masks made of pixels are reduced to."""


@dataclass(frozen=True, eq=False)
class CoarseMask:
    """The cells of a grid that a mask covers."""

    bits: Array
    """(h, w) bool, cut to the mask."""
    top: int
    """Row of ``bits`` in the grid; it can lie outside the grid when the mask was moved."""
    left: int
    """Column of ``bits`` in the grid; it can lie outside the grid when the mask was moved."""
    grid: tuple[int, int]
    """(rows, columns) of the grid, which spans the image."""

    @classmethod
    def cut(cls, bits: Array, top: int, left: int, grid: tuple[int, int]) -> CoarseMask:
        """Cut (h, w) bool cells at a row and column of the grid to what they cover.

        Args:
            bits: (h, w) bool.
            top: Row of ``bits`` in the grid.
            left: Column of ``bits`` in the grid.
            grid: (rows, columns) of the grid.
        """
        rows = np.flatnonzero(bits.any(1))
        if not len(rows):
            return cls(np.zeros((0, 0), bool), 0, 0, grid)
        columns = np.flatnonzero(bits.any(0))
        inside = bits[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls(inside, top + int(rows[0]), left + int(columns[0]), grid)

    @cached_property
    def area(self) -> int:
        """Number of cells."""
        return int(np.count_nonzero(self.bits))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) in cells."""
        height, width = self.bits.shape
        return self.top, self.left, self.top + height, self.left + width

    @cached_property
    def center(self) -> tuple[float, float]:
        """Mean row and column, as shares of the image's height and width."""
        rows, columns = self.bits.sum(1), self.bits.sum(0)
        area = max(self.area, 1)
        y = float(rows @ np.arange(len(rows))) / area + self.top + 0.5
        x = float(columns @ np.arange(len(columns))) / area + self.left + 0.5
        return y / self.grid[0], x / self.grid[1]

    def moved(self, rows: int, columns: int) -> CoarseMask:
        """The same mask, moved by a number of rows and columns.

        Args:
            rows: Rows to move down.
            columns: Columns to move right.
        """
        out = CoarseMask(self.bits, self.top + rows, self.left + columns, self.grid)
        out.__dict__["area"] = self.area
        return out

    def resized(self, grid: tuple[int, int]) -> CoarseMask:
        """The mask on another grid, by nearest neighbor.

        Args:
            grid: (rows, columns) of the other grid.
        """
        if grid == self.grid:
            return self
        if not self.bits.size:
            return CoarseMask(self.bits, 0, 0, grid)
        scale_y, scale_x = grid[0] / self.grid[0], grid[1] / self.grid[1]
        top, left, bottom, right = self.box
        first_y, first_x = round(top * scale_y), round(left * scale_x)
        rows = np.arange(first_y, max(round(bottom * scale_y), first_y + 1))
        columns = np.arange(first_x, max(round(right * scale_x), first_x + 1))
        y = np.clip(((rows + 0.5) / scale_y - top).astype(int), 0, bottom - top - 1)
        x = np.clip(((columns + 0.5) / scale_x - left).astype(int), 0, right - left - 1)
        return CoarseMask.cut(self.bits[np.ix_(y, x)], int(rows[0]), int(columns[0]), grid)


def coarse_masks(instances: Instances) -> list[CoarseMask]:
    """The masks of instances; their boxes where the model has no mask head.

    Args:
        instances: Instances of one image.
    """
    if instances.patches is None:
        return [_of_box(box, instances.size) for box in instances.boxes]
    out = []
    for patch in instances.patches:
        if isinstance(patch, LogitPatch):
            out.append(CoarseMask.cut(patch.logits > 0, patch.top, patch.left, patch.grid))
        else:
            out.append(_of_pixels(patch.pixels, patch.top, patch.left, instances.size))
    return out


def _of_pixels(pixels: Array, top: int, left: int, size: tuple[int, int]) -> CoarseMask:
    """A cell is covered where any of its pixels is, so that thin objects do not vanish."""
    step = -(-max(size) // MAX_GRID)
    grid = (-(-size[0] // step), -(-size[1] // step))
    if step == 1 or not pixels.size:
        return CoarseMask.cut(pixels, top, left, grid)
    row, column = top // step, left // step
    rows = -(-(top + pixels.shape[0]) // step) - row
    columns = -(-(left + pixels.shape[1]) // step) - column
    padded = np.zeros((rows * step, columns * step), bool)
    y, x = top - row * step, left - column * step
    padded[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    covered = np.asarray(padded.reshape(rows, step, columns, step).any((1, 3)))
    return CoarseMask.cut(covered, row, column, grid)


def _of_box(box: Array, size: tuple[int, int]) -> CoarseMask:
    scale = min(1.0, MAX_GRID / max(size))
    grid = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    scale_y, scale_x = grid[0] / size[0], grid[1] / size[1]
    x0, y0, x1, y1 = box.tolist()
    if x1 <= x0 or y1 <= y0:
        return CoarseMask(np.zeros((0, 0), bool), 0, 0, grid)
    top, left = min(int(y0 * scale_y), grid[0] - 1), min(int(x0 * scale_x), grid[1] - 1)
    rows, columns = max(1, round(y1 * scale_y) - top), max(1, round(x1 * scale_x) - left)
    return CoarseMask(np.ones((rows, columns), bool), top, left, grid)


def iou(a: CoarseMask, b: CoarseMask) -> float:
    """Intersection over union of two masks on one grid, in [0, 1]; 0 where both are empty.

    Args:
        a: A mask.
        b: A mask on the same grid.
    """
    shared = _shared_cells(a, b)
    return shared / (a.area + b.area - shared) if shared else 0.0


def iom(a: CoarseMask, b: CoarseMask) -> float:
    """Intersection of two masks on one grid over the smaller area, in [0, 1]; 0 where one is empty.

    Args:
        a: A mask.
        b: A mask on the same grid.
    """
    shared = _shared_cells(a, b)
    return shared / min(a.area, b.area) if shared else 0.0


def _shared_cells(a: CoarseMask, b: CoarseMask) -> int:
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.bits.shape[0], b.top + b.bits.shape[0])
    right = min(a.left + a.bits.shape[1], b.left + b.bits.shape[1])
    if bottom <= top or right <= left:
        return 0
    bits_a = a.bits[top - a.top : bottom - a.top, left - a.left : right - a.left]
    bits_b = b.bits[top - b.top : bottom - b.top, left - b.left : right - b.left]
    return int(np.count_nonzero(bits_a & bits_b))


def iou_matrix(rows: Sequence[CoarseMask], columns: Sequence[CoarseMask]) -> Array:
    """IoU of N masks with M masks on one grid: (N, M) float64 in [0, 1].

    Args:
        rows: N masks.
        columns: M masks on the same grid.
    """
    return _matrix(rows, columns, iou)


def iom_matrix(rows: Sequence[CoarseMask], columns: Sequence[CoarseMask]) -> Array:
    """Intersection over the smaller area of N masks with M masks on one grid: (N, M) in [0, 1].

    Args:
        rows: N masks.
        columns: M masks on the same grid.
    """
    return _matrix(rows, columns, iom)


def _matrix(
    rows: Sequence[CoarseMask],
    columns: Sequence[CoarseMask],
    metric: Callable[[CoarseMask, CoarseMask], float],
) -> Array:
    out = np.zeros((len(rows), len(columns)))
    for i, j in _touching(rows, columns):
        out[i, j] = metric(rows[i], columns[j])
    return out


def overlap_matrix(masks: Sequence[CoarseMask], metric: str, wanted: Array) -> Array:
    """Overlap of masks with each other: (N, N) float64 in [0, 1], 0 where it is not wanted.

    Args:
        masks: N masks on one grid.
        metric: "iou" or "iom".
        wanted: (N, N) bool, symmetric: the pairs that are compared.
    """
    out = np.zeros((len(masks), len(masks)))
    overlap = {"iou": iou, "iom": iom}[metric]
    for i, j in _touching(masks, masks):
        if i < j and wanted[i, j]:
            out[i, j] = out[j, i] = overlap(masks[i], masks[j])
    return out


def _touching(
    rows: Sequence[CoarseMask], columns: Sequence[CoarseMask]
) -> Iterator[tuple[int, int]]:
    """Pairs of masks whose boxes overlap.

    Of a thousand objects, thousands of pairs are compared and not a million.
    """
    if not rows or not columns:
        return
    a, b = (np.array([mask.box for mask in side]) for side in (rows, columns))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    for i, j in zip(*np.nonzero((high > low).all(-1)), strict=True):
        yield int(i), int(j)
