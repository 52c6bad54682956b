"""The video memory of SAM3's tracker: what a frame leaves behind and how the next reads it.

The weights lie beside the interactive head's; ``video.memory`` runs them. A frame leaves, for
each object, tokens with a place (image features and mask, fused) and a pointer (what the mask
decoder's token said of the object). The next frame's features attend to those.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .interactive import PairAttention
from .layers import LayerNorm2d, Mlp, as_weights, dot_product_attention, layer_norm, linear
from .perceiver import Perceiver
from .positions import encode_ages, encode_grid, rotary_grid, rotate

QUERIES = 256
"""Queries that attend together in ``attend_in_parts``: their logits stay in the cache."""


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply ``layer`` in the dtype of its weights, whatever the dtype of ``x``."""
    return layer(as_weights(x, layer.weight))


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
        for layer in self.encoder:  # norms give float32, whatever the convolutions take
            masks = convolve(layer, masks) if isinstance(layer, nn.Conv2d) else layer(masks)
        return masks


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = LayerNorm2d(width)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(convolve(self.dwconv, x)).permute(0, 2, 3, 1)
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

    def project(self, features: Tensor) -> Tensor:
        """What the image says, (B, C, h, w) features -> the same shape; once a frame."""
        return convolve(self.pix_feat_proj, features)

    def fuse(self, projected: Tensor, masks: Tensor) -> Tensor:
        """Args:
        projected: (1 or B, C, h, w) from ``project``. masks: (B, 1, ., .), scaled and shifted.
        """
        fused = self.fuser(projected.float() + self.mask_downsampler(masks).float())
        return convolve(self.out_proj, fused).float()

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Args: features: (B, C, h, w). masks: (B, 1, ., .), already scaled and shifted."""
        return self.fuse(self.project(features), masks)


class Remembered(NamedTuple):
    """What B objects remember, as the attention reads it.

    keys: (B, M, memory width), what is remembered with when and where. values: the same
    without. Tokens with a place come first, whole frames one after the other.
    pointers: how many of M, at the end, are of object pointers and have no place.
    valid: (B, M) bool, False where an object has less than others; None: all are.
    """

    keys: Tensor
    values: Tensor
    pointers: int
    valid: Tensor | None = None


class Turns(NamedTuple):
    """Rotary tables: cosine and sine (N, D / 2) of the frame's cells and (T, D / 2) of the
    tokens that a frame leaves; None: those of the cells.
    """

    cos: Tensor
    sin: Tensor
    token_cos: Tensor | None = None
    token_sin: Tensor | None = None


def attend_in_parts(q: Tensor, k: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
    """Attention of some queries at a time, for inference on a CPU.

    In bfloat16 twice as fast as torch's fused kernel. And values may be narrower than keys: a
    quarter as wide, they save three eighths of the arithmetic.

    (1 or B, N, D), (B, M, D), (B, M, V), (B, M) -> (B, N, V).
    """
    out = values.new_empty(len(k), q.shape[1], values.shape[-1])
    q = q * q.shape[-1] ** -0.5
    for row, keys in enumerate(k):
        turned = keys.T
        hidden = None if valid is None or valid[row].all() else ~valid[row]
        for first in range(0, q.shape[1], QUERIES):
            some = slice(first, first + QUERIES)
            logits = q[row if len(q) > 1 else 0, some] @ turned
            if hidden is not None:
                logits = logits.masked_fill(hidden, -torch.inf)
            out[row, some] = logits.softmax(-1) @ values[row]
    return out


def _spared(*tensors: Tensor) -> bool:
    """Whether ``attend_in_parts`` is for these: a CPU's, of which nothing is learned."""
    return not any(t.requires_grad or t.device.type != "cpu" for t in tensors)


