"""The attention of a frame to the video memory of SAM3's tracker."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .interactive import PairAttention
from .layers import dot_product_attention, layer_norm, linear
from .positions import rotate

QUERIES = 128
"""Queries that ``_attend_in_parts`` computes at a time, so their logits stay in the cache."""


class MemoryTokens(NamedTuple):
    """The memories of B objects, as the attention reads them."""

    keys: Tensor
    """(B, M, memory width) tokens with encodings of time and place. Tokens of frames come first,
    frame by frame, then object pointers."""
    values: Tensor
    """(B, M, memory width) the same tokens without the encodings."""
    pointers: int
    """How many of the M tokens, at the end, belong to object pointers and have no place."""
    valid: Tensor | None = None
    """(B, M) bool, False where an object has fewer memories than others; None: all are valid."""


class RotaryTables(NamedTuple):
    """Rotary tables of the queries and of the memory tokens."""

    cos: Tensor
    """(N, D / 2) cosines of the frame's cells."""
    sin: Tensor
    """(N, D / 2) sines of the frame's cells."""
    token_cos: Tensor | None = None
    """(T, D / 2) cosines of a frame's memory tokens; None: those of the cells."""
    token_sin: Tensor | None = None
    """(T, D / 2) sines of a frame's memory tokens; None: those of the cells."""


