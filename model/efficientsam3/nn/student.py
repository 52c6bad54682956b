"""Student image encoders: a timm backbone and a projection to the teacher's width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.efficientvit_mit import LiteMLA
from timm.models.repvit import ConvNorm, RepVggDw
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
"""timm's name of each encoder."""


def _to_float32(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].float(),)


class WindowAttention(nn.Module):
    """timm's TinyViT attention for inference, with the position bias gathered once.

    timm's three-axis bias prevents torch's fused kernel, which halves the speed.

    Args:
        learned: The trained attention, whose weights are shared.
    """

    def __init__(self, learned: TinyVitAttention) -> None:
        super().__init__()
        self.heads = learned.num_heads
        self.norm, self.qkv, self.proj = learned.norm, learned.qkv, learned.proj
        bias = learned.attention_biases[:, learned.attention_bias_idxs]
        self.register_buffer("bias", bias[None].detach().clone(), persistent=False)
        self.bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows.

        Args:
            x: (windows, cells, C).

        Returns:
            (windows, cells, C).
        """
        qkv = linear(self.qkv, layer_norm(self.norm, x)).unflatten(-1, (self.heads, 3, -1))
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.to(q.dtype))
        return linear(self.proj, merge_heads(out))


def _make_lean(module: nn.Module) -> None:
    """Replace the three-branch convolutions of RepViT and its activations, in place."""
    for name, child in module.named_children():
        if isinstance(child, RepVggDw):
            width = child.conv.c.in_channels
            setattr(module, name, ConvNorm(width, width, 3, 1, 1, groups=width))
        elif isinstance(child, nn.GELU):
            setattr(module, name, nn.ReLU(inplace=True))
        else:
            _make_lean(child)


class StudentTrunk(nn.Module):
    """A student image encoder.

    The neck enlarges the map to the teacher's grid, because many of its operators give the same
    result on the small map.

    Args:
        encoder: A name of ``BACKBONES``.
        width: Channels of the map, as the teacher has them.
        options: Options of ``timm.create_model``, for other sizes.
        lean: Train the form that inference has: one branch in the depthwise convolutions of RepViT,
            and ReLU for GELU. A training step on a CPU takes two thirds of the time.
        stages: Return the maps of all stages instead of the last one alone.
    """

    def __init__(
        self,
        encoder: str,
        width: int = 1024,
        options: Mapping[str, Any] | None = None,
        *,
        lean: bool = False,
        stages: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.stages = width, stages
        made = timm.create_model(
            BACKBONES[encoder], pretrained=False, num_classes=0, **(options or {})
        )
        backbone: Any = made
        channels = backbone.num_features
        backbone.head = nn.Identity()  # checkpoints have no classifier
        for module in backbone.modules():
            if isinstance(module, LiteMLA):
                module.eps = 1e-15  # as in the authors' code; timm has 1e-5
        if lean:
            _make_lean(backbone)
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True) if lean else nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, pixels: Tensor) -> Any:
        """Encode images.

        Args:
            pixels: (B, 3, R, R) normalized pixels.

        Returns:
            (B, width, R / 32, R / 32), rounded up; with ``stages`` a tuple of the maps of all
            stages, finest first, of which this is the last.
        """
        first = next(self.backbone.parameters())
        x = pixels.to(first.dtype)
        if not self.stages:
            return self.head(self.backbone.forward_features(x))
        maps = []
        x = self.backbone.stem(x.contiguous(memory_format=torch.channels_last))
        for stage in self.backbone.stages:
            x = stage(x)
            maps.append(x)
        return (*maps[:-1], self.head(maps[-1]))

    def cast(self, dtype: torch.dtype) -> None:
        """Cast all but the last stage and the head.

        These cost little, and they cause half of the rounding error of bfloat16.

        Args:
            dtype: Floating-point dtype.
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
        """Fold batch norms and parallel branches into convolutions in place, for inference."""
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
