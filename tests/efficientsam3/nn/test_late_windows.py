"""Windows of maps around boxes, the layers that read them, and masks that are corrected in them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efficientsam3.nn.late_refiner import MaskRefiner
from efficientsam3.nn.late_windows import (
    LEAST,
    WindowLayer,
    WindowMap,
    read_weights,
    read_windows,
    write_weights,
)

SIZE = (24, 40)
BOXES = torch.tensor([[[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.1, 0.2]]])
"""Boxes whose windows lie within the map."""


def ramp(size: tuple[int, int] = SIZE) -> Tensor:
    """The place of each cell's middle: (1, 2, H, W), x and y in cells."""
    y, x = (torch.arange(n) + 0.5 for n in size)
    return torch.stack([x.expand(size[0], -1), y[:, None].expand(-1, size[1])])[None]


def places(box: Tensor, size: tuple[int, int], window: int, widen: float) -> Tensor:
    """Middles of the cells of a window: (2, S, S), x and y in cells of the map."""
    height, width = size
    steps = (torch.arange(window) + 0.5) / window - 0.5
    x = box[0] * width + steps * (box[2] * width * widen + LEAST)
    y = box[1] * height + steps * (box[3] * height * widen + LEAST)
    return torch.stack([x.expand(window, -1), y[:, None].expand(-1, window)])


@pytest.mark.parametrize(("window", "widen"), [(8, 1.4), (28, 1.3), (3, 1.0)])
def test_a_window_shows_the_places_around_its_box(window: int, widen: float) -> None:
    weights = read_weights(BOXES, SIZE, window, widen)
    seen = read_windows(ramp(), *weights)
    for box, found in zip(BOXES[0], seen[0], strict=True):
        wanted = places(box, SIZE, window, widen)
        torch.testing.assert_close(found, wanted, atol=0.06, rtol=0)  # parts of a cell


def test_images_and_channels_do_not_mix() -> None:
    features = torch.randn(3, 5, *SIZE)
    boxes = BOXES.repeat(3, 1, 1) + torch.rand(3, 2, 4) * 0.05
    whole = read_windows(features, *read_weights(boxes, SIZE, 6, 1.2))
    assert whole.shape == (3, 2, 5, 6, 6)
    for i in range(3):
        for q in range(2):
            weights = read_weights(boxes[i : i + 1, q : q + 1], SIZE, 6, 1.2)
            one = read_windows(features[i : i + 1, 2:3], *weights)
            torch.testing.assert_close(whole[i, q, 2], one[0, 0, 0])


boxes_anywhere = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)).map(
    lambda box: torch.tensor([[box]])
)


@settings(max_examples=50, deadline=None)
@given(box=boxes_anywhere)
def test_reading_is_a_mean_for_any_box(box: Tensor) -> None:
    for weights in read_weights(box, SIZE, 8, 1.4):
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 1, 8))


@settings(max_examples=50, deadline=None)
@given(box=boxes_anywhere)
def test_writing_fills_the_window_and_nothing_else(box: Tensor) -> None:
    rows, columns = write_weights(box, SIZE, 8, 1.4)
    written = (rows @ torch.ones(1, 1, 8, 8) @ columns.transpose(-1, -2))[0, 0]
    at, (x, y, w, h) = ramp()[0], box[0, 0]
    beyond = [
        (at[0] - x * SIZE[1]).abs() - (w * SIZE[1] * 1.4 + LEAST) / 2,
        (at[1] - y * SIZE[0]).abs() - (h * SIZE[0] * 1.4 + LEAST) / 2,
    ]
    cell = [(w * SIZE[1] * 1.4 + LEAST) / 8, (h * SIZE[0] * 1.4 + LEAST) / 8]
    inside = (beyond[0] <= -cell[0] / 2 - 1e-3) & (beyond[1] <= -cell[1] / 2 - 1e-3)
    outside = (beyond[0] > cell[0] / 2 + 1e-3) | (beyond[1] > cell[1] / 2 + 1e-3)
    torch.testing.assert_close(written[inside], torch.ones_like(written[inside]), atol=1e-3, rtol=0)
    assert not written[outside].any()


