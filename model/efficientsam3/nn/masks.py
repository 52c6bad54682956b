"""The mask head: pixel embeddings from the pyramid and the fused tokens, one mask for each query.

``MaskHead`` is the form that is trained. ``FoldedMaskHead`` gives the same masks with less
arithmetic. The convolution of a sum is a sum of convolutions, so the pyramid's part is computed
once for an image. A 3 x 3 convolution after nearest-neighbor doubling equals four 2 x 2
convolutions at the lower resolution. The last 1 x 1 convolution is applied to the query's
embedding instead of to each pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention, Mlp, as_weights, layer_norm
from .neck import FoldedLevel, Neck, after_nearest, double, double_learned


class PixelDecoder(nn.Module):
    """Coarse to fine: double the resolution, add the finer pyramid level, convolve.

    Checkpoints have weights for three steps; the pyramid has levels for two.

    Args:
        width: Number of channels C.
        steps: Number of convolutions.
        groups: Groups of the group norms.
    """

    def __init__(self, width: int, steps: int = 3, groups: int = 8) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for _ in range(steps)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width) for _ in range(steps))

    def forward(self, fused: Tensor, finer: list[Tensor]) -> Tensor:
        """Decode the fused map.

        Args:
            fused: (B, C, h, w) map of the fusion encoder.
            finer: Pyramid levels of 2, 4, ... times its size, coarsest first.

        Returns:
            (B, C, H, W) at the size of the last level.
        """
        x = fused
        for level, conv, norm in zip(finer, self.conv_layers, self.norms, strict=False):
            x = level + F.interpolate(x, scale_factor=2, mode="nearest")
            x = group_norm(norm, conv(as_weights(x, conv.weight))).relu_()
        return x


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Apply a group norm in the dtype of the input. Torch computes statistics in float32.

    Args:
        norm: The group norm.
        x: (B, C, H, W).

    Returns:
        (B, C, H, W) in the dtype of ``x``.
    """
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)


OUTSIDE = -32.0
"""Logit outside a mask's box."""
WIDER = 0.1
"""Boxes are widened by this fraction of their sides, and by one cell, before masks are cut."""


def within(logits: Tensor, boxes: Tensor) -> Tensor:
    """Cut masks at their boxes.

    Args:
        logits: (..., h, w) mask logits.
        boxes: (..., 4) cxcywh in [0, 1].

    Returns:
        (..., h, w) logits, ``OUTSIDE`` beyond the widened boxes.
    """
    inside = []
    for axis, cells in enumerate(logits.shape[-2:]):
        at = (torch.arange(cells, device=logits.device) + 0.5) / cells
        middle, size = boxes[..., 1 - axis, None], boxes[..., 3 - axis, None]
        inside.append((at - middle).abs() <= size * (0.5 + WIDER) + 1 / cells)
    rows, columns = inside
    return logits.masked_fill(~(rows[..., None] & columns[..., None, :]), OUTSIDE)


class MaskHead(nn.Module):
    """Predicts a mask for each query.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        boxed: Whether the caller cuts masks at their boxes with ``within``.
    """

    def __init__(self, width: int = 256, heads: int = 8, *, boxed: bool = False) -> None:
        super().__init__()
        self.boxed = boxed
        self.pixel_decoder = PixelDecoder(width)
        self.mask_embed = Mlp(width, width, width, width)
        self.cross_attend_prompt = Attention(width, heads)
        self.cross_attn_norm = nn.LayerNorm(width)
        self.semantic_seg_head = nn.Conv2d(width, 1, 1)
        self.instance_seg_head = nn.Conv2d(width, width, 1)

    def look_at_prompt(self, memory: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        """Let the fused tokens attend to the prompt once more.

        Args:
            memory: (B, N, C) from the fusion encoder.
            prompt: (B, L, C) prompt tokens.
            mask: (B, L) bool, True where a prompt token is valid.

        Returns:
            (B, N, C).
        """
        y = layer_norm(self.cross_attn_norm, memory)
        return memory + self.cross_attend_prompt(y, prompt, prompt, mask[:, None, None, :])

    def forward(
        self,
        memory: Tensor,
        grid: tuple[int, int],
        prompt: Tensor,
        mask: Tensor,
        queries: Tensor,
        finer: list[Tensor],
    ) -> Tensor:
        """Predict masks of B prompts.

        Args:
            memory: (B, N, C) from the fusion encoder.
            grid: Rows and columns of the N tokens.
            prompt: (B, L, C) prompt tokens.
            mask: (B, L) bool, True where a prompt token is valid.
            queries: (B, Q, C) from the decoder.
            finer: Pyramid levels of 2 and 4 times the grid.

        Returns:
            (B, Q, 4 * rows, 4 * columns) mask logits.
        """
        fused = self.look_at_prompt(memory, prompt, mask).transpose(1, 2).unflatten(2, grid)
        pixels = self.instance_seg_head(self.pixel_decoder(fused, finer))
        return torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), pixels)

    def read_rows(
        self,
        memory: Tensor,
        grid: tuple[int, int],
        prompt: Tensor,
        mask: Tensor,
        queries: Tensor,
        finer: list[Tensor],
        images: Tensor,
    ) -> Tensor:
        """Predict masks of R prompts on B images, for training, at less than half the cost.

        The pyramid's part of each convolution is computed once for an image.

        Args:
            memory: (R, N, C) from the fusion encoder.
            grid: Rows and columns of the N tokens.
            prompt: (R, L, C) prompt tokens.
            mask: (R, L) bool, True where a prompt token is valid.
            queries: (R, Q, C) from the decoder.
            finer: Pyramid levels of the B images, of 2 and 4 times the grid.
            images: (R,) index of each prompt's image.

        Returns:
            (R, Q, 4 * rows, 4 * columns) mask logits.
        """
        decoder = self.pixel_decoder
        x = self.look_at_prompt(memory, prompt, mask).transpose(1, 2).unflatten(2, grid)
        for level, conv, norm in zip(finer, decoder.conv_layers, decoder.norms, strict=False):
            x = conv(level)[images] + double_learned(x, conv.weight)
            x = group_norm(norm, x).relu()
        last = self.instance_seg_head
        embedded = self.mask_embed(queries)
        weights = embedded @ last.weight.flatten(1)
        logits = torch.bmm(weights.to(x.dtype), x.flatten(2)).float()
        return (logits + (embedded @ last.bias)[..., None]).unflatten(-1, x.shape[-2:])


