"""The interactive head (as in SAM 2): segments one object from points, a box or a mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import NOT_A_POINT
from .layers import (
    LayerNorm2d,
    Mlp,
    dot_product_attention,
    layer_norm,
    linear,
    merge_heads,
    split_heads,
)
from .positions import FourierPositions


class InteractiveFeatures(NamedTuple):
    """Image features of the interactive head."""

    coarse: Tensor
    """(1, C, h, w)."""
    middle: Tensor
    """(1, C / 4, 2h, 2w)."""
    fine: Tensor
    """(1, C / 8, 4h, 4w)."""


class ObjectMasks(NamedTuple):
    """Masks of B prompts."""

    logits: Tensor
    """(B, M, 4h, 4w) mask logits."""
    quality: Tensor
    """(B, M) predicted IoU."""
    tokens: Tensor
    """(B, M, C) mask tokens."""
    presence: Tensor
    """(B,) logits: whether there is an object."""


class PromptEncoder(FourierPositions):
    """Encodes points as sparse and masks as dense embeddings.

    Args:
        width: Number of channels C.
        resolution: Pixels a side of the encoder's input. A click is moved to the pixel's center.
        mask_width: Channels of the mask convolutions.
    """

    def __init__(self, width: int, resolution: int, mask_width: int = 16) -> None:
        super().__init__(width)
        self.half_pixel = 0.5 / resolution
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_width // 4, 2, 2),
            LayerNorm2d(mask_width // 4),
            nn.GELU(),
            nn.Conv2d(mask_width // 4, mask_width, 2, 2),
            LayerNorm2d(mask_width),
            nn.GELU(),
            nn.Conv2d(mask_width, width, 1),
        )
        self.no_mask_embed = nn.Embedding(1, width)

    def points(self, xy: Tensor, labels: Tensor) -> Tensor:
        """Encode points.

        Args:
            xy: (B, N, 2) in [0, 1].
            labels: (B, N), see ``POSITIVE`` and its neighbors.

        Returns:
            (B, N + 1, C), the last row for padding; (B, 0, C) without points.
        """
        if not xy.shape[1]:
            return self.no_mask_embed.weight.new_zeros(len(xy), 0, self.frequencies.shape[1] * 2)
        xy = F.pad(xy.float() + self.half_pixel, (0, 0, 0, 1))
        labels = F.pad(labels, (0, 1), value=NOT_A_POINT)
        out = self.encode(xy) * (labels != NOT_A_POINT)[..., None]
        own = [*self.point_embeddings, self.not_a_point_embed]
        kinds = torch.cat([embedding.weight for embedding in own])
        return out + kinds[labels]  # the label -1 of padding selects the last row

    def masks(self, logits: Tensor | None, batch: int) -> Tensor:
        """Encode masks.

        Args:
            logits: (B, 1, 4h, 4w) mask logits, or None.
            batch: Number of prompts B.

        Returns:
            (B, C, h, w), or (B, C, 1, 1) without masks.
        """
        if logits is None:
            return self.no_mask_embed.weight[:, :, None, None].expand(batch, -1, 1, 1)
        return self.mask_downscaling(logits)


class PairAttention(nn.Module):
    """Attention with separate projections and fewer channels inside.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        shrink: The attention has C / shrink channels.
    """

    def __init__(self, width: int, heads: int, shrink: int = 1) -> None:
        super().__init__()
        self.heads = heads
        inner = width // shrink
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Project and attend.

        Args:
            q: (B, N, C) inputs of the queries.
            k: (B, M, C) inputs of the keys.
            v: (B, M, C) inputs of the values.

        Returns:
            (B, N, C).
        """
        q = split_heads(linear(self.q_proj, q), self.heads)
        k = split_heads(linear(self.k_proj, k), self.heads)
        v = split_heads(linear(self.v_proj, v), self.heads)
        return linear(self.out_proj, merge_heads(dot_product_attention(q, k, v)))


class TwoWayLayer(nn.Module):
    """Tokens attend to themselves and to the image; the image attends to the tokens.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layer.
        first: Whether this is the first layer, in which tokens equal their positions.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = PairAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = PairAttention(width, heads, 2)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = PairAttention(width, heads, 2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_positions: Tensor, image_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update tokens and image.

        Args:
            tokens: (B, T, C).
            image: (B, N, C).
            token_positions: (B, T, C), the initial tokens.
            image_positions: (N, C).

        Returns:
            Tokens and image, updated.
        """
        if self.first:  # the tokens equal their positions
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_positions
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = layer_norm(self.norm1, tokens)
        seen = self.cross_attn_token_to_image(
            tokens + token_positions, image + image_positions, image
        )
        tokens = layer_norm(self.norm2, tokens + seen)
        fed = linear(self.fc2, linear(self.fc1, tokens).relu_())
        tokens = layer_norm(self.norm3, tokens + fed)
        told = self.cross_attn_image_to_token(
            image + image_positions, tokens + token_positions, tokens
        )
        return tokens, layer_norm(self.norm4, image + told)