class RotaryPairAttention(PairAttention):
    """One-head attention with rotary positions on a grid of queries."""

    def __init__(self, width: int, key_width: int | None = None) -> None:
        super().__init__(width, heads=1)
        if key_width is not None:
            self.k_proj = nn.Linear(key_width, width)
            self.v_proj = nn.Linear(key_width, width)

    def look(self, x: Tensor, turns: Turns) -> Tensor:
        """A frame's cells attend to each other: (B, N, C) -> (B, N, C)."""
        q, k = (rotate(linear(p, x), turns.cos, turns.sin) for p in (self.q_proj, self.k_proj))
        v = linear(self.v_proj, x)
        if _spared(q, k) and q.dtype != torch.float32:
            return linear(self.out_proj, attend_in_parts(q, k, v, None))
        seen = dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return linear(self.out_proj, seen)

    def recall(self, x: Tensor, memory: Remembered, turns: Turns) -> Tensor:
        """A frame's cells attend to what is remembered: (1 or B, N, C) -> (B, N, C)."""
        q = rotate(linear(self.q_proj, x), turns.cos, turns.sin)
        k = linear(self.k_proj, memory.keys)
        cos = turns.cos if turns.token_cos is None else turns.token_cos
        sin = turns.sin if turns.token_sin is None else turns.token_sin
        placed = k.shape[1] - memory.pointers
        frames = k[:, :placed].unflatten(1, (-1, len(cos)))
        k = torch.cat([rotate(frames, cos, sin).flatten(1, 2), k[:, placed:]], 1)
        if _spared(q, k) and memory.values.shape[-1] < k.shape[-1]:
            # Weights sum to one: projecting what was read is reading what was projected.
            read = attend_in_parts(q, k, memory.values.to(k.dtype), memory.valid)
            return linear(self.out_proj, linear(self.v_proj, read))
        v = linear(self.v_proj, memory.values)
        valid = None if memory.valid is None else memory.valid[:, None, None]
        q = q.expand(len(k), -1, -1)
        seen = dot_product_attention(q[:, None], k[:, None], v[:, None], valid)[:, 0]
        return linear(self.out_proj, seen)


