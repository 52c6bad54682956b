"""Which detections are of which objects: SAM3's rules, for one concept at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..types import Array
from .settings import TrackSettings


class Matches(NamedTuple):
    """What the detections of a frame say of the objects of their concept; all are rows.

    new: detections that begin objects. unmatched: objects in sight that no detection confirms.
    matched: for each detection, the objects that it is of, many perhaps. sure: by object, the
    detection that may refresh its memory. own: by object, the detection whose mask it adopts.
    """

    new: list[int]
    unmatched: list[int]
    matched: list[list[int]]
    sure: dict[int, int]
    own: dict[int, int]


def associate(overlap: Array, scores: Array, seen: Array, settings: TrackSettings) -> Matches:
    """Match D detections with T objects.

    Args:
        overlap: (D, T) mask IoU. scores: (D,). seen: (T,) bool, whether an object has a pixel.
    """
    detections, objects = overlap.shape
    if not objects:
        return Matches(list(range(detections)), [], [[] for _ in range(detections)], {}, {})
    if not detections:
        return Matches([], _rows(seen), [], {}, {})
    of = overlap >= settings.match
    new = (scores >= settings.begin) & ~of.any(1)
    sure = (scores >= settings.sure_score) & ~new & (overlap.max(1) >= settings.sure_overlap)
    best = overlap.argmax(1)
    own: dict[int, int] = {}
    if settings.adopt:
        own = {t: d for d, t in assign(np.where(overlap >= settings.adopt, overlap, 0))}
    supported = np.asarray((overlap >= settings.support).any(0))
    supported[list(own)] = True
    return Matches(
        _rows(new),
        _rows(seen & ~supported),
        [_rows(row) for row in of],
        {int(best[d]): d for d in _rows(sure)},
        own,
    )


def assign(score: Array) -> list[tuple[int, int]]:
    """Pairs of rows and columns of the best sum of scores, each more than 0."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(score, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(i, j) for i, j in pairs if score[i, j] > 0]


def strongest(rows: list[int], scores: Array, most: int) -> list[int]:
    """At most so many of the detections: the best, and as they were where all may stay."""
    if len(rows) <= most:
        return rows
    return sorted(rows, key=lambda row: -scores[row])[: max(most, 0)]


def off_edge(boxes: Array, size: tuple[int, int], edge: float) -> Array:
    """(N,) bool: boxes (N, 4), xyxy pixels, with centres further than ``edge`` from the border."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / np.array([size[1], size[0]])
    return np.asarray(((centre > edge) & (centre < 1 - edge)).all(1))


def _rows(chosen: Array) -> list[int]:
    return [int(row) for row in np.flatnonzero(chosen)]
