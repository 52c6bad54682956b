"""How stickers are rendered and composited, and which pixels of each are visible."""

from __future__ import annotations

import numpy as np

from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.compositor import (
    Appearance,
    Compositor,
    add_camera_effects,
    mask_to_box,
    render_sticker,
)


def test_occlusion_removes_pixels_of_the_mask_behind() -> None:
    compositor = Compositor(np.zeros((40, 40, 3), np.uint8))
    square = np.full((20, 20, 4), 255, np.uint8)
    compositor.draw(square, 5, 5)
    compositor.draw(square, 15, 5)
    assert compositor.masks[0].sum() == 20 * 10
    assert compositor.masks[1].sum() == 20 * 20
    compositor.draw(square, 30, 30)  # cut off at the border
    assert compositor.masks[2].sum() == 10 * 10
    assert compositor.areas == [400, 400, 400]


def test_a_patch_has_the_side_of_its_appearance(stickers: StickerArt) -> None:
    patch = render_sticker(stickers.sticker("guitar", "noto"), Appearance(70.0))
    assert abs(np.ptp(np.nonzero(patch[..., 3] > 127)[0]) + 1 - 70) <= 2
    turned = render_sticker(stickers.sticker("guitar", "noto"), Appearance(70.0, angle=90.0))
    assert abs(np.ptp(np.nonzero(turned[..., 3] > 127)[1]) + 1 - 70) <= 2


def test_a_dark_sticker_has_no_bright_edge(stickers: StickerArt) -> None:
    patch = render_sticker(stickers.sticker("guitar", "noto"), Appearance(33.0, angle=20.0)).astype(
        int
    )
    assert (patch[..., :3] <= patch[..., 3:]).all()  # premultiplied
    edge = patch[(patch[..., 3] > 30) & (patch[..., 3] < 220)]
    assert (edge[:, 0] <= 0x10 * edge[:, 3] // 255 + 12).all()


def test_camera_effects_multiply_channels() -> None:
    """A plain image shows no blur, and noise is told by its range."""
    gray = np.full((6, 6, 3), 100, np.uint8)
    changed = 0
    for seed in range(60):
        out = add_camera_effects(np.random.default_rng(seed), gray)
        assert out.shape == gray.shape
        assert out.dtype == np.uint8
        plain = np.ptp(out.reshape(-1, 3), axis=0).max() == 0
        changed += plain and not np.array_equal(out, gray)
        assert not plain or bool(((out >= 80) & (out <= 115)).all())
    assert 5 < changed < 35
    np.testing.assert_array_equal(gray, 100)


def test_the_box_of_an_empty_mask_is_zero() -> None:
    mask = np.zeros((5, 8), bool)
    assert mask_to_box(mask).tolist() == [0, 0, 0, 0]
    mask[2:4, 3:7] = True
    assert mask_to_box(mask).tolist() == [3, 2, 7, 4]
