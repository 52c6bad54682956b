"""Matching of decoder queries to annotated objects: one to one (Hungarian) and one to many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn.layers import cxcywh_to_xyxy


class Matches(NamedTuple):
    """M pairs of a query and an object.

    Attributes:
        rows: (M,) int64, the prompt of each pair.
        queries: (M,) int64, the query, an index within the prompt.
        objects: (M,) int64, the object, an index within the prompt's targets.
    """

    rows: Tensor
    queries: Tensor
    objects: Tensor


class Targets(NamedTuple):
    """The annotated objects of B prompts, padded to T objects.

    Attributes:
        boxes: (B, T, 4) cxcywh in [0, 1].
        valid: (B, T) bool, False for padding, which comes after the objects.
        masks: (B, T, h, w) coverage in [0, 1] of any float or bool dtype, or None if the data have
            no masks.
        exhaustive: (B,) bool, False where objects may be missing in the annotation. Queries of
            such prompts that match no object are not penalised.
    """

    boxes: Tensor
    valid: Tensor
    masks: Tensor | None
    exhaustive: Tensor

    @property
    def present(self) -> Tensor:
        """(B,) bool, whether the image shows the concept of the prompt."""
        return self.valid.any(1)


def pairwise_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalized IoU (arXiv 1902.09630) of all pairs of boxes.

    Args:
        a: (..., N, 4) xyxy.
        b: (..., M, 4) xyxy.

    Returns:
        IoU and generalized IoU, each (..., N, M).
    """
    return paired_iou(a[..., :, None, :], b[..., None, :, :])


def paired_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalized IoU of boxes in pairs.

    Args:
        a: (..., 4) xyxy.
        b: (..., 4) xyxy, of a shape that broadcasts with ``a``.

    Returns:
        IoU and generalized IoU, each (...).
    """

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    low_a, high_a, low_b, high_b = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    common = area(torch.maximum(low_a, low_b), torch.minimum(high_a, high_b))
    union = area(low_a, high_a) + area(low_b, high_b) - common
    hull = area(torch.minimum(low_a, low_b), torch.maximum(high_a, high_b))
    tiny = torch.finfo(union.dtype).eps
    iou = common / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


@dataclass(frozen=True)
class HungarianMatcher:
    """One query for each object: the assignment of a prompt with the lowest total cost.

    DETR's bipartite matching (arXiv 2005.12872, section 3.1) with the binary focal cost and the
    weights of SAM3's training configurations (``BinaryHungarianMatcherV2``).

    Attributes:
        label: Weight of the focal classification cost.
        box: Weight of the L1 distance of cxcywh boxes in [0, 1].
        giou: Weight of minus the generalized IoU.
        alpha: Alpha of the focal cost.
        gamma: Gamma of the focal cost.
    """

    label: float = 2.0
    box: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matches:
        """Match the queries of B prompts.

        Args:
            logits: (B, Q).
            boxes: (B, Q, 4) cxcywh in [0, 1].
            targets: of the B prompts.

        Returns:
            min(Q, objects) pairs of each prompt, ordered by prompt.

        Raises:
            ValueError: padding of the targets comes before an object.
        """
        from scipy.optimize import linear_sum_assignment

        present = targets.present.nonzero()[:, 0]  # prompts without objects need no cost
        cost = self._cost(logits[present], boxes[present], targets.boxes[present]).cpu().numpy()
        counts = targets.valid.sum(1)
        places = torch.arange(targets.valid.shape[1], device=counts.device)
        if not torch.equal(targets.valid, places[None] < counts[:, None]):
            raise ValueError("the valid targets of a prompt come first, the padding after them")
        rows, queries, objects = [], [], []
        numbers = zip(present.tolist(), cost, counts[present].tolist(), strict=True)
        for row, matrix, count in numbers:
            chosen, matched = linear_sum_assignment(matrix[:, :count])
            rows += [row] * len(chosen)
            queries += chosen.tolist()
            objects += matched.tolist()
        return Matches(*torch.tensor([rows, queries, objects], device=logits.device).long())

    def _cost(self, logits: Tensor, boxes: Tensor, wanted: Tensor) -> Tensor:
        """Costs (B, Q, T) of logits (B, Q) and boxes (B, Q, 4) for wanted boxes (B, T, 4)."""
        logits, boxes = logits.float(), boxes.float()
        p = logits.sigmoid()
        positive = -self.alpha * (1 - p) ** self.gamma * F.logsigmoid(logits)
        negative = -(1 - self.alpha) * p**self.gamma * F.logsigmoid(-logits)
        distance = torch.cdist(boxes, wanted.float(), p=1)
        _, giou = pairwise_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted.float()))
        label = self.label * (positive - negative)[..., None]
        return label + self.box * distance - self.giou * giou


@dataclass(frozen=True)
class OneToManyMatcher:
    """Several good queries for each object, as in DAC-DETR and SAM3's training configurations.

    A query's quality for an object is ``alpha * probability + (1 - alpha) * IoU``. The ``top``
    best queries of each object match, if their quality is above ``threshold``.

    Attributes:
        alpha: Share of the probability in the quality.
        threshold: Lowest quality of a match, exclusive.
        top: Queries of an object, at most.
    """

    alpha: float = 0.3
    threshold: float = 0.4
    top: int = 4

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matches:
        """Match the queries of B prompts.

        Args:
            logits: (B, Q).
            boxes: (B, Q, 4) cxcywh in [0, 1].
            targets: of the B prompts.

        Returns:
            Pairs ordered by prompt; a query may be in several, an object in none.
        """
        if targets.boxes.shape[1] == 0:
            nothing = logits.new_zeros(0, dtype=torch.long)
            return Matches(nothing, nothing, nothing)
        iou, _ = pairwise_iou(cxcywh_to_xyxy(boxes.float()), cxcywh_to_xyxy(targets.boxes.float()))
        quality = self.alpha * logits.float().sigmoid()[..., None] + (1 - self.alpha) * iou
        # The quantile lies between the ranks top and top + 1.
        share = max(0.0, 1 - self.top / logits.shape[1])
        lowest = torch.quantile(quality, share, dim=1, keepdim=True)
        good = (quality > lowest) & (quality > self.threshold) & targets.valid[:, None]
        return Matches(*good.nonzero().unbind(1))
