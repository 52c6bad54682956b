"""J&F of DAVIS: region similarity J and contour accuracy F of masks through a clip.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation"
(CVPR 2016). J is the IoU of two masks, F the F1 of their contours, where contour pixels match that
are at most 0.8 % of the image's diagonal apart. The numbers follow the toolkit of DAVIS 2017
(``davis2017-evaluation``, Pont-Tuset et al. 2017), which SA-V's ``sav_evaluator.py`` follows too;
distances are exact here instead of dilated by a disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...types import Array
from ..errors import PredictionError

TOLERANCE = 0.008
"""How far contours may be apart, as a part of the image's diagonal (Perazzi et al., section 4)."""


def region_similarity(predicted: Array, target: Array) -> float:
    """J: the IoU of two masks.

    Args:
        predicted: (H, W) bool.
        target: (H, W) bool.

    Returns:
        In [0, 1]; 1 where both masks are empty.
    """
    predicted, target = _check_pair(predicted, target)
    union = np.count_nonzero(predicted | target)
    return np.count_nonzero(predicted & target) / union if union else 1.0


def contour_accuracy(predicted: Array, target: Array, tolerance: float = TOLERANCE) -> float:
    """F: the F1 of the contours of two masks.

    Args:
        predicted: (H, W) bool.
        target: (H, W) bool.
        tolerance: How far matching contour pixels may be apart: a part of the diagonal if below 1,
            else pixels.

    Returns:
        In [0, 1]; 1 where both masks are empty.
    """
    predicted, target = _check_pair(predicted, target)
    return _contour_f1(_Contour(predicted), _Contour(target), _max_distance(predicted, tolerance))


def _max_distance(mask: Array, tolerance: float = TOLERANCE) -> float:
    """How many pixels contours of masks of this size may be apart."""
    return tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*mask.shape))


class _Contour:
    """The contour pixels of a mask, and a tree to find the nearest of them."""

    def __init__(self, mask: Array) -> None:
        from scipy.spatial import cKDTree

        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        self.points = np.zeros((0, 2), np.int64)
        if len(rows):  # only the mask and the pixels next to it are searched
            top, left = max(int(rows[0]) - 1, 0), max(int(columns[0]) - 1, 0)
            window = mask[top : rows[-1] + 2, left : columns[-1] + 2]
            self.points = np.argwhere(contour(window)) + np.array([top, left])
        self.tree = cKDTree(self.points)

    def share_near(self, other: _Contour, distance: float) -> float:
        """The share of these pixels that have one of the other contour within ``distance``."""
        # The query's bound is exclusive, so it is made wider.
        nearest, _ = other.tree.query(self.points, distance_upper_bound=distance + 0.5)
        return float(np.count_nonzero(nearest <= distance) / len(self.points))


def _contour_f1(predicted: _Contour, target: _Contour, distance: float) -> float:
    if not len(predicted.points) or not len(target.points):
        return float(len(predicted.points) == len(target.points))
    precision = predicted.share_near(target, distance)
    recall = target.share_near(predicted, distance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: Array) -> Array:
    """The contour of a mask: pixels that differ from their right, lower or lower right neighbor.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    out: Array = (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    return out


def _check_pair(predicted: Array, target: Array) -> tuple[Array, Array]:
    predicted, target = np.asarray(predicted, bool), np.asarray(target, bool)
    if predicted.shape != target.shape or predicted.ndim != 2:
        raise PredictionError(
            f"two (H, W) masks of one size; got {predicted.shape}, {target.shape}"
        )
    return predicted, target


@dataclass
class JFScore:
    """Accumulates objects and computes J&F.

    J and F of an object are means over its frames; the metrics are means over objects.

    Args:
        j: J of each object, in [0, 1].
        f: F of each object, in [0, 1].
    """

    j: list[float] = field(default_factory=list)
    f: list[float] = field(default_factory=list)

    def update(self, predicted: Sequence[Array], target: Sequence[Array]) -> tuple[float, float]:
        """Add one object whose prediction is known to belong to it, as where it was given.

        Args:
            predicted: (T, H, W) bool, or T masks.
            target: (T, H, W) bool, or T masks. DAVIS leaves out the first frame, which is given,
                and the last: pass ``[1:-1]`` of both for its numbers.

        Returns:
            J and F of this object.

        Raises:
            PredictionError: numbers or sizes of masks differ.
        """
        if len(predicted) != len(target) or not len(target):
            raise PredictionError(
                f"an object has one mask a frame; got {len(predicted)} for {len(target)} frames"
            )
        pairs = list(zip(predicted, target, strict=True))
        self.j.append(float(np.mean([region_similarity(a, b) for a, b in pairs])))
        self.f.append(float(np.mean([contour_accuracy(a, b) for a, b in pairs])))
        return self.j[-1], self.f[-1]

    def update_unsupervised(
        self, predicted: Sequence[Sequence[Array]], target: Sequence[Sequence[Array]]
    ) -> list[int | None]:
        """Add the objects of a clip that were found without being given (DAVIS' unsupervised task).

        Objects are matched one to one so that J&F is largest; one without a match counts 0.

        Args:
            predicted: N tracks of T masks (H, W) bool.
            target: M tracks of T masks.

        Returns:
            For each true object the index of the prediction that is matched with it, or None.

        Raises:
            PredictionError: the tracks have different lengths.
        """
        from scipy.optimize import linear_sum_assignment

        lengths = {len(track) for track in (*predicted, *target)}
        if len(lengths) > 1:
            raise PredictionError(f"an object has one mask a frame; got {sorted(lengths)} of them")
        both = np.zeros((len(target), len(predicted), 2))
        for t in range(max(lengths, default=0)):  # each mask is read once
            both += _compare_frame(
                [track[t] for track in target], [track[t] for track in predicted]
            )
        both /= max([1, *lengths])
        rows, columns = linear_sum_assignment(both.mean(2), maximize=True)
        chosen: dict[int, int] = dict(zip(rows.tolist(), columns.tolist(), strict=True))
        for i in range(len(target)):
            j, f = both[i, chosen[i]] if i in chosen else (0.0, 0.0)
            self.j.append(float(j))
            self.f.append(float(f))
        return [chosen.get(i) for i in range(len(target))]

    def merge(self, other: JFScore) -> JFScore:
        """Both scores together, as if all objects had been added to one.

        Args:
            other: Another score.
        """
        return JFScore(self.j + other.j, self.f + other.f)

    __add__ = merge

    def compute(self) -> dict[str, float]:
        """J&F, J and F, 0 to 100; NaN without an object."""
        j = 100 * float(np.mean(self.j)) if self.j else math.nan
        f = 100 * float(np.mean(self.f)) if self.f else math.nan
        return {"J&F": (j + f) / 2, "J": j, "F": f}


def _compare_frame(target: Sequence[Array], predicted: Sequence[Array]) -> Array:
    """(M, N, 2) J and F of each true with each predicted mask of one frame."""
    true, guessed = (
        [_Contour(np.asarray(m, bool)) for m in masks] for masks in (target, predicted)
    )
    out = np.zeros((len(target), len(predicted), 2))
    for i, mask in enumerate(target):
        for k, guess in enumerate(predicted):
            out[i, k, 0] = region_similarity(guess, mask)
            out[i, k, 1] = _contour_f1(guessed[k], true[i], _max_distance(mask))
    return out
