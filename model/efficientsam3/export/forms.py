"""Parts of a model as modules with plain tensors in and out, which exporters trace correctly.

The numbers are those of the inference form up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.detector import FoldedDetector
from ..nn.geometry import GeometryEncoder
from ..nn.interactive import InteractiveFeatures
from ..nn.layers import cxcywh_to_xyxy, layer_norm, linear
from ..nn.masks import FoldedMaskHead, group_norm, within
from ..nn.positions import encode_points
from .levels import LevelForm, transposed


class ImageForm(nn.Module):
    """Encodes an image, up to where a prompt is needed.

    Args:
        net: The network in inference form, float32.
        resolution: Pixels a side of the input.
    """

    def __init__(self, net: FoldedDetector, resolution: int) -> None:
        super().__init__()
        self.trunk, self.fusion = net.part("trunk"), net.part("fusion")
        self.coarse = LevelForm(net.coarse)
        self.geometry = net.part("geometry") if net.has("geometry") else None
        with torch.no_grad():
            level = net.coarse_level(self.trunk(torch.zeros(1, 3, resolution, resolution)))
        self.grid = (level.shape[-2], level.shape[-1])
        self.register_buffer("placed", net._placed(self.grid)[0][0])
        self.register_buffer("positions", net._positions(self.grid))
        self.placed: Tensor
        self.positions: Tensor

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what ``forward`` returns."""
        geometry = ("exemplar_keys", "exemplar_values", "bare_prompt") if self.geometry else ()
        return ("encoded", "tokens", "seen", *geometry)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode an image.

        Args:
            pixels: (1, 3, R, R) normalized pixels.

        Returns:
            The map of the image encoder; (1, N, C) tokens; the tokens after the first
            self-attention; (layers, N, C) keys and values of the geometry encoder, and
            (1, 1, C) its token of a prompt without exemplars.
        """
        encoded = self.trunk(pixels)
        tokens = self.coarse(encoded).flatten(2).transpose(1, 2)
        seen = self.fusion.read_image(tokens, [self.placed], self.grid)
        if self.geometry is None:
            return encoded, tokens, seen
        read = self.geometry.read_image(tokens, self.positions)
        bare = self.geometry(tokens, self.grid, read)[0]
        keys, values = (torch.cat(parts) for parts in zip(*read, strict=True))
        return encoded, tokens, seen, keys, values, bare


class TextForm(nn.Module):
    """Encodes phrases.

    Args:
        net: The network in inference form, float32.
    """

    outputs = ("words",)

    def __init__(self, net: FoldedDetector) -> None:
        super().__init__()
        self.text = net.part("text")

    def forward(self, ids: Tensor) -> Tensor:
        """Encode phrases.

        Args:
            ids: (B, L) token ids.

        Returns:
            (B, L, C).
        """
        return self.text(ids)


class ExemplarForm(nn.Module):
    """Encodes the exemplars of one prompt.

    Args:
        geometry: The geometry encoder, float32.
        grid: Rows and columns of the image's tokens.
    """

    outputs = ("shown",)

    def __init__(self, geometry: GeometryEncoder, grid: tuple[int, int]) -> None:
        super().__init__()
        self.geometry, self.grid = geometry, grid

    def forward(
        self,
        tokens: Tensor,
        exemplar_keys: Tensor,
        exemplar_values: Tensor,
        points: Tensor,
        point_labels: Tensor,
        point_valid: Tensor,
        boxes: Tensor,
        box_labels: Tensor,
        box_valid: Tensor,
    ) -> Tensor:
        """Encode exemplars; there is at least one row of either kind, which may not be valid.

        Args:
            tokens: (1, N, C) of the image.
            exemplar_keys: (layers, N, C) of the image.
            exemplar_values: (layers, N, C) of the image.
            points: (1, P, 2) xy in [0, 1].
            point_labels: (1, P) int64: 1 positive, 0 negative.
            point_valid: (1, P) bool.
            boxes: (1, K, 4) cxcywh in [0, 1].
            box_labels: (1, K) int64.
            box_valid: (1, K) bool.

        Returns:
            (1, P + K + 1, C), the class token last.
        """
        g = self.geometry
        level = layer_norm(g.img_pre_norm, tokens).transpose(1, 2).unflatten(2, self.grid)
        one = g.cls_embed.weight[None]
        x = torch.cat(
            [self._points(points, point_labels, level), self._boxes(boxes, box_labels, level), one],
            1,
        )
        keep = torch.cat([point_valid, box_valid, torch.ones_like(box_valid[:, :1])], 1)
        x = layer_norm(g.norm, linear(g.final_proj, x))
        read = zip(exemplar_keys.unsqueeze(1), exemplar_values.unsqueeze(1), strict=True)
        for layer, (keys, values) in zip(g.encode, read, strict=True):
            x = layer(x, keep[:, None, None, :], keys, values)
        return layer_norm(g.encode_norm, x)

    def _points(self, xy: Tensor, labels: Tensor, level: Tensor) -> Tensor:
        g = self.geometry
        pooled = F.grid_sample(level, 2 * xy[:, :, None] - 1, align_corners=False)
        x, y = encode_points(xy, g.label_embed.embedding_dim)
        return (
            linear(g.points_direct_project, xy)
            + linear(g.points_pool_project, pooled.squeeze(-1).transpose(1, 2))
            + linear(g.points_pos_enc_project, torch.cat([x, y], -1))
            + g.label_embed(labels)
        )

    def _boxes(self, boxes: Tensor, labels: Tensor, level: Tensor) -> Tensor:
        g = self.geometry
        rows, columns = self.grid
        cells = cxcywh_to_xyxy(boxes) * torch.tensor([columns, rows, columns, rows]).float()
        pooled = pool_boxes(level[0], cells[0], g.roi)
        weight = g.boxes_pool_project.weight
        pooled = pooled.flatten(1) @ weight.flatten(1).T + g.boxes_pool_project.bias
        x, y = encode_points(boxes[..., :2], g.label_embed.embedding_dim)
        size = torch.cat([boxes[..., 3:], boxes[..., 2:3]], -1)  # height, then width
        return (
            linear(g.boxes_direct_project, boxes)
            + pooled[None]
            + linear(g.boxes_pos_enc_project, torch.cat([y, x, size], -1))
            + g.label_embed(labels)
        )


def pool_boxes(level: Tensor, boxes: Tensor, bins: int) -> Tensor:
    """Pool a map in boxes, as ``torchvision.ops.roi_align``, which not all exporters follow.

    Each bin is the mean of samples of the map, one for each cell of the bin's size, rounded up.

    Args:
        level: (C, rows, columns).
        boxes: (K, 4) xyxy in cells, not larger than the map.
        bins: Bins a side.

    Returns:
        (K, C, bins, bins).
    """
    channels, rows, columns = level.shape
    across = sample_weights(boxes[:, 0], boxes[:, 2], columns, bins)
    down = sample_weights(boxes[:, 1], boxes[:, 3], rows, bins)
    # (K * bins, rows) by (rows, C * columns), then columns for each box.
    lines = down.flatten(0, 1) @ level.permute(1, 0, 2).flatten(1)
    lines = lines.reshape(-1, bins * channels, columns)
    pooled = (lines @ across.transpose(1, 2)).reshape(-1, bins, channels, bins)
    return pooled.permute(0, 2, 1, 3)


def sample_weights(first: Tensor, last: Tensor, cells: int, bins: int) -> Tensor:
    """How much each cell of an axis counts in each bin of ``pool_boxes``.

    Args:
        first: (K,) where boxes begin, in cells.
        last: (K,) where they end.
        cells: Cells of the axis.
        bins: Bins of the axis.

    Returns:
        (K, bins, cells).
    """
    most = -(-cells // bins)
    size = (last - first).clamp(min=1)[:, None, None] / bins
    count = size.ceil().clamp(max=most)
    index = torch.arange(most, dtype=torch.float32)
    bin = torch.arange(bins, dtype=torch.float32)[:, None]
    at = first[:, None, None] + (bin + (index + 0.5) / count) * size  # (K, bins, samples)
    used = (index < count) & (at >= -1) & (at <= cells)
    near = at.clamp(0, cells - 1)[..., None] - torch.arange(cells, dtype=torch.float32)
    return ((1 - near.abs()).clamp(min=0) * used[..., None]).sum(2) / count


class HeadsForm(nn.Module):
    """Detects the instances of B prompts on one image.

    Args:
        net: The network in inference form, float32.
        grid: Rows and columns of the image's tokens.
    """

    outputs = ("logits", "presence", "boxes", "queries", "memory")

    def __init__(self, net: FoldedDetector, grid: tuple[int, int]) -> None:
        super().__init__()
        self.fusion, self.decoder = net.part("fusion"), net.part("decoder")
        self.scoring, self.grid = net.part("scoring"), grid
        places, decoder_places = net._placed(grid)
        self.places = nn.ParameterList(places)
        self.decoder_places = nn.Parameter(decoder_places)

    def forward(self, seen: Tensor, prompt: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            seen: (1, N, C) of the image.
            prompt: (B, L, C) prompt tokens.
            valid: (B, L) bool.

        Returns:
            (B, Q) logits, (B,) presence logits, (B, Q, 4) boxes cxcywh in [0, 1], (B, Q, C)
            queries and (B, N, C) fused tokens.
        """
        memory = self.fusion(seen, list(self.places), self.grid, prompt, valid)
        last = self.decoder(memory, self.decoder_places, self.grid, prompt, valid)[-1]
        return (
            self.scoring(last.queries, prompt, valid),
            last.presence,
            last.boxes,
            last.queries,
            memory,
        )


