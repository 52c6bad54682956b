"""Masks of the objects of an image: the third part of late fusion.

late_objects.py describes the whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .late_refiner import MaskRefiner
from .late_windows import as_map, upsample
from .layers import Mlp, as_weights


class PixelHead(nn.Module):
    """Draws the masks of objects: the product of each query and a map of fine pixel features.

    The map does not depend on the query. A quadratic term of the place relative to the query's box
    separates objects that look alike. A ``MaskRefiner`` may correct the masks.

    Args:
        width: Channels C of tokens and queries.
        fine: Channels of the encoder's maps of stride 4 and 8.
        widths: Channels of the pixel features of stride 4 and 8.
        refinement: Channels of the ``MaskRefiner``; 0 for none.
    """

    boxed = False

    def __init__(
        self, width: int, fine: tuple[int, int], widths: tuple[int, int], refinement: int = 0
    ) -> None:
        super().__init__()
        small, middle = widths
        self.lateral4 = nn.Conv2d(fine[0], small, 1)
        self.lateral8 = nn.Conv2d(fine[1], middle, 1)
        self.from_tokens = nn.Conv2d(width, middle, 1)
        self.smooth8 = nn.Conv2d(middle, middle, 3, padding=1)
        self.down = nn.Conv2d(middle, small, 1)
        self.smooth4 = nn.Conv2d(small, small, 3, padding=1)
        self.last = nn.Conv2d(small, small, 1)
        self.query = Mlp(width, width, small + 5)
        self.depth = small
        self.refiner = MaskRefiner(width, refinement) if refinement else None
        if refinement:
            self.detail = nn.Conv2d(small, refinement, 1)
            self.context = nn.Conv2d(width, refinement, 1)

    def read_pixels(
        self, tokens: Tensor, grid: tuple[int, int], fine: tuple[Tensor, ...]
    ) -> Tensor:
        """Compute the pixel features of images.

        Args:
            tokens: (B, N, C) from the object decoder's encoder.
            grid: Rows and columns of the N cells.
            fine: The encoder's maps of stride 4 and 8.

        Returns:
            (B, D, 4 * rows, 4 * columns): those that queries are multiplied with, and then those
            that the refiner reads.
        """
        # The image encoder may compute in half precision.
        four, eight = (as_weights(x, self.lateral4.weight) for x in fine)
        seen = as_weights(as_map(tokens, grid), self.from_tokens.weight)
        x = upsample(self.from_tokens(seen), eight.shape[-2:]) + self.lateral8(eight)
        x = self.smooth8(x.relu_()).relu_()
        x = upsample(self.down(x), four.shape[-2:]) + self.lateral4(four)
        x = self.smooth4(x.relu_()).relu_()
        out = self.last(x)
        if self.refiner is not None:
            detail = self.detail(x) + upsample(self.context(seen), four.shape[-2:])
            out = torch.cat([out, detail], 1)
        return out.float()

    def forward(self, queries: Tensor, boxes: Tensor, pixels: Tensor) -> Tensor:
        """Draw masks.

        Args:
            queries: (B, Q, C).
            boxes: (B, Q, 4) cxcywh in [0, 1].
            pixels: (B, D, H, W) from ``read_pixels``.

        Returns:
            (B, Q, H, W) float32 logits.
        """
        depth = self.depth
        weights, scale, bias = self.query(queries).float().split([depth, 4, 1], -1)
        height, width = pixels.shape[-2:]
        drawn = pixels[:, :depth].flatten(2)
        logits = torch.bmm(weights * depth**-0.5, drawn).unflatten(-1, (height, width))
        rows = edge_term(boxes[..., 1], boxes[..., 3], height, scale[..., 0], scale[..., 1])
        columns = edge_term(boxes[..., 0], boxes[..., 2], width, scale[..., 2], scale[..., 3])
        logits = logits + rows[..., None] + columns[..., None, :] + bias[..., None]
        if self.refiner is None:
            return logits
        refined: Tensor = self.refiner(queries, boxes, pixels[:, depth:], logits)
        return refined


def edge_term(middle: Tensor, size: Tensor, cells: int, steep: Tensor, round_: Tensor) -> Tensor:
    """Logits along one axis that fall outside of a box.

    Args:
        middle: (B, Q) middles of the boxes in [0, 1].
        size: (B, Q) sides of the boxes.
        cells: Number of cells of the axis.
        steep: (B, Q) how steeply the logits fall beyond the box; 0 is medium.
        round_: (B, Q) how much they fall within it; 0 is little.

    Returns:
        (B, Q, cells).
    """
    at = (torch.arange(cells, device=middle.device) + 0.5) / cells
    # Distances in half sides; a box of less than a cell has the size of a cell.
    half = size.clamp(min=1 / cells)[..., None] / 2
    distance = (at - middle[..., None]).abs() / half
    beyond = (distance - 1).relu().clamp(max=4)
    within = distance.clamp(max=1).square()
    return (
        -4 * F.softplus(steep + 1)[..., None] * beyond - F.softplus(round_ - 2)[..., None] * within
    )
