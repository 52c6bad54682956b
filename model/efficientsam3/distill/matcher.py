"""Which query answers for which object: one to one (Hungarian) and one to many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.layers import cxcywh_to_xyxy


class Matches(NamedTuple):
    """M pairs. rows: of the batch; queries: of that row; objects: of that row. Each (M,) int64."""

    rows: Tensor
    queries: Tensor
    objects: Tensor


class Targets(NamedTuple):
    """What is in the image for each of B prompts, padded to T objects.

    boxes: (B, T, 4) cxcywh in [0, 1]. valid: (B, T) bool. masks: (B, T, h, w) coverage in
    [0, 1] (any float or bool dtype), or None. exhaustive: (B,) bool, False where objects
    may be missing: there, queries without an object are not called wrong.
    """

    boxes: Tensor
    valid: Tensor
    masks: Tensor | None
    exhaustive: Tensor

    @property
    def present(self) -> Tensor:
        """(B,) bool: the concept is in the image."""
        return self.valid.any(1)


def pairwise_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of (..., N, 4) and (..., M, 4) xyxy boxes, each (..., N, M)."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    return _iou(a[..., :, None, :], b[..., None, :, :], low, high)


def paired_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of (M, 4) and (M, 4) xyxy boxes, each (M,)."""
    return _iou(a, b, torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))


def _iou(a: Tensor, b: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    common = area(low, high)
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - common
    hull = area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    tiny = torch.finfo(union.dtype).eps
    iou = common / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


@dataclass(frozen=True)
class HungarianMatcher:
    """One query for each object, the cheapest assignment of a prompt.

    Args:
        label, box, giou: weights of the costs: focal classification cost, L1 distance of
            cxcywh boxes, minus generalised IoU.
        alpha, gamma: of the focal cost.
    """

    label: float = 2.0
    box: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matches:
        """Args: logits: (B, Q). boxes: (B, Q, 4) cxcywh in [0, 1]."""
        from scipy.optimize import linear_sum_assignment

        here = targets.present.nonzero()[:, 0]  # prompts with nothing to find need no cost
        cost = self._cost(logits[here], boxes[here], targets.boxes[here]).cpu().numpy()
        counts = targets.valid.sum(1)[here].tolist()
        if not torch.equal(targets.valid, _prefix(targets.valid)):
            raise ValueError("the valid targets of a prompt come first, the padding after them")
        rows, queries, objects = [], [], []
        for row, matrix, count in zip(here.tolist(), cost, counts, strict=True):
            chosen, matched = linear_sum_assignment(matrix[:, :count])
            rows += [row] * len(chosen)
            queries += chosen.tolist()
            objects += matched.tolist()
        made = (
            torch.tensor(v, dtype=torch.long, device=logits.device)
            for v in (rows, queries, objects)
        )
        return Matches(*made)

    def _cost(self, logits: Tensor, boxes: Tensor, wanted: Tensor) -> Tensor:
        logits, boxes = logits.float(), boxes.float()
        p = logits.sigmoid()
        hit = -self.alpha * (1 - p) ** self.gamma * F.logsigmoid(logits)
        miss = -(1 - self.alpha) * p**self.gamma * F.logsigmoid(-logits)
        distance = torch.cdist(boxes, wanted.float(), p=1)
        _, giou = pairwise_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted.float()))
        return self.label * (hit - miss)[..., None] + self.box * distance - self.giou * giou


def _prefix(valid: Tensor) -> Tensor:
    count = valid.sum(1, keepdim=True)
    return torch.arange(valid.shape[1], device=valid.device)[None] < count


@dataclass(frozen=True)
class OneToManyMatcher:
    """Every good query for each object, as in DAC-DETR: of the ``top`` best by
    ``alpha * probability + (1 - alpha) * IoU``, those above ``threshold``.
    """

    alpha: float = 0.3
    threshold: float = 0.4
    top: int = 4

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matches:
        """Args: logits: (B, Q). boxes: (B, Q, 4) cxcywh in [0, 1]."""
        if targets.boxes.shape[1] == 0:
            nothing = logits.new_zeros(0, dtype=torch.long)
            return Matches(nothing, nothing, nothing)
        iou, _ = pairwise_iou(cxcywh_to_xyxy(boxes.float()), cxcywh_to_xyxy(targets.boxes.float()))
        fit = self.alpha * logits.float().sigmoid()[..., None] + (1 - self.alpha) * iou
        # The quantile lies between the ranks top and top + 1.
        bar = torch.quantile(fit, max(0.0, 1 - self.top / logits.shape[1]), dim=1, keepdim=True)
        good = (fit > bar) & (fit > self.threshold) & targets.valid[:, None]
        return Matches(*good.nonzero().unbind(1))
