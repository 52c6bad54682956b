"""The video memory of SAM3's tracker: what a frame leaves behind and how the next reads it.

The image model carries these weights (checkpoints have them beside the interactive head),
the video predictor runs them.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .interactive import PairAttention
from .layers import LayerNorm2d, Mlp, layer_norm, linear, merge_heads, split_heads
from .positions import rotary_grid, rotate


class MaskDownsampler(nn.Module):
    """(B, widths[0], S, S) mask values -> (B, C, S / 16, S / 16)."""

    def __init__(
        self, width: int, size: int, widths: tuple[int, ...] = (1, 4, 16, 64, 256)
    ) -> None:
        super().__init__()
        self.size = size
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, 2, 1), LayerNorm2d(b), nn.GELU()]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(widths[-1], width, 1))

    def forward(self, masks: Tensor) -> Tensor:
        if masks.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            masks = F.interpolate(masks.float(), size, mode="bilinear", antialias=True)
        return self.encoder(masks)


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = LayerNorm2d(width)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        y = self.gamma * linear(self.pwconv2, F.gelu(linear(self.pwconv1, y)))
        return x + y.permute(0, 3, 1, 2)


class MemoryEncoder(nn.Module):
    """Image features and a mask of them -> (B, memory width, h, w)."""

    def __init__(self, width: int, memory_width: int, mask_size: int) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownsampler(width, mask_size)
        self.pix_feat_proj = nn.Conv2d(width, width, 1)
        self.fuser = nn.Sequential(ConvNextBlock(width), ConvNextBlock(width))
        self.out_proj = nn.Conv2d(width, memory_width, 1)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Args: features: (B, C, h, w). masks: (B, 1, ., .), already scaled and shifted."""
        return self.out_proj(
            self.fuser(self.pix_feat_proj(features) + self.mask_downsampler(masks))
        )


class RotaryPairAttention(PairAttention):
    """One-head attention with rotary positions on a square grid of queries.

    Keys are whole grids, one after the other, then ``pointers`` keys without a place.
    """

    def __init__(self, width: int, grid: int, key_width: int | None = None) -> None:
        super().__init__(width, heads=1)
        if key_width is not None:
            self.k_proj = nn.Linear(key_width, width)
            self.v_proj = nn.Linear(key_width, width)
        self.grid = grid
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the rotary tables (timm's name for this)."""
        cos, sin = rotary_grid(self.grid, self.grid, self.q_proj.in_features)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pointers: int = 0) -> Tensor:
        q = rotate(linear(self.q_proj, q), self.cos, self.sin)
        k, v = linear(self.k_proj, k), linear(self.v_proj, v)
        placed = k.shape[1] - pointers
        repeats = placed // self.cos.shape[0]
        cos, sin = self.cos.repeat(repeats, 1), self.sin.repeat(repeats, 1)
        k = torch.cat([rotate(k[:, :placed], cos, sin), k[:, placed:]], 1)
        q, k, v = (split_heads(t, 1) for t in (q, k, v))
        return linear(self.out_proj, merge_heads(F.scaled_dot_product_attention(q, k, v)))


class MemoryLayer(nn.Module):
    """Pre-norm: the frame attends to itself, then to the memory."""

    def __init__(self, width: int, memory_width: int, hidden: int, grid: int) -> None:
        super().__init__()
        self.self_attn = RotaryPairAttention(width, grid)
        self.cross_attn_image = RotaryPairAttention(width, grid, memory_width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor, positions: Tensor, pointers: int) -> Tensor:
        y = layer_norm(self.norm1, x)
        x = x + self.self_attn(y, y, y)
        y = layer_norm(self.norm2, x)
        x = x + self.cross_attn_image(y, memory + positions, memory, pointers)
        return x + linear(self.linear2, linear(self.linear1, layer_norm(self.norm3, x)).relu_())


class MemoryAttention(nn.Module):
    def __init__(self, width: int, memory_width: int, hidden: int, depth: int, grid: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MemoryLayer(width, memory_width, hidden, grid) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, positions: Tensor, memory: Tensor, memory_positions: Tensor, pointers: int
    ) -> Tensor:
        """Args:
        x, positions: (B, N, C), (N, C) of the frame. memory, memory_positions:
        (B, M, memory width). pointers: how many of M, at the end, are object pointers.
        """
        x = x + 0.1 * positions
        for layer in self.layers:
            x = layer(x, memory, memory_positions, pointers)
        return layer_norm(self.norm, x)


class Memory(nn.Module):
    """All that a tracker checkpoint has beside the interactive head.

    Args:
        grid: cells a side of the coarsest level. frames: memories that are read at once.
    """

    def __init__(
        self,
        width: int = 256,
        memory_width: int = 64,
        hidden: int = 2048,
        depth: int = 4,
        grid: int = 72,
        frames: int = 7,
    ) -> None:
        super().__init__()
        self.encoder = MemoryEncoder(width, memory_width, 16 * grid)
        self.attention = MemoryAttention(width, memory_width, hidden, depth, grid)
        self.frame_positions = nn.Parameter(torch.zeros(frames, 1, 1, memory_width))
        self.no_memory_position = nn.Parameter(torch.zeros(1, 1, width))
        self.no_object_pointer = nn.Parameter(torch.zeros(1, width))
        self.no_object = nn.Parameter(torch.zeros(1, memory_width))
        self.mask_downsample = nn.Conv2d(1, 1, 4, 4)
        self.pointer = Mlp(width, width, width, width)
        self.pointer_position = nn.Linear(width, memory_width)
