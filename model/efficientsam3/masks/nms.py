"""Non-maximum suppression of instances by their masks, within classes and across them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import PromptError, shorten
from ..types import Array, Instances
from ..values import is_share
from .coarse import CoarseMask, coarse_masks, overlap_matrix

DEFAULT_NMS = 0.5
"""Overlap above which two instances are the same object, where no other limit is given: for those
of one class that two of its phrases found, and for ``class_agnostic``."""

OVERLAP_METRICS = ("iou", "iom")
"""Intersection over union, and intersection over the area of the smaller mask."""


def non_max_suppression(
    instances: Instances,
    threshold: float = DEFAULT_NMS,
    *,
    class_agnostic: bool = False,
    overlap_metric: str = "iou",
) -> Instances:
    """Drop instances that overlap a better one.

    Args:
        instances: Instances of one image. Boxes take the place of missing masks.
        threshold: Overlap in [0, 1]; of two instances with a larger one, that with the lower score
            is dropped.
        class_agnostic: Whether instances of different classes are compared too.
        overlap_metric: "iou": intersection over union. "iom": intersection over the smaller area,
            which also drops an instance that lies within another.

    Returns:
        The other instances, in the same order.

    Raises:
        PromptError: A value is out of its range.
    """
    check_overlap(class_agnostic, overlap_metric)
    if not is_share(threshold):
        raise PromptError(f"threshold is an overlap between 0 and 1; got {shorten(threshold)}")
    limits = (threshold, threshold, threshold if class_agnostic else None)
    return instances[nms_rows(instances, *limits, overlap_metric=overlap_metric)]


def nms_rows(
    instances: Instances,
    within_phrase: float | None,
    within_class: float | None,
    across: float | None,
    *,
    overlap_metric: str = "iou",
) -> Array:
    """Select instances by non-maximum suppression with a limit for each kind of pair.

    Args:
        instances: Instances of one image.
        within_phrase: Limit for two instances that one phrase found. None: they are not compared.
        within_class: Limit for two instances of one class that two phrases found.
        across: Limit for two instances of different classes.
        overlap_metric: One of ``OVERLAP_METRICS``.

    Returns:
        (M,) int64, rising rows of the instances that are kept.
    """
    count = len(instances)
    labels, phrases = (_numbers(names) for names in (instances.labels, instances.phrases))
    same_class = labels[:, None] == labels[None]
    same_phrase = same_class & (phrases[:, None] == phrases[None])
    values = [np.inf if limit is None else limit for limit in (within_phrase, within_class, across)]
    limits = np.where(same_phrase, values[0], np.where(same_class, values[1], values[2]))
    np.fill_diagonal(limits, np.inf)
    if not count or not (limits < 1).any():
        return np.arange(count)
    masks = _on_one_grid(coarse_masks(instances))
    too_much = overlap_matrix(masks, overlap_metric, limits < 1) > limits
    kept = np.zeros(count, bool)
    for row in np.argsort(-instances.scores, kind="stable"):
        kept[row] = not (too_much[row] & kept).any()
    return np.flatnonzero(kept)


def check_overlap(class_agnostic: bool, overlap_metric: str) -> None:
    """Check the options of suppression.

    Args:
        class_agnostic: True or False.
        overlap_metric: One of ``OVERLAP_METRICS``.

    Raises:
        PromptError: A value is not one of these.
    """
    if not isinstance(class_agnostic, (bool, np.bool_)):
        raise PromptError(
            f"class_agnostic is True or False; got {shorten(class_agnostic)}. The overlap is "
            "given by nms"
        )
    if not isinstance(overlap_metric, str) or overlap_metric not in OVERLAP_METRICS:
        raise PromptError(
            f"overlap_metric is 'iou' (intersection over union) or 'iom' (over the smaller area); "
            f"got {shorten(overlap_metric)}"
        )


def _numbers(names: Sequence[str]) -> Array:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)


def _on_one_grid(masks: list[CoarseMask]) -> list[CoarseMask]:
    grid = max((mask.grid for mask in masks), key=lambda grid: grid[0] * grid[1])
    return [mask.resized(grid) for mask in masks]
