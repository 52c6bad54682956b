"""Parts of the memory tracker as modules with plain tensors in and out.

Each runs for one object. ``MemoryTracker`` chooses what is read of the memory and keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ..nn.layers import layer_norm, linear
from ..nn.memory import Memory
from ..nn.memory_attention import MemoryLayer, RotaryPairAttention
from ..nn.positions import rotate

QUERIES = 1024
"""Cells that attend to the memory at a time, which bounds the memory of the attention."""


class LookForm(nn.Module):
    """Computes what all objects of a frame share.

    Args:
        memory: The video memory, float32.
    """

    outputs = ("looked", "projected")

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        """Compute.

        Args:
            frame: (1, C, h, w) coarse features of a video frame.

        Returns:
            (1, N, C) the cells before they attend to a memory, and (1, C, h, w) what the image
            adds to memories of the frame.
        """
        return self.memory.look(frame), self.memory.encoder.project(frame)


class RecallForm(nn.Module):
    """Lets a frame attend to the memory of one object.

    Args:
        memory: The video memory, float32.
    """

    outputs = ("recalled",)

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        own = memory.rotary_tables()
        self.tables = own
        self.token_cos = own.cos if own.token_cos is None else own.token_cos
        self.token_sin = own.sin if own.token_sin is None else own.token_sin
        self.places: Tensor = memory.places if memory.perceiver is None else memory.token_places

    def forward(
        self, looked: Tensor, entries: Tensor, when: Tensor, pointers: Tensor, ages: Tensor
    ) -> Tensor:
        """Attend.

        Args:
            looked: (1, N, C) from ``LookForm``.
            entries: (1, F, T, memory width) memory tokens of F frames.
            when: (1, F) int64 age of each frame: 0 for a conditioning frame, otherwise 1 (the last
                frame) to ``Memory.frames`` - 1.
            pointers: (1, P, C) object pointers.
            ages: (1, P) ages of the pointers; the oldest that is read has 1.

        Returns:
            (1, C, h, w) features conditioned on the memory.
        """
        m = self.memory
        since = m.frame_positions.flatten(1)
        row = torch.where(when > 0, when - 1, len(since) - 1)  # the last row is "conditioning"
        keys = entries + self.places + nn.functional.embedding(row, since)[:, :, None]
        pointer_keys, pointer_values = m.cut_pointers(pointers, ages)
        values = torch.cat([entries.flatten(1, 2), pointer_values], 1)
        x = looked
        for i, layer in enumerate(cast("Iterable[MemoryLayer]", m.attention.layers)):
            x = layer.look(x, self.tables) if i else x
            seen = self._attend(
                layer.cross_attn_image, layer_norm(layer.norm2, x), keys, pointer_keys, values
            )
            x = layer.feed(x + seen)
        x = layer_norm(m.attention.norm, x)
        return x.transpose(1, 2).unflatten(2, (m.grid, m.grid))

    def _attend(
        self,
        layer: RotaryPairAttention,
        x: Tensor,
        keys: Tensor,
        pointer_keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        q = rotate(linear(layer.q_proj, x), self.tables.cos, self.tables.sin)
        q = q * q.shape[-1] ** -0.5
        placed = rotate(linear(layer.k_proj, keys), self.token_cos, self.token_sin).flatten(1, 2)
        turned = torch.cat([placed, linear(layer.k_proj, pointer_keys)], 1).transpose(1, 2)
        # Weights sum to one, so values, which are narrower, are projected after the attention.
        some = [q[:, i : i + QUERIES] for i in range(0, self.memory.grid**2, QUERIES)]
        read = [(part @ turned).softmax(-1) @ values for part in some]
        return linear(layer.out_proj, linear(layer.v_proj, torch.cat(read, 1)))


class RememberForm(nn.Module):
    """Encodes the mask of one object on a frame to a memory.

    Args:
        memory: The video memory, float32.
    """

    outputs = ("entry",)

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, projected: Tensor, mask: Tensor, present: Tensor) -> Tensor:
        """Encode.

        Args:
            projected: (1, C, h, w) from ``LookForm``.
            mask: (1, 1, 16h, 16w) in [0, 1].
            present: (1,) bool, whether the object is in the frame.

        Returns:
            (1, T, memory width).
        """
        return self.memory.tokens(projected, mask, present)


class PointerForm(nn.Module):
    """Computes object pointers.

    Args:
        memory: The video memory, float32.
    """

    outputs = ("pointer",)

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, token: Tensor, present: Tensor) -> Tensor:
        """Compute.

        Args:
            token: (B, C) tokens of the mask decoder.
            present: (B,) bool, whether each object is in the frame.

        Returns:
            (B, C).
        """
        return self.memory.point(token, present)


class GivenMaskForm(nn.Module):
    """Makes a prompt of a given mask.

    Args:
        memory: The video memory, float32.
    """

    outputs = ("mask_prompt",)

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.shrink = memory.mask_downsample

    def forward(self, mask: Tensor) -> Tensor:
        """Make a prompt.

        Args:
            mask: (1, 1, 16h, 16w) in [0, 1].

        Returns:
            (1, 1, 4h, 4w) for ``ObjectsForm``.
        """
        return self.shrink(mask)
