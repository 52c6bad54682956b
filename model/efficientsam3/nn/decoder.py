"""The detection decoder of SAM3: queries become boxes, and a token predicts presence."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Attention, Mlp, cxcywh_to_xyxy, inverse_sigmoid, layer_norm, linear
from .positions import encode_boxes


class Decoded(NamedTuple):
    """Output of one decoder layer."""

    queries: Tensor
    """(B, Q, C)."""
    boxes: Tensor
    """(B, Q, 4) cxcywh in [0, 1]."""
    presence: Tensor
    """(B,) logits: whether the concept is in the image."""


class DecoderLayer(nn.Module):
    """Post-norm layer: queries attend to each other, to the prompt and to the image.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.cross_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.ca_text = Attention(width, heads)
        self.catext_norm = nn.LayerNorm(width)
        self.self_attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        prompt: Tensor,
        mask: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor,
        alone: int = 0,
    ) -> Tensor:
        """Update the presence token and the queries.

        Args:
            x: (B, 1 + Q, C): the presence token, then the queries.
            positions: (B, 1 + Q, C) encodings of the boxes; 0 for the presence token.
            prompt: (B, L, C) prompt tokens.
            mask: (B, 1, 1, L) bool, True where a prompt token is valid.
            keys: (B, N, C) projected keys of the image.
            values: (B, N, C) projected values of the image.
            bias: (B, heads, 1 + Q, N) from ``Decoder.box_bias``.
            alone: Number of queries at the end that skip the self-attention.

        Returns:
            (B, 1 + Q, C).
        """
        n = x.shape[1] - alone
        together = x[:, :n]
        placed = together + positions[:, :n]
        together = together + self.self_attn(placed, placed, together)
        x = layer_norm(self.norm2, torch.cat([together, x[:, n:]], 1) if alone else together)
        x = layer_norm(self.catext_norm, x + self.ca_text(x + positions, prompt, prompt, mask))
        queries = self.cross_attn.project(x + positions, 0, 0).to(keys.dtype)
        x = layer_norm(self.norm1, x + self.cross_attn.attend(queries, keys, values, bias))
        return layer_norm(self.norm3, x + linear(self.linear2, linear(self.linear1, x).relu_()))


