"""Exemplars as tensors, for the geometry encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import PromptError, shorten
from .exemplar_prompts import ExemplarPrompts, check_any_exemplar
from .nn.geometry import Exemplars
from .prompts import read_labels


def exemplar_tensors(prompts: ExemplarPrompts, device: torch.device) -> Exemplars:
    """Make the exemplars of one prompt.

    Args:
        prompts: From ``exemplar_prompts.read_exemplars``.
        device: Device of the tensors.
    """
    points, point_labels, boxes, box_labels = (
        torch.from_numpy(value)[None].to(device) for value in prompts
    )
    return pack_exemplars(1, device, boxes, box_labels, points, point_labels)


def pack_exemplars(
    batch: int,
    device: torch.device,
    boxes: Tensor | None,
    box_labels: Any,
    points: Tensor | None,
    point_labels: Any,
) -> Exemplars:
    """Make the exemplars of a batch of prompts, all of them valid.

    Args:
        batch: Number of prompts, B.
        device: Device of the tensors.
        boxes: (B, K, 4) cxcywh in [0, 1], or None.
        box_labels: (B, K) of 1 and 0. None: all 1.
        points: (B, K, 2) xy in [0, 1], or None.
        point_labels: (B, K) of 1 and 0. None: all 1.

    Raises:
        PromptError: A shape is wrong, or there is no exemplar.
    """

    def to_tensor(value: Any, width: int, name: str) -> Tensor:
        if value is None:
            return torch.zeros(batch, 0, width, device=device)
        try:
            tensor = torch.as_tensor(value, dtype=torch.float32, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise PromptError(f"{name} are numbers; got {shorten(value)}") from error
        if tensor.ndim != 3 or tensor.shape[0] != batch or tensor.shape[2] != width:
            raise PromptError(f"{name} have shape ({batch}, K, {width}); got {tuple(tensor.shape)}")
        return tensor

    def labels_of(value: Any, prompts: Tensor, name: str) -> Tensor:
        return torch.as_tensor(read_labels(value, tuple(prompts.shape[:2]), name), device=device)

    def valid(prompts: Tensor) -> Tensor:
        return torch.ones(prompts.shape[:2], dtype=torch.bool, device=device)

    box_rows, point_rows = to_tensor(boxes, 4, "boxes"), to_tensor(points, 2, "points")
    check_any_exemplar(box_rows.shape[1] + point_rows.shape[1])
    return Exemplars(
        point_rows,
        labels_of(point_labels, point_rows, "point_labels"),
        valid(point_rows),
        box_rows,
        labels_of(box_labels, box_rows, "box_labels"),
        valid(box_rows),
    )
