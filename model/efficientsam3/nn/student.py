"""Student image encoders: a timm backbone and the projection to the teacher's width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.efficientvit_mit import LiteMLA
from timm.models.tiny_vit import Attention as TinyVitAttention
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .layers import cast, layer_norm, linear, merge_heads

BACKBONES = {
    "repvit-m0.9": "repvit_m0_9",
    "repvit-m1.1": "repvit_m1_1",
    "repvit-m2.3": "repvit_m2_3",
    "tinyvit-5m": "tiny_vit_5m_224",
    "tinyvit-11m": "tiny_vit_11m_224",
    "tinyvit-21m": "tiny_vit_21m_224",
    "efficientvit-b0": "efficientvit_b0",
    "efficientvit-b1": "efficientvit_b1",
    "efficientvit-b2": "efficientvit_b2",
}
"""Our name of an encoder -> timm's."""


def _to_float32(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].float(),)


class WindowAttention(nn.Module):
    """timm's TinyViT attention for inference: its three-axis bias keeps torch from its fused
    kernel, at half the speed of the trunk's attention. Same weights, bias gathered once.
    """

    def __init__(self, learned: TinyVitAttention) -> None:
        super().__init__()
        self.heads = learned.num_heads
        self.norm, self.qkv, self.proj = learned.norm, learned.qkv, learned.proj
        bias = learned.attention_biases[:, learned.attention_bias_idxs]
        self.register_buffer("bias", bias[None].detach().clone(), persistent=False)
        self.bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(windows, cells, C) -> the same."""
        qkv = linear(self.qkv, layer_norm(self.norm, x)).unflatten(-1, (self.heads, 3, -1))
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.to(q.dtype))
        return linear(self.proj, merge_heads(out))


class StudentTrunk(nn.Module):
    """(B, 3, R, R) pixels -> (B, width, R / 32, R / 32), rounded up.

    Args:
        encoder: a name of ``BACKBONES``. width: of the teacher's map. options: timm's, for
            other sizes.


    The neck enlarges the map to the teacher's grid: many of its operators give the same
    result on the small map.
    """

    def __init__(
        self, encoder: str, width: int = 1024, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.width = width
        made = timm.create_model(
            BACKBONES[encoder], pretrained=False, num_classes=0, **(options or {})
        )
        backbone: Any = made
        channels = backbone.num_features
        backbone.head = nn.Identity()  # classifier: never in a checkpoint, never run
        for module in backbone.modules():
            if isinstance(module, LiteMLA):
                module.eps = 1e-15  # the authors' own; timm's is 1e-5
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        first = next(self.backbone.parameters())
        return self.head(self.backbone.forward_features(pixels.to(first.dtype)))

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in ``dtype`` all but the last stage and the head.

        They cost little at their resolution, and their rounding is half of what the map
        would suffer from bfloat16.
        """
        last = self.backbone.stages[-1]
        for name, module in self.backbone.named_children():
            if name != "stages":
                cast(module, dtype)
        for stage in list(self.backbone.stages)[:-1]:
            cast(stage, dtype)
        if dtype != torch.float32:
            last.register_forward_pre_hook(_to_float32)

    def fold_norms(self) -> None:
        """Fold batch norms and parallel branches into convolutions, in place, for inference."""
        self.backbone = reparameterize_model(self.backbone, inplace=True)
        for module in self.backbone.modules():
            # EfficientViT's conv-norm-act has no fuse() of its own.
            if isinstance(getattr(module, "norm", None), nn.BatchNorm2d):
                module.conv = fuse_conv_bn_eval(module.conv, module.norm)
                module.norm = nn.Identity()
        for module in self.backbone.modules():
            if isinstance(getattr(module, "attn", None), TinyVitAttention):
                module.attn = WindowAttention(module.attn)
        self.head[0] = fuse_conv_bn_eval(self.head[0], self.head[1])  # type: ignore[type-var]
        self.head[1] = nn.Identity()
