"""Initial weights for models that are trained from scratch."""

from __future__ import annotations

import pytest
import torch

from efficientsam3_stickers.training.init import (
    SCORING_GAIN,
    grid_boxes,
    init_from_scratch,
    normalize_tokens,
)

from ...efficientsam3.train.conftest import tiny_net


def test_references_form_a_grid() -> None:
    for count in (1, 7, 12, 32):
        boxes = grid_boxes(count)
        assert boxes.shape == (count, 4)
        assert bool(((boxes > 0) & (boxes < 1)).all())
        assert len({tuple(b[:2]) for b in boxes.tolist()}) == count
        assert len({b[2] for b in boxes.tolist()}) == min(2, count)
    low, high = grid_boxes(32)[:, :2].amin(0), grid_boxes(32)[:, :2].amax(0)
    assert float((high - low).min()) > 0.7


def test_boxes_start_at_their_references() -> None:
    config, net = tiny_net()
    init_from_scratch(net)
    decoder = net.part("decoder")
    torch.testing.assert_close(decoder.references(), grid_boxes(config.queries), atol=1e-3, rtol=0)
    image = net.read_image(torch.randn(1, 3, 112, 112))
    answer = net.answer(image, *net.read_prompt(image, net.read_text(torch.ones(1, 16).long())))
    for layer in answer.layers:
        torch.testing.assert_close(layer.boxes[0], grid_boxes(config.queries), atol=1e-3, rtol=0)


def test_comparisons_start_with_a_wide_range() -> None:
    _, net = tiny_net()
    scoring = init_from_scratch(net).part("scoring")
    for layer in (scoring.hs_proj, scoring.prompt_proj):
        gain = SCORING_GAIN**2
        square = layer.weight @ layer.weight.T
        torch.testing.assert_close(square, gain * torch.eye(len(square)), atol=1e-4, rtol=0)
        assert float(layer.bias.detach().abs().max()) == 0


def test_weights_depend_on_the_seed() -> None:
    weights = [
        init_from_scratch(tiny_net()[1], seed).part("scoring").hs_proj.weight for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_queries_attend_to_the_edges_of_their_boxes() -> None:
    config, net = tiny_net(heads=4, width=32)
    decoder = init_from_scratch(net).part("decoder")
    box = torch.tensor([[[0.5, 0.5, 0.5, 0.25]]])  # columns 4 to 12 and rows 6 to 10 of 16
    with torch.no_grad():
        bias = decoder.box_bias(box, (16, 16))[0, :, 1].unflatten(-1, (16, 16))
    for head, (row, column) in enumerate(((8, 4), (8, 12), (6, 8), (10, 8))):
        best = divmod(int(bias[head].argmax()), 16)
        along = best[1] - column if head < 2 else best[0] - row
        assert abs(along) <= 1
        assert bias[head, row, column] > bias[head, 0, 0] + 2
    assert config.heads == 4


def test_normalized_tokens_have_the_same_direction() -> None:
    _, net = tiny_net()
    pixels = torch.randn(2, 3, 112, 112)
    before = net.coarse_level(net.part("trunk")(pixels))
    after = normalize_tokens(net, pixels).coarse_level(net.part("trunk")(pixels))
    assert float(after.detach().std()) == pytest.approx(1, abs=1e-4)
    assert not torch.allclose(before, after, rtol=0.1)
    torch.testing.assert_close(after / after.std(), before / before.std(), atol=1e-4, rtol=1e-4)
