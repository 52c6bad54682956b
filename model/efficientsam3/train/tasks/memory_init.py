"""What a memory starts from: the weights of another memory, or attention to the same place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...nn.memory import Memory

LAYERS = "attention.layers."
"""Prefix of the memory attention's layers in a state dict."""


@torch.no_grad()
def init_memory_from(memory: nn.Module, other: nn.Module) -> nn.Module:
    """Copy all weights that fit from another memory of the same width, in place.

    If the other has more layers of memory attention, the first, the last and layers evenly between
    them are taken. A Perceiver that the other has not stays as it is.

    Args:
        memory: what is filled.
        other: where the weights come from.

    Returns:
        ``memory``.
    """
    count, other_count = (_layers(m) for m in (memory, other))
    taken = [round(i * (other_count - 1) / max(count - 1, 1)) for i in range(count)]
    state = other.state_dict()
    for key, value in memory.state_dict().items():
        if key.startswith(LAYERS):
            number, _, rest = key.removeprefix(LAYERS).partition(".")
            key = f"{LAYERS}{taken[int(number)]}.{rest}"
        source = state.get(key)
        if source is not None and source.shape == value.shape:
            value.copy_(source)
    return memory


@torch.no_grad()
def init_local_attention(memory: Memory, strength: float = 2.2) -> Memory:
    """Let each cell of a new memory attend first to what was remembered at its own place, in place.

    Queries and keys get the same bias. After the rotation by position their product falls with the
    distance of the cells, by half a logit at the next cell. With torch's defaults a cell reads the
    mean of all that is remembered, in which objects cannot be told from each other.

    Args:
        memory: what is changed.
        strength: of the bias.

    Returns:
        ``memory``.
    """
    for layer in memory.attention.layers:
        part: Any = layer.cross_attn_image
        for projection in (part.q_proj, part.k_proj):
            projection.bias.zero_()
            projection.bias[::2] = strength  # one of each rotated pair
    return memory


def _layers(memory: nn.Module) -> int:
    keys = (k for k in memory.state_dict() if k.startswith(LAYERS))
    return len({k.removeprefix(LAYERS).split(".")[0] for k in keys})
