"""How stickers are drawn, and what of each stays in sight."""

from __future__ import annotations

import numpy as np

from efficientsam3.scenes.art import Art
from efficientsam3.scenes.canvas import Canvas, Look, finish, render, tight_box


def test_occlusion_takes_from_the_mask_behind() -> None:
    canvas = Canvas(np.zeros((40, 40, 3), np.uint8))
    square = np.full((20, 20, 4), 255, np.uint8)
    canvas.draw(square, 5, 5)
    canvas.draw(square, 15, 5)
    assert canvas.masks[0].sum() == 20 * 10
    assert canvas.masks[1].sum() == 20 * 20
    canvas.draw(square, 30, 30)  # cut off at the border
    assert canvas.masks[2].sum() == 10 * 10
    assert canvas.areas == [400, 400, 400]


def test_a_patch_has_the_side_asked_for(art: Art) -> None:
    patch = render(art.sticker("guitar", "noto"), Look(70.0))
    assert abs(np.ptp(np.nonzero(patch[..., 3] > 127)[0]) + 1 - 70) <= 2
    turned = render(art.sticker("guitar", "noto"), Look(70.0, angle=90.0))
    assert abs(np.ptp(np.nonzero(turned[..., 3] > 127)[1]) + 1 - 70) <= 2


def test_a_dark_sticker_has_no_light_fringe(art: Art) -> None:
    patch = render(art.sticker("guitar", "noto"), Look(33.0, angle=20.0)).astype(int)
    assert (patch[..., :3] <= patch[..., 3:]).all()  # premultiplied
    edge = patch[(patch[..., 3] > 30) & (patch[..., 3] < 220)]
    assert (edge[:, 0] <= 0x10 * edge[:, 3] // 255 + 12).all()


def test_light_is_a_factor_of_each_channel() -> None:
    """Of a plain image: what is left when there is neither blur nor noise."""
    grey = np.full((6, 6, 3), 100, np.uint8)
    changed = 0
    for seed in range(60):
        out = finish(np.random.default_rng(seed), grey)
        assert out.shape == grey.shape
        assert out.dtype == np.uint8
        plain = np.ptp(out.reshape(-1, 3), axis=0).max() == 0
        changed += plain and not np.array_equal(out, grey)
        assert not plain or bool(((out >= 80) & (out <= 115)).all())
    assert 5 < changed < 35
    np.testing.assert_array_equal(grey, 100)


def test_a_box_around_nothing() -> None:
    mask = np.zeros((5, 8), bool)
    assert tight_box(mask).tolist() == [0, 0, 0, 0]
    mask[2:4, 3:7] = True
    assert tight_box(mask).tolist() == [3, 2, 7, 4]