class Decoder(nn.Module):
    """Learned queries, whose boxes each layer refines, and a presence token.

    Attention to the image is biased by the place of each cell relative to the query's box (the
    "log" form of box-relative position bias; ``boxRPB`` in upstream's sam3/model/decoder.py).

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        depth: Number of layers.
        queries: Number of queries Q.

    Attributes:
        memory_dtype: Dtype of image keys and values, and of the attention to them.
    """

    def __init__(
        self,
        width: int = 256,
        heads: int = 8,
        hidden: int = 2048,
        depth: int = 6,
        queries: int = 200,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.bbox_embed = Mlp(width, width, width, 4)
        self.query_embed = nn.Embedding(queries, width)
        self.reference_points = nn.Embedding(queries, 4)
        self.boxRPB_embed_x = Mlp(2, width, heads)
        self.boxRPB_embed_y = Mlp(2, width, heads)
        self.presence_token = nn.Embedding(1, width)
        self.presence_token_head = Mlp(width, width, width, 1)
        self.presence_token_out_norm = nn.LayerNorm(width)
        self.ref_point_head = Mlp(2 * width, width, width)
        self.memory_dtype = torch.float32

    def references(self) -> Tensor:
        """Return the initial box of each query, (Q, 4) cxcywh in [0, 1]."""
        return self.reference_points.weight.float().sigmoid()

    def place(self, positions: Tensor) -> Tensor:
        """Project positions once; the result is added to the image keys of all layers.

        Args:
            positions: (N, C) encodings of the cells.

        Returns:
            (N, depth * C).
        """
        return F.linear(positions.to(self.memory_dtype), *self._memory(1, bias=False))

    def _memory(self, part: int, bias: bool = True) -> tuple[Tensor, Tensor | None]:
        """Stack weight and bias of the keys (1) or values (2) of all layers."""
        attns = [layer.cross_attn for layer in self.layers]
        rows = slice(part * attns[0].width, (part + 1) * attns[0].width)
        weight = torch.cat([a.in_proj_weight[rows] for a in attns]).to(self.memory_dtype)
        if not bias:
            return weight, None
        return weight, torch.cat([a.in_proj_bias[rows] for a in attns]).to(self.memory_dtype)

    def box_bias(self, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compute the position bias of the attention to the image.

        Args:
            boxes: (B, Q, 4) cxcywh in [0, 1].
            grid: Rows and columns of the N cells.

        Returns:
            (B, heads, 1 + Q, N) logits; 0 for the presence token.
        """
        mlps = self.boxRPB_embed_x, self.boxRPB_embed_y
        return box_relative_bias(*mlps, boxes, grid, self.memory_dtype, before=1)

    def forward(
        self,
        memory: Tensor,
        placed: Tensor,
        grid: tuple[int, int],
        prompt: Tensor,
        mask: Tensor,
        alone: tuple[Tensor, Tensor] | None = None,
    ) -> list[Decoded]:
        """Decode B prompts.

        Args:
            memory: (B, N, C) from the fusion encoder.
            placed: (N, depth * C) from ``place``.
            grid: Rows and columns of the N cells.
            prompt: (B, L, C) prompt tokens.
            mask: (B, L) bool, True where a prompt token is valid.
            alone: Further queries (B, A, C) and their boxes (B, A, 4), which skip the
                self-attention; for training (one-to-many matching, denoising).

        Returns:
            One ``Decoded`` for each layer, with Q + A queries. The last is the result.
        """
        batch, depth = memory.shape[0], len(self.layers)
        memory = memory.to(self.memory_dtype)
        keys = (F.linear(memory, *self._memory(1)) + placed).chunk(depth, -1)
        values = F.linear(memory, *self._memory(2)).chunk(depth, -1)
        mask = mask[:, None, None, :]
        x = torch.cat([self.presence_token.weight, self.query_embed.weight])
        x = x.float().expand(batch, -1, -1)
        boxes = self.references().expand(batch, -1, -1)
        further = 0
        if alone is not None:
            further = alone[0].shape[1]
            x, boxes = torch.cat([x, alone[0]], 1), torch.cat([boxes, alone[1]], 1)
        out = []
        for layer, k, v in zip(self.layers, keys, values, strict=True):
            positions = self.ref_point_head(encode_boxes(boxes, self.norm.normalized_shape[0]))
            positions = F.pad(positions, (0, 0, 1, 0))  # none for the presence token
            x = layer(x, positions, prompt, mask, k, v, self.box_bias(boxes, grid), further)
            queries = layer_norm(self.norm, x[:, 1:])
            refined = (self.bbox_embed(queries) + inverse_sigmoid(boxes)).sigmoid()
            presence = self.presence_token_head(layer_norm(self.presence_token_out_norm, x[:, 0]))
            out.append(Decoded(queries, refined, presence[:, 0]))
            boxes = refined.detach()
        return out


def box_relative_bias(
    mlp_x: Mlp,
    mlp_y: Mlp,
    boxes: Tensor,
    grid: tuple[int, int],
    dtype: torch.dtype,
    before: int = 0,
) -> Tensor:
    """Bias attention by the place of each cell relative to the edges of a box.

    Args:
        mlp_x: Maps the distances to the left and right edge to a logit of each head.
        mlp_y: The same for the upper and lower edge.
        boxes: (B, Q, 4) cxcywh in [0, 1].
        grid: Rows and columns of the N cells.
        dtype: Dtype of the result.
        before: Number of further queries before those of the boxes, with a bias of 0.

    Returns:
        (B, heads, before + Q, N) logits.
    """
    corners = cxcywh_to_xyxy(boxes)

    def axis(mlp: Mlp, cells: int, edges: Tensor) -> Tensor:  # -> (B, heads, before + Q, cells)
        at = torch.arange(cells, device=boxes.device, dtype=torch.float32) / cells
        delta = 8 * (at[:, None] - edges[:, :, None, :])
        delta = delta.sign() * torch.log2(delta.abs() + 1) / math.log2(8)
        logits = mlp(delta).permute(0, 3, 1, 2).to(dtype)
        # The rows of an axis are short, and padded before they become rows of N cells.
        return F.pad(logits, (0, 0, before, 0)).contiguous()

    y = axis(mlp_y, grid[0], corners[..., 1::2])
    x = axis(mlp_x, grid[1], corners[..., 0::2])
    return (y[..., :, None] + x[..., None, :]).flatten(-2)


class DotProductScoring(nn.Module):
    """Scores how well each query fits the prompt.

    Args:
        width: Number of channels C.
        hidden: Width of the prompt's MLP.
        limit: Logits are clamped to [-limit, limit].
    """

    def __init__(self, width: int = 256, hidden: int = 2048, limit: float = 12.0) -> None:
        super().__init__()
        self.prompt_mlp = Mlp(width, hidden, width, residual=True, norm=True)
        self.prompt_proj = nn.Linear(width, width)
        self.hs_proj = nn.Linear(width, width)
        self.limit = limit

    def read_prompt(self, prompt: Tensor, mask: Tensor) -> Tensor:
        """Average the prompt's tokens to the vector that queries are compared with.

        Args:
            prompt: (B, L, C) prompt tokens.
            mask: (B, L) bool, True where a token is valid.

        Returns:
            (B, C).
        """
        weight = mask[..., None].float()
        pooled = (self.prompt_mlp(prompt) * weight).sum(1) / weight.sum(1).clamp(min=1)
        return linear(self.prompt_proj, pooled)

    def forward(self, queries: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        """Score the queries of B prompts.

        Args:
            queries: (B, Q, C).
            prompt: (B, L, C) prompt tokens.
            mask: (B, L) bool, True where a token is valid.

        Returns:
            (B, Q) logits.
        """
        target = self.read_prompt(prompt, mask)
        return self._bound(linear(self.hs_proj, queries) @ target[..., None]).squeeze(-1)

    def compare(self, tokens: Tensor, prompts: Tensor, mask: Tensor) -> Tensor:
        """Score tokens against several prompts, for training.

        Args:
            tokens: (B, N, C).
            prompts: (K, L, C) tokens of K prompts.
            mask: (K, L) bool, True where a token is valid.

        Returns:
            (B, N, K) logits.
        """
        return self._bound(linear(self.hs_proj, tokens) @ self.read_prompt(prompts, mask).T)

    def _bound(self, products: Tensor) -> Tensor:
        logits = products.float() / math.sqrt(self.hs_proj.out_features)
        return logits.clamp(-self.limit, self.limit)
