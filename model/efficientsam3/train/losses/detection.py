"""Losses of SAM3's detection heads: labels, presence, boxes and masks.

The terms and the default weights are SAM3's (arXiv 2511.16719 and the loss section of its training
configurations: ``IABCEMdetr``, ``Boxes``, ``Masks``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ...nn.layers import cxcywh_to_xyxy
from .common import check_weights, dice_loss, focal_loss
from .matcher import Matches, Targets, paired_iou


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms in the sum, and numbers of the label term.

    Attributes:
        label: Weight of the label term of the queries.
        presence: Weight of the presence term.
        box: Weight of the L1 distance of boxes.
        giou: Weight of 1 - generalized IoU.
        mask: Weight of the focal loss of masks.
        dice: Weight of the Dice loss of masks.
        one_to_many: Factor of the terms of the one-to-many queries; 0: there are none.
        denoising: Factor of the terms of noised boxes and their masks (DN-DETR, arXiv 2203.01305);
            0: there are none, as in SAM3.
        positive: Weight of queries with an object in the label term (``pos_weight``).
        alpha: Share of the probability, against the IoU, in the label of a matched query.
        quality: Exponent of that label. SAM3 has 1, with which scores come to be the IoU; below 1,
            boxes that fit less well score higher.
        gamma: Focal exponent of queries without an object.
        padded_queries: The label term is a mean over at least this number of queries
            (``pad_n_queries``).

    Raises:
        SettingsError: a value is negative.
    """

    label: float = 20.0
    presence: float = 20.0
    box: float = 5.0
    giou: float = 2.0
    mask: float = 200.0
    dice: float = 10.0
    one_to_many: float = 2.0
    denoising: float = 0.0
    positive: float = 10.0
    alpha: float = 0.25
    quality: float = 1.0
    gamma: float = 2.0
    padded_queries: int = 128

    def __post_init__(self) -> None:
        check_weights(self)


def count_objects(targets: Targets) -> Tensor:
    """The number by which sums over objects are divided.

    Args:
        targets: of the prompts of this process.

    Returns:
        Scalar, at least 1: the objects of the batch. With several processes it is their mean, so
        that each object has the same weight in whichever process it is.
    """
    count = targets.valid.sum().float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1)


def label_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    matches: Matches,
    weights: LossWeights,
    counted: Tensor | None = None,
) -> Tensor:
    """How well the logits tell which queries have an object (SAM3's ``IABCEMdetr``).

    The label of a matched query is ``(probability^alpha * IoU^(1 - alpha))^quality``, at least
    0.01, so that scores follow the quality of boxes. Prompts without an object add nothing: the
    presence token learns from them.

    Args:
        logits: (B, Q).
        boxes: (B, Q, 4) cxcywh in [0, 1].
        targets: of the B prompts.
        matches: which query has which object.
        weights: ``positive``, ``alpha``, ``quality``, ``gamma`` and ``padded_queries`` are used.
        counted: (B, Q) bool, False for queries that are padding; None: no query is padding.

    Returns:
        Scalar, a mean over prompts and (padded) queries.
    """
    logits = logits.float()
    p = logits.sigmoid()
    matched = torch.zeros_like(logits)
    matched[matches.rows, matches.queries] = 1
    with torch.no_grad():
        found, wanted = _matched_boxes(boxes, targets, matches)
        iou, _ = paired_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
        reach = p[matches.rows, matches.queries] ** weights.alpha * iou ** (1 - weights.alpha)
        label = matched.clone()
        label[matches.rows, matches.queries] = (reach**weights.quality).clamp(min=0.01)
    positive = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    negative = F.softplus(logits) * p**weights.gamma
    # If the annotation may lack objects, a query without a match may still be right.
    penalised = (1 - matched) * targets.exhaustive[:, None]
    if counted is not None:
        penalised = penalised * counted
    loss = weights.positive * matched * positive + penalised * negative
    queries = max(logits.shape[1], weights.padded_queries)
    return (loss * targets.present[:, None]).sum() / max(1, logits.shape[0] * queries)


def presence_loss(logits: Tensor, targets: Targets) -> Tensor:
    """Whether the presence token tells if the image shows the concept.

    Args:
        logits: (B,).
        targets: of the B prompts.

    Returns:
        Scalar: half the mean binary cross-entropy (SAM3's focal loss of alpha 0.5 and gamma 0)
        over the prompts that have an object or an exhaustive annotation.
    """
    present = targets.present
    known = (targets.exhaustive | present).float()
    loss = F.binary_cross_entropy_with_logits(logits.float(), present.float(), reduction="none")
    return 0.5 * (loss * known).sum() / known.sum().clamp(min=1)


def box_losses(
    boxes: Tensor, targets: Targets, matches: Matches, count: Tensor
) -> tuple[Tensor, Tensor]:
    """L1 and generalized-IoU losses of the matched boxes.

    Args:
        boxes: (B, Q, 4) cxcywh in [0, 1].
        targets: of the B prompts.
        matches: which query has which object.
        count: scalar by which the sums over matches are divided.

    Returns:
        Two scalars.
    """
    found, wanted = _matched_boxes(boxes, targets, matches)
    _, giou = paired_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
    return (found - wanted).abs().sum() / count, (1 - giou).sum() / count


def mask_losses(logits: Tensor, masks: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and Dice losses of matched masks.

    Args:
        logits: (M, h, w).
        masks: (M, h, w), the true coverage in [0, 1].
        count: scalar by which the sums over masks are divided.

    Returns:
        Two scalars: the focal loss (a mean over pixels), and the Dice loss.
    """
    masks = masks.float()
    focal = focal_loss(logits, masks).flatten(1).mean(1).sum() / count
    return focal, dice_loss(logits, masks).sum() / count


def _matched_boxes(boxes: Tensor, targets: Targets, matches: Matches) -> tuple[Tensor, Tensor]:
    """The boxes (M, 4) of matched queries, and those of their objects."""
    found = boxes[matches.rows, matches.queries].float()
    return found, targets.boxes[matches.rows, matches.objects].float()
