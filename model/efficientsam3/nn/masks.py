"""The mask head: pixel embeddings from the pyramid and the fused tokens, one mask a query.

``MaskHead`` is the mathematics as it is learned. ``FoldedMaskHead`` gives the same masks
with less arithmetic: the convolution of a sum is a sum of convolutions, so the pyramid's
part is computed once an image; a 3 x 3 convolution after nearest-neighbour doubling is
four 2 x 2 convolutions at the lower resolution; the last 1 x 1 convolution moves into the
query's embedding, so it costs nothing a pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention, Mlp, as_weights, layer_norm
from .neck import FoldedLevel, Neck, after_nearest, double, double_learned


class PixelDecoder(nn.Module):
    """Coarse to fine: double, add the finer level, convolve.

    Checkpoints carry three steps; the pyramid has levels for two.
    """

    def __init__(self, width: int, steps: int = 3, groups: int = 8) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for _ in range(steps)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width) for _ in range(steps))

    def forward(self, fused: Tensor, finer: list[Tensor]) -> Tensor:
        """Args:
        fused: (B, C, h, w). finer: levels of 2, 4, ... times its size, coarsest first.
        """
        x = fused
        for level, conv, norm in zip(finer, self.conv_layers, self.norms, strict=False):
            x = level + F.interpolate(x, scale_factor=2, mode="nearest")
            x = group_norm(norm, conv(as_weights(x, conv.weight))).relu_()
        return x


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Group norm in the dtype of ``x``; statistics are float32 in any case."""
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)


OUTSIDE = -32.0
"""Logit of what is no part of a mask."""
WIDER = 0.1
"""By this share of their sides, and a cell, boxes are widened before masks are cut to them."""


def within(logits: Tensor, boxes: Tensor) -> Tensor:
    """Masks that end where their boxes do.

    Args:
        logits: (..., h, w). boxes: (..., 4) cxcywh in [0, 1].
    """
    places = []
    for axis, cells in enumerate(logits.shape[-2:]):
        at = (torch.arange(cells, device=logits.device) + 0.5) / cells
        middle, size = boxes[..., 1 - axis, None], boxes[..., 3 - axis, None]
        places.append((at - middle).abs() <= size * (0.5 + WIDER) + 1 / cells)
    rows, columns = places
    return logits.masked_fill(~(rows[..., None] & columns[..., None, :]), OUTSIDE)


class MaskHead(nn.Module):
    """``boxed``: masks are to be cut to their boxes, which this head does not see; see
    ``within``.
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
        """(B, N, C) fused tokens that have looked at the (B, L, C) prompt once more."""
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
        """Args:
            memory: (B, N, C) from the fusion encoder. prompt, mask: (B, L, C), (B, L).
            queries: (B, Q, C). finer: pyramid levels of 2 and 4 times the grid.

        Returns: (B, Q, 4 * rows, 4 * columns) mask logits.
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
        """The same for R prompts on B images, at less than half the cost; for training.

        The pyramid's part of each convolution is computed once an image.

        Args:
            memory, prompt, mask, queries: of R prompts. finer: levels of B images.
            images: (R,), the image of each prompt.

        Returns: (R, Q, 4 * rows, 4 * columns) mask logits.
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
    """``MaskHead`` and the two finer pyramid levels, for inference.

    Args:
        head, neck: as learned, float32.
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
        """Encoder map (B, C, h, w) -> what the pyramid adds in each step."""
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
        """Pixel embeddings (B, C, 4 * rows, 4 * columns) before the last 1 x 1 convolution."""
        x = self.head.look_at_prompt(memory, prompt, mask).transpose(1, 2).unflatten(2, grid)
        for i, base in enumerate(image):
            kernel: Tensor = getattr(self, f"double{i}")
            x = x.to(kernel.dtype, memory_format=torch.channels_last)
            x = double(x, kernel, base=base)
            x = group_norm(self.head.pixel_decoder.norms[i], x).relu_()
        return x

    def read_masks(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """(B, Q, C) queries and (B, C, H, W) pixels -> (B, Q, H, W) float32 logits."""
        embedded = self.head.mask_embed(queries).float()
        last = self.head.instance_seg_head
        weight, bias = last.weight.float().flatten(1), last.bias.float()
        flat = pixels.permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C), no copy
        weights = embedded @ weight
        rounded = weights.to(flat.dtype)
        if flat.dtype == torch.float32:
            logits = flat @ rounded.transpose(1, 2)
        else:
            # A mask's sign hangs on small differences: add what rounding took from the weights.
            both = torch.cat([rounded, (weights - rounded).to(flat.dtype)], 1)
            high, low = (flat @ both.transpose(1, 2)).float().chunk(2, -1)
            logits = high.add_(low)
        logits = logits.transpose(1, 2) + (embedded @ bias)[..., None]
        return logits.unflatten(-1, pixels.shape[-2:])


def suppress(masks: Tensor, limit: float) -> Tensor:
    """Indices of (N, h, w) masks, best first, that overlap no better one by more than ``limit``."""
    with torch.autocast(masks.device.type, enabled=False):  # cells are counted
        flat = masks.flatten(1).float()
        shared = flat @ flat.T
    area = shared.diagonal()
    overlap = (shared / (area[:, None] + area - shared).clamp(min=1)).cpu().numpy()
    kept: list[int] = []
    for i in range(len(overlap)):
        if not kept or overlap[i, kept].max() <= limit:
            kept.append(i)
    return torch.tensor(kept, device=masks.device)
