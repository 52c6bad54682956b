"""Text encoders: one feature for each token.

``MobileClipText`` is the student (arXiv 2311.17049, 2508.20691), ``ClipText`` SAM3's own encoder.
Both attend to padding, as in their training; the parts that read the features mask it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention, dot_product_attention, layer_norm, linear, merge_heads


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        width: Number of channels C.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (B, L, C).

        Returns:
            (B, L, C).
        """
        q, k, v = linear(self.qkv_proj, x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return linear(self.out_proj, merge_heads(dot_product_attention(q, k, v)))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block.

    Args:
        width: Number of channels C.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Update the tokens.

        Args:
            x: (B, L, C).

        Returns:
            (B, L, C).
        """
        x = x + self.attn(layer_norm(self.norm1, x))
        return x + linear(self.fc2, F.gelu(linear(self.fc1, layer_norm(self.norm2, x))))


class RepMixerBlock(nn.Module):
    """Depthwise convolution along the phrase, then a convolutional feed-forward layer.

    Args:
        width: Number of channels C.
        kernel: Tokens that the convolution covers.
    """

    def __init__(self, width: int, kernel: int = 11) -> None:
        super().__init__()

        def along_phrase() -> nn.Conv2d:
            pad = (0, kernel // 2)
            return nn.Conv2d(width, width, (1, kernel), padding=pad, groups=width, bias=False)

        self.mixer_conv = along_phrase()
        self.mixer_conv_norm = nn.BatchNorm2d(width)
        self.mixer_skip_norm = nn.BatchNorm2d(width)
        self.skip_norm = nn.BatchNorm2d(width)
        self.mixer_scale = nn.Parameter(1e-5 * torch.ones(width, 1, 1))
        self.conv = along_phrase()
        self.conv_norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, 4 * width, 1)
        self.reduce = nn.Conv2d(4 * width, width, 1)
        self.scale = nn.Parameter(1e-5 * torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Update the tokens.

        Args:
            x: (B, L, C).

        Returns:
            (B, L, C) float32.
        """
        y = x.transpose(1, 2)[:, :, None].to(self.conv.weight.dtype)  # (B, C, 1, L)
        mixed = self.mixer_skip_norm(y) + self.mixer_conv_norm(self.mixer_conv(y))
        y = y + self.mixer_scale * (mixed - self.skip_norm(y))
        fed = self.reduce(F.gelu(self.expand(self.conv_norm(self.conv(y)))))
        return (y + self.scale * fed).squeeze(2).transpose(1, 2).float()


class MobileClipText(nn.Module):
    """The text encoder of MobileCLIP.

    Args:
        width: Channels of the transformer.
        depth: Number of transformer blocks.
        heads: Attention heads.
        context: Rows of the position table: the largest number of tokens L.
        mixers: Whether a RepMixer block stands before and after the transformer blocks
            (MobileCLIP-S0).
        vocabulary: Number of token ids.
        out: Channels of the features.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        context: int,
        *,
        mixers: bool = False,
        vocabulary: int = 49408,
        out: int = 256,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(1, 1, context, width))
        nn.init.trunc_normal_(self.positions, std=width**-0.5)
        blocks: list[nn.Module] = [TransformerBlock(width, heads) for _ in range(depth)]
        if mixers:
            blocks = [RepMixerBlock(width), *blocks, RepMixerBlock(width)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        # Checkpoints have it and nothing reads it: MobileCLIP's projection to its image space.
        self.clip_projection = nn.Parameter(torch.zeros(width, width))
        self.projector = nn.Linear(width, out)

    @property
    def context(self) -> int:
        """The largest number of tokens."""
        return self.positions.shape[-2]

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode phrases.

        Args:
            tokens: (B, L) token ids.

        Returns:
            (B, L, out) float32.
        """
        x = self.embedding(tokens).float() + self.positions[0, :, : tokens.shape[1]].float()
        for block in self.blocks:
            x = block(x)
        return linear(self.projector, layer_norm(self.norm, x)).float()


class ClipBlock(nn.Module):
    """Pre-norm transformer block of CLIP.

    Args:
        width: Number of channels C.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Update the tokens.

        Args:
            x: (B, L, C).
            mask: (L, L) bool, True where row attends to column.

        Returns:
            (B, L, C).
        """
        y = layer_norm(self.ln_1, x)
        x = x + self.attn(y, y, y, mask)
        return x + linear(self.fc2, F.gelu(linear(self.fc1, layer_norm(self.ln_2, x))))


class ClipText(nn.Module):
    """SAM3's causal text encoder.

    Args:
        width: Channels of the transformer.
        depth: Number of transformer blocks.
        heads: Attention heads.
        context: Rows of the position table: the largest number of tokens L.
        vocabulary: Number of token ids.
        out: Channels of the features.
    """

    def __init__(
        self,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        context: int = 32,
        vocabulary: int = 49408,
        out: int = 256,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.ModuleList(ClipBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        # Checkpoints have it and nothing reads it: the projection of CLIP's pooled text.
        self.clip_projection = nn.Parameter(torch.zeros(width, width // 2))
        self.projector = nn.Linear(width, out)

    @property
    def context(self) -> int:
        """The largest number of tokens."""
        return self.positions.shape[0]

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode phrases.

        Args:
            tokens: (B, L) token ids.

        Returns:
            (B, L, out) float32.
        """
        n = tokens.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril()
        x = self.embedding(tokens).float() + self.positions[:n].float()
        for block in self.blocks:
            x = block(x, causal)
        return linear(self.projector, layer_norm(self.norm, x)).float()
