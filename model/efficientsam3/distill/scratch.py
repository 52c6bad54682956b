"""Starting values for a model that is trained from nothing: released ones need none of this."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..nn.decoder import Decoder, DotProductScoring
from ..nn.detector import Detector
from ..nn.layers import inverse_sigmoid

COMPARISON_GAIN = 1.5


@torch.no_grad()
def prepare(net: Detector, seed: int = 0) -> Detector:
    """Set what torch's defaults leave hard to learn, in place.

    - Queries start on a grid of boxes, not in a heap in the middle.
    - Boxes start at their references: the last layer of the box head is zero.
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
    scoring: DotProductScoring = net.part("scoring")
    for layer in (scoring.hs_proj, scoring.prompt_proj):
        nn.init.orthogonal_(layer.weight, COMPARISON_GAIN, generator=generator)
        nn.init.zeros_(layer.bias)
    return net


def spread(count: int) -> Tensor:
    """(count, 4) cxcywh: centres on a grid, small and large boxes by turns."""
    side = math.ceil(math.sqrt(count))
    index = torch.arange(count)
    boxes = torch.empty(count, 4)
    boxes[:, 0] = (index % side + 0.5) / side
    boxes[:, 1] = (torch.div(index, side, rounding_mode="floor") + 0.5) / math.ceil(count / side)
    boxes[:, 2:] = torch.where(index % 2 == 0, 0.15, 0.35)[:, None]
    return boxes
