"""The losses of Stage 3: labels and presence, boxes, masks.

SAM3's, with its weights as the defaults (arXiv 2511.16719 and its training configurations).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..nn.layers import cxcywh_to_xyxy
from .matcher import Matches, Targets, paired_iou
from .settings import SettingsError


@dataclass(frozen=True)
class LossWeights:
    """Args:
    label, presence, box, giou, mask, dice: weights of the terms in the sum.
    one_to_many: of the terms of the one-to-many queries.
    denoising: of the terms of noised boxes, and of their masks (DN-DETR; SAM3 has none).
    features: of features that stay near a teacher's, where there is one.
    dense: of how well each fused token tells inside from outside (SAM3 has none).
    names: of each image token and object against all names of a vocabulary (SAM3 has none).
    align: of each image token, before fusion, against the phrase alone (SAM3 has none).
    positive: factor of queries with an object among the label terms.
    alpha: share of the probability, against the IoU, in the label that a matched query is
        to reach. gamma: focus on hard negatives.
    quality: exponent of that label; below 1, boxes that fit less well score high too (SAM3: 1,
        by which scores come to be the IoU).
    padded_queries: the label term is a mean over at least so many queries.
    """

    label: float = 20.0
    presence: float = 20.0
    box: float = 5.0
    giou: float = 2.0
    mask: float = 200.0
    dice: float = 10.0
    one_to_many: float = 2.0
    denoising: float = 0.0
    features: float = 0.05
    dense: float = 0.0
    align: float = 0.0
    names: float = 0.0
    positive: float = 10.0
    alpha: float = 0.25
    quality: float = 1.0
    gamma: float = 2.0
    padded_queries: int = 128

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0:
                raise SettingsError(f"the loss weight {field.name} is {value!r}; it is 0 or more")


class Terms:
    """Terms of a loss by name, and their weighted sum. A name may be added to again."""

    def __init__(self) -> None:
        self._terms: dict[str, Tensor] = {}
        self._sum: list[Tensor] = []

    def add(self, name: str, value: Tensor, weight: float) -> None:
        """Add a term, logged as it is and weighted in the sum."""
        self._terms[name] = self._terms.get(name, 0) + value.detach()
        self._sum.append(weight * value)

    def all(self) -> dict[str, Tensor]:
        """All terms, and the sum as "loss"."""
        return {**self._terms, "loss": torch.stack(self._sum).sum()}


def count_objects(targets: Targets) -> Tensor:
    """Objects of the batch, at least 1: what sums over objects are divided by. Of several
    processes the mean, so that each object weighs the same wherever it is.
    """
    count = targets.valid.sum().float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1)


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, element by element."""
    logits = logits.float()
    p = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = p * targets + (1 - p) * (1 - targets)
    return (alpha * targets + (1 - alpha) * (1 - targets)) * loss * (1 - right) ** gamma


def dice_loss(logits: Tensor, targets: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss of (M, ...) masks -> (M,). ``smooth`` keeps empty masks finite."""
    p, t = logits.float().sigmoid().flatten(1), targets.flatten(1)
    return 1 - (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)


def label_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    matches: Matches,
    weights: LossWeights,
    counted: Tensor | None = None,
) -> Tensor:
    """How well (B, Q) logits say which queries have an object.

    A matched query is to reach ``(probability^alpha * IoU^(1 - alpha))^quality``, at least 0.01:
    high scores for good boxes. Prompts without an object are left to the presence token.

    Args:
        counted: (B, Q) bool, False: a query that is padding; None: none is.
    """
    logits = logits.float()
    p = logits.sigmoid()
    matched = torch.zeros_like(logits)
    matched[matches.rows, matches.queries] = 1
    with torch.no_grad():
        got, wanted = _matched_boxes(boxes, targets, matches)
        iou, _ = paired_iou(cxcywh_to_xyxy(got), cxcywh_to_xyxy(wanted))
        reach = p[matches.rows, matches.queries] ** weights.alpha * iou ** (1 - weights.alpha)
        goal = matched.clone()
        goal[matches.rows, matches.queries] = (reach**weights.quality).clamp(min=0.01)
    hit = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    miss = F.softplus(logits) * p**weights.gamma
    # Where the annotation may lack objects, a query without one proves nothing.
    blame = (1 - matched) * targets.exhaustive[:, None]
    if counted is not None:
        blame = blame * counted
    loss = (weights.positive * matched * hit + blame * miss) * targets.present[:, None]
    queries = max(logits.shape[1], weights.padded_queries)
    return loss.sum() / max(1, logits.shape[0] * queries)


def presence_loss(logits: Tensor, targets: Targets) -> Tensor:
    """(B,) presence logits: half the binary cross-entropy, over prompts that are exhaustive
    or have an object.
    """
    present = targets.present
    sure = (targets.exhaustive | present).float()
    loss = F.binary_cross_entropy_with_logits(logits.float(), present.float(), reduction="none")
    return 0.5 * (loss * sure).sum() / sure.sum().clamp(min=1)


def box_losses(
    boxes: Tensor, targets: Targets, matches: Matches, count: Tensor
) -> tuple[Tensor, Tensor]:
    """L1 and generalised-IoU loss of matched (B, Q, 4) boxes, sums over ``count``."""
    got, wanted = _matched_boxes(boxes, targets, matches)
    _, giou = paired_iou(cxcywh_to_xyxy(got), cxcywh_to_xyxy(wanted))
    return (got - wanted).abs().sum() / count, (1 - giou).sum() / count


def mask_losses(logits: Tensor, masks: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and Dice loss of M matched masks (M, h, w) against (M, h, w), over ``count``."""
    masks = masks.float()
    focal = focal_loss(logits, masks).flatten(1).mean(1).sum() / count
    return focal, dice_loss(logits, masks).sum() / count


def _matched_boxes(boxes: Tensor, targets: Targets, matches: Matches) -> tuple[Tensor, Tensor]:
    got = boxes[matches.rows, matches.queries].float()
    return got, targets.boxes[matches.rows, matches.objects].float()
