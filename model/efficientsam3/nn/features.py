"""What the network knows of images before a prompt, and what it answers to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .decoder import Decoded
from .interactive import InteractiveFeatures
from .late_objects import ObjectQueries, join_queries


@dataclass
class ImageFeatures:
    """Features of B images that do not depend on a prompt."""

    map: Tensor
    """(B, C, h, w) map of the image encoder."""
    tokens: Tensor
    """(B, N, 256) tokens of the coarsest pyramid level."""
    seen: Tensor
    """(B, N, 256) tokens after the fusion encoder's first self-attention."""
    geometry: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer of the geometry encoder."""
    grid: tuple[int, int]
    """Rows and columns of the N tokens."""
    bare_prompt: Tensor | None = None
    """(B, 1, 256) geometry token of prompts without exemplars, computed when first needed."""
    mask_features: list[Tensor] | None = field(default=None, repr=False)
    """Input of the mask head, computed when first needed."""
    interactive: InteractiveFeatures | None = field(default=None, repr=False)
    """Features of the interactive head, computed when first needed."""
    frame: InteractiveFeatures | None = field(default=None, repr=False)
    """Features of the tracker, computed when first needed."""
    fine: tuple[Tensor, ...] = field(default=(), repr=False)
    """Maps of the earlier stages of the image encoder, finest first; late fusion alone has them."""
    objects: ObjectQueries | None = field(default=None, repr=False)
    """The objects of the images; late fusion alone has them."""

    def split(self) -> list[ImageFeatures]:
        """Features of each of the images, in tensors of their own."""

        def cut(tensor: Tensor, row: int) -> Tensor:
            return tensor[row : row + 1].clone()

        out = []
        for row in range(len(self.tokens)):
            geometry = [(cut(keys, row), cut(values, row)) for keys, values in self.geometry]
            one = torch.tensor([row], device=self.tokens.device)
            out.append(
                ImageFeatures(
                    cut(self.map, row),
                    cut(self.tokens, row),
                    cut(self.seen, row),
                    geometry,
                    self.grid,
                    fine=tuple(cut(level, row) for level in self.fine),
                    objects=None if self.objects is None else self.objects.take(one),
                )
            )
        return out

    def take(self, rows: Tensor) -> ImageFeatures:
        """Select the image of each prompt.

        Args:
            rows: (P,) index of the image for each of P prompts.

        Returns:
            Features with P rows. ``map``, from which the masks of SAM3 are made, keeps its B rows.
        """
        geometry = [(keys[rows], values[rows]) for keys, values in self.geometry]
        objects = None if self.objects is None else self.objects.take(rows)
        return ImageFeatures(
            self.map,
            self.tokens[rows],
            self.seen[rows],
            geometry,
            self.grid,
            fine=tuple(level[rows] for level in self.fine),
            objects=objects,
        )


def join_tokens(images: Sequence[ImageFeatures]) -> ImageFeatures:
    """Join what prompts read of images; masks are computed from the features of each.

    Args:
        images: Features of one image each; the same image can be there several times.

    Returns:
        Features with a row for each.
    """
    first = images[0]
    layers = zip(*(image.geometry for image in images), strict=True)
    geometry = [
        (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
        for layer in layers
    ]
    objects = [image.objects for image in images if image.objects is not None]
    bare = [image.bare_prompt for image in images if image.bare_prompt is not None]
    return ImageFeatures(
        first.map,
        torch.cat([image.tokens for image in images]),
        torch.cat([image.seen for image in images]),
        geometry,
        first.grid,
        bare_prompt=torch.cat(bare) if len(bare) == len(images) else None,
        fine=first.fine,
        objects=join_queries(objects) if objects else None,
    )


@dataclass(frozen=True)
class Answer:
    """Detections of B prompts."""

    logits: Tensor
    """(B, Q) logits of the queries."""
    presence: Tensor
    """(B,) logits: whether the concept is in the image."""
    boxes: Tensor
    """(B, Q, 4) cxcywh in [0, 1]."""
    queries: Tensor
    """(B, Q, C) query embeddings."""
    memory: Tensor
    """(B, N, C) tokens of the fusion encoder."""
    prompt: Tensor
    """(B, L, C) prompt tokens."""
    mask: Tensor
    """(B, L) bool, True where a prompt token is valid."""
    layers: list[Decoded]
    """Output of each decoder layer, for training."""
