"""Dense losses for training from scratch: each image token tells whether an object covers it.

Queries learn from a few matched boxes of a prompt, tokens learn from every cell. SAM3 has no such
loss, and released models need none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efficientsam3.nn.detector import Detector
from efficientsam3.nn.layers import layer_norm
from efficientsam3.nn.tokenizer import tokenize
from efficientsam3.segmenter import VISUAL
from efficientsam3.train.losses.common import dice_loss, focal_loss
from efficientsam3.train.losses.grounding import GroundingStep
from efficientsam3.train.losses.matcher import Targets

Term = tuple[str, Tensor, float]


class DenseLoss:
    """Compare image tokens with the prompt; an extra loss of ``GroundingLoss``.

    Terms are "align_focal" and "align_dice" (tokens before fusion against the phrase alone, so that
    features of different concepts differ), "dense_focal" and "dense_dice" (tokens after fusion).

    Args:
        align: weight of the terms before fusion.
        dense: weight of the terms after fusion.
    """

    def __init__(self, align: float = 1.0, dense: float = 1.0) -> None:
        self.align, self.dense = align, dense

    def to(self, device: torch.device) -> None:
        """Nothing to move.

        Args:
            device: is not used.
        """

    def describe(self) -> dict[str, Any]:
        """Plain values on which the loss depends."""
        return {"align": self.align, "dense": self.dense}

    def __call__(self, net: Detector, step: GroundingStep) -> list[Term]:
        """The terms of a batch; none if its targets have no masks."""
        targets, answer = step.batch.targets, step.answer
        if targets.masks is None:
            return []
        covered = token_coverage(targets, step.image.grid)
        scoring = net.part("scoring")
        terms: list[Term] = []
        if self.align:
            # The phrase "visual" of prompts by exemplars alone does not tell the concept.
            visual = tokenize([VISUAL], step.batch.tokens.shape[1]).to(step.batch.tokens)
            named = (step.batch.tokens != visual).any(1)
            tokens = step.prompt_image.tokens
            logits = scoring(F.layer_norm(tokens, tokens.shape[-1:]), *step.text)
            terms += token_terms("align", logits, covered, targets, named, self.align)
        if self.dense:
            fused = layer_norm(net.part("decoder").norm, answer.memory)
            logits = scoring(fused, answer.prompt, answer.mask)
            every = torch.ones_like(targets.exhaustive)
            terms += token_terms("dense", logits, covered, targets, every, self.dense)
        return terms


def token_coverage(targets: Targets, grid: tuple[int, int]) -> Tensor:
    """How much of each token's cell the object with the largest share of it covers.

    Args:
        targets: of P prompts, with masks.
        grid: rows and columns of the N tokens.

    Returns:
        (P, N) in [0, 1]; 0 for prompts without an object.
    """
    masks: Any = targets.masks
    masks = masks.float() * targets.valid[..., None, None]
    masks = F.pad(masks, (0, 0, 0, 0, 0, 1))  # an empty object, for batches without any
    return F.adaptive_avg_pool2d(masks, grid).flatten(2).amax(1).clamp(0, 1)


def token_terms(
    name: str, logits: Tensor, covered: Tensor, targets: Targets, used: Tensor, weight: float
) -> list[Term]:
    """Focal and Dice terms of whether tokens lie on the concept.

    Args:
        name: beginning of the names of the terms.
        logits: (P, N).
        covered: (P, N), from ``token_coverage``.
        targets: of the P prompts.
        used: (P,) bool, the prompts that count.
        weight: of the Dice term; the focal term has ten times as much.
    """
    complete = targets.exhaustive
    # If objects may be missing, only tokens on annotated objects are known.
    known = (complete[:, None] | (covered > 0.5)) & used[:, None]
    focal = (focal_loss(logits, covered, 0.5, 1.0) * known).mean()
    rows = targets.present & complete & used
    dice = dice_loss(logits[rows], covered[rows]).sum() / rows.sum().clamp(min=1)
    return [(f"{name}_focal", focal, 10 * weight), (f"{name}_dice", dice, weight)]
