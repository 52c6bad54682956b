"""Color words of stickers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray",
)  # fmt: skip
"""Basic color terms of English."""

MIN_SHARE = 0.55
"""Least share of a sticker's opaque area for a color word."""


def color_word(sticker: NDArray[np.uint8]) -> str | None:
    """The color of more than half of a sticker's opaque area; None if there is none.

    Args:
        sticker: (S, S, 4) RGBA.
    """
    opaque = sticker[sticker[..., 3] > 127][:, :3]
    if not len(opaque):
        return None
    words, counts = np.unique(_color_words(opaque), return_counts=True)
    best = int(counts.argmax())
    return str(words[best]) if counts[best] > MIN_SHARE * len(opaque) and words[best] else None


def _color_words(rgb: NDArray[np.uint8]) -> NDArray[np.str_]:
    """(N, 3) -> (N,) words; "" between colors, where people would name different ones."""
    values = rgb.astype(np.float32) / 255
    high, low = values.max(1), values.min(1)
    chroma = high - low
    saturation = chroma / np.maximum(high, 1e-6)
    red, green, blue = values.T
    safe = np.maximum(chroma, 1e-6)
    hue = 60 * np.select(
        [high == red, high == green],
        [((green - blue) / safe) % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    gray = (saturation < 0.14) | (chroma < 0.07)
    brown = (hue >= 10) & (hue < 45) & (high < 0.72) & (saturation > 0.25)
    brown |= (hue >= 4) & (hue < 18) & (high < 0.5)
    brown |= ((hue >= 350) | (hue < 10)) & (high < 0.55) & (saturation < 0.65)
    pink = ((hue >= 300) | (hue < 12)) & (high > 0.75) & (saturation < 0.62)
    pink |= (hue >= 305) & (hue < 335) & (high > 0.75) & (saturation < 0.8)
    rules = [  # the first that holds decides
        ("black", high < 0.2),
        ("white", gray & (high > 0.88)),
        ("black", gray & (high < 0.3)),
        ("gray", gray & (high > 0.38) & (high < 0.8)),
        ("", gray | (saturation < 0.22)),
        ("brown", brown),
        ("pink", pink),
        ("red", ((hue >= 338) | (hue < 10)) & (saturation > 0.6)),
        ("red", (hue < 13) & (saturation > 0.75)),
        ("orange", (hue >= 18) & (hue < 36) & (saturation > 0.55)),
        ("yellow", (hue >= 40) & (hue < 64) & (saturation > 0.4)),
        ("green", (hue >= 75) & (hue < 165)),
        ("blue", (hue >= 190) & (hue < 245)),
        ("purple", (hue >= 255) & (hue < 305)),
    ]
    return np.select([holds for _, holds in rules], [word for word, _ in rules], "")
