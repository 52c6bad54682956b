"""Starting values for a model that is trained from nothing: released ones need none of this."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ..nn.decoder import Decoder, DotProductScoring
from ..nn.detector import Detector
from ..nn.layers import Mlp, inverse_sigmoid

COMPARISON_GAIN = 1.5
OUTSIDE = 12.0
"""Of the last head: a cell a tenth of the image away from the box has exp(-3.4) of the weight."""


@torch.no_grad()
def prepare(net: Detector, seed: int = 0) -> Detector:
    """Set what torch's defaults leave hard to learn, in place.

    - Queries start on a grid of boxes, not in a heap in the middle.
    - Boxes start at their references: the last layer of the box head is zero.
    - Queries start by looking into their boxes: what lies outside is pushed down by the
      box-relative bias, by each head further than by the one before.
    - Comparisons start wide apart: with torch's defaults all logits are within 0.1, and for
      hundreds of steps all that is learned is to spread them.
    """
    generator = torch.Generator().manual_seed(seed)
    decoder: Decoder = net.part("decoder")
    boxes = spread(decoder.reference_points.num_embeddings)
    decoder.reference_points.weight.copy_(inverse_sigmoid(boxes))
    last = decoder.bbox_embed.layers[-1]
    nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    for axis in (decoder.boxRPB_embed_x, decoder.boxRPB_embed_y):
        look_inside(axis)
    scoring: DotProductScoring = net.part("scoring")
    for layer in (scoring.hs_proj, scoring.prompt_proj):
        nn.init.orthogonal_(layer.weight, COMPARISON_GAIN, generator=generator)
        nn.init.zeros_(layer.bias)
    return net


@torch.no_grad()
def look_inside(bias: Mlp) -> None:
    """Make a bias of a cell's signed distances to two edges fall outside of them.

    Of distances (a, b) to the near and the far edge, a < 0 is before the box and b > 0 behind
    it: two hidden units measure that, the others start small.
    """
    first, last = (cast(nn.Linear, layer) for layer in bias.layers)
    first.weight[:2] = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    first.bias[:2] = 0
    heads = last.out_features
    last.weight.mul_(0.1)
    last.weight[:, :2] = -(OUTSIDE / heads * torch.arange(1, heads + 1))[:, None]
    last.bias.zero_()


def spread(count: int) -> Tensor:
    """(count, 4) cxcywh: centres on a grid, small and large boxes by turns."""
    side = math.ceil(math.sqrt(count))
    index = torch.arange(count)
    boxes = torch.empty(count, 4)
    boxes[:, 0] = (index % side + 0.5) / side
    boxes[:, 1] = (torch.div(index, side, rounding_mode="floor") + 0.5) / math.ceil(count / side)
    boxes[:, 2:] = torch.where(index % 2 == 0, 0.15, 0.35)[:, None]
    return boxes