def attend_narrow(q: Tensor, k: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
    """Compute attention whose values are narrower than its keys, for inference on a CPU.

    torch's fused kernel is slow where the widths differ. In half precision it is fastest with
    values that are filled up with zeros, in float32 a product for some queries at a time is.

    Args:
        q: (1 or B, N, D) queries.
        k: (B, M, D) keys.
        values: (B, M, V) values; V is at most D.
        valid: (B, M) bool, True where a key is valid; None: all are.

    Returns:
        (B, N, V).
    """
    if q.dtype == torch.float32:
        return _attend_in_parts(q, k, values, valid)
    width = values.shape[-1]
    filled = F.pad(values, (0, k.shape[-1] - width))
    mask = None if valid is None or valid.all() else valid[:, None, None]
    q = q.expand(len(k), -1, -1)
    return dot_product_attention(q[:, None], k[:, None], filled[:, None], mask)[:, 0, :, :width]


def _attend_in_parts(q: Tensor, k: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
    """``attend_narrow`` for some queries at a time, in two buffers that all of them share.

    Memory that is allocated anew for each part costs as much as the arithmetic.
    """
    out = values.new_empty(len(k), q.shape[1], values.shape[-1])
    logits, weights = (q.new_empty(QUERIES, k.shape[1]) for _ in range(2))
    q = q * q.shape[-1] ** -0.5
    for row, keys in enumerate(k):
        hidden = None if valid is None or valid[row].all() else ~valid[row]
        for first in range(0, q.shape[1], QUERIES):
            part = q[row if len(q) > 1 else 0, first : first + QUERIES]
            seen, weight = logits[: len(part)], weights[: len(part)]
            torch.mm(part, keys.T, out=seen)
            if hidden is not None:
                seen.masked_fill_(hidden, -torch.inf)
            torch.softmax(seen, -1, out=weight)
            torch.mm(weight, values[row], out=out[row, first : first + len(part)])
    return out


def can_attend_narrow(*tensors: Tensor) -> bool:
    """Whether ``attend_narrow`` applies: tensors on a CPU that need no gradient.

    Args:
        *tensors: Queries and keys.
    """
    return not any(t.requires_grad or t.device.type != "cpu" for t in tensors)


class RotaryPairAttention(PairAttention):
    """One-head attention with rotary positions on a grid of queries.

    Args:
        width: Number of channels C.
        key_width: Channels of keys and values; by default ``width``.
    """

    def __init__(self, width: int, key_width: int | None = None) -> None:
        super().__init__(width, heads=1)
        if key_width is not None:
            self.k_proj = nn.Linear(key_width, width)
            self.v_proj = nn.Linear(key_width, width)

    def look(self, x: Tensor, tables: RotaryTables) -> Tensor:
        """Let the cells of a frame attend to each other.

        Args:
            x: (B, N, C).
            tables: Rotary tables.

        Returns:
            (B, N, C).
        """
        q, k = (rotate(linear(p, x), tables.cos, tables.sin) for p in (self.q_proj, self.k_proj))
        v = linear(self.v_proj, x)
        seen = dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return linear(self.out_proj, seen)

    def recall(self, x: Tensor, memory: MemoryTokens, tables: RotaryTables) -> Tensor:
        """Let the cells of a frame attend to the memory.

        Args:
            x: (1 or B, N, C).
            memory: Memories of B objects.
            tables: Rotary tables.

        Returns:
            (B, N, C).
        """
        q = rotate(linear(self.q_proj, x), tables.cos, tables.sin)
        k = linear(self.k_proj, memory.keys)
        cos = tables.cos if tables.token_cos is None else tables.token_cos
        sin = tables.sin if tables.token_sin is None else tables.token_sin
        placed = k.shape[1] - memory.pointers
        frames = k[:, :placed].unflatten(1, (-1, len(cos)))
        k = torch.cat([rotate(frames, cos, sin).flatten(1, 2), k[:, placed:]], 1)
        if can_attend_narrow(q, k) and memory.values.shape[-1] < k.shape[-1]:
            # Attention weights sum to one, so values can be projected after the attention.
            read = attend_narrow(q, k, memory.values.to(k.dtype), memory.valid)
            return linear(self.out_proj, linear(self.v_proj, read))
        v = linear(self.v_proj, memory.values)
        valid = None if memory.valid is None else memory.valid[:, None, None]
        q = q.expand(len(k), -1, -1)
        seen = dot_product_attention(q[:, None], k[:, None], v[:, None], valid)[:, 0]
        return linear(self.out_proj, seen)


class MemoryLayer(nn.Module):
    """Pre-norm layer: the frame attends to itself, then to the memory.

    Args:
        width: Number of channels C.
        memory_width: Channels of the memory.
        hidden: Width of the feed-forward layer.
    """

    def __init__(self, width: int, memory_width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = RotaryPairAttention(width)
        self.cross_attn_image = RotaryPairAttention(width, memory_width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def look(self, x: Tensor, tables: RotaryTables) -> Tensor:
        """Apply the self-attention, which does not depend on the memory.

        Args:
            x: (B, N, C).
            tables: Rotary tables.

        Returns:
            (B, N, C).
        """
        return x + self.self_attn.look(layer_norm(self.norm1, x), tables)

    def recall(self, x: Tensor, memory: MemoryTokens, tables: RotaryTables) -> Tensor:
        """Apply the attention to the memory and the feed-forward layer.

        Args:
            x: (1 or B, N, C).
            memory: Memories of B objects.
            tables: Rotary tables.

        Returns:
            (B, N, C).
        """
        return self.feed(
            x + self.cross_attn_image.recall(layer_norm(self.norm2, x), memory, tables)
        )

    def feed(self, x: Tensor) -> Tensor:
        """Apply the feed-forward layer.

        Args:
            x: (B, N, C).

        Returns:
            (B, N, C).
        """
        return x + linear(self.linear2, linear(self.linear1, layer_norm(self.norm3, x)).relu_())


class MemoryAttention(nn.Module):
    """Layers of the memory attention.

    Args:
        width: Number of channels C.
        memory_width: Channels of the memory.
        hidden: Width of the feed-forward layers.
        depth: Number of layers.
    """

    def __init__(self, width: int, memory_width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryLayer(width, memory_width, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def look(self, x: Tensor, tables: RotaryTables) -> Tensor:
        """Apply the first self-attention, which all objects of a frame share.

        Args:
            x: (1, N, C).
            tables: Rotary tables.

        Returns:
            (1, N, C).
        """
        return self.layers[0].look(x, tables)

    def recall(self, looked: Tensor, memory: MemoryTokens, tables: RotaryTables) -> Tensor:
        """Apply the remaining layers for B objects.

        Args:
            looked: (1 or B, N, C) from ``look``.
            memory: Memories of B objects.
            tables: Rotary tables.

        Returns:
            (B, N, C) float32.
        """
        x = self.layers[0].recall(looked, memory, tables)
        for layer in self.layers[1:]:
            x = layer.recall(layer.look(x, tables), memory, tables)
        return layer_norm(self.norm, x)
