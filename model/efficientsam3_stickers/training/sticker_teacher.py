"""Objects learn what a teacher of images sees in their clean stickers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from efficientsam3.io.atomic import replacing

from ..art import StickerArt
from .teacher_files import ImageNetEncoder

WIDTH = 128
"""Channels of a sticker's vector."""
SIDE = 160
"""Side in pixels at which the teacher sees a sticker."""
GRAYS = (96, 176)
"""Backgrounds of the stickers; their features are averaged."""
WHITENING = 0.75
"""Power of the standard deviations that principal components are divided by. With 1 all would
weigh the same, with 0 the few that tell styles apart would outweigh the others."""
TEMPERATURE, SHARPNESS = 0.07, 0.1
"""Of the similarities of an object to all stickers, and of the target's similarities to them."""


def sticker_vectors(
    stickers: StickerArt,
    names: Sequence[str],
    styles: Sequence[str],
    teacher: nn.Module | None = None,
) -> NDArray[np.float32]:
    """A teacher's features of stickers, centered and reduced to their main components.

    Args:
        stickers: The stickers.
        names: Names of concepts.
        styles: Styles.
        teacher: Gives two maps of images in [-1, 1], of which the last counts; None:
            EfficientNet-Lite0.

    Returns:
        (concepts, styles, 128), each of length 1; zeros where a concept lacks a style.
    """
    teacher = ImageNetEncoder() if teacher is None else teacher
    found = [
        (i, j)
        for i, name in enumerate(names)
        for j, style in enumerate(styles)
        if style in stickers.concepts[name].styles
    ]
    rows = []
    for start in range(0, len(found), 32):
        pictures = [
            torch.from_numpy(stickers.sticker(names[i], styles[j]).astype(np.float32))
            for i, j in found[start : start + 32]
        ]
        pixels = torch.stack(pictures).permute(0, 3, 1, 2)
        color, alpha = pixels[:, :3], pixels[:, 3:] / 255
        means = []
        for gray in GRAYS:
            shown = color * alpha + gray * (1 - alpha)
            image = F.interpolate(shown, (SIDE, SIDE), mode="bilinear", antialias=True)
            means.append(teacher(image / 127.5 - 1)[1].mean((2, 3)))
        rows.append(torch.stack(means).mean(0))
    features = torch.cat(rows)
    features = F.normalize(features, dim=1)
    features = features - features.mean(0)
    _, deviations, directions = torch.linalg.svd(features, full_matrices=False)
    scale = deviations[:WIDTH].clamp(min=1e-6) ** -WHITENING
    vectors = F.normalize(features @ directions[:WIDTH].T * scale, dim=1)
    out = np.zeros((len(names), len(styles), WIDTH), np.float32)
    for (i, j), vector in zip(found, vectors.numpy(), strict=True):
        out[i, j, : len(vector)] = vector
    return out


def load_sticker_vectors(
    path: Path, stickers: StickerArt, names: Sequence[str], styles: Sequence[str]
) -> NDArray[np.float32]:
    """The vectors of ``sticker_vectors``, from a file that is written if it is missing.

    Args:
        path: The file, ``.npy``.
        stickers: The stickers.
        names: Names of concepts.
        styles: Styles.
    """
    if not path.is_file():
        vectors = sticker_vectors(stickers, names, styles)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, Path(temporary).open("wb") as file:
            np.save(file, vectors.astype(np.float16))
    vectors = np.load(path).astype(np.float32)
    return vectors


class StickerTeacher:
    """Compares objects with the vectors of their stickers.

    A name is one of a thousand and says nothing of what things look like. A sticker's vector is
    near those of stickers that look alike, so an object that is nearly right costs less than one
    that is wrong, and styles of a concept are told apart.

    Args:
        vectors: (concepts, styles, 128) from ``sticker_vectors``.
        weight: Weight of the term.
    """

    def __init__(self, vectors: NDArray[np.float32], weight: float = 1.0) -> None:
        table = torch.from_numpy(vectors)
        self.weight = weight
        there = table.square().sum(-1) > 0.5
        self.row = torch.full(there.shape, -1)
        self.row[there] = torch.arange(int(there.sum()))
        self.vectors = table[there]

    def __call__(
        self, head: nn.Module, features: Tensor, concepts: Tensor, styles: Tensor
    ) -> Tensor:
        """Cross-entropy of the similarities to all stickers, and the distance to the own vector.

        Args:
            head: Maps C channels to 128.
            features: (N, C) features of objects.
            concepts: (N,) numbers of their concepts.
            styles: (N,) numbers of their styles.

        Returns:
            A scalar, 0 for no object.
        """
        rows = self.row[concepts, styles]
        known = (rows >= 0) & (concepts >= 0)
        if not bool(known.any()):
            return features.sum() * 0
        found = F.normalize(head(features[known]).float(), dim=1)
        target = self.vectors[rows[known]]
        wanted = (target @ self.vectors.T / SHARPNESS).softmax(1)
        entropy = F.cross_entropy(found @ self.vectors.T / TEMPERATURE, wanted)
        return entropy + 1 - (found * target).sum(1).mean()
