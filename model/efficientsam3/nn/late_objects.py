"""The objects that an image may show, found without a prompt: the first part of late fusion.

SAM3 fuses the prompt with the image's tokens before it looks for objects, so that every phrase
costs as much as the image does. In late fusion the costly parts do not read the prompt:
``ObjectDecoder`` finds objects of any kind, ``PixelHead`` (late_masks.py) draws their masks, and
``PromptDecoder`` (late_prompts.py) compares a prompt with the few dozen objects that were found. A
further phrase costs little, and one training step teaches masks on every object of an image and
any number of phrases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .decoder import Decoded, box_relative_bias
from .late_coarse import CoarseStage
from .late_windows import WindowLayer, WindowMap
from .layers import Attention, Mlp, inverse_sigmoid, layer_norm, linear
from .positions import encode_boxes

ANCHOR_SIDE = 0.2
"""Side of the box from which a token's prediction starts, as a share of the image."""
WINDOW_CHANNELS = 48
"""Channels of the features that windows show."""
COARSE_DEPTH = 3
"""Blocks of the stage of stride 32."""
OBJECT_PRIOR = -4.0
"""Initial logit of a token showing an object."""


class ObjectQueries(NamedTuple):
    """The objects that B images may show, best first."""

    queries: Tensor
    """(B, Q, C) embeddings."""
    boxes: Tensor
    """(B, Q, 4) cxcywh in [0, 1]."""
    logits: Tensor
    """(B, Q) logits: whether the query is an object of its own."""
    layers: tuple[tuple[Decoded, Tensor], ...] = ()
    """Output and object logits of each decoder layer, for training."""
    token_logits: Tensor | None = None
    """(B, N) logits of the tokens, for training."""
    token_boxes: Tensor | None = None
    """(B, N, 4) boxes of the tokens, cxcywh in [0, 1], for training."""

    def take(self, rows: Tensor) -> ObjectQueries:
        """Select the image of each prompt.

        Args:
            rows: (P,) index of the image for each of P prompts.
        """
        return ObjectQueries(self.queries[rows], self.boxes[rows], self.logits[rows])


def join_queries(images: Sequence[ObjectQueries]) -> ObjectQueries:
    """Join the objects of images.

    Args:
        images: Objects of one image each.
    """
    queries, boxes, logits = (
        torch.cat(parts) for parts in zip(*(image[:3] for image in images), strict=True)
    )
    return ObjectQueries(queries, boxes, logits)


class SelfAttentionLayer(nn.Module):
    """Pre-norm layer: self-attention with positions, then feed-forward.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Update the tokens.

        Args:
            x: (B, N, C).
            positions: (N, C), added to queries and keys.

        Returns:
            (B, N, C).
        """
        y = layer_norm(self.norm1, x)
        placed = y + positions
        x = x + self.self_attn(placed, placed, y)
        return x + linear(self.linear2, linear(self.linear1, layer_norm(self.norm2, x)).relu_())


class ObjectLayer(nn.Module):
    """Pre-norm layer: queries attend to each other and to the image.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.cross_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(
        self,
        x: Tensor,
        places: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Update the queries.

        Args:
            x: (B, Q, C).
            places: (B, Q, C) encodings of the boxes.
            keys: (B, N, C) tokens with positions.
            values: (B, N, C) tokens.
            bias: (B, heads, Q, N) logits of the position of each cell relative to the box.
            mask: (Q, Q) bool, True where row attends to column; None: everywhere.

        Returns:
            (B, Q, C).
        """
        y = layer_norm(self.norm1, x)
        placed = y + places
        x = x + self.self_attn(placed, placed, y, mask)
        y = layer_norm(self.norm2, x)
        x = x + self.cross_attn(y + places, keys, values, bias)
        return x + linear(self.linear2, linear(self.linear1, layer_norm(self.norm3, x)).relu_())


