"""Initial weights for models that are trained from scratch."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from efficientsam3.nn.decoder import Decoder, DotProductScoring
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.layers import inverse_sigmoid

SCORING_GAIN = 1.5
"""Gain of the projections by which queries and phrases are compared."""

COARSE_LEVEL = 2
"""Index of the pyramid's level of scale 1."""

EDGE_SLOPE = 10.0
"""Slope of the attention bias: a cell a tenth of the image away has exp(-2.8) of the weight, one a
twentieth away exp(-1.6)."""


@torch.no_grad()
def init_from_scratch(net: Detector, seed: int = 0) -> Detector:
    """Set weights, in place, from which PyTorch's defaults would learn slowly or not at all.

    - Queries start on a grid of boxes, and not all in the center.
    - Boxes start at their references: the last layer of the box head is zero.
    - Each head of a query's attention starts at one edge of its box: what is there says whether the
      edge has to move. Values know no positions, so equal heads could not refine a box.
    - Comparisons start with a wide range. With the defaults all logits are within 0.1, and hundreds
      of steps only widen them.

    Args:
        net: The model.
        seed: Seed of the weights.

    Returns:
        The model.
    """
    generator = torch.Generator().manual_seed(seed)
    decoder: Decoder = net.part("decoder")
    boxes = grid_boxes(decoder.reference_points.num_embeddings)
    decoder.reference_points.weight.copy_(inverse_sigmoid(boxes))
    last = decoder.bbox_embed.layers[-1]
    nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    _init_edge_attention(decoder)
    scoring: DotProductScoring = net.part("scoring")
    for layer in (scoring.hs_proj, scoring.prompt_proj):
        nn.init.orthogonal_(layer.weight, SCORING_GAIN, generator=generator)
        nn.init.zeros_(layer.bias)
    return net


@torch.no_grad()
def normalize_tokens(net: Detector, pixels: Tensor) -> Detector:
    """Scale the coarse level of the pyramid, in place, to a standard deviation of 1.

    Tokens that learned names are normalized before they are compared, so that their scale drifts,
    to 12 in the recipe ``stickers``. Heads that start with such tokens attend by content and not by
    position, and lose what the fusion adds to the tokens.

    Args:
        net: The model.
        pixels: (B, 3, R, R) some images, normalized.

    Returns:
        The model.
    """
    deviation = net.coarse_level(net.part("trunk")(pixels)).float().std()
    last = net.part("neck").levels[COARSE_LEVEL].smooth
    last.weight.div_(deviation)
    last.bias.div_(deviation)
    return net


def grid_boxes(count: int) -> Tensor:
    """Boxes on a grid, small and large ones by turns: (count, 4) cxcywh, as shares of the image.

    Args:
        count: Number of boxes.
    """
    side = math.ceil(math.sqrt(count))
    index = torch.arange(count)
    boxes = torch.empty(count, 4)
    boxes[:, 0] = (index % side + 0.5) / side
    boxes[:, 1] = (torch.div(index, side, rounding_mode="floor") + 0.5) / math.ceil(count / side)
    boxes[:, 2:] = torch.where(index % 2 == 0, 0.15, 0.35)[:, None]
    return boxes


@torch.no_grad()
def _init_edge_attention(decoder: Decoder) -> None:
    """Set the box-relative bias: heads attend to the left, right, top and bottom edge, by turns.

    Along the axis of its edge the bias of a head falls with the distance from the edge, along the
    other axis with the distance from the box.
    """
    for axis, mlp in enumerate((decoder.boxRPB_embed_x, decoder.boxRPB_embed_y)):
        first, last = (cast(nn.Linear, layer) for layer in mlp.layers)
        # From the signed distances (a, b) of a cell to the near and the far edge, the hidden units
        # compute how far it lies before and behind each: relu(-a), relu(b), relu(a), relu(-b).
        first.weight[:4] = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
        first.bias[:4] = 0
        outside, near, far = ([1.0, 1, 0, 0], [1.0, 0, 1, 0], [0.0, 1, 0, 1])
        turns = [near, far, outside, outside] if axis == 0 else [outside, outside, near, far]
        heads = last.out_features
        last.weight.mul_(0.1)
        last.weight[:, :4] = -EDGE_SLOPE * torch.tensor([turns[h % 4] for h in range(heads)])
        last.bias.zero_()
