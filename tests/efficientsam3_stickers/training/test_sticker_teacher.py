"""Vectors of stickers, and objects that are compared with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.concepts import STYLES
from efficientsam3_stickers.training import sticker_teacher
from efficientsam3_stickers.training.sticker_teacher import (
    WIDTH,
    StickerTeacher,
    load_sticker_vectors,
    sticker_vectors,
)


class MeanColors(nn.Module):
    """A teacher whose features are the colors of the cells of an image."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cells = F.adaptive_avg_pool2d(pixels, 6).flatten(1)[..., None, None]
        return cells, cells


@pytest.fixture(scope="module")
def names(stickers: StickerArt) -> list[str]:
    return list(stickers.concepts)


def test_vectors_are_near_for_stickers_that_look_alike(
    stickers: StickerArt, names: list[str]
) -> None:
    vectors = sticker_vectors(stickers, names, STYLES[:2], MeanColors())
    assert vectors.shape == (len(names), 2, WIDTH)
    lengths = np.linalg.norm(vectors, axis=-1)
    np.testing.assert_allclose(lengths[lengths > 0], 1, rtol=1e-5)
    apple, farmer = names.index("red apple"), names.index("farmer")
    same = vectors[apple, 0] @ vectors[apple, 1]
    assert same > vectors[apple, 0] @ vectors[farmer, 0]


def test_vectors_are_computed_once(
    stickers: StickerArt, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sticker_teacher, "ImageNetEncoder", MeanColors)
    path = tmp_path / "run" / "stickers.npy"
    first = load_sticker_vectors(path, stickers, names, STYLES[:1])
    monkeypatch.setattr(sticker_teacher, "ImageNetEncoder", None)
    np.testing.assert_array_equal(load_sticker_vectors(path, stickers, names, STYLES[:1]), first)


def test_the_right_vector_costs_least_and_absent_stickers_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(5, 2, WIDTH, generator=generator), dim=-1)
    vectors[3, 1] = 0  # this concept lacks the style
    teacher = StickerTeacher(vectors.numpy())
    concepts, styles = torch.tensor([0, 4]), torch.tensor([1, 0])
    right = vectors[concepts, styles].requires_grad_()
    cost = teacher(nn.Identity(), right, concepts, styles)
    assert bool(cost < teacher(nn.Identity(), right.flip(0), concepts, styles))
    both = teacher(nn.Identity(), right, torch.tensor([3, -1]), torch.tensor([1, 0]))
    assert both.item() == 0
    both.backward()
    assert right.grad is not None
