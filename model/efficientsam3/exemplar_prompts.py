"""Exemplars that users pass: boxes, points and masks of one image, as arrays."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from .errors import MissingAbilityError, PromptError, PromptWarning
from .masks.shapes import read_shapes
from .prompts import read_boxes, read_labels, read_points
from .types import Array, BitPatch


class ExemplarPrompts(NamedTuple):
    """Exemplars of one prompt, in shares of the image's sides."""

    points: Array
    """(P, 2) float32 xy in [0, 1]."""
    point_labels: Array
    """(P,) int64: 1 positive, 0 negative."""
    boxes: Array
    """(K, 4) float32 cxcywh in [0, 1]."""
    box_labels: Array
    """(K,) int64: 1 positive, 0 negative."""


def read_exemplars(
    size: tuple[int, int],
    boxes: Any = None,
    box_labels: Any = None,
    points: Any = None,
    point_labels: Any = None,
    masks: Any = None,
    mask_labels: Any = None,
) -> ExemplarPrompts:
    """Convert the exemplars of one image.

    No released weights have an encoder for masks of exemplars, so a mask is read as its box.

    Args:
        size: (height, width) of the image.
        boxes: (K, 4) xyxy pixels, or None.
        box_labels: (K,) of 1 and 0. None: all 1.
        points: (K, 2) xy pixels, or None.
        point_labels: (K,) of 1 and 0. None: all 1.
        masks: K masks or polygons, as ``masks.shapes.read_shapes`` takes them, or None.
        mask_labels: (K,) of 1 and 0. None: all 1.

    Raises:
        PromptError: A prompt is wrong, or there is none.
    """
    scale = np.array([size[1], size[0]], np.float32)
    corners: Array = np.zeros((0, 4), np.float32)
    clicks: Array = np.zeros((0, 2), np.float32)
    signs: Array = np.zeros(0, np.int64)
    if boxes is not None:
        corners = read_boxes(boxes, size)
        signs = read_labels(box_labels, (len(corners),), "box_labels")
    if masks is not None:
        extents = [BitPatch.cut(mask).crop(size)[1] for mask in read_shapes(masks, size)]
        corners = np.concatenate([corners, np.array(extents, np.float32).reshape(-1, 4)])
        more = read_labels(mask_labels, (len(extents),), "mask_labels")
        signs = np.concatenate([signs, more])
    if points is not None:
        clicks = read_points(points, size) / scale
    check_any_exemplar(len(corners) + len(clicks))
    shares = corners / np.tile(scale, 2)
    low, high = shares[:, :2], shares[:, 2:]
    return ExemplarPrompts(
        clicks,
        read_labels(point_labels, (len(clicks),), "point_labels"),
        np.concatenate([(low + high) / 2, high - low], 1),
        signs,
    )


def warn_of_negatives(trained: bool, name: str, exemplars: ExemplarPrompts) -> None:
    """Warn of negative exemplars for a model that was not trained with such exemplars.

    Args:
        trained: Whether it was; there is no warning then.
        name: The model's name.
        exemplars: The exemplars.

    Warns:
        PromptWarning: An exemplar is negative.
    """
    if trained or all(
        (labels > 0).all() for labels in (exemplars.box_labels, exemplars.point_labels)
    ):
        return
    warnings.warn(
        f"{name} was not trained with negative exemplars (label 0): they can raise the scores of "
        "what they should exclude. Use positive exemplars and words, or another model",
        PromptWarning,
        stacklevel=2,
    )


def check_points(point_exemplars: bool, name: str, count: int) -> None:
    """Check that a model's geometry encoder reads points, if there are any.

    Args:
        point_exemplars: Whether it does.
        name: The model's name.
        count: Number of points.

    Raises:
        MissingAbilityError: There are points, and it does not read them.
    """
    if count and not point_exemplars:
        raise MissingAbilityError(
            f"{name} cannot take points as exemplars: weights in the layout of Hugging Face "
            "transformers have no encoder of them. Draw boxes instead, or load the original "
            "checkpoint"
        )


def check_any_exemplar(count: int) -> None:
    """Check that there is an exemplar.

    Args:
        count: Number of boxes, points and masks.

    Raises:
        PromptError: There is none.
    """
    if not count:
        raise PromptError("boxes and points hold no exemplar; pass at least one, or None")