class ObjectDecoder(nn.Module):
    """Finds the objects of images: the best tokens become queries, whose boxes each layer refines.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        encoder_depth: Layers of self-attention between the tokens.
        depth: Layers of the queries.
        queries: Number of queries Q.
        fine: Channels of the encoder's map of stride 8.
        windows: Layers in which the queries read windows of finer features; 0: none.
        coarse: Channels of the stage of stride 32; 0: none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        encoder_depth: int,
        depth: int,
        queries: int,
        fine: int = 0,
        windows: int = 0,
        coarse: int = 0,
    ) -> None:
        super().__init__()
        self.queries = queries
        self.coarse = CoarseStage(width, coarse, COARSE_DEPTH) if coarse else None
        self.encoder = nn.ModuleList(
            SelfAttentionLayer(width, heads, hidden) for _ in range(encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.token_score = nn.Linear(width, 1)
        self.token_box = Mlp(width, width, 4)
        self.layers = nn.ModuleList(ObjectLayer(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.box_head = Mlp(width, width, 4)
        self.score_head = nn.Linear(width, 1)
        self.place_head = Mlp(2 * width, width, width)
        self.bias_x = Mlp(2, 32, heads)
        self.bias_y = Mlp(2, 32, heads)
        self.window_map = WindowMap(width, fine, WINDOW_CHANNELS) if windows else None
        self.windows = nn.ModuleList(
            WindowLayer(width, WINDOW_CHANNELS, hidden) for _ in range(windows)
        )
        for layer in (self.token_score, self.score_head):
            nn.init.constant_(layer.bias, OBJECT_PRIOR)
        for mlp in (self.token_box, self.box_head):
            nn.init.zeros_(mlp.layers[-1].weight)
            nn.init.zeros_(mlp.layers[-1].bias)

    def encode(self, tokens: Tensor, positions: Tensor, grid: tuple[int, int]) -> Tensor:
        """Let the tokens of images attend to each other.

        Args:
            tokens: (B, N, C).
            positions: (N, C) encodings of the cells.
            grid: Rows and columns of the N cells.

        Returns:
            (B, N, C), normalized.
        """
        if self.coarse is not None:
            tokens = self.coarse(tokens, grid)
        for layer in self.encoder:
            tokens = layer(tokens, positions)
        return layer_norm(self.encoder_norm, tokens)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        grid: tuple[int, int],
        fine: Tensor,
        given: Tensor | None = None,
    ) -> ObjectQueries:
        """Find objects.

        Args:
            tokens: (B, N, C) from ``encode``.
            positions: (N, C) encodings of the cells.
            grid: Rows and columns of the N cells.
            fine: The encoder's map of stride 8.
            given: (B, G, 4) cxcywh boxes of further queries, for training: each starts at the token
                under the middle of its box. They come last in the result.

        Returns:
            The objects, Q + G of each image.
        """
        logits = linear(self.token_score, tokens).squeeze(-1).float()
        anchors = cell_anchors(grid, tokens.device)
        boxes = (self.token_box(tokens).float() + inverse_sigmoid(anchors)).sigmoid()
        best = logits.topk(min(self.queries, logits.shape[1]), 1).indices
        start = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach()
        mask = None
        if given is not None:
            mask = separate(best.shape[1], given.shape[1], tokens.device)
            best = torch.cat([best, cell_at(given, grid)], 1)
            start = torch.cat([start, given], 1)
        x = tokens.gather(1, best[..., None].expand(-1, -1, tokens.shape[-1]))
        keys = tokens + positions
        out, at = [], start
        for layer in self.layers:
            places = self.place_head(encode_boxes(at, x.shape[-1]))
            bias = box_relative_bias(self.bias_x, self.bias_y, at, grid, x.dtype)
            x = layer(x, places, keys, tokens, bias, mask)
            y = layer_norm(self.norm, x)
            refined = (self.box_head(y).float() + inverse_sigmoid(at)).sigmoid()
            found = linear(self.score_head, y).squeeze(-1).float()
            out.append((Decoded(y, refined, found), found))
            at = refined.detach()
        features = None if self.window_map is None else self.window_map(tokens, grid, fine)
        for window in self.windows:
            x, refined = window(x, at, features)
            y = layer_norm(self.norm, x)
            found = linear(self.score_head, y).squeeze(-1).float()
            out.append((Decoded(y, refined, found), found))
            at = refined.detach()
        last, found = out[-1]
        return ObjectQueries(last.queries, last.boxes, found, tuple(out), logits, boxes)


def separate(found: int, given: int, device: torch.device) -> Tensor:
    """Which queries attend to each other: found ones to all found ones, given ones to themselves.

    Args:
        found: Number of queries that were found.
        given: Number of queries that were given.
        device: Device of the result.

    Returns:
        (found + given, found + given) bool.
    """
    mask = torch.eye(found + given, dtype=torch.bool, device=device)
    mask[:found, :found] = True
    return mask


def cell_anchors(grid: tuple[int, int], device: torch.device) -> Tensor:
    """A box in the middle of each cell: (rows * columns, 4) cxcywh in [0, 1].

    Args:
        grid: Rows and columns.
        device: Device of the result.
    """
    y = (torch.arange(grid[0], device=device) + 0.5) / grid[0]
    x = (torch.arange(grid[1], device=device) + 0.5) / grid[1]
    side = torch.full((grid[0], grid[1]), ANCHOR_SIDE, device=device)
    return torch.stack(
        [x.expand(grid[0], -1), y[:, None].expand(-1, grid[1]), side, side], -1
    ).flatten(0, 1)


def cell_at(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """The cell under the middle of each box.

    Args:
        boxes: (..., 4) cxcywh in [0, 1].
        grid: Rows and columns.

    Returns:
        (...,) int64 index of the cell.
    """
    column = (boxes[..., 0] * grid[1]).long().clamp(0, grid[1] - 1)
    row = (boxes[..., 1] * grid[0]).long().clamp(0, grid[0] - 1)
    return row * grid[1] + column
