"""Pictures of training: the size of the sheet, and colors that tell hits from misses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientsam3.data.sample import TrainingSample
from efficientsam3.data.types import PhraseQuery
from efficientsam3.train import validation
from efficientsam3.train.pictures import SIDE, concept_sheet
from efficientsam3.viz.contact_sheet import GAP, LINE_HEIGHT
from efficientsam3.viz.mask_comparison import EXTRA, HIT, MISSED

from .conftest import Shapes, replace, tiny_net


def shape(rows: int, columns: int) -> tuple[int, int, int]:
    """The shape of a sheet with rows and columns of cells."""
    return rows * (SIDE + LINE_HEIGHT + GAP) + GAP, columns * (SIDE + GAP) + GAP, 3


def samples(count: int) -> list[TrainingSample]:
    return [Shapes(99)[i] for i in range(count)]


def test_the_size_of_a_sheet() -> None:
    config, net = tiny_net()
    # Two cells of each sample, of a present and of an absent phrase.
    assert concept_sheet(net, config, samples(2)).shape == shape(1, 4)
    assert concept_sheet(net, config, samples(4)).shape == shape(2, 6)
    assert concept_sheet(net, config, samples(2), columns=2).shape == shape(2, 2)
    one = replace(samples(1)[0], queries=(PhraseQuery("dog"),))
    assert concept_sheet(net, config, [one], columns=1).shape == shape(1, 1)
    assert concept_sheet(net, config, []).ndim == 3
    silent = replace(samples(1)[0], queries=())
    assert concept_sheet(net, config, [silent]).ndim == 3
    assert concept_sheet(net, config, samples(1)).dtype == np.uint8


def test_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    config, net = tiny_net()
    sample = replace(
        samples(1)[0],
        image=np.zeros((60, 80, 3), np.uint8),
        queries=(PhraseQuery("left one", (0,)),),
    )
    there = sample.masks_at(SIDE, (0,))[0].numpy() > 0.5

    def drawn(found: torch.Tensor) -> np.ndarray:
        monkeypatch.setattr(
            validation.Predictions, "masks", lambda self, net, row: (found, torch.ones(len(found)))
        )
        return concept_sheet(net, config, [sample], columns=1)[GAP : GAP + SIDE, GAP : GAP + SIDE]

    def share(picture: np.ndarray, area: np.ndarray, color: tuple[int, int, int]) -> float:
        return float((np.abs(picture[area] - np.array(color) / 2).max(1) < 2).mean())

    nothing = torch.zeros(0, 32, 32)
    assert share(drawn(nothing), there, MISSED) > 0.95
    right = sample.masks_at(32, (0,)) - 0.5
    assert share(drawn(right), there, HIT) > 0.95
    other = sample.masks_at(SIDE, (1,))[0].numpy() > 0.5
    wrong = sample.masks_at(32, (1,)) - 0.5
    assert share(drawn(wrong), there, MISSED) > 0.95
    assert share(drawn(wrong), other, EXTRA) > 0.95
