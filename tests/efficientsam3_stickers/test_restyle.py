"""Stickers in other styles: lines and flat colors, with the same hues and shapes."""

from __future__ import annotations

import numpy as np

from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.concepts import SPLITS
from efficientsam3_stickers.restyle import restyle
from efficientsam3_stickers.scenes import SceneGenerator


def test_the_shape_grows_by_an_outline_at_most(stickers: StickerArt) -> None:
    sticker = stickers.sticker("red apple", "noto")
    opaque = sticker[..., 3] > 127
    for seed in range(20):
        made = restyle(np.random.default_rng(seed), sticker)
        assert made.shape == sticker.shape and made.dtype == np.uint8
        shown = made[..., 3] > 127
        assert shown[opaque].all()
        rows, columns = np.nonzero(shown & ~opaque)
        near = [
            opaque[max(r - 3, 0) : r + 4, max(c - 3, 0) : c + 4].any()
            for r, c in zip(rows, columns, strict=True)
        ]
        assert all(near)


def test_a_red_sticker_stays_red(stickers: StickerArt) -> None:
    sticker = stickers.sticker("red apple", "noto")
    inner = np.zeros(sticker.shape[:2], bool)
    inner[60:84, 60:84] = True
    styles = set()
    for seed in range(20):
        red, green, blue = restyle(np.random.default_rng(seed), sticker)[inner][:, :3].mean(0)
        assert red > green and red > blue
        styles.add((round(red), round(green)))
    assert len(styles) > 3


def test_generators_without_it_make_the_scenes_that_they_made(stickers: StickerArt) -> None:
    plain = SceneGenerator(stickers, SPLITS["train"], 96)
    restyled = SceneGenerator(stickers, SPLITS["train"], 96, restyled=1.0)
    again = SceneGenerator(stickers, SPLITS["train"], 96, restyled=1.0)
    assert np.array_equal(restyled.scene(1).image, again.scene(1).image)
    assert not np.array_equal(plain.scene(1).image, restyled.scene(1).image)
