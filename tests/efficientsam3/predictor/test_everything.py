"""Masks of all things without a word: a grid of points, filters, and tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import efficientsam3 as es3
from efficientsam3.everything import stability
from efficientsam3.masks.overlap import suppress_packed
from tests.efficientsam3.predictor.colors import ColorModel
from tests.efficientsam3.predictor.test_tiles import picture

Array = Any


def test_each_thing_is_found_once_and_weak_candidates_are_dropped() -> None:
    boxes = {"red": [(4, 4, 20, 30)], "green": [(30, 8, 60, 20)], "blue": [(28, 36, 56, 60)]}
    image = picture((64, 64), **boxes)
    found = ColorModel().segment_everything(image, points_per_side=8)
    # The three things and the gray around them.
    assert found.labels == ["object"] * 4
    assert found.concepts == ("object",)
    sizes = sorted(int(mask.sum()) for mask in found.masks)
    assert sizes == sorted([16 * 26, 30 * 12, 28 * 24, 64 * 64 - 16 * 26 - 30 * 12 - 28 * 24])
    assert (found.scores > 0.8).all()


def test_thresholds_select() -> None:
    image = picture((64, 64), red=[(4, 4, 20, 30)])
    model = ColorModel()
    assert len(model.segment_everything(image, points_per_side=4, threshold=0.96)) == 0
    # The second candidate has logits of 0.4, which a shift by 1 removes.
    weak = {"points_per_side": 4, "threshold": 0.3, "nms": 1.0}
    strict = model.segment_everything(image, **weak)
    loose = model.segment_everything(image, stability_threshold=0, **weak)
    assert set(strict.scores.tolist()) == {np.float32(0.95)}
    assert {np.float32(0.95), np.float32(0.4)} == set(loose.scores.tolist())
    assert len(model.segment_everything(image, points_per_side=4, max_instances=1)) == 1


def test_stability_is_the_share_of_the_inner_mask() -> None:
    logits = np.array([[[2.0, 0.5, -0.5, -3]], [[-9, -9, -9, -9]]])
    np.testing.assert_allclose(stability(logits), [1 / 3, 0])


@pytest.mark.slow
def test_small_things_are_found_in_tiles_and_seams_cut_nothing() -> None:
    small = [(x, y, x + 6, y + 6) for x in (20, 120) for y in (20, 130)]
    image = picture((160, 160), red=small, green=[(0, 68, 160, 76)])
    model = ColorModel()
    found = model.segment_everything(image, points_per_side=16, tile=(64, 16))
    areas = [int(m.sum()) for m in found.masks]
    assert areas.count(36) == 4
    assert areas.count(160 * 8) == 1  # the bar that goes through all columns of tiles
    assert len(areas) == 4 + 1 + 2  # and the gray above and below it
    whole = model.segment_everything(image, points_per_side=16)
    assert all(int(m.sum()) != 36 for m in whole.masks)


def test_the_grid_is_clicks_of_the_interactive_head(tiny: es3.ImageModel, photo: Array) -> None:
    options: dict[str, Any] = {"points_per_side": 5, "threshold": 0.1, "stability_threshold": 0.1}
    found = tiny.segment_everything(photo, **options)
    again = tiny.segment_everything(tiny.encode(photo), **options)
    assert len(found) and found.rles == again.rles
    assert (np.diff(found.scores) <= 0).all()
    every = tiny.segment_everything(
        photo, points_per_side=5, threshold=0, stability_threshold=0, nms=1
    )
    click = tiny.segment_objects(photo, points=[[[6.4, 4.8]]], multimask=True)
    assert np.isclose(click.scores[0], every.scores, atol=1e-5).any()


def test_masks_are_suppressed_by_their_cells() -> None:
    masks = np.zeros((4, 8, 8), bool)
    masks[0, :4], masks[1, :5], masks[2, 4:], masks[3, :4, :1] = True, True, True, True
    bits = np.packbits(masks.reshape(4, -1), axis=1)
    scores = np.array([0.5, 0.9, 0.7, 0.6])
    assert suppress_packed(bits, scores, 0.7).tolist() == [1, 2, 3]  # IoU of 0 and 1 is 0.8
    assert suppress_packed(bits, scores, 0.8).tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": 0}, "from 1 to 256; got 0"),
        ({"points_per_side": 4.5}, "got 4.5"),
        ({"threshold": float("nan")}, "threshold is between 0 and 1; got nan"),
        ({"stability_threshold": 2}, "stability_threshold is between 0 and 1; got 2"),
        ({"nms": None}, "1 keeps all masks"),
        ({"tile": 3}, "at least 32"),
        ({"max_instances": -1}, "max_instances"),
    ],
)
def test_wrong_values(tiny: es3.ImageModel, photo: Array, options: Any, message: str) -> None:
    with pytest.raises(es3.PromptError, match=message):
        tiny.segment_everything(photo, **options)
