"""J&F of DAVIS: region similarity J and contour accuracy F of masks through a clip.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation"
(CVPR 2016). J is the IoU of two masks, F the F1 of their contours, where contours match that are
at most 0.8 % of the image's diagonal apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import PredictionError

Array = npt.NDArray[Any]

TOLERANCE = 0.008
"""How far contours may be apart, as a part of the image's diagonal."""


def region_similarity(found: Array, truth: Array) -> float:
    """J: IoU of two (H, W) bool masks; 1 where both are empty."""
    found, truth = _pair(found, truth)
    either = np.count_nonzero(found | truth)
    return np.count_nonzero(found & truth) / either if either else 1.0


def contour_accuracy(found: Array, truth: Array, tolerance: float = TOLERANCE) -> float:
    """F: F1 of the contours of two (H, W) bool masks; 1 where both are empty.

    Args:
        tolerance: of the diagonal if below 1, else pixels.
    """
    found, truth = _pair(found, truth)
    return _f1(_Outline(found), _Outline(truth), _reach(found, tolerance))


def _reach(mask: Array, tolerance: float = TOLERANCE) -> float:
    """How many pixels contours of masks of this size may be apart."""
    return tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*mask.shape))


class _Outline:
    """The contour pixels of a mask, and a tree to find the nearest of them."""

    def __init__(self, mask: Array) -> None:
        from scipy.spatial import cKDTree

        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        self.points = np.zeros((0, 2), np.int64)
        if len(rows):  # the mask and the pixels next to it
            top, left = max(int(rows[0]) - 1, 0), max(int(columns[0]) - 1, 0)
            window = mask[top : rows[-1] + 2, left : columns[-1] + 2]
            self.points = np.argwhere(contour(window)) + np.array([top, left])
        self.tree = cKDTree(self.points)

    def near(self, other: _Outline, reach: float) -> float:
        """The part of these pixels that have one of the other's within ``reach``."""
        # The bound is a hair wider, since it leaves out what lies just on it.
        distance, _ = other.tree.query(self.points, distance_upper_bound=reach + 0.5)
        return float(np.count_nonzero(distance <= reach) / len(self.points))


def _f1(found: _Outline, truth: _Outline, reach: float) -> float:
    if not len(found.points) or not len(truth.points):
        return float(len(found.points) == len(truth.points))
    precision, recall = found.near(truth, reach), truth.near(found, reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: Array) -> Array:
    """(H, W) bool: pixels that differ from their right, lower or lower right neighbour."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    out: Array = (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    return out


def _pair(found: Array, truth: Array) -> tuple[Array, Array]:
    found, truth = np.asarray(found, bool), np.asarray(truth, bool)
    if found.shape != truth.shape or found.ndim != 2:
        raise PredictionError(f"two (H, W) masks of one size; got {found.shape}, {truth.shape}")
    return found, truth


@dataclass
class JandF:
    """J and F over objects: of each the mean over its frames, then the mean over objects."""

    j: list[float] = field(default_factory=list)
    f: list[float] = field(default_factory=list)

    def add(self, found: Sequence[Array], truth: Sequence[Array]) -> tuple[float, float]:
        """Add one object that both know, such as one that was clicked on.

        Args:
            found, truth: (T, H, W) bool, or T masks. DAVIS leaves the first frame, which is
                given, and the last out: pass ``[1:-1]`` for its figures.

        Returns:
            J and F of this object.
        """
        if len(found) != len(truth) or not len(truth):
            raise PredictionError(
                f"an object has one mask a frame; got {len(found)} for {len(truth)} frames"
            )
        pairs = list(zip(found, truth, strict=True))
        self.j.append(float(np.mean([region_similarity(a, b) for a, b in pairs])))
        self.f.append(float(np.mean([contour_accuracy(a, b) for a, b in pairs])))
        return self.j[-1], self.f[-1]

    def add_matched(
        self, found: Sequence[Sequence[Array]], truth: Sequence[Sequence[Array]]
    ) -> list[int | None]:
        """Add objects that were found without being shown, as in DAVIS' unsupervised task.

        Objects are paired one to one so that J&F is largest; one that is not found counts 0.

        Returns:
            For each true object the index of the one that was found for it, or None.
        """
        from scipy.optimize import linear_sum_assignment

        lengths = {len(track) for track in (*found, *truth)}
        if len(lengths) > 1:
            raise PredictionError(f"an object has one mask a frame; got {sorted(lengths)} of them")
        both = np.zeros((len(truth), len(found), 2))
        for t in range(max(lengths, default=0)):  # each mask is looked at once
            both += _compare([track[t] for track in truth], [track[t] for track in found])
        both /= max([1, *lengths])
        rows, columns = linear_sum_assignment(both.mean(2), maximize=True)
        chosen: dict[int, int] = dict(zip(rows.tolist(), columns.tolist(), strict=True))
        for i in range(len(truth)):
            j, f = both[i, chosen[i]] if i in chosen else (0.0, 0.0)
            self.j.append(float(j))
            self.f.append(float(f))
        return [chosen.get(i) for i in range(len(truth))]

    def merge(self, other: JandF) -> JandF:
        """Both together."""
        return JandF(self.j + other.j, self.f + other.f)

    __add__ = merge

    def figures(self) -> dict[str, float]:
        """0 to 100; NaN without an object."""
        j = 100 * float(np.mean(self.j)) if self.j else math.nan
        f = 100 * float(np.mean(self.f)) if self.f else math.nan
        return {"J&F": (j + f) / 2, "J": j, "F": f}


def _compare(truth: Sequence[Array], found: Sequence[Array]) -> Array:
    """(M, N, 2) J and F of all masks of a frame with all."""
    outlines = [[_Outline(np.asarray(m, bool)) for m in masks] for masks in (truth, found)]
    out = np.zeros((len(truth), len(found), 2))
    for i, true in enumerate(truth):
        for k, guess in enumerate(found):
            out[i, k, 0] = region_similarity(guess, true)
            out[i, k, 1] = _f1(outlines[1][k], outlines[0][i], _reach(true))
    return out
