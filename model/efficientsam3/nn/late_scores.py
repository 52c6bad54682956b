"""Scores of late fusion: whether an object is what a prompt means, and whether anything is.

late_objects.py describes the whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Mlp, cxcywh_to_xyxy

STRONGEST = 3
"""How many of the largest logits of a prompt the scores depend on."""
LIKELY = -1.0
"""Logit above which a query is likely to be an object."""
LIMIT = 12.0
"""Logits are clipped to this magnitude before a network reads them."""


def both(a: Tensor, b: Tensor) -> Tensor:
    """Logits of the product of two probabilities.

    Args:
        a: Logits.
        b: Logits of the same shape.
    """
    log = (F.logsigmoid(a) + F.logsigmoid(b)).clamp(max=-1e-6)
    return log - torch.log(-torch.expm1(log))


class Rescorer(nn.Module):
    """Corrects the logits of a prompt's objects by those of all objects of the image.

    A model predicts three logits for a prompt and an object: whether the prompt means the object,
    whether the query is an object of its own, and whether the image shows the concept at all. Each
    has a loss of its own, so the product of the three probabilities is a poor estimate of the
    probability that all are true. Two small networks add to the logits. They read all three, the
    largest ones of the image, and how much the box of an object overlaps those of objects with
    larger logits. Untrained, they add nothing.

    Args:
        hidden: Width of the hidden layers.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        known = 2 + STRONGEST
        self.objects = Mlp(known + 4 + 3, hidden, hidden, 1)
        self.presence = Mlp(known, hidden, 1)
        for mlp in (self.objects, self.presence):
            nn.init.zeros_(mlp.layers[-1].weight)
            nn.init.zeros_(mlp.layers[-1].bias)

    def forward(
        self, meant: Tensor, found: Tensor, presence: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Correct logits.

        Args:
            meant: (P, Q) logits of each object being meant, with Q at least 3.
            found: (P, Q) logits of each query being an object.
            presence: (P,) logits of presence.
            boxes: (P, Q, 4) cxcywh boxes of the queries, or (1, Q, 4) of one image.

        Returns:
            (P, Q) logits of each query being an object that is meant, if any is; (P,) logits of
            presence.
        """
        product = both(meant, found)
        strongest = product.topk(STRONGEST, 1).values
        likely = torch.where(found > LIKELY, meant, torch.full_like(meant, -LIMIT)).amax(1)
        image = _scale(torch.cat([presence[:, None], likely[:, None], strongest], 1))
        own = _scale(torch.stack([meant, found, product, product - strongest[:, :1]], -1))
        stronger = (product[:, None] > product[:, :, None]).float()
        covered = (overlaps(boxes) * stronger[..., None]).amax(2)
        known = torch.cat([own, covered, image[:, None] + torch.zeros_like(own[..., :1])], -1)
        logits = product + self.objects(known).squeeze(-1)
        return logits, presence + self.presence(image).squeeze(-1)


def overlaps(boxes: Tensor) -> Tensor:
    """How much the boxes of queries overlap.

    Args:
        boxes: (B, Q, 4) cxcywh.

    Returns:
        (B, Q, Q, 3): IoU, the share of a row's box within the column's, and the share of the
        column's within the row's.
    """
    low, high = cxcywh_to_xyxy(boxes).split(2, -1)
    first = torch.maximum(low[:, :, None], low[:, None])
    last = torch.minimum(high[:, :, None], high[:, None])
    sides = (last - first).relu()
    shared = sides[..., 0] * sides[..., 1]
    area = boxes[..., 2] * boxes[..., 3] + 1e-6
    rows, columns = area[:, :, None], area[:, None]
    return torch.stack([shared / (rows + columns - shared), shared / rows, shared / columns], -1)


def _scale(logits: Tensor) -> Tensor:
    return logits.clamp(-LIMIT, LIMIT) / 4