class FoldedMaskHead(nn.Module):
    """The mask head and the two finer pyramid levels, for inference.

    Args:
        head: Trained mask head, float32.
        neck: Trained neck, float32.
        dtype: Dtype of the convolutions.
    """

    def __init__(self, head: MaskHead, neck: Neck, dtype: torch.dtype) -> None:
        super().__init__()
        self.head, self.boxed = head, head.boxed
        self.levels = nn.ModuleList(FoldedLevel(neck.levels[i], neck.grid, dtype) for i in (1, 0))
        convs = head.pixel_decoder.conv_layers
        for i in range(2):
            kernel = convs[i].weight.detach().float()
            for name, value in ((f"base{i}", kernel), (f"double{i}", after_nearest(kernel))):
                value = value.to(dtype).contiguous(memory_format=torch.channels_last)
                self.register_buffer(name, value, persistent=False)
            self.register_buffer(f"bias{i}", convs[i].bias.detach().to(dtype), persistent=False)

    def read_image(self, x: Tensor) -> list[Tensor]:
        """Compute the pyramid's part of each decoding step.

        Args:
            x: (B, C, h, w) map of the image encoder.

        Returns:
            One map for each step.
        """
        out = []
        for i, level in enumerate(self.levels):
            kernel, bias = getattr(self, f"base{i}"), getattr(self, f"bias{i}")
            out.append(F.conv2d(level(x), kernel, bias, padding=1))
        return out

    def read_pixels(
        self,
        memory: Tensor,
        grid: tuple[int, int],
        prompt: Tensor,
        mask: Tensor,
        image: list[Tensor],
    ) -> Tensor:
        """Compute pixel embeddings, without the last 1 x 1 convolution.

        Args:
            memory: (B, N, C) from the fusion encoder.
            grid: Rows and columns of the N tokens.
            prompt: (B, L, C) prompt tokens.
            mask: (B, L) bool, True where a prompt token is valid.
            image: From ``read_image``.

        Returns:
            (B, C, 4 * rows, 4 * columns).
        """
        x = self.head.look_at_prompt(memory, prompt, mask).transpose(1, 2).unflatten(2, grid)
        for i, base in enumerate(image):
            kernel: Tensor = getattr(self, f"double{i}")
            x = x.to(kernel.dtype, memory_format=torch.channels_last)
            x = double(x, kernel, base=base)
            x = group_norm(self.head.pixel_decoder.norms[i], x).relu_()
        return x

    def read_masks(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """Predict masks from pixel embeddings.

        Args:
            queries: (B, Q, C) from the decoder.
            pixels: (B, C, H, W) from ``read_pixels``.

        Returns:
            (B, Q, H, W) float32 logits.
        """
        embedded = self.head.mask_embed(queries).float()
        last = self.head.instance_seg_head
        weight, bias = last.weight.float().flatten(1), last.bias.float()
        flat = pixels.permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C), no copy
        weights = embedded @ weight
        rounded = weights.to(flat.dtype)
        if flat.dtype == torch.float32:
            logits = flat @ rounded.transpose(1, 2)
        else:
            # The sign of a logit depends on small differences: the rounding error is added back.
            both = torch.cat([rounded, (weights - rounded).to(flat.dtype)], 1)
            high, low = (flat @ both.transpose(1, 2)).float().chunk(2, -1)
            logits = high.add_(low)
        logits = logits.transpose(1, 2) + (embedded @ bias)[..., None]
        return logits.unflatten(-1, pixels.shape[-2:])
