"""Masks of all things in a picture, without a word: a grid of points for the interactive head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .errors import PromptError, shorten
from .masks.overlap import suppress_packed
from .masks.tiles import check_tile
from .outputs import OBJECT, EncodedImage, join_objects, object_instances
from .prompts import check_limits
from .types import POSITIVE, Array, Instances, join
from .values import is_whole

POINT_BATCH = 32
"""Points that are answered together."""
MAX_POINTS = 256
"""Most points along a side of the grid."""
STABILITY_OFFSET = 1.0
"""Logits by which the threshold of masks is moved to measure their stability, as in SAM."""

AnswerPoints = Callable[[Any, Array, Array, None, bool], tuple[Array, Array, Array]]
"""``Segmenter._answer_objects``."""


class EverythingSettings(NamedTuple):
    """The settings of ``segment_everything``.

    Attributes:
        points_per_side: Points along each side of the grid.
        threshold: Lowest predicted IoU of a mask.
        stability_threshold: Lowest stability of a mask.
        nms: Of two masks with a larger IoU the weaker one is dropped.
    """

    points_per_side: int
    threshold: float
    stability_threshold: float
    nms: float


def check_everything(
    points_per_side: int = 32,
    threshold: float = 0.8,
    stability_threshold: float = 0.95,
    nms: float = 0.7,
    max_instances: int | None = None,
    tile: Any = None,
) -> EverythingSettings:
    """Check the arguments of ``segment_everything``.

    Args:
        points_per_side: 1 to ``MAX_POINTS``.
        threshold: In [0, 1].
        stability_threshold: In [0, 1].
        nms: In [0, 1].
        max_instances: 0 or more, or None.
        tile: As ``masks.tiles.check_tile`` takes it.

    Raises:
        PromptError: A value is out of its range.
    """
    if not is_whole(points_per_side, 1) or points_per_side > MAX_POINTS:
        raise PromptError(
            f"points_per_side is a whole number from 1 to {MAX_POINTS}; got "
            f"{shorten(points_per_side)}. For smaller things use tile"
        )
    if nms is None:
        raise PromptError("nms is an IoU between 0 and 1; got None. 1 keeps all masks")
    check_limits(threshold, max_instances, nms)
    try:
        check_limits(stability_threshold)
    except PromptError as error:
        raise PromptError(f"stability_{error}") from error
    check_tile(tile)
    return EverythingSettings(points_per_side, threshold, stability_threshold, nms)


def find_everything(
    image: EncodedImage, answer: AnswerPoints, settings: EverythingSettings
) -> Instances:
    """Find the masks of all points of a grid, and keep good ones, each once.

    Args:
        image: The encoded image.
        answer: Answers prompts of single objects.
        settings: The settings.

    Returns:
        Instances by decreasing scores.
    """
    found = replace(join_objects([], image.size), low_res=None)
    bits: Array | None = None
    for xy in _grid(settings.points_per_side):
        labels = np.full((len(xy), 1), POSITIVE, np.int64)
        logits, quality, presence = answer(image.features, xy[:, None], labels, None, True)
        good = (quality > settings.threshold) & (logits > 0).any((2, 3))
        good &= stability(logits) >= settings.stability_threshold
        if not good.any():
            continue
        new = [
            object_instances(row[kept], scores[kept], float(there), image.size)
            for row, scores, there, kept in zip(logits, quality, presence, good, strict=True)
        ]
        packed = np.packbits((logits[good] > 0).reshape(int(good.sum()), -1), axis=1)
        bits = packed if bits is None else np.concatenate([bits, packed])
        found = join([found, *(replace(one, low_res=None) for one in new)])
        # The weaker ones of the same mask are dropped now: most points of a thing find it.
        kept = suppress_packed(bits, found.scores, settings.nms)
        found, bits = found[kept], bits[kept]
    return replace(found, concepts=(OBJECT,))


def stability(logits: Array) -> Array:
    """The IoU of a mask at a higher threshold with itself at a lower one, as in SAM.

    Args:
        logits: (..., h, w) mask logits.

    Returns:
        (...) float64 in [0, 1].
    """
    inner = (logits > STABILITY_OFFSET).sum((-2, -1))
    outer = (logits > -STABILITY_OFFSET).sum((-2, -1))
    return np.asarray(inner / np.maximum(outer, 1))


def _grid(side: int) -> Iterator[Array]:
    """Points (K, 2) xy in [0, 1], in batches."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    for start in range(0, len(points), POINT_BATCH):
        yield points[start : start + POINT_BATCH]
