"""Weights of SAM3.1's video memory (object multiplex: sixteen objects share one pass).

They are kept so that a SAM3.1 checkpoint can be saved and converted without loss. Nothing here is
run: images do not need it, and video with SAM3.1 is not supported.
"""

from __future__ import annotations

import torch
from torch import nn

from .interactive import MaskDecoder
from .layers import Mlp
from .memory import ConvNextBlock, MaskDownsampler


class MultiplexLayer(nn.Module):
    """Weights of one memory attention layer.

    Args:
        width: Number of channels.
        hidden: Width of the feed-forward layer.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        for attention in ("self_attn", "cross_attn"):
            for part in ("q", "k", "v", "out"):
                self.add_module(f"{attention}_{part}_proj", nn.Linear(width, width))
        self.image_cross_attn_q_proj = nn.Linear(width, width)
        self.image_cross_attn_k_proj = nn.Linear(width, width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)


class MultiplexMemory(nn.Module):
    """Weights of the SAM3.1 tracker, without those of the interactive head.

    Args:
        width: Number of channels.
        heads: Attention heads of the mask decoder.
        hidden: Width of the feed-forward layers.
        depth: Layers of the memory attention.
        grid: Cells a side of the coarsest level.
        slots: Objects of a bucket.
        frames: Memory frames that are read at once.
    """

    def __init__(
        self,
        width: int = 256,
        heads: int = 8,
        hidden: int = 2048,
        depth: int = 4,
        grid: int = 72,
        slots: int = 16,
        frames: int = 7,
    ) -> None:
        super().__init__()
        self.frame_positions = nn.Parameter(torch.zeros(frames, 1, 1, width))
        self.no_object = nn.Parameter(torch.zeros(slots, width))
        self.output_valid = nn.Parameter(torch.zeros(slots, width))
        self.output_invalid = nn.Parameter(torch.zeros(slots, width))
        self.no_object_pointer = nn.Linear(width, width)
        self.register_buffer("frequencies", torch.randn(2, width // 2))
        self.pointer = Mlp(width, width, width, width)
        self.pointer_position = nn.Linear(width, width)
        self.mask_downsample = nn.Conv2d(1, 1, 4, 4)
        self.object_pointer = Mlp(width, width, width, width)

        self.encoder = nn.Module()
        # The inputs are a mask and a conditioning flag for each object.
        widths = (2 * slots, 16, 64, 256, 1024)
        self.encoder.mask_downsampler = MaskDownsampler(width, 16 * grid, widths)
        self.encoder.pix_feat_proj = nn.Conv2d(width, width, 1)
        self.encoder.fuser = nn.Sequential(ConvNextBlock(width), ConvNextBlock(width))

        self.attention = nn.Module()
        self.attention.layers = nn.ModuleList(MultiplexLayer(width, hidden) for _ in range(depth))
        self.attention.norm = nn.LayerNorm(width)

        self.masks = MaskDecoder(width, heads, hidden)
        self.masks.iou_token = nn.Embedding(slots, width)
        self.masks.obj_score_token = nn.Embedding(slots, width)
        self.masks.mask_tokens = nn.Embedding(3 * slots, width)
        self.masks.output_hypernetworks_mlps = self.masks.output_hypernetworks_mlps[:3]
        self.masks.iou_prediction_head = Mlp(width, width, width, 3)