class MaskImageForm(nn.Module):
    """Computes the part of the masks that depends on the image alone.

    Args:
        head: The mask head in its inference form, float32.
    """

    outputs = ("middle_base", "fine_base")

    def __init__(self, head: FoldedMaskHead) -> None:
        super().__init__()
        self.levels = nn.ModuleList(LevelForm(level) for level in head.levels)
        self.kernels = nn.ParameterList(getattr(head, f"base{i}").contiguous() for i in range(2))
        self.biases = nn.ParameterList(getattr(head, f"bias{i}") for i in range(2))

    def forward(self, encoded: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps.

        Args:
            encoded: (1, C, h, w) map of the image encoder.

        Returns:
            Maps of twice and of four times the grid, (1, rows, columns, channels): convolutions
            of OpenVINO compute in this order, so that the large maps are not transposed.
        """
        parts = zip(self.levels, self.kernels, self.biases, strict=True)
        maps = (F.conv2d(level(encoded), k, b, padding=1) for level, k, b in parts)
        return tuple(x.permute(0, 2, 3, 1) for x in maps)


class MasksForm(nn.Module):
    """Predicts the masks of some queries of one prompt.

    Args:
        head: The mask head in its inference form, float32.
        grid: Rows and columns of the image's tokens.
    """

    outputs = ("masks",)

    def __init__(self, head: FoldedMaskHead, grid: tuple[int, int]) -> None:
        super().__init__()
        self.head, self.grid = head.head, grid
        kernels = (transposed(getattr(head, f"double{i}").contiguous()) for i in range(2))
        self.kernels = nn.ParameterList(kernels)
        last = self.head.instance_seg_head
        self.weight, self.bias = nn.Parameter(last.weight.flatten(1)), last.bias

    def forward(
        self,
        memory: Tensor,
        prompt: Tensor,
        valid: Tensor,
        queries: Tensor,
        boxes: Tensor,
        middle_base: Tensor,
        fine_base: Tensor,
    ) -> Tensor:
        """Predict masks.

        Args:
            memory: (1, N, C) fused tokens of the prompt.
            prompt: (1, L, C) prompt tokens.
            valid: (1, L) bool.
            queries: (1, K, C) the chosen queries.
            boxes: (1, K, 4) their boxes, cxcywh in [0, 1].
            middle_base: From ``MaskImageForm``.
            fine_base: From ``MaskImageForm``.

        Returns:
            (1, K, 4 * rows, 4 * columns) logits.
        """
        x = self.head.look_at_prompt(memory, prompt, valid).transpose(1, 2).unflatten(2, self.grid)
        norms = self.head.pixel_decoder.norms
        for base, kernel, norm in zip((middle_base, fine_base), self.kernels, norms, strict=False):
            x = F.conv_transpose2d(x, kernel, stride=2, padding=1) + base.permute(0, 3, 1, 2)
            x = group_norm(norm, x).relu()
        embedded = self.head.mask_embed(queries)
        shift = (embedded * self.bias).sum(-1, keepdim=True)
        logits = (embedded @ self.weight) @ x.flatten(2) + shift
        masks = logits.unflatten(2, x.shape[-2:])
        return within(masks, boxes) if self.head.boxed else masks


class FrameForm(nn.Module):
    """Computes the interactive head's features of an image.

    Args:
        net: The network in inference form, float32.
    """

    outputs = ("coarse", "middle", "fine", "frame")

    def __init__(self, net: FoldedDetector) -> None:
        super().__init__()
        with torch.no_grad():  # the pyramid is folded when it is first used
            resolution = round(net.part("interactive").prompts.half_pixel ** -1 / 2)
            net.read_frame(net.part("trunk")(torch.zeros(1, 3, resolution, resolution)))
        self.levels = nn.ModuleList(LevelForm(level) for level in net.part("interactive_neck"))
        self.head = net.part("interactive")

    def forward(self, encoded: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            encoded: (1, C, h, w) map of the image encoder.

        Returns:
            Coarse, middle and fine features of an image, and the coarse ones of a video frame,
            which have no "no memory" embedding.
        """
        fine, middle, coarse = (level(encoded) for level in self.levels)
        image = self.head.without_memory(InteractiveFeatures(coarse, middle, fine))
        return (*image, coarse)


class PointsForm(nn.Module):
    """Encodes points of objects.

    Args:
        net: The network in inference form, float32.
    """

    outputs = ("sparse",)

    def __init__(self, net: FoldedDetector) -> None:
        super().__init__()
        self.prompts = net.part("interactive").prompts

    def forward(self, points: Tensor, labels: Tensor) -> Tensor:
        """Encode points.

        Args:
            points: (B, P, 2) xy in [0, 1], P at least 1.
            labels: (B, P) int64: 1 and 0 clicks, 2 and 3 corners of a box, -1 padding.

        Returns:
            (B, P + 1, C).
        """
        return self.prompts.points(points, labels)


class ObjectsForm(nn.Module):
    """Segments one object for each of B prompts.

    Args:
        net: The network in inference form, float32.
        grid: Cells a side of the coarse features.
    """

    outputs = ("logits", "quality", "object_tokens", "presence")

    def __init__(self, net: FoldedDetector, grid: int) -> None:
        super().__init__()
        head = net.part("interactive")
        self.prompts, self.masks = head.prompts, head.masks
        self.register_buffer("positions", head.prompts.encode_grid(grid, grid))
        self.positions: Tensor

    def forward(
        self,
        coarse: Tensor,
        middle: Tensor,
        fine: Tensor,
        sparse: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, ...]:
        """Segment.

        Args:
            coarse: (1 or B, C, h, w).
            middle: (1, C / 4, 2h, 2w).
            fine: (1, C / 8, 4h, 4w).
            sparse: (B, T, C) from ``PointsForm``; T is 0 where a mask is the only prompt.
            mask_input: (B, 1, 4h, 4w) logits of an earlier result.
            has_mask: (B, 1, 1, 1) 1 where ``mask_input`` counts, otherwise 0.

        Returns:
            (B, 4, 4h, 4w) logits: the single mask, then the three candidates; (B, 4) predicted
            IoU, (B, 4, C) mask tokens and (B,) logits of the object's presence.
        """
        bare = self.prompts.masks(None, 1)
        dense = has_mask * self.prompts.masks(mask_input, 1) + (1 - has_mask) * bare
        features = InteractiveFeatures(coarse, middle, fine)
        found = self.masks.decode(features, self.positions, sparse, dense)
        one = self.masks.choose_single(found)
        return (
            torch.cat([one.logits, found.logits[:, 1:]], 1),
            torch.cat([one.quality, found.quality[:, 1:]], 1),
            found.tokens,
            found.presence,
        )


def names_of(module: Any) -> tuple[str, ...]:
    """Names of the inputs of a form.

    Args:
        module: A form.
    """
    code = type(module).forward.__code__
    return code.co_varnames[1 : code.co_argcount]
