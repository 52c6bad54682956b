"""Masks that end where their boxes do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import efficientsam3 as es3
from efficientsam3.config import tiny_config
from efficientsam3.nn.masks import OUTSIDE, within

from ...conftest import scale_weights


def test_what_is_outside_of_a_box_is_cut() -> None:
    boxes = torch.tensor([[0.5, 0.25, 0.5, 0.25], [0.5, 0.5, 1.0, 1.0], [0.1, 0.1, 0.0, 0.0]])
    masks = within(torch.ones(3, 20, 40), boxes)
    assert masks.unique().tolist() == [OUTSIDE, 1]
    rows, columns = (masks[0] > 0).nonzero().unbind(1)
    # From 0.125 to 0.375 of 20 rows, 0.25 to 0.75 of 40 columns; 10 % and a cell wider.
    assert (rows.min(), rows.max()) == (1, 8)
    assert (columns.min(), columns.max()) == (7, 32)
    assert (masks[1] > 0).all()
    assert 1 <= int((masks[2] > 0).sum()) <= 9, "a box without a size has a cell or so"


@pytest.mark.parametrize("form", ["learned", "folded"])
def test_a_boxed_model_cuts_its_masks(form: str, tmp_path: Path) -> None:
    """In either form, and also after it was saved."""
    config = tiny_config(parts=("geometry", "masks"), boxed_masks=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        es3.ImageModel.from_config(config, dtype="float32", device="cpu").save(tmp_path / "a")
    model = es3.load(tmp_path / "a", device="cpu", dtype="float32")
    assert model.config == config
    net = model.net if form == "folded" else model.learned()
    scale_weights(net)
    image = net.read_image(torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)))
    tokens = torch.tensor([[49406, 5, 49407, *[0] * 13]])
    with torch.inference_mode():
        answer = net.answer(image, *net.read_prompt(image, net.read_text(tokens)))
        cut = net.masks_of(image, answer, 0, torch.arange(12))
        net.part("masks").boxed = False
        full = net.masks_of(image, answer, 0, torch.arange(12))
    torch.testing.assert_close(cut, within(full, answer.boxes[0]))
    assert np.mean((cut == OUTSIDE).numpy()) > 0.1
