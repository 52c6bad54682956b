"""Matching of a frame's detections with the tracked objects of their concept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..masks.nms import nms_rows
from ..types import Array, Instances
from .settings import TrackSettings


class Association(NamedTuple):
    """How the detections of one concept relate to its objects. Both are given by row."""

    new: list[int]
    """Detections that begin objects."""
    unmatched: list[int]
    """Visible objects that no detection confirms."""
    matched: list[list[int]]
    """For each detection, the objects that it matches: none, one or several."""
    recondition: dict[int, int]
    """By object, the detection that may become a conditioning frame of it."""
    adopted: dict[int, int]
    """By object, the detection whose mask it takes over."""
    confirmed: dict[int, float]
    """By object, the score of the best detection that confirms it."""


def associate(
    overlap: Array, scores: Array, visible: Array, settings: TrackSettings
) -> Association:
    """Match D detections with T objects (SAM3: ``Sam3VideoBase._associate_det_trk``).

    SAM3.1: ``_associate_det_trk_compilable``.

    Args:
        overlap: (D, T) overlap of masks: IoU, or with SAM3.1's rules intersection over the smaller
            mask.
        scores: (D,) scores of the detections, in [0, 1].
        visible: (T,) bool, whether an object has a pixel.
        settings: Thresholds.

    Returns:
        Rows of detections and objects.
    """
    detections, objects = overlap.shape
    later = settings.rules == "sam3.1"
    if not objects:
        first = scores >= settings.new_track_threshold if later else np.ones(detections, bool)
        return Association(_rows(first), [], [[] for _ in range(detections)], {}, {}, {})
    if not detections:
        return Association([], _rows(visible), [], {}, {}, {})
    new = (scores >= settings.new_track_threshold) & ~(overlap >= settings.match_iou).any(1)
    # Of each object the best score of a detection that confirms it, -1 without any.
    confirmed = np.where(overlap >= settings.confirm_iou, scores[:, None], -1).max(0)
    if later:
        close = overlap >= settings.recondition_iou
        ambiguous = (close.sum(1, keepdims=True) > 1) | (close.sum(0) > 1)
        overlap = np.where(ambiguous, 0, overlap)
    reliable = (scores >= settings.recondition_score) & ~new
    reliable &= overlap.max(1) >= settings.recondition_iou
    best = overlap.argmax(1)
    adopted: dict[int, int] = {}
    if settings.adopt_detection_iou:
        near = np.where(overlap >= settings.adopt_detection_iou, overlap, 0)
        adopted = {t: d for d, t in assign(near)}
    for t, d in adopted.items():
        confirmed[t] = scores[d]
    return Association(
        _rows(new),
        _rows(visible & (confirmed < 0)),
        [_rows(row) for row in overlap >= settings.match_iou],
        {int(best[d]): d for d in _rows(reliable)},
        adopted,
        {t: float(confirmed[t]) for t in _rows(confirmed >= 0)},
    )


def assign(scores: Array) -> list[tuple[int, int]]:
    """One-to-one pairs of rows and columns with the largest sum of scores; none with score 0.

    Args:
        scores: (N, M) scores, from 0.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(i, j) for i, j in pairs if scores[i, j] > 0]


def best_rows(rows: list[int], scores: Array, limit: int) -> list[int]:
    """At most ``limit`` of some rows, those with the highest scores; unchanged if all fit.

    SAM3: ``Sam3VideoBase._drop_new_det_with_obj_limit``.

    Args:
        rows: Rows, in any order.
        scores: Scores of all rows.
        limit: Largest number of rows.
    """
    if len(rows) <= limit:
        return rows
    return sorted(rows, key=lambda row: -scores[row])[: max(limit, 0)]


def away_from_border(boxes: Array, size: tuple[int, int], margin: float) -> Array:
    """Whether the centers of boxes are further than a margin from the image's border.

    SAM3: ``Sam3VideoBase._suppress_detections_close_to_boundary``.

    Args:
        boxes: (N, 4) xyxy in pixels.
        size: (height, width) of the image in pixels.
        margin: Share of the image's height and width.

    Returns:
        (N,) bool.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 / np.array([size[1], size[0]])
    return np.asarray(((centers > margin) & (centers < 1 - margin)).all(1))


def _rows(chosen: Array) -> list[int]:
    return [int(row) for row in np.flatnonzero(chosen)]


def suppress_across_classes(found: Instances, settings: TrackSettings) -> Instances:
    """Drop the weaker of two instances of different classes that overlap.

    Args:
        found: Instances of one frame.
        settings: Whether classes are compared (``class_agnostic``), and how.

    Returns:
        The others, in order.
    """
    if not settings.class_agnostic:
        return found
    limits = (None, None, settings.nms)
    return found[nms_rows(found, *limits, overlap_metric=settings.overlap_metric)]
