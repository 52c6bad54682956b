"""Contact sheets: cells of one size, colours that tell hits from misses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientsam3.distill import pictures
from efficientsam3.distill.data.sample import PhraseQuery, TrainingSample
from efficientsam3.distill.pictures import EXTRA, HIT, LINE, MISS, SIDE, contact_sheet

from .conftest import Shapes, replace, tiny_net

HEIGHT = SIDE + LINE


def samples(count: int) -> list[TrainingSample]:
    return [Shapes(99)[i] for i in range(count)]


def test_sizes() -> None:
    config, net = tiny_net()
    # Two cells a sample, one true and one false.
    assert contact_sheet(net, config, samples(2)).shape == (HEIGHT, 6 * SIDE, 3)
    assert contact_sheet(net, config, samples(4)).shape == (2 * HEIGHT, 6 * SIDE, 3)
    assert contact_sheet(net, config, samples(2), columns=2).shape == (2 * HEIGHT, 2 * SIDE, 3)
    one = replace(samples(1)[0], queries=(PhraseQuery("dog"),))
    assert contact_sheet(net, config, [one], columns=1).shape == (HEIGHT, SIDE, 3)
    assert contact_sheet(net, config, []).shape == (HEIGHT, SIDE, 3)
    silent = replace(samples(1)[0], queries=())
    assert contact_sheet(net, config, [silent]).shape == (HEIGHT, SIDE, 3)
    assert contact_sheet(net, config, samples(1)).dtype == np.uint8


def test_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    config, net = tiny_net()
    sample = replace(
        samples(1)[0],
        image=np.zeros((60, 80, 3), np.uint8),
        queries=(PhraseQuery("left one", (0,)),),
    )
    there = sample.masks_at(SIDE, (0,))[0].numpy() > 0.5

    def drawn(found: torch.Tensor) -> np.ndarray:
        monkeypatch.setattr(
            pictures.Answers, "masks", lambda self, net, row: (found, torch.ones(len(found)))
        )
        return contact_sheet(net, config, [sample], columns=1)[:SIDE]

    def share(picture: np.ndarray, area: np.ndarray, colour: tuple[int, int, int]) -> float:
        return float((np.abs(picture[area] - np.array(colour) / 2).max(1) < 2).mean())

    nothing = torch.zeros(0, 32, 32)
    assert share(drawn(nothing), there, MISS) > 0.95
    right = sample.masks_at(32, (0,)) - 0.5
    assert share(drawn(right), there, HIT) > 0.95
    other = sample.masks_at(SIDE, (1,))[0].numpy() > 0.5
    wrong = sample.masks_at(32, (1,)) - 0.5
    assert share(drawn(wrong), there, MISS) > 0.95
    assert share(drawn(wrong), other, EXTRA) > 0.95
