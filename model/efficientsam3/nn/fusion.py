"""The fusion encoder (DETR encoder of SAM3): image tokens attend to each other and the prompt."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention, layer_norm, linear


class FusionLayer(nn.Module):
    """Pre-norm layer: self-attention with positions, cross-attention to the prompt, feed-forward.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.cross_attn_image = Attention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def place(self, positions: Tensor) -> Tensor:
        """Project positions once. Projection is linear, so this is added to queries and keys.

        Args:
            positions: (N, C) encodings of the cells.

        Returns:
            (N, 2C): terms of the queries and of the keys.
        """
        weight = self.self_attn.in_proj_weight[: 2 * self.self_attn.width]
        return F.linear(positions.to(weight.dtype), weight)

    def attend_image(self, x: Tensor, placed: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Apply the self-attention.

        Args:
            x: (B, N, C) image tokens.
            placed: (N, 2C) from ``place``.
            grid: Rows and columns of the tokens, to average keys and values over 2 x 2 cells
                (``speed="fast"``); None for exact attention.

        Returns:
            (B, N, C).
        """
        attn, c = self.self_attn, self.self_attn.width
        y = layer_norm(self.norm1, x).to(placed.dtype)
        if grid is None:
            q, k, v = attn.project(y, 0, 2).split(c, -1)
            return x + attn.attend(q + placed[:, :c], k + placed[:, c:], v)
        # Each key stands for four, which adds log 4 to every logit and cancels in the softmax.
        q = attn.project(y, 0, 0) + placed[:, :c]
        k, v = attn.project(pool(y, grid), 1, 2).split(c, -1)
        return x + attn.attend(q, k + pool(placed[None, :, c:], grid), v)

    def attend_prompt(self, x: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        """Apply the cross-attention to the prompt and the feed-forward layer.

        Args:
            x: (B, N, C) image tokens.
            prompt: (B, L, C) prompt tokens.
            mask: (B, 1, 1, L) bool, True where a prompt token is valid.

        Returns:
            (B, N, C).
        """
        y = layer_norm(self.norm2, x)
        x = x + self.cross_attn_image(y, prompt, prompt, mask)
        return x + linear(self.linear2, linear(self.linear1, layer_norm(self.norm3, x)).relu_())


def pool(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average tokens over 2 x 2 cells.

    Args:
        x: (B, N, C), with N = rows * columns.
        grid: Rows and columns.

    Returns:
        (B, about N / 4, C).
    """
    maps = x.unflatten(1, grid).permute(0, 3, 1, 2)  # channels last
    small = F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)
    return small.permute(0, 2, 3, 1).flatten(1, 2)


class FusionEncoder(nn.Module):
    """Layers of the fusion encoder.

    The first layer's self-attention does not depend on the prompt: ``read_image`` runs it once
    for an image, and ``forward`` runs the rest once for a concept.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        depth: Number of layers.

    Attributes:
        pooled: Whether self-attention averages keys and values over 2 x 2 cells.
    """

    def __init__(
        self, width: int = 256, heads: int = 8, hidden: int = 2048, depth: int = 6
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(width, heads, hidden) for _ in range(depth))
        self.pooled = False

    def place(self, positions: Tensor) -> list[Tensor]:
        """Project positions for each layer; constant for a grid.

        Args:
            positions: (N, C) encodings of the cells.

        Returns:
            (N, 2C) for each layer.
        """
        return [layer.place(positions) for layer in self.layers]

    def read_image(self, x: Tensor, placed: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Apply the first self-attention.

        Args:
            x: (B, N, C) image tokens.
            placed: From ``place``.
            grid: Rows and columns of the tokens.

        Returns:
            (B, N, C).
        """
        return self.layers[0].attend_image(x, placed[0], grid if self.pooled else None)

    def forward(
        self,
        x: Tensor,
        placed: list[Tensor],
        grid: tuple[int, int],
        prompt: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Apply the remaining layers.

        Args:
            x: (1 or B, N, C) from ``read_image``.
            placed: From ``place``.
            grid: Rows and columns of the tokens.
            prompt: (B, L, C) prompt tokens.
            mask: (B, L) bool, True where a prompt token is valid.

        Returns:
            (B, N, C) float32.
        """
        mask = mask[:, None, None, :]
        x = x.expand(prompt.shape[0], -1, -1)
        for i, layer in enumerate(self.layers):
            if i:
                x = layer.attend_image(x, placed[i], grid if self.pooled else None)
            x = layer.attend_prompt(x, prompt, mask)
        return x