def test_a_window_that_is_read_and_written_is_as_before() -> None:
    smooth = (ramp() / 10).sin()
    weights = read_weights(BOXES, SIZE, 28, 1.3), write_weights(BOXES, SIZE, 28, 1.3)
    seen = read_windows(smooth, *weights[0])[:, :, 0]
    rows, columns = weights[1]
    written = rows @ seen @ columns.transpose(-1, -2)
    inside = rows.sum(-1)[..., None] * columns.sum(-1)[..., None, :] > 0.999
    expected = smooth[:, :1].expand_as(written)
    torch.testing.assert_close(written[inside], expected[inside], atol=0.03, rtol=0)


def test_an_untrained_layer_changes_nothing_and_a_trained_one_stays_in_bounds() -> None:
    layer, x = WindowLayer(16, 6, 32), torch.randn(1, 2, 16)
    features = WindowMap(16, 8, 6)(torch.randn(1, 60, 16), (6, 10), torch.randn(1, 8, 12, 20))
    assert features.shape == (1, 6, 12, 20)
    same, boxes = layer(x, BOXES, features)
    assert torch.equal(same, x)
    torch.testing.assert_close(boxes, BOXES)
    last = layer.box.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.constant_(last.bias, 100.0)
    moved = layer(x, BOXES, features)[1]
    assert (moved[..., :2] > BOXES[..., :2]).all() and (moved[..., 2:] > BOXES[..., 2:]).all()
    assert (moved[..., 2:] < 2.1 * BOXES[..., 2:]).all() and moved.max() <= 1


def test_a_layer_learns_where_a_spot_is() -> None:
    torch.manual_seed(0)
    layer, x = WindowLayer(16, 1, 32), torch.zeros(1, 1, 16)
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    errors = []
    for _ in range(120):
        true = torch.rand(16, 1, 2) * 0.2 + 0.4
        away = ramp() / torch.tensor([40, 24])[:, None, None] - true[:, 0, :, None, None]
        spot = torch.exp(-200 * away.square().sum(1, keepdim=True))
        start = torch.tensor([0.5, 0.5, 0.3, 0.3]).expand(16, 1, 4)
        _, boxes = layer(x.expand(16, 1, 16), start, spot)
        error = (boxes[:, 0, :2] - true[:, 0]).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert sum(errors[-10:]) < sum(errors[:10]) / 4


def test_an_untrained_refiner_changes_no_mask() -> None:
    refiner, logits = MaskRefiner(16, 8), torch.randn(1, 2, *SIZE)
    args = torch.randn(1, 2, 16), BOXES, torch.randn(1, 8, *SIZE)
    assert torch.equal(refiner(*args, logits), logits)


def test_a_refiner_draws_within_the_window_alone_and_each_object_by_itself() -> None:
    torch.manual_seed(0)
    refiner = MaskRefiner(16, 8).requires_grad_(False)
    torch.nn.init.normal_(refiner.last.weight)
    queries, pixels = torch.randn(1, 2, 16), torch.randn(1, 8, *SIZE)
    logits = torch.randn(1, 2, *SIZE)
    refined = refiner(queries, BOXES, pixels, logits)
    changed = refined != logits
    assert changed.any()
    assert not changed[0, 1, :, 24:].any(), "the second window ends before"
    for q in (0, 1):
        one = refiner(queries[:, q : q + 1], BOXES[:, q : q + 1], pixels, logits[:, q : q + 1])
        torch.testing.assert_close(one[0, 0], refined[0, q], atol=1e-5, rtol=1e-4)
    none = refiner(queries[:, :0], BOXES[:, :0], pixels, logits[:, :0])
    assert none.shape == (1, 0, *SIZE)
