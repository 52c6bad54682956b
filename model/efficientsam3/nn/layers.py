"""Building blocks that several parts share."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_weights(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` in the dtype of the weights; under autocast, which casts both, as it is."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply ``layer`` in the dtype of its weights, whatever the dtype of ``x``."""
    return F.linear(as_weights(x, layer.weight), layer.weight, layer.bias)


def layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalise in float32: residual sums are kept in float32 also when weights are not."""
    return F.layer_norm(x.float(), layer.normalized_shape, layer.weight, layer.bias, layer.eps)


class Mlp(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        widths: input width, hidden widths, output width.
        residual: add the input to the output (equal widths).
        norm: end with a layer norm.
    """

    def __init__(self, *widths: int, residual: bool = False, norm: bool = False) -> None:
        super().__init__()
        pairs = itertools.pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.residual = residual
        self.out_norm = nn.LayerNorm(widths[-1]) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, layer in enumerate(self.layers):
            y = linear(layer, y if i == 0 else y.relu_())
        if self.residual:
            y = y + x
        return y if self.out_norm is None else layer_norm(self.out_norm, y)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a (B, C, H, W) map."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(
            x.float().permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps
        )
        return y.permute(0, 3, 1, 2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads), without a copy."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, D) -> (B, N, heads * D)."""
    return x.transpose(1, 2).flatten(2)


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, heads, N, D) queries, (B, heads, M, D) keys and values -> (B, heads, N, D).

    The backward pass of torch's fused kernel for CPUs is two to six times slower in bfloat16
    than plain products, so what is learned on a CPU uses those.

    Args:
        mask: added to the logits (float) or kept where True (bool).
    """
    if not (q.requires_grad and q.device.type == "cpu"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        logits = (
            logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        )
    return logits.softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head attention with packed projections, keyed as ``nn.MultiheadAttention`` is.

    Queries, keys and values are projected by separate methods so that callers can share
    what does not change: keys of an image between concepts, encodings between images.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def project(self, x: Tensor, first: int, last: int) -> Tensor:
        """Project (B, N, C) by parts ``first`` to ``last`` of query 0, key 1, value 2."""
        rows = slice(first * self.width, (last + 1) * self.width)
        weight = self.in_proj_weight[rows]
        return F.linear(as_weights(x, weight), weight, self.in_proj_bias[rows])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend with projected (B, N, C) queries, keys and values.

        Args:
            mask: added to the logits (float) or kept where True (bool); broadcast to
                (B, heads, N, M).
        """
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        return linear(self.out_proj, merge_heads(dot_product_attention(q, k, v, mask)))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.attend(
            self.project(q, 0, 0), self.project(k, 1, 1), self.project(v, 2, 2), mask
        )


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast linear maps and convolutions below ``module``; convolutions become channels last.

    Norms, embeddings and tables stay float32. New tensors: shared ones are left as they are.
    """
    for child in module.modules():
        if isinstance(child, (nn.Linear, nn.Conv2d, Attention)):
            for key, value in list(child._parameters.items()):
                if value is not None:
                    form = torch.channels_last if value.dim() == 4 else torch.contiguous_format
                    cast_value = value.detach().to(dtype).contiguous(memory_format=form)
                    child._parameters[key] = nn.Parameter(cast_value, requires_grad=False)


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of ``x`` with both probabilities kept at or above ``eps``."""
    return torch.log(x.clamp(eps, 1) / (1 - x).clamp(eps, 1))


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size -> (..., 4) corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)
