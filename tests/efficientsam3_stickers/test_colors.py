"""Color words of stickers."""

from __future__ import annotations

import numpy as np
import pytest

from efficientsam3_stickers.colors import COLORS, color_word

EXAMPLES = {
    "red": (221, 46, 68),
    "orange": (244, 144, 12),
    "yellow": (253, 203, 88),
    "green": (120, 177, 89),
    "blue": (85, 172, 238),
    "purple": (170, 142, 214),
    "pink": (244, 171, 186),
    "brown": (130, 80, 50),
    "black": (30, 30, 30),
    "white": (245, 245, 245),
    "gray": (150, 152, 150),
}


@pytest.mark.parametrize("word", COLORS)
def test_plain_colors_have_words(word: str) -> None:
    sticker = np.zeros((8, 8, 4), np.uint8)
    sticker[2:6] = (*EXAMPLES[word], 255)
    assert color_word(sticker) == word


def test_a_word_needs_more_than_half_of_the_area() -> None:
    sticker = np.full((8, 8, 4), 255, np.uint8)
    sticker[:4, :, :3] = (220, 30, 30)
    assert color_word(sticker) is None
    sticker[4:5, :, :3] = (220, 30, 30)
    assert color_word(sticker) == "red"


def test_a_transparent_sticker_has_no_word() -> None:
    assert color_word(np.zeros((8, 8, 4), np.uint8)) is None
