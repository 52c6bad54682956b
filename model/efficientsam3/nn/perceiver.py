"""The Perceiver memory of EdgeTAM (arXiv 2501.07256): compresses a frame's memory to few tokens.

Global latents attend to the whole map. Latents of a coarse grid attend each to the window of the
map that they cover. One set of layers serves both.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import dot_product_attention, layer_norm, linear


class LatentAttention(nn.Module):
    """Pre-norm attention of latents, with one head and no biases.

    Args:
        width: Number of channels C.
        outside: Whether latents attend to tokens, which have their own norm, or to each other.
    """

    def __init__(self, width: int, *, outside: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.norm_tokens = nn.LayerNorm(width) if outside else None
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values.

        Args:
            tokens: (B, N, C).

        Returns:
            Keys and values, (B, N, C).
        """
        norm = self.norm if self.norm_tokens is None else self.norm_tokens
        keys, values = linear(self.kv, layer_norm(norm, tokens)).chunk(2, -1)
        return keys, values

    def forward(self, latents: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend.

        Args:
            latents: (B, L, C).
            keys: (B, N, C) from ``read``.
            values: (B, N, C) from ``read``.

        Returns:
            (B, L, C).
        """
        q = linear(self.q, layer_norm(self.norm, latents))
        keys, values = keys.to(q.dtype), values.to(q.dtype)  # position encodings are float32
        seen = dot_product_attention(q[:, None], keys[:, None], values[:, None])[:, 0]
        return linear(self.out, seen)


class Feed(nn.Module):
    """Pre-norm feed-forward layer without biases, four times as wide inside.

    Args:
        width: Number of channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width, bias=False)
        self.narrow = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, without the residual.

        Args:
            x: (..., C).

        Returns:
            (..., C).
        """
        return linear(self.narrow, F.gelu(linear(self.widen, layer_norm(self.norm, x))))


class PerceiverLayer(nn.Module):
    """Latents attend to the tokens, then to each other.

    Args:
        width: Number of channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look = LatentAttention(width, outside=True)
        self.feed = Feed(width)
        self.mix = LatentAttention(width, outside=False)
        self.mix_feed = Feed(width)

    def forward(self, latents: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Update the latents.

        Args:
            latents: (B, L, C).
            keys: (B, N, C) from ``look.read``.
            values: (B, N, C) from ``look.read``.

        Returns:
            (B, L, C).
        """
        latents = latents + self.look(latents, keys, values)
        latents = latents + self.feed(latents)
        latents = latents + self.mix(latents, *self.mix.read(latents))
        return latents + self.mix_feed(latents)


class Perceiver(nn.Module):
    """Compresses a memory map to global tokens and a coarse grid of tokens.

    Args:
        width: Channels of the memory.
        latents: Number of global latents; 0 for none.
        cells: Cells a side of the coarse grid, which divides the map's side; 0 for none.
        depth: Number of layers.
    """

    def __init__(self, width: int, latents: int, cells: int, depth: int = 2) -> None:
        super().__init__()
        self.cells = cells
        # Named as in EdgeTAM. Random latents differ, so they attend to different tokens.
        self.latents = nn.Parameter(torch.randn(latents, width)) if latents else None
        self.latents_2d = nn.Parameter(torch.randn(cells**2, width)) if cells else None
        self.layers = nn.ModuleList(PerceiverLayer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    @property
    def unplaced(self) -> int:
        """Number of tokens without a position."""
        return 0 if self.latents is None else len(self.latents)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Compress the memories of B objects.

        Args:
            tokens: (B, N, C), one token for each cell, row by row.
            places: (N, C) position encodings, added to keys and values for the global latents.

        Returns:
            (B, latents + cells ** 2, C).
        """
        batch = len(tokens)
        everywhere = None if self.latents is None else self.latents.expand(batch, -1, -1)
        placed = None
        if self.latents_2d is not None:
            placed = self.latents_2d.repeat(batch, 1)[:, None]
        for layer in self.layers:
            keys, values = layer.look.read(tokens)  # global and grid latents read the same
            if everywhere is not None:
                everywhere = layer(everywhere, keys + places, values + places)
            if placed is not None:
                placed = layer(placed, self._windows(keys), self._windows(values))
        out = [] if everywhere is None else [everywhere]
        if placed is not None:
            out.append(placed.view(batch, self.cells**2, -1))
        return layer_norm(self.norm, torch.cat(out, 1))

    def _windows(self, x: Tensor) -> Tensor:
        """Cut (B, N, C) into windows (B * cells ** 2, N / cells ** 2, C), row by row."""
        side = math.isqrt(int(x.shape[1])) // self.cells
        x = x.unflatten(1, (self.cells, side, self.cells, side)).transpose(2, 3)
        return x.reshape(-1, side**2, x.shape[-1])
