"""The fusion encoder: image tokens that attend to each other and to the prompt."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention, layer_norm, linear


class FusionLayer(nn.Module):
    """Pre-norm: self-attention with positions, cross-attention to the prompt, feed-forward."""

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
        """What positions (N, C) add to queries and keys, (N, 2C): projection is linear."""
        weight = self.self_attn.in_proj_weight[: 2 * self.self_attn.width]
        return F.linear(positions.to(weight.dtype), weight)

    def attend_image(self, x: Tensor, placed: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Args:
        x: (B, N, C). placed: from ``place``.
        grid: rows and columns of the tokens, to pool keys and values 2 x 2 ("fast").
        """
        attn, c = self.self_attn, self.self_attn.width
        y = layer_norm(self.norm1, x).to(placed.dtype)
        if grid is None:
            q, k, v = attn.project(y, 0, 2).split(c, -1)
            return x + attn.attend(q + placed[:, :c], k + placed[:, c:], v)
        # log 4 for the four keys in one would be added to every logit: softmax drops it.
        q = attn.project(y, 0, 0) + placed[:, :c]
        k, v = attn.project(pool(y, grid), 1, 2).split(c, -1)
        return x + attn.attend(q, k + pool(placed[None, :, c:], grid), v)

    def attend_prompt(self, x: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        """Args: x: (B, N, C). prompt: (B, L, C). mask: (B, 1, 1, L), True where valid."""
        y = layer_norm(self.norm2, x)
        x = x + self.cross_attn_image(y, prompt, prompt, mask)
        return x + linear(self.linear2, linear(self.linear1, layer_norm(self.norm3, x)).relu_())


def pool(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean over 2 x 2 cells: (B, rows * columns, C) -> (B, N / 4, C)."""
    maps = x.transpose(1, 2).unflatten(2, grid)
    return F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False).flatten(2).transpose(1, 2)


class FusionEncoder(nn.Module):
    """The first layer's self-attention does not see the prompt: ``read_image`` runs it once
    an image, ``forward`` the rest once a concept.
    """

    def __init__(
        self, width: int = 256, heads: int = 8, hidden: int = 2048, depth: int = 6
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(width, heads, hidden) for _ in range(depth))
        self.pooled = False

    def place(self, positions: Tensor) -> list[Tensor]:
        """What positions (N, C) add in each layer; constant for a grid."""
        return [layer.place(positions) for layer in self.layers]

    def read_image(self, x: Tensor, placed: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """(B, N, C) image tokens -> the same after the first self-attention."""
        return self.layers[0].attend_image(x, placed[0], grid if self.pooled else None)

    def forward(
        self,
        x: Tensor,
        placed: list[Tensor],
        grid: tuple[int, int],
        prompt: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Args:
            x: from ``read_image``, (1 or B, N, C). prompt: (B, L, C).
            mask: (B, L), True where valid.

        Returns: (B, N, C) float32.
        """
        mask = mask[:, None, None, :]
        x = x.expand(prompt.shape[0], -1, -1)
        for i, layer in enumerate(self.layers):
            if i:
                x = layer.attend_image(x, placed[i], grid if self.pooled else None)
            x = layer.attend_prompt(x, prompt, mask)
        return x
