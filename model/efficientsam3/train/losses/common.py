"""Losses and sums that several training tasks share."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingsError


class LossTerms:
    """The terms of a loss by name, and their weighted sum.

    A name may be added several times; its values then add up.
    """

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}
        self._weighted: list[Tensor] = []

    def add(self, name: str, value: Tensor, weight: float) -> None:
        """Add a term.

        Args:
            name: under which the unweighted value is logged.
            value: scalar.
            weight: of the value in the sum.
        """
        self._values[name] = self._values.get(name, 0) + value.detach()
        self._weighted.append(weight * value)

    def total(self) -> dict[str, Tensor]:
        """The unweighted terms without gradient, and their weighted sum as "loss"."""
        return {**self._values, "loss": torch.stack(self._weighted).sum()}


def check_weights(weights: Any) -> None:
    """Check that all fields of a dataclass of loss weights are 0 or more.

    Args:
        weights: an instance of the dataclass.

    Raises:
        SettingsError: a field is negative or not a number.
    """
    for field in fields(weights):
        value = getattr(weights, field.name)
        if not value >= 0:
            raise SettingsError(f"the loss weight {field.name} is {value!r}; it must be 0 or more")


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (arXiv 1708.02002, equation 5), element by element.

    Args:
        logits: of any shape.
        targets: of the same shape, in [0, 1].
        alpha: weight of positive targets; negative ones have 1 - alpha.
        gamma: exponent that lowers the weight of elements that are already right.

    Returns:
        Losses of the same shape, float32.
    """
    logits = logits.float()
    p = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = p * targets + (1 - p) * (1 - targets)
    return (alpha * targets + (1 - alpha) * (1 - targets)) * loss * (1 - right) ** gamma


def dice_loss(logits: Tensor, targets: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss of M masks (arXiv 1606.04797).

    Args:
        logits: (M, ...).
        targets: (M, ...) in [0, 1].
        smooth: added to numerator and denominator, so that empty masks have a finite loss.

    Returns:
        (M,) in [0, 1].
    """
    p, t = logits.float().sigmoid().flatten(1), targets.flatten(1)
    return 1 - (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)


def paired_mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of masks in pairs.

    Args:
        a: (..., h, w) bool.
        b: (..., h, w) bool.

    Returns:
        (...) in [0, 1]; 1 where both masks are empty.
    """
    both = (a & b).flatten(-2).sum(-1)
    either = (a | b).flatten(-2).sum(-1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)
