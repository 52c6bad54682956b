"""SAM3's image encoder: a plain ViT with windows and rotary positions (arXiv 2511.16719)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import LayerNorm2d, dot_product_attention, layer_norm, linear, merge_heads
from .positions import rotary_grid, rotate


class RotaryAttention(nn.Module):
    """Multi-head self-attention on a grid, with rotary positions.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        grid: Cells a side of the attended area.
        trained_grid: Cells a side for which the positions were trained.
    """

    def __init__(self, width: int, heads: int, grid: int, trained_grid: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.grid, self.trained_grid = grid, trained_grid
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the rotary tables. The method has timm's name for this."""
        width = self.proj.in_features // self.heads
        cos, sin = rotary_grid(self.grid, self.grid, width, scale=self.trained_grid / self.grid)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (B, grid * grid, C).

        Returns:
            (B, grid * grid, C).
        """
        qkv = linear(self.qkv, x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin)
        return linear(self.proj, merge_heads(dot_product_attention(q, k, v)))


class FeedForward(nn.Module):
    """Two linear layers with GELU.

    Args:
        width: Number of channels C.
        hidden: Width between the layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers.

        Args:
            x: (..., C).

        Returns:
            (..., C).
        """
        return linear(self.fc2, F.gelu(linear(self.fc1, x)))


class Block(nn.Module):
    """Pre-norm transformer block, with attention within windows or over the whole grid.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.
        grid: Cells a side of the map.
        window: Cells a side of a window; None for attention over the whole grid.
        trained_grid: Cells a side for which the positions were trained.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, grid: int, window: int | None, trained_grid: int
    ) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width)
        self.attn = RotaryAttention(width, heads, window or grid, trained_grid)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Update the map.

        Args:
            x: (B, h, w, C).

        Returns:
            (B, h, w, C).
        """
        b, h, w, c = x.shape
        y = layer_norm(self.norm1, x)
        if self.window is None:
            y = self.attn(y.flatten(1, 2)).view(b, h, w, c)
        else:
            n = self.window
            y = y.unflatten(2, (-1, n)).unflatten(1, (-1, n)).transpose(2, 3)
            y = self.attn(y.reshape(-1, n * n, c))
            y = y.view(b, h // n, w // n, n, n, c).transpose(2, 3).reshape(b, h, w, c)
        x = x + y
        return x + self.mlp(layer_norm(self.norm2, x))


class Stem(nn.Sequential):
    """A convolutional stem in place of the linear patch embedding.

    From scratch and with few images it learns much faster (arXiv 2106.14881). SAM3 has none.

    Args:
        stem: Channels of the convolutions.
        width: Channels of the output.
        patch: Pixels a side of a patch.
    """

    def __init__(self, stem: int, width: int, patch: int) -> None:
        half = patch // 2
        super().__init__(
            nn.Conv2d(3, stem, half + 4, half, padding=2),
            LayerNorm2d(stem),
            nn.GELU(),
            nn.Conv2d(stem, stem, 3, padding=1),
            LayerNorm2d(stem),
            nn.GELU(),
            nn.Conv2d(stem, width, 2, 2, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Embed patches.

        Args:
            x: (B, 3, R, R) pixels.

        Returns:
            (B, width, R / patch, R / patch).
        """
        for layer in self:
            # Norms return float32, and convolutions may have another dtype.
            x = layer(x.to(layer.weight.dtype) if isinstance(layer, nn.Conv2d) else x)
        return x


class VisionTransformer(nn.Module):
    """SAM3's image encoder.

    Args:
        width: Number of channels.
        depth: Number of blocks.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        patch: Pixels a side of a patch.
        grid: Cells a side: image side / patch; a multiple of ``window``.
        window: Cells a side of a window and of the position table, which is tiled over the grid.
        everywhere: Indices of the blocks that attend over the whole grid.
        stem: Channels of a convolutional stem; 0 for the linear patch embedding.
    """

    def __init__(
        self,
        width: int = 1024,
        depth: int = 32,
        heads: int = 16,
        hidden: int = 4736,
        patch: int = 14,
        grid: int = 72,
        window: int = 24,
        everywhere: tuple[int, ...] = (7, 15, 23, 31),
        stem: int = 0,
    ) -> None:
        super().__init__()
        self.width = width
        self.table = window
        self.patch_embed = nn.Module()
        self.patch_embed.proj = (
            Stem(stem, width, patch) if stem else nn.Conv2d(3, width, patch, patch, bias=False)
        )
        # The first row is for a class token, which the encoder does not use.
        self.pos_embed = nn.Parameter(torch.zeros(1, self.table**2 + 1, width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, grid, None if i in everywhere else window, self.table)
            for i in range(depth)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images.

        Args:
            pixels: (B, 3, R, R) normalized pixels.

        Returns:
            (B, width, R / patch, R / patch) float32.
        """
        proj = self.patch_embed.proj
        x = proj(pixels.to(next(proj.parameters()).dtype)).permute(0, 2, 3, 1).float()
        h, w = x.shape[1:3]
        table = self.pos_embed[:, 1:].unflatten(1, (self.table, self.table))
        tiles = table.tile(1, h // self.table + 1, w // self.table + 1, 1)
        x = layer_norm(self.ln_pre, x + tiles[:, :h, :w])
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2)
