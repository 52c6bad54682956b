"""The Perceiver memory of EdgeTAM (arXiv 2501.07256): few tokens for all that a frame left.

Some latents look at the whole map and have no place; others lie on a coarse grid and look each at
the window of the map that it covers. One set of layers serves both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import dot_product_attention, layer_norm, linear


class LatentAttention(nn.Module):
    """Pre-norm attention of latents with one head and no biases: to tokens, or to each other.

    Args:
        outside: they attend to tokens, which have a norm of their own.
    """

    def __init__(self, width: int, *, outside: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.norm_tokens = nn.LayerNorm(width) if outside else None
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C) tokens -> keys and values (B, N, C)."""
        norm = self.norm if self.norm_tokens is None else self.norm_tokens
        keys, values = linear(self.kv, layer_norm(norm, tokens)).chunk(2, -1)
        return keys, values

    def forward(self, latents: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, L, C) latents, (B, N, C) keys and values -> (B, L, C)."""
        q = linear(self.q, layer_norm(self.norm, latents))
        keys, values = keys.to(q.dtype), values.to(q.dtype)  # places made them float32
        seen = dot_product_attention(q[:, None], keys[:, None], values[:, None])[:, 0]
        return linear(self.out, seen)


class Feed(nn.Module):
    """Pre-norm feed-forward layer without biases, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width, bias=False)
        self.narrow = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.narrow, F.gelu(linear(self.widen, layer_norm(self.norm, x))))


class PerceiverLayer(nn.Module):
    """Latents look at the tokens, then at each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look = LatentAttention(width, outside=True)
        self.feed = Feed(width)
        self.mix = LatentAttention(width, outside=False)
        self.mix_feed = Feed(width)

    def forward(self, latents: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Args:
        latents: (B, L, C). keys, values: (B, N, C), of ``look.read``.
        """
        latents = latents + self.look(latents, keys, values)
        latents = latents + self.feed(latents)
        latents = latents + self.mix(latents, *self.mix.read(latents))
        return latents + self.mix_feed(latents)


class Perceiver(nn.Module):
    """A map of memory -> ``latents`` tokens without a place, then ``cells`` x ``cells`` with one.

    Args:
        width: of the memory. latents: looking at the whole map; 0: none.
        cells: a side of the grid of the others, which divides the map's; 0: none.
    """

    def __init__(self, width: int, latents: int, cells: int, depth: int = 2) -> None:
        super().__init__()
        self.cells = cells
        # Named as in EdgeTAM. Latents far apart look at different things from the start.
        self.latents = nn.Parameter(torch.randn(latents, width)) if latents else None
        self.latents_2d = nn.Parameter(torch.randn(cells**2, width)) if cells else None
        self.layers = nn.ModuleList(PerceiverLayer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    @property
    def unplaced(self) -> int:
        """How many tokens have no place."""
        return 0 if self.latents is None else len(self.latents)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Args:
            tokens: (B, N, C), a token a cell, row by row. places: (N, C), their encoding, which
                latents without a place find in keys and values.

        Returns: (B, ``latents`` + ``cells``^2, C).
        """
        batch = len(tokens)
        everywhere = None if self.latents is None else self.latents.expand(batch, -1, -1)
        placed = None
        if self.latents_2d is not None:
            placed = self.latents_2d.repeat(batch, 1)[:, None]
        for layer in self.layers:
            keys, values = layer.look.read(tokens)  # the same for both
            if everywhere is not None:
                everywhere = layer(everywhere, keys + places, values + places)
            if placed is not None:
                placed = layer(placed, self._windows(keys), self._windows(values))
        out = [] if everywhere is None else [everywhere]
        if placed is not None:
            out.append(placed.view(batch, self.cells**2, -1))
        return layer_norm(self.norm, torch.cat(out, 1))

    def _windows(self, x: Tensor) -> Tensor:
        """(B, N, C) of the map -> (B * cells^2, N / cells^2, C), row by row."""
        side = round(x.shape[1] ** 0.5) // self.cells
        x = x.unflatten(1, (self.cells, side, self.cells, side)).transpose(2, 3)
        return x.reshape(-1, side**2, x.shape[-1])