class TwoWayTransformer(nn.Module):
    """Two-way layers and a last attention of the tokens to the image.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        depth: Number of layers.
    """

    def __init__(self, width: int, heads: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayLayer(width, heads, hidden, first=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = PairAttention(width, heads, 2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, image: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Update tokens and image.

        Args:
            tokens: (B, T, C).
            image: (B, N, C).
            positions: (N, C) encodings of the image cells.

        Returns:
            Tokens and image, updated.
        """
        prompt = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt, positions)
        seen = self.final_attn_token_to_image(tokens + prompt, image + positions, image)
        return layer_norm(self.norm_final_attn, tokens + seen), image


class MaskDecoder(nn.Module):
    """Decodes one mask for each prompt, or three for an ambiguous prompt.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        depth: Number of two-way layers.
        stability_delta: Logit by which the mask threshold is moved to test stability.
        stability_threshold: A single mask is replaced by the best of the three where its area at
            threshold +delta over that at -delta is smaller.
    """

    def __init__(
        self,
        width: int = 256,
        heads: int = 8,
        hidden: int = 2048,
        depth: int = 2,
        stability_delta: float = 0.05,
        stability_threshold: float = 0.98,
    ) -> None:
        super().__init__()
        self.stability_delta, self.stability_threshold = stability_delta, stability_threshold
        self.transformer = TwoWayTransformer(width, heads, hidden, depth)
        self.obj_score_token = nn.Embedding(1, width)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(4, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, 2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, 2),
            nn.GELU(),
        )
        self.conv_s0 = nn.Conv2d(width, width // 8, 1)
        self.conv_s1 = nn.Conv2d(width, width // 4, 1)
        self.output_hypernetworks_mlps = nn.ModuleList(
            Mlp(width, width, width, width // 8) for _ in range(4)
        )
        self.iou_prediction_head = Mlp(width, width, width, 4)
        self.pred_obj_score_head = Mlp(width, width, width, 1)

    def forward(
        self,
        features: InteractiveFeatures,
        positions: Tensor,
        sparse: Tensor,
        dense: Tensor,
        *,
        multimask: bool,
    ) -> ObjectMasks:
        """Decode the masks of B prompts.

        Args:
            features: Features of one image.
            positions: (N, C) encodings of its coarse cells.
            sparse: (B, T, C) embeddings of points.
            dense: (B, C, h, w) or (B, C, 1, 1) embeddings of masks.
            multimask: Whether to return three masks for each prompt.

        Returns:
            M = 3 masks with ``multimask``, otherwise M = 1.
        """
        found = self.decode(features, positions, sparse, dense)
        if not multimask:
            return self.choose_single(found)
        logits, quality, tokens, presence = found
        return ObjectMasks(logits[:, 1:], quality[:, 1:], tokens[:, 1:], presence)

    def decode(
        self, features: InteractiveFeatures, positions: Tensor, sparse: Tensor, dense: Tensor
    ) -> ObjectMasks:
        """Decode all four masks of B prompts: the single one, then the three candidates.

        Args:
            features: Features of one image.
            positions: (N, C) encodings of its coarse cells.
            sparse: (B, T, C) embeddings of points.
            dense: (B, C, h, w) or (B, C, 1, 1) embeddings of masks.

        Returns:
            M = 4 masks.
        """
        own = [self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight]
        tokens = torch.cat(own).float().expand(sparse.shape[0], -1, -1)
        tokens = torch.cat([tokens, sparse.float()], 1)
        image = features.coarse.float() + dense.float()
        tokens, image = self.transformer(tokens, image.flatten(2).transpose(1, 2), positions)
        mask_tokens = tokens[:, 2:6]
        logits = self.draw(mask_tokens, self.upscale(image, features))
        quality = self.iou_prediction_head(tokens[:, 1]).float().sigmoid()
        presence = self.pred_obj_score_head(tokens[:, 0]).float()[:, 0]
        return ObjectMasks(logits, quality, mask_tokens, presence)

    def upscale(self, image: Tensor, features: InteractiveFeatures) -> Tensor:
        """Compute the pixel embeddings, with the finer features.

        Args:
            image: (B, N, C) tokens of the transformer.
            features: Features of one image.

        Returns:
            (B, C / 8, 4h, 4w) float32.
        """
        size = features.coarse.shape[-2:]
        up1, norm, act1, up2, act2 = self.output_upscaling
        pixels = image.transpose(1, 2).unflatten(2, size).to(up1.weight.dtype)
        pixels = act1(norm(up1(pixels) + features.middle)).to(up2.weight.dtype)
        return act2(up2(pixels) + features.fine).float()

    def draw(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Compute the logits of masks.

        Args:
            tokens: (B, M, C) mask tokens, one for each of the hypernetworks.
            pixels: (B, C / 8, H, W) pixel embeddings, or (C / 8, H, W) that all share.

        Returns:
            (B, M, H, W).
        """
        mlps = self.output_hypernetworks_mlps
        weights = torch.stack([mlp(tokens[:, i]) for i, mlp in enumerate(mlps)], 1).float()
        if pixels.dim() == 3:
            return torch.einsum("bmc,chw->bmhw", weights, pixels)
        return torch.einsum("bmc,bchw->bmhw", weights, pixels)

    def choose_single(self, found: ObjectMasks) -> ObjectMasks:
        """Choose the single mask where it is stable or in training, else the best of the three.

        Args:
            found: M = 4 masks of ``decode``.

        Returns:
            M = 1 masks.
        """
        logits, quality, tokens, presence = found
        if self.training:
            return ObjectMasks(logits[:, :1], quality[:, :1], tokens[:, :1], presence)
        flat = logits[:, 0].flatten(1)
        inner = (flat > self.stability_delta).sum(1).float()
        outer = (flat > -self.stability_delta).sum(1).float()
        stable = torch.where(outer > 0, inner / outer, 1.0) >= self.stability_threshold
        pick = torch.where(stable, 0, quality[:, 1:].argmax(1) + 1)
        # gather: exporters take the batch of an index made by arange for a constant.
        pick = pick[:, None]
        cells = pick[:, :, None, None].expand(-1, -1, *logits.shape[2:])
        return ObjectMasks(
            logits.gather(1, cells), quality.gather(1, pick), tokens[:, :1], presence
        )


class InteractiveHead(nn.Module):
    """Prompt encoder and mask decoder.

    Args:
        width: Number of channels C.
        heads: Attention heads.
        hidden: Width of the feed-forward layers.
        resolution: Pixels a side of the encoder's input.

    Attributes:
        no_memory: (1, 1, C) embedding that is added to the features of an image without memory.
    """

    def __init__(
        self, width: int = 256, heads: int = 8, hidden: int = 2048, resolution: int = 1008
    ) -> None:
        super().__init__()
        self.prompts = PromptEncoder(width, resolution)
        self.masks = MaskDecoder(width, heads, hidden)
        self.no_memory = nn.Parameter(torch.zeros(1, 1, width))

    def read_image(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> InteractiveFeatures:
        """Compute the features of an image.

        Args:
            fine: (1, C, 4h, 4w) pyramid level.
            middle: (1, C, 2h, 2w) pyramid level.
            coarse: (1, C, h, w) pyramid level.

        Returns:
            Features for ``forward``.
        """
        return self.without_memory(self.read_frame(fine, middle, coarse))

    def read_frame(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> InteractiveFeatures:
        """Compute the features of a video frame, whose coarse level then attends to the memory.

        Args:
            fine: (1, C, 4h, 4w) pyramid level.
            middle: (1, C, 2h, 2w) pyramid level.
            coarse: (1, C, h, w) pyramid level.

        Returns:
            Features without the "no memory" embedding.
        """
        return InteractiveFeatures(coarse, self.masks.conv_s1(middle), self.masks.conv_s0(fine))

    def without_memory(self, frame: InteractiveFeatures) -> InteractiveFeatures:
        """Add the "no memory" embedding to the features of a frame.

        Args:
            frame: From ``read_frame``.

        Returns:
            Features for ``forward``.
        """
        return frame._replace(coarse=frame.coarse + self.no_memory.view(1, -1, 1, 1))

    def forward(
        self,
        features: InteractiveFeatures,
        xy: Tensor,
        labels: Tensor,
        mask_logits: Tensor | None = None,
        *,
        multimask: bool = False,
    ) -> ObjectMasks:
        """Segment one object for each of B prompts.

        Args:
            features: Features of one image.
            xy: (B, N, 2) points in [0, 1].
            labels: (B, N), see ``POSITIVE`` and its neighbors.
            mask_logits: (B, 1, 4h, 4w) of an earlier result, to refine.
            multimask: Whether to return three masks for each prompt.

        Returns:
            The masks.
        """
        sparse = self.prompts.points(xy, labels)
        dense = self.prompts.masks(mask_logits, len(sparse))
        positions = self.prompts.encode_grid(*features.coarse.shape[-2:])
        return self.masks(features, positions, sparse, dense, multimask=multimask)
