"""The geometry encoder: exemplars (boxes and points) become prompt tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from .layers import Attention, cxcywh_to_xyxy, layer_norm, linear
from .positions import encode_points


class Exemplars(NamedTuple):
    """Exemplars of B concepts, padded to the same number."""

    points: Tensor
    """(B, P, 2) xy in [0, 1]."""
    point_labels: Tensor
    """(B, P) 1 positive, 0 negative."""
    point_valid: Tensor
    """(B, P) bool, False where padded."""
    boxes: Tensor
    """(B, K, 4) cxcywh in [0, 1]."""
    box_labels: Tensor
    """(B, K) 1 positive, 0 negative."""
    box_valid: Tensor
    """(B, K) bool, False where padded."""


class GeometryLayer(nn.Module):
    """Pre-norm layer: tokens attend to each other, then to the image.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.cross_attn_image = Attention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None, keys: Tensor, values: Tensor) -> Tensor:
        """Update the tokens.

        Args:
            x: (B, T, C) tokens.
            mask: (B, 1, 1, T) bool, True where a token is valid; None where all are.
            keys: (1 or B, N, C) projected keys of the image.
            values: (1 or B, N, C) projected values of the image.

        Returns:
            (B, T, C).
        """
        y = layer_norm(self.norm1, x)
        x = x + self.self_attn(y, y, y, mask)
        attn = self.cross_attn_image
        queries = attn.project(layer_norm(self.norm2, x), 0, 0)
        batch = (x.shape[0], -1, -1)
        x = x + attn.attend(queries, keys.expand(batch), values.expand(batch))
        return x + linear(self.linear2, linear(self.linear1, layer_norm(self.norm3, x)).relu_())


class GeometryEncoder(nn.Module):
    """Encodes exemplars and one class token, which attend to the image.

    The class token is part of every prompt, also without exemplars.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        depth: Number of layers.
        roi: Cells a side that RoIAlign samples in a box.
    """

    def __init__(
        self, width: int = 256, heads: int = 8, hidden: int = 2048, depth: int = 3, roi: int = 7
    ) -> None:
        super().__init__()
        self.roi = roi
        self.label_embed = nn.Embedding(2, width)
        self.cls_embed = nn.Embedding(1, width)
        self.points_direct_project = nn.Linear(2, width)
        self.points_pool_project = nn.Linear(width, width)
        self.points_pos_enc_project = nn.Linear(width, width)
        self.boxes_direct_project = nn.Linear(4, width)
        self.boxes_pool_project = nn.Conv2d(width, width, roi)
        self.boxes_pos_enc_project = nn.Linear(width + 2, width)
        self.img_pre_norm = nn.LayerNorm(width)
        self.final_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.encode = nn.ModuleList(GeometryLayer(width, heads, hidden) for _ in range(depth))
        self.encode_norm = nn.LayerNorm(width)

    def read_image(self, tokens: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Compute keys and values of each layer, which all prompts of an image share.

        Args:
            tokens: (1 or B, N, C) tokens of the coarsest pyramid level.
            positions: (N, C) encodings of the cells.

        Returns:
            For each layer its keys and values, (1 or B, N, C).
        """
        placed = tokens + positions
        return [
            (
                layer.cross_attn_image.project(placed, 1, 1),
                layer.cross_attn_image.project(tokens, 2, 2),
            )
            for layer in self.encode
        ]

    def forward(
        self,
        tokens: Tensor,
        grid: tuple[int, int],
        image: list[tuple[Tensor, Tensor]],
        exemplars: Exemplars | None = None,
        batch: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Encode the exemplars of B prompts.

        Args:
            tokens: (1 or B, N, C) tokens of the coarsest pyramid level.
            grid: Rows and columns of the N tokens.
            image: From ``read_image``.
            exemplars: Exemplars of B prompts; None for prompts without exemplars.
            batch: Number of prompts B where there are no exemplars.

        Returns:
            Tokens (B, P + K + 1, C), the class token last, and their mask (B, P + K + 1) bool,
            True where valid.
        """
        parts, valid = [], []
        if exemplars is not None:
            batch = exemplars.boxes.shape[0]
            level = layer_norm(self.img_pre_norm, tokens).transpose(1, 2).unflatten(2, grid)
            level = level.expand(batch, -1, -1, -1)
            if exemplars.points.shape[1]:
                parts.append(self._points(exemplars, level))
                valid.append(exemplars.point_valid)
            if exemplars.boxes.shape[1]:
                parts.append(self._boxes(exemplars, level))
                valid.append(exemplars.box_valid)
        parts.append(self.cls_embed.weight.float().expand(batch, 1, -1))
        valid.append(torch.ones(batch, 1, dtype=torch.bool, device=tokens.device))
        x, keep = torch.cat(parts, 1), torch.cat(valid, 1)
        x = layer_norm(self.norm, linear(self.final_proj, x))
        mask = None if len(parts) == 1 else keep[:, None, None, :]
        for layer, (keys, values) in zip(self.encode, image, strict=True):
            x = layer(x, mask, keys, values)
        return layer_norm(self.encode_norm, x), keep

    def _points(self, exemplars: Exemplars, level: Tensor) -> Tensor:
        xy = exemplars.points
        pooled = F.grid_sample(level, 2 * xy[:, :, None] - 1, align_corners=False)
        x, y = encode_points(xy, self.label_embed.embedding_dim)
        return (
            linear(self.points_direct_project, xy)
            + linear(self.points_pool_project, pooled.squeeze(-1).transpose(1, 2))
            + linear(self.points_pos_enc_project, torch.cat([x, y], -1))
            + self.label_embed(exemplars.point_labels.long())
        ).float()

    def _boxes(self, exemplars: Exemplars, level: Tensor) -> Tensor:
        boxes = exemplars.boxes
        height, width = level.shape[-2:]
        cells = cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])
        pooled = torchvision.ops.roi_align(level, list(cells), self.roi)
        weight = self.boxes_pool_project.weight
        pooled = F.conv2d(pooled.to(weight.dtype), weight, self.boxes_pool_project.bias)
        x, y = encode_points(boxes[..., :2], self.label_embed.embedding_dim)
        size = boxes[..., [3, 2]]  # height, then width
        return (
            linear(self.boxes_direct_project, boxes)
            + pooled.view(*boxes.shape[:2], -1)
            + linear(self.boxes_pos_enc_project, torch.cat([y, x, size], -1))
            + self.label_embed(exemplars.box_labels.long())
        ).float()
