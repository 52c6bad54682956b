"""Prompts as users write them -> checked arrays; each error says the value and the rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import PromptError
from .nn.geometry import Exemplars
from .types import Array


def read_concepts(concepts: str | Sequence[str] | None) -> list[str] | None:
    """One phrase or several -> phrases without repeats; None stays None."""
    if concepts is None:
        return None
    if isinstance(concepts, str):
        concepts = [concepts]
    if not isinstance(concepts, Iterable):
        raise PromptError(f"concepts are phrases such as ['person']; got {concepts!r}")
    names = list(dict.fromkeys(read_phrase(c) for c in concepts))
    if not names:
        raise PromptError("concepts is empty: name at least one, such as ['person']")
    return names


def read_phrase(concept: Any) -> str:
    """A phrase without white space around it; an empty one is an error."""
    if not isinstance(concept, str):
        raise PromptError(f"a concept is a phrase; got {concept!r}")
    if not concept.strip():
        raise PromptError(f"a concept is a phrase such as 'person'; got {concept!r}")
    return concept.strip()


def read_array(value: Any, width: int, name: str, dims: int = 2) -> Array:
    """An (..., width) float32 array with ``dims`` axes, finite, and not empty."""
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{name} are numbers, not {value!r}") from error
    shape = "(N, K, " if dims == 3 else "(K, "
    if array.ndim != dims or array.shape[-1] != width:
        raise PromptError(f"{name} have shape {shape}{width}); got {array.shape}")
    if not np.isfinite(array).all():
        raise PromptError(f"{name} hold NaN or infinite values: {array.tolist()}")
    return array


def read_boxes(boxes: Any, size: tuple[int, int]) -> Array:
    """(K, 4) xyxy pixels, each with an area, some of it in the image of (height, width)."""
    array = read_array(boxes, 4, "boxes")
    height, width = size
    for box in array:
        x0, y0, x1, y1 = box.tolist()
        if x1 <= x0 or y1 <= y0:
            raise PromptError(
                f"box {box.tolist()} is empty or inverted: boxes are x0, y0, x1, y1 pixels with "
                "x0 < x1 and y0 < y1 (a width and height instead of a corner?)"
            )
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise PromptError(
                f"box {box.tolist()} lies outside the image of {width} x {height} pixels"
            )
    return array


def read_points(points: Any, size: tuple[int, int], checked: Any = None) -> Array:
    """(K, 2) xy pixels in the image; ``checked``: labels, -1 where a point is padding."""
    array = read_array(points, 2, "points")
    if not len(array):
        raise PromptError("points hold no point; a click is [[x, y]]")
    used = array
    if checked is not None and np.size(checked) == len(array):
        used = array[np.asarray(checked).reshape(-1) >= 0]  # padding may lie anywhere
    height, width = size
    outside = (used < 0).any(1) | (used > [width, height]).any(1)
    if outside.any():
        raise PromptError(
            f"point {used[outside][0].tolist()} lies outside the image of {width} x {height} pixels"
        )
    return array


def check_labelled(labels: Any, prompts: Any, name: str, meaning: str) -> None:
    """Labels without what they label are a slip of the caller."""
    if labels is not None and prompts is None:
        raise PromptError(f"{name} are given without {meaning}; pass both, or neither")


def read_labels(labels: Any, shape: tuple[int, ...], name: str, padding: bool = False) -> Array:
    """Signs of ``shape``: 1, 0, and -1 where ``padding`` is allowed; all 1 if None."""
    if labels is None:
        return np.ones(shape, np.int64)
    labels = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else labels
    array = np.asarray(labels)
    if array.shape != shape:
        raise PromptError(f"{name} have shape {array.shape}; one for each needs {shape}")
    allowed = (-1, 0, 1) if padding else (0, 1)
    if not np.isin(array, allowed).all():
        extra = ", -1 is padding" if padding else ""
        raise PromptError(
            f"{name} are 1 (like this) or 0 (not like this){extra}; got {array.tolist()}"
        )
    return array.astype(np.int64)


def pack_exemplars(
    batch: int,
    device: torch.device,
    boxes: Tensor | None,
    box_labels: Any,
    points: Tensor | None,
    point_labels: Any,
) -> Exemplars:
    """Exemplars of ``batch`` prompts, all valid, as tensors on ``device``."""

    def rows(value: Any, width: int, name: str) -> Tensor:
        if value is None:
            return torch.zeros(batch, 0, width, device=device)
        array = torch.as_tensor(value, dtype=torch.float32, device=device)
        if array.ndim != 3 or array.shape[0] != batch or array.shape[2] != width:
            raise PromptError(f"{name} have shape ({batch}, K, {width}); got {tuple(array.shape)}")
        return array

    def signs(value: Any, of: Tensor, name: str) -> Tensor:
        return torch.as_tensor(read_labels(value, tuple(of.shape[:2]), name), device=device)

    box_rows, point_rows = rows(boxes, 4, "boxes"), rows(points, 2, "points")
    if not box_rows.shape[1] and not point_rows.shape[1]:
        raise PromptError("boxes and points hold no exemplar; pass at least one, or None")

    def valid(of: Tensor) -> Tensor:
        return torch.ones(of.shape[:2], dtype=torch.bool, device=device)

    return Exemplars(
        point_rows,
        signs(point_labels, point_rows, "point_labels"),
        valid(point_rows),
        box_rows,
        signs(box_labels, box_rows, "box_labels"),
        valid(box_rows),
    )
