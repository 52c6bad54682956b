"""Layers and functions that several parts of the network share."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_weights(x: Tensor, weight: Tensor) -> Tensor:
    """Cast an input to the dtype of a weight, unless autocast is on and casts both.

    Args:
        x: Any tensor.
        weight: The weight that ``x`` is combined with.

    Returns:
        ``x``, cast or as it is.
    """
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in the dtype of its weights.

    Args:
        layer: The layer.
        x: (..., C) in any floating-point dtype.

    Returns:
        (..., C_out) in the dtype of the weights.
    """
    return F.linear(as_weights(x, layer.weight), layer.weight, layer.bias)


def layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """Apply a layer norm in float32. Residual sums stay float32 where weights are not.

    Args:
        layer: The layer norm.
        x: (..., C).

    Returns:
        (..., C) float32.
    """
    return F.layer_norm(x.float(), layer.normalized_shape, layer.weight, layer.bias, layer.eps)


class Mlp(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        *widths: Width of the input, of each hidden layer, and of the output.
        residual: Add the input to the output, which must be equally wide.
        norm: Apply a layer norm at the end.
    """

    def __init__(self, *widths: int, residual: bool = False, norm: bool = False) -> None:
        super().__init__()
        pairs = itertools.pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.residual = residual
        self.out_norm = nn.LayerNorm(widths[-1]) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C_in) to (..., C_out).

        Args:
            x: (..., C_in).

        Returns:
            (..., C_out).
        """
        y = x
        for i, layer in enumerate(self.layers):
            y = linear(layer, y if i == 0 else y.relu_())
        if self.residual:
            y = y + x
        return y if self.out_norm is None else layer_norm(self.out_norm, y)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a map.

    Args:
        width: Number of channels C.
        eps: Added to the variance.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a map.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, H, W) float32.
        """
        y = F.layer_norm(
            x.float().permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps
        )
        return y.permute(0, 3, 1, 2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split channels into attention heads, without a copy.

    Args:
        x: (B, N, C).
        heads: Number of heads; divides C.

    Returns:
        (B, heads, N, C / heads).
    """
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Join attention heads to channels.

    Args:
        x: (B, heads, N, D).

    Returns:
        (B, N, heads * D).
    """
    return x.transpose(1, 2).flatten(2)


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention.

    The backward pass of torch's fused CPU kernel is two to six times slower in bfloat16 than
    plain matrix products, so training on a CPU uses products.

    Args:
        q: (B, heads, N, D) queries.
        k: (B, heads, M, D) keys.
        v: (B, heads, M, D) values.
        mask: Broadcast to (B, heads, N, M). A float mask is added to the logits; with a bool mask,
            positions that are False are not attended to.

    Returns:
        (B, heads, N, D).
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
    """Multi-head attention with packed projections and the keys of ``nn.MultiheadAttention``.

    Projection and attention are separate methods, so callers can compute once what does not
    change: the keys of an image for all concepts, positional terms for all images.

    Args:
        width: Number of channels C.
        heads: Number of heads; divides C.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def project(self, x: Tensor, first: int, last: int) -> Tensor:
        """Project by a range of the packed projections: query 0, key 1, value 2.

        Args:
            x: (B, N, C).
            first: First projection.
            last: Last projection, inclusive.

        Returns:
            (B, N, (last - first + 1) * C).
        """
        rows = slice(first * self.width, (last + 1) * self.width)
        weight = self.in_proj_weight[rows]
        return F.linear(as_weights(x, weight), weight, self.in_proj_bias[rows])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend with projected queries, keys and values.

        Args:
            q: (B, N, C) projected queries.
            k: (B, M, C) projected keys.
            v: (B, M, C) projected values.
            mask: As in ``dot_product_attention``.

        Returns:
            (B, N, C).
        """
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        return linear(self.out_proj, merge_heads(dot_product_attention(q, k, v, mask)))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project and attend.

        Args:
            q: (B, N, C) inputs of the queries.
            k: (B, M, C) inputs of the keys.
            v: (B, M, C) inputs of the values.
            mask: As in ``dot_product_attention``.

        Returns:
            (B, N, C).
        """
        return self.attend(
            self.project(q, 0, 0), self.project(k, 1, 1), self.project(v, 2, 2), mask
        )


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast the linear layers, convolutions and attentions of a module in place.

    Weights of convolutions become channels last. Norms, embeddings and tables stay float32. New
    tensors are made, so tensors that are shared with another module do not change.

    Args:
        module: The module.
        dtype: Floating-point dtype.
    """
    for child in module.modules():
        if isinstance(child, (nn.Linear, nn.Conv2d, Attention)):
            for key, value in list(child._parameters.items()):
                if value is not None:
                    form = torch.channels_last if value.dim() == 4 else torch.contiguous_format
                    cast_value = value.detach().to(dtype).contiguous(memory_format=form)
                    child._parameters[key] = nn.Parameter(cast_value, requires_grad=False)


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Compute the logit of a probability.

    Args:
        x: Probabilities in [0, 1].
        eps: Lower limit of ``x`` and of 1 - ``x``.

    Returns:
        The logits.
    """
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert boxes from center and size to corners.

    Args:
        boxes: (..., 4) cx, cy, w, h.

    Returns:
        (..., 4) x0, y0, x1, y1.
    """
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert boxes from corners to center and size.

    Args:
        boxes: (..., 4) x0, y0, x1, y1.

    Returns:
        (..., 4) cx, cy, w, h.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)
