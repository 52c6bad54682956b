"""Parts of a model with late fusion as modules with plain tensors in and out.

Text and exemplars have the forms of other models, and so have clicks, masks and boxes of single
objects.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.interactive import InteractiveFeatures
from ..nn.late_detector import FoldedLateDetector
from ..nn.positions import encode_grid


class LateImageForm(nn.Module):
    """Encodes an image and finds its objects.

    Args:
        net: The network in inference form, float32.
        resolution: Pixels a side of the input.
    """

    def __init__(self, net: FoldedLateDetector, resolution: int) -> None:
        super().__init__()
        self.trunk, self.fusion = plain(net.part("trunk")), net.part("fusion")
        self.level = plain(net.part("neck").levels[0])
        self.geometry = net.part("geometry") if net.has("geometry") else None
        with torch.no_grad():
            image = net.encode_image(torch.zeros(1, 3, resolution, resolution))
        self.grid = image.grid
        self.register_buffer(
            "positions", encode_grid(*self.grid, image.tokens.shape[-1], image.tokens.device)
        )
        self.positions: Tensor

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what ``forward`` returns."""
        geometry = ("exemplar_keys", "exemplar_values", "bare_prompt") if self.geometry else ()
        return ("encoded", "four", "eight", "tokens", "objects", "places", "found", *geometry)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode an image.

        Args:
            pixels: (1, 3, R, R) normalized pixels.

        Returns:
            The last map of the image encoder, and those of stride 4 and 8; (1, N, C) tokens;
            (1, Q, C) objects, their (1, Q, 4) boxes and (1, Q) logits; (layers, N, C) keys and
            values of the geometry encoder, and (1, 1, C) its token of a prompt without exemplars.
        """
        four, eight, encoded = self.trunk(pixels)
        tokens = self.level(encoded).flatten(2).transpose(1, 2)
        tokens = self.fusion.encode(tokens, self.positions, self.grid)
        found = self.fusion(tokens, self.positions, self.grid, eight)
        out = encoded, four, eight, tokens, found.queries, found.boxes, found.logits
        if self.geometry is None:
            return out
        read = self.geometry.read_image(tokens, self.positions)
        bare = self.geometry(tokens, self.grid, read)[0]
        keys, values = (torch.cat(parts) for parts in zip(*read, strict=True))
        return *out, keys, values, bare


class LateHeadsForm(nn.Module):
    """Chooses the objects of one image that B prompts mean.

    Args:
        net: The network in inference form, float32.
    """

    outputs = ("logits", "presence", "boxes", "queries")

    def __init__(self, net: FoldedLateDetector) -> None:
        super().__init__()
        self.decoder = net.part("decoder")

    def forward(
        self, objects: Tensor, places: Tensor, found: Tensor, prompt: Tensor, valid: Tensor
    ) -> tuple[Tensor, ...]:
        """Choose.

        Args:
            objects: (1, Q, C) of the image.
            places: (1, Q, 4) their boxes.
            found: (1, Q) their logits.
            prompt: (B, L, C) prompt tokens.
            valid: (B, L) bool.

        Returns:
            (B, Q) logits, (B,) presence logits, (B, Q, 4) boxes cxcywh in [0, 1] and (B, Q, C)
            queries.
        """
        d = self.decoder
        words, embedded = slice(0, d.context), d.embed_objects(objects)[0]
        text = d.embed_text(prompt[:, words], valid[:, words])
        similar = d.similarity(embedded, text).T
        like = d.embed_exemplars(prompt[:, d.context :])
        products = torch.einsum("qd,ped->pqe", embedded, like)
        shown = d.count_votes(products, prompt[:, d.context :], valid[:, d.context :])
        meant, presence = d.choose(objects, similar, shown, prompt, valid)
        each = torch.zeros_like(presence)[:, None, None]  # exporters follow sums, not sizes
        logits, presence = d.score_objects(meant, found + each[..., 0], presence, places)
        return logits, presence, places + each, objects + each


class LateMaskImageForm(nn.Module):
    """Computes the pixel features of an image.

    Args:
        net: The network in inference form, float32.
        grid: Rows and columns of the image's tokens.
    """

    outputs = ("pixel_features",)

    def __init__(self, net: FoldedLateDetector, grid: tuple[int, int]) -> None:
        super().__init__()
        self.head, self.grid = plain(net.part("masks")), grid

    def forward(self, tokens: Tensor, four: Tensor, eight: Tensor) -> Tensor:
        """Compute the features.

        Args:
            tokens: (1, N, C) of the image.
            four: Map of the image encoder, of stride 4.
            eight: Map of the image encoder, of stride 8.

        Returns:
            (1, D, 4 * rows, 4 * columns).
        """
        features: Tensor = self.head.read_pixels(tokens, self.grid, (four, eight))
        return features


class LateMasksForm(nn.Module):
    """Draws the masks of some objects.

    Args:
        net: The network in inference form, float32.
    """

    outputs = ("masks",)

    def __init__(self, net: FoldedLateDetector) -> None:
        super().__init__()
        self.head = plain(net.part("masks"))

    def forward(self, queries: Tensor, boxes: Tensor, pixel_features: Tensor) -> Tensor:
        """Draw masks.

        Args:
            queries: (1, K, C) the chosen queries.
            boxes: (1, K, 4) their boxes, cxcywh in [0, 1].
            pixel_features: From ``LateMaskImageForm``.

        Returns:
            (1, K, 4 * rows, 4 * columns) logits.
        """
        masks: Tensor = self.head(queries, boxes, pixel_features)
        return masks


class LateFrameForm(nn.Module):
    """Computes the interactive head's features of an image.

    Args:
        net: The network in inference form, float32.
    """

    outputs = ("coarse", "middle", "fine", "frame")

    def __init__(self, net: FoldedLateDetector) -> None:
        super().__init__()
        self.neck, self.head = plain(net.part("interactive_neck")), net.part("interactive")

    def forward(self, encoded: Tensor, four: Tensor, eight: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            encoded: The last map of the image encoder.
            four: Its map of stride 4.
            eight: Its map of stride 8.

        Returns:
            Coarse, middle and fine features of an image, and the coarse ones of a video frame,
            which have no "no memory" embedding.
        """
        fine, middle, coarse = self.neck((four, eight, encoded))
        frame = self.head.read_frame(fine, middle, coarse)
        image = self.head.without_memory(frame)
        return (*InteractiveFeatures(*image), frame.coarse)


def plain(module: Any) -> Any:
    """Copy a module with weights that are contiguous, which exporters follow.

    Args:
        module: A module, which may have weights in channels last.
    """
    out = copy.deepcopy(module)
    for tensor in out.parameters():
        tensor.data = tensor.data.contiguous()
    return out
