"""Pyramid levels in a form that exporters trace correctly.

The inference form writes into parts of tensors, which saves memory in PyTorch and which exporters
do not follow. Here each 2 x 2 kernel with interleaved results is one transposed convolution, and
the border of the finest pyramid level is a further input channel of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.neck import FoldedLevel, enlarge

ONES = 32
"""Input channels of ones. The first adds the border; the others have weights of 0, and make the
number of channels a multiple of 32, for which OpenVINO has a kernel that is twice as fast."""


def transposed(kernel: Tensor) -> Tensor:
    """The kernel of ``nn.neck.double`` as that of a transposed convolution.

    Args:
        kernel: (4 * O, I, 2, 2); group 2 * a + b is row a, column b of each 2 x 2 block.

    Returns:
        (I, O, 4, 4), for stride 2 and padding 1.
    """
    out = kernel.new_empty(kernel.shape[1], kernel.shape[0] // 4, 4, 4)
    for group, part in enumerate(kernel.chunk(4)):
        a, b = divmod(group, 2)
        for y in range(2):
            for x in range(2):
                out[:, :, 3 - a - 2 * y, 3 - b - 2 * x] = part[:, :, y, x].T
    return out


def border_kernel(border: Tensor) -> Tensor:
    """What a map of ones adds at the border, as one more input channel of ``transposed``.

    Args:
        border: (1, O, 4, 4) differences from the inside, at a map of 4 x 4 cells.

    Returns:
        (1, O, 4, 4); with the zeros around the map of ones it gives the border, and 0 inside.
    """
    out = border.new_zeros(4, border.shape[1], 1, 2, 2)
    for group in range(4):
        a, b = divmod(group, 2)
        row, column = 3 * a, 3 * b  # of the probe
        in_y, in_x = 1 - a, 1 - b  # of the kernel: the cell that is always inside
        top, left = border[0, :, row, 1, None], border[0, :, 1, column, None]
        corner = border[0, :, row, column, None]
        out[group, :, :, in_y, in_x] = corner
        out[group, :, :, in_y, 1 - in_x] = top - corner
        out[group, :, :, 1 - in_y, in_x] = left - corner
        out[group, :, :, 1 - in_y, 1 - in_x] = corner - top - left
    return transposed(out.flatten(0, 1))


class LevelForm(nn.Module):
    """A pyramid level.

    Args:
        level: The level in its inference form.
    """

    def __init__(self, level: FoldedLevel) -> None:
        super().__init__()
        self.scale, self.grid = level.scale, level.grid
        first, bias = level.first.contiguous(), level.first_bias
        if self.scale > 1:  # channels in the order of pixel_shuffle

            def shuffle(t: Tensor) -> Tensor:
                return t.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1).contiguous()

            first, bias = shuffle(first), shuffle(bias)
        self.first, self.first_bias = nn.Parameter(first), nn.Parameter(bias)
        smooth = level.smooth.contiguous()
        if self.scale == 4:
            border = border_kernel(level.border)
            smooth = torch.cat([transposed(smooth), F.pad(border, (0,) * 7 + (ONES - 1,))])
        self.smooth, self.bias = nn.Parameter(smooth), nn.Parameter(level.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the level.

        Args:
            x: (1, C, h, w) map of the image encoder.

        Returns:
            (1, out, scale * grid, scale * grid).
        """
        x = enlarge(F.conv2d(x, self.first, self.first_bias), self.grid)
        if self.scale == 1:
            return F.conv2d(x, self.smooth, self.bias, padding=1)
        if self.scale == 2:
            return F.conv2d(F.pixel_shuffle(x, 2), self.smooth, self.bias, padding=1)
        x = F.pixel_shuffle(F.gelu(x), 2)
        x = torch.cat([x, torch.ones_like(x[:, :1]).expand(-1, ONES, -1, -1)], 1)
        return F.conv_transpose2d(x, self.smooth, self.bias, stride=2, padding=1)
