"""Starting values for a model that is trained from nothing: released ones need none of this."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ..nn.decoder import Decoder, DotProductScoring
from ..nn.detector import Detector
from ..nn.layers import inverse_sigmoid

COMPARISON_GAIN = 1.5
COARSE = 2
"""Place of the level of scale 1 in the pyramid."""
FALL = 10.0
"""A cell a tenth of the image away has exp(-2.8) of the weight, one a twentieth away exp(-1.6)."""


@torch.no_grad()
def prepare(net: Detector, seed: int = 0) -> Detector:
    """Set what torch's defaults leave hard to learn, in place.

    - Queries start on a grid of boxes, not in a heap in the middle.
    - Boxes start at their references: the last layer of the box head is zero.
    - Queries start by looking at the edges of their boxes, each head at another one: what is
      seen there says whether the edge has to move. The values that they gather know no
      positions, so heads that all look alike can refine no box.
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
    look_at_edges(decoder)
    scoring: DotProductScoring = net.part("scoring")
    for layer in (scoring.hs_proj, scoring.prompt_proj):
        nn.init.orthogonal_(layer.weight, COMPARISON_GAIN, generator=generator)
        nn.init.zeros_(layer.bias)
    return net


@torch.no_grad()
def unit_tokens(net: Detector, pixels: Tensor) -> Detector:
    """Scale the pyramid's coarsest level, in place, so that its values spread by 1.

    Tokens that learned names are normalised before they are compared, so their scale drifts:
    to 12 in the sticker recipe. Heads that begin behind such tokens attend by what these
    happen to hold, not by where they are, and what fusion adds to them is lost.

    Args:
        pixels: (B, 3, R, R) of some images, normalised.
    """
    spread = net.coarse_level(net.part("trunk")(pixels)).float().std()
    last = net.part("neck").levels[COARSE].smooth
    last.weight.div_(spread)
    last.bias.div_(spread)
    return net


@torch.no_grad()
def look_at_edges(decoder: Decoder) -> None:
    """Set the box-relative bias: by turns, heads look at the left, right, top and bottom edge.

    Along the axis of its edge a head's bias falls with the distance to it, along the other
    outside of the box.
    """
    for axis, mlp in enumerate((decoder.boxRPB_embed_x, decoder.boxRPB_embed_y)):
        first, last = (cast(nn.Linear, layer) for layer in mlp.layers)
        # Of a cell's signed distances (a, b) to the near and far edge, hidden units give how far
        # it lies before and behind each: relu(-a), relu(b), relu(a), relu(-b).
        first.weight[:4] = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
        first.bias[:4] = 0
        outside, near, far = ([1.0, 1, 0, 0], [1.0, 0, 1, 0], [0.0, 1, 0, 1])
        turns = [near, far, outside, outside] if axis == 0 else [outside, outside, near, far]
        heads = last.out_features
        last.weight.mul_(0.1)
        last.weight[:, :4] = -FALL * torch.tensor([turns[h % 4] for h in range(heads)])
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
