"""Two dense helpers of training from scratch: each image token says what lies on it.

Queries learn from a few matched boxes a prompt; tokens learn from every cell. A released model
needs neither, and SAM3 has neither.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.detector import Answer, Detector, ImageFeatures
from ..nn.layers import layer_norm
from .losses import LossWeights, Terms, dice_loss, focal_loss
from .matcher import Targets


def cover(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """(P, T, h, w) coverage -> (P, T, N), how much of each token's cell an object covers."""
    if not masks.shape[1]:  # pooling knows no empty batch of channels
        return masks.new_zeros(masks.shape[0], 0, grid[0] * grid[1])
    return F.adaptive_avg_pool2d(masks, grid).flatten(2)


class DenseLoss:
    """Args:
    targets: of P prompts, with masks. grid: of the N tokens.
    """

    def __init__(self, weights: LossWeights, targets: Targets, grid: tuple[int, int]) -> None:
        masks = targets.masks
        if masks is None:
            raise ValueError("targets without masks teach no token")
        self.weights, self.targets, self.grid = weights, targets, grid
        self.share = cover(masks.float() * targets.valid[..., None, None], grid)
        # No object at all: still one row, of nothing.
        self.inside = F.pad(self.share, (0, 0, 0, 1)).amax(1).clamp(0, 1)  # (P, N)

    def align(
        self,
        terms: Terms,
        net: Detector,
        image: ImageFeatures,
        words: tuple[Tensor, Tensor],
        named: Tensor,
    ) -> None:
        """Tokens before fusion against the phrase alone: features that tell concepts apart.

        Args:
            image: of P prompts. words: their text features and mask. named: (P,) bool, whether
                the phrase says what is meant; "visual" does not.
        """
        plain = F.layer_norm(image.tokens, image.tokens.shape[-1:])
        logits = net.part("scoring")(plain, *words)
        self._tell(terms, "align", logits, named, self.weights.align)

    def fused(self, terms: Terms, net: Detector, answer: Answer) -> None:
        """Tokens after fusion: inside or outside."""
        decoder, weight = net.part("decoder"), self.weights.dense
        fused = layer_norm(decoder.norm, answer.memory)
        logits = net.part("scoring")(fused, answer.prompt, answer.mask)
        everyone = torch.ones_like(self.targets.exhaustive)
        self._tell(terms, "dense", logits, everyone, weight)

    def _tell(self, terms: Terms, name: str, logits: Tensor, asked: Tensor, weight: float) -> None:
        """Focal and Dice loss of (P, N) logits of lying on the concept, of prompts ``asked``."""
        whole = self.targets.exhaustive
        # Where objects may be missing, only what is inside of one is known.
        sure = (whole[:, None] | (self.inside > 0.5)) & asked[:, None]
        focal = (focal_loss(logits, self.inside, 0.5, 1.0) * sure).mean()
        terms.add(f"{name}_focal", focal, 10 * weight)
        here = self.targets.present & whole & asked
        dice = dice_loss(logits[here], self.inside[here]).sum() / here.sum().clamp(min=1)
        terms.add(f"{name}_dice", dice, weight)
