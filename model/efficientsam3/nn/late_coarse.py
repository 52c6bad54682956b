"""A coarse stage that adds what large parts of the image show to the tokens of late fusion.

late_objects.py describes the whole. The image encoder ends at stride 16, where a layer with many
channels is costly. At stride 32 it costs a quarter, so that most weights that tell things apart
belong there, as in the encoders of classifiers.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .late_windows import as_map, upsample
from .layers import as_weights, layer_norm, linear

EXPANSION = 2
"""Width of the feed-forward layers, in channels of the stage."""
KERNEL = 5
"""Cells a side that a block mixes."""


class CoarseBlock(nn.Module):
    """Mixes neighboring cells in each channel, then the channels of each cell, as in ConvNeXt.

    Args:
        channels: Channels D.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, EXPANSION * channels)
        self.linear2 = nn.Linear(EXPANSION * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Update a map.

        Args:
            x: (B, D, h, w).

        Returns:
            (B, D, h, w).
        """
        y = self.mix(as_weights(x, self.mix.weight)).permute(0, 2, 3, 1)
        y = linear(self.linear2, linear(self.linear1, layer_norm(self.norm, y)).relu())
        return x + y.permute(0, 3, 1, 2)


class CoarseStage(nn.Module):
    """Adds features of stride 32 to tokens of stride 16. Untrained, it adds nothing.

    Args:
        width: Channels C of the tokens.
        channels: Channels D of the stage.
        depth: Blocks.
    """

    def __init__(self, width: int, channels: int, depth: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(CoarseBlock(channels) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.up = nn.Linear(channels, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Update the tokens of images.

        Args:
            tokens: (B, N, C).
            grid: Rows and columns of the N cells.

        Returns:
            (B, N, C).
        """
        fine = as_map(tokens, grid)
        x = F.relu(self.down(as_weights(fine, self.down.weight)))
        for block in self.blocks:
            x = block(x)
        y = layer_norm(self.norm, x.permute(0, 2, 3, 1))
        y = linear(self.up, y).permute(0, 3, 1, 2)
        return tokens + upsample(y, fine.shape[-2:]).flatten(2).transpose(1, 2)