class MemoryLayer(nn.Module):
    """Pre-norm: the frame attends to itself, then to the memory."""

    def __init__(self, width: int, memory_width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = RotaryPairAttention(width)
        self.cross_attn_image = RotaryPairAttention(width, memory_width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def look(self, x: Tensor, turns: Turns) -> Tensor:
        """(B, N, C) -> (B, N, C), before anything is remembered."""
        return x + self.self_attn.look(layer_norm(self.norm1, x), turns)

    def recall(self, x: Tensor, memory: Remembered, turns: Turns) -> Tensor:
        """(1 or B, N, C) -> (B, N, C)."""
        x = x + self.cross_attn_image.recall(layer_norm(self.norm2, x), memory, turns)
        return x + linear(self.linear2, linear(self.linear1, layer_norm(self.norm3, x)).relu_())


class MemoryAttention(nn.Module):
    def __init__(self, width: int, memory_width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryLayer(width, memory_width, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def look(self, x: Tensor, turns: Turns) -> Tensor:
        """What is the same for all objects of a frame: (1, N, C) -> (1, N, C)."""
        return self.layers[0].look(x, turns)

    def recall(self, looked: Tensor, memory: Remembered, turns: Turns) -> Tensor:
        """(1 or B, N, C) from ``look`` -> (B, N, C), the frame as the objects' pasts show it."""
        x = self.layers[0].recall(looked, memory, turns)
        for layer in self.layers[1:]:
            x = layer.recall(layer.look(x, turns), memory, turns)
        return layer_norm(self.norm, x)


class Memory(nn.Module):
    """All that a tracker checkpoint has beside the interactive head.

    Args:
        grid: cells a side of the coarsest level. frames: memories that are read at once, the
            conditioning frames counting as one.
        perceiver: makes few tokens of a frame's map; None: a token a cell.
    """

    def __init__(
        self,
        width: int = 256,
        memory_width: int = 64,
        hidden: int = 2048,
        depth: int = 4,
        grid: int = 72,
        frames: int = 7,
        perceiver: Perceiver | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.perceiver = perceiver
        self.encoder = MemoryEncoder(width, memory_width, 16 * grid)
        self.attention = MemoryAttention(width, memory_width, hidden, depth)
        self.frame_positions = nn.Parameter(torch.zeros(frames, 1, 1, memory_width))
        self.no_memory_position = nn.Parameter(torch.zeros(1, 1, width))
        self.no_object_pointer = nn.Parameter(torch.zeros(1, width))
        self.no_object = nn.Parameter(torch.zeros(1, memory_width))
        self.mask_downsample = nn.Conv2d(1, 1, 4, 4)
        self.pointer = Mlp(width, width, width, width)
        self.pointer_position = nn.Linear(width, memory_width)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute tables of positions (timm's name for this)."""
        width, memory_width = self.no_object_pointer.shape[1], self.no_object.shape[1]
        g, device = self.grid, self.no_object.device
        cos, sin = rotary_grid(g, g, width)
        tables = {
            "cos": cos,
            "sin": sin,
            "image_places": encode_grid(g, g, width, device),
            "places": encode_grid(g, g, memory_width, device),
        }
        if self.perceiver is not None:
            tables |= self._perceived_tables(self.perceiver, width, memory_width, device)
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.cos: Tensor
        self.sin: Tensor
        self.image_places: Tensor
        self.places: Tensor

    def _perceived_tables(
        self, perceiver: Perceiver, width: int, memory_width: int, device: torch.device
    ) -> dict[str, Tensor]:
        """Where perceived tokens are: some nowhere, the others in the middle of their windows."""
        cells, unplaced = perceiver.cells, perceiver.unplaced
        side = self.grid // cells if cells else 1
        cos, sin = rotary_grid(cells, cells, width, side, (side - 1) / 2)
        places = encode_grid(cells, cells, memory_width, device)
        return {
            "token_cos": F.pad(cos, (0, 0, unplaced, 0), value=1.0),
            "token_sin": F.pad(sin, (0, 0, unplaced, 0)),
            "token_places": F.pad(places, (0, 0, unplaced, 0)),
        }

    @property
    def frames(self) -> int:
        """Memories that are read at once."""
        return len(self.frame_positions)

    @property
    def pointer_tokens(self) -> int:
        """Tokens that a pointer is cut into: it is wider than the memory."""
        return self.no_object_pointer.shape[1] // self.no_object.shape[1]

    def turns(self) -> Turns:
        if self.perceiver is None:
            return Turns(self.cos, self.sin)
        return Turns(self.cos, self.sin, self.token_cos, self.token_sin)

    # What a frame leaves ---------------------------------------------------------------

    def tokens(self, projected: Tensor, masks: Tensor, present: Tensor) -> Tensor:
        """Args:
            projected: (1 or B, C, h, w) from ``encoder.project``.
            masks: (B, 1, ., .) in [0, 1]. present: (B,) bool, whether there is an object.

        Returns: (B, T, memory width), one token a cell, or those that were perceived of them.
        """
        encoded = self.encoder.fuse(projected, 20 * masks - 10).flatten(2).transpose(1, 2)
        encoded = torch.where(present[:, None, None], encoded, encoded + self.no_object)
        return encoded if self.perceiver is None else self.perceiver(encoded, self.places)

    def point(self, token: Tensor, present: Tensor) -> Tensor:
        """The mask decoder's token (B, C) -> object pointer (B, C). present: (B,) bool."""
        return torch.where(present[:, None], self.pointer(token).float(), self.no_object_pointer)

    # How the next reads it -------------------------------------------------------------

    def look(self, features: Tensor) -> Tensor:
        """(B, C, h, w) features -> (B, N, C): what does not depend on any memory."""
        x = features.float().flatten(2).transpose(1, 2)
        return self.attention.look(x + 0.1 * self.image_places, self.turns())

    def gather(
        self,
        tokens: Tensor,
        when: Tensor,
        pointers: Tensor,
        ages: Tensor,
        valid: Tensor | None = None,
    ) -> Remembered:
        """Args:
        tokens: (B, F, T, memory width) of F frames. when: (B, F) how many frames ago, 0 for a
            conditioning frame, else 1 (the last) to ``frames`` - 1.
        pointers: (B, P, C). ages: (B, P) of the pointers, 1 for the oldest that is read.
        valid: (B, P) bool, which pointers there are; None: all.
        """
        batch, width = len(tokens), tokens.shape[-1]
        since = self.frame_positions.flatten(1)[when - 1]  # the last row is "conditioning"
        places = self.places if self.perceiver is None else self.token_places
        keys = (tokens + (places + since[:, :, None])).flatten(1, 2)
        cut = pointers.unflatten(2, (-1, width)).flatten(1, 2)
        encoded = encode_ages(ages, self.no_object_pointer.shape[1])
        aged = linear(self.pointer_position, encoded).float()
        aged = aged.repeat_interleave(self.pointer_tokens, 1)
        values = torch.cat([tokens.flatten(1, 2), cut.to(tokens.dtype)], 1)
        keys = torch.cat([keys, cut + aged], 1)
        if valid is not None:
            placed = valid.new_ones(batch, values.shape[1] - cut.shape[1])
            valid = torch.cat([placed, valid.repeat_interleave(self.pointer_tokens, 1)], 1)
        return Remembered(keys, values, cut.shape[1], valid)

    def recall(self, looked: Tensor, memory: Remembered) -> Tensor:
        """(1 or B, N, C) from ``look`` -> (B, C, h, w), the frame as the pasts show it."""
        seen = self.attention.recall(looked, memory, self.turns())
        return seen.transpose(1, 2).unflatten(2, (self.grid, self.grid))
