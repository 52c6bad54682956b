"""Prompts of training: noised boxes, clicks where masks differ, padded exemplars."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..nn.geometry import Exemplars
from ..types import NOT_A_POINT

BOX_NOISE = 0.1
"""Standard deviation of the noise of a box's edges, as a part of its sides (SAM3's value)."""
BOX_NOISE_LIMIT = 20 / 1008
"""The most by which an edge moves, as a part of the image: SAM3's 20 of 1008 pixels."""


def jitter_boxes(boxes: Tensor, noise: Tensor, deviation: float, limit: float) -> Tensor:
    """Move the edges of boxes, as SAM 2 and SAM3 do with boxes that prompt.

    Args:
        boxes: (N, 4) xyxy in [0, 1].
        noise: (N, 4) standard normal numbers.
        deviation: standard deviation of an edge's shift, as a part of the box's side.
        limit: the most by which an edge moves, as a part of the image.

    Returns:
        (N, 4) xyxy in [0, 1], with corners in order.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = (boxes + (noise * deviation * sides).clamp(-limit, limit)).clamp(0, 1)
    first, second = moved[:, :2], moved[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], 1)


def sample_error_clicks(
    truth: Tensor, found: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A click of each object, drawn evenly from the pixels where two masks differ.

    This is the correction of SAM 2's training (arXiv 2408.00714) and of EdgeSAM's prompt in the
    loop (arXiv 2312.06660).

    Args:
        truth: (P, h, w) bool, the masks that are wanted.
        found: (P, h, w) bool, the masks that were predicted.
        generator: on the CPU.

    Returns:
        (P, 1, 2) xy in [0, 1], the center of a pixel; and (P, 1) labels: 1 where the object was
        missed, 0 where it was added. If both masks are equal, the click is on the object, with
        label 1; without an object the label is -1 (no click).
    """
    wrong, right = (truth != found).flatten(1), truth.flatten(1)
    pool = torch.where(wrong.any(1, keepdim=True), wrong, right)
    order = torch.rand(pool.shape, generator=generator).to(pool.device)
    pixel = torch.where(pool, order, -1.0).argmax(1, keepdim=True)
    rows, columns = truth.shape[-2:]
    xy = torch.stack([(pixel % columns + 0.5) / columns, (pixel // columns + 0.5) / rows], -1)
    labels = right.gather(1, pixel).long()
    return xy.float(), torch.where(pool.any(1, keepdim=True), labels, NOT_A_POINT)


def pad_exemplars(
    boxes: Sequence[Tensor],
    box_labels: Sequence[Sequence[int]],
    points: Sequence[Tensor] | None = None,
    point_slots: int = 0,
) -> Exemplars:
    """Exemplars of P prompts as padded tensors.

    Args:
        boxes: of each prompt (K, 4) cxcywh in [0, 1]; K may be 0.
        box_labels: of each prompt K labels, 1 positive and 0 negative.
        points: of each prompt (K, 2) xy in [0, 1], all positive; None: no points.
        point_slots: number of points of a prompt after padding.
    """
    count, size = len(boxes), max(map(len, boxes), default=0)
    packed = Exemplars(
        torch.zeros(count, point_slots, 2),
        torch.ones(count, point_slots, dtype=torch.long),
        torch.zeros(count, point_slots, dtype=torch.bool),
        torch.full((count, size, 4), 0.5),  # padded boxes are masked, but features are pooled
        torch.zeros(count, size, dtype=torch.long),
        torch.zeros(count, size, dtype=torch.bool),
    )
    for row, (given, labels) in enumerate(zip(boxes, box_labels, strict=True)):
        packed.boxes[row, : len(given)] = given
        packed.box_labels[row, : len(given)] = torch.tensor(list(labels), dtype=torch.long)
        packed.box_valid[row, : len(given)] = True
    for row, given in enumerate(points or ()):
        packed.points[row, : len(given)] = given
        packed.point_valid[row, : len(given)] = True
    return packed
