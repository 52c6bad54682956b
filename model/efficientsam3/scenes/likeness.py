"""What looks like what: for hard negatives, and for negatives that would not be fair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .concepts import Concept

SIDE = 18
NEAR = 12
OF_THE_KIND = 6
SAME = 0.02
"""Mean difference (of 1) of colours and matte below which two pictures are taken for one."""

SHARE = 0.55
"""Of a sticker's opaque area: what a colour word needs."""


class Likeness:
    """Compares concepts by all styles that both have."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._thumbnails: dict[str, NDArray[np.float32]] = {}

    def add(self, i: int, style: str, sticker: NDArray[np.uint8]) -> None:
        """Take in one concept's sticker (S, S, 4)."""
        if style not in self._thumbnails:
            self._thumbnails[style] = np.full((self.count, SIDE, SIDE, 4), np.nan, np.float32)
        step = sticker.shape[0] // SIDE
        values = sticker.astype(np.float32) / 255
        values[..., :3] *= values[..., 3:]
        self._thumbnails[style][i] = values.reshape(SIDE, step, SIDE, step, 4).mean((1, 3))

    def compare(
        self, concepts: Sequence[Concept], shown: Sequence[int]
    ) -> Iterator[tuple[int, list[str], list[str]]]:
        """(concept, names of look-alikes with the nearest first, names of twins) of each shown."""
        distance, least = self._distances(shown)
        for row, i in enumerate(shown):
            me = concepts[i]
            same = {
                concepts[shown[j]].name
                for j in np.flatnonzero(least[row] < SAME).tolist()
                if j != row
            }
            twins = same | set(me.twins)
            twins &= {concepts[j].name for j in shown}
            others = []
            for j in np.argsort(distance[row], kind="stable").tolist():
                other = concepts[shown[j]]
                related = me.is_called(other.name) or other.is_called(me.name)
                if shown[j] != i and other.name not in twins and not related:
                    others.append(other)
            kin = [o.name for o in others if o.subgroup == me.subgroup][:OF_THE_KIND]
            looks = [o.name for o in others if o.name not in kin][: NEAR - len(kin)]
            yield i, kin + looks, sorted(twins)

    def _distances(self, shown: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(mean over shared styles, least over them), each (n, n) in [0, 1]; infinite if none."""
        n = len(shown)
        total, count = np.zeros((n, n), np.float32), np.zeros((n, n), np.float32)
        least = np.full((n, n), np.inf, np.float32)
        for thumbnails in self._thumbnails.values():
            rows = thumbnails[list(shown)].reshape(n, -1)
            mirrored = thumbnails[list(shown)][:, :, ::-1].reshape(n, -1)
            for i in range(n):
                # Scenes mirror stickers.
                found = np.minimum(
                    np.abs(rows - rows[i]).mean(1), np.abs(mirrored - rows[i]).mean(1)
                )
                both = ~np.isnan(found)
                total[i, both] += found[both]
                count[i, both] += 1
                least[i, both] = np.minimum(least[i, both], found[both])
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(count > 0, total / count, np.inf)
        return mean.astype(np.float32), least


# Colours ------------------------------------------------------------------------------------


def colour_word(sticker: NDArray[np.uint8]) -> str | None:
    """The colour of more than half of the opaque area, of eleven; None if there is none."""
    opaque = sticker[sticker[..., 3] > 127][:, :3]
    if not len(opaque):
        return None
    words, counts = np.unique(colours_of(opaque), return_counts=True)
    best = int(counts.argmax())
    return str(words[best]) if counts[best] > SHARE * len(opaque) and words[best] else None


def colours_of(rgb: NDArray[np.uint8]) -> NDArray[np.str_]:
    """(N, 3) uint8 -> (N,) colour words; "" between the colours, where people would differ."""
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
    grey = (saturation < 0.14) | (chroma < 0.07)
    warm = (hue >= 10) & (hue < 45)
    brown = warm & (high < 0.72) & (saturation > 0.25)
    brown |= (hue >= 4) & (hue < 18) & (high < 0.5)
    brown |= ((hue >= 350) | (hue < 10)) & (high < 0.55) & (saturation < 0.65)
    pink = ((hue >= 300) | (hue < 12)) & (high > 0.75) & (saturation < 0.62)
    return np.select(
        [
            high < 0.2,
            grey & (high > 0.88),
            grey & (high < 0.3),
            grey & (high > 0.38) & (high < 0.8),
            grey,
            saturation < 0.22,
            brown,
            pink | ((hue >= 305) & (hue < 335) & (high > 0.75) & (saturation < 0.8)),
            ((hue >= 338) | (hue < 10)) & (saturation > 0.6),
            (hue < 13) & (saturation > 0.75),
            (hue >= 18) & (hue < 36) & (saturation > 0.55),
            (hue >= 40) & (hue < 64) & (saturation > 0.4),
            (hue >= 75) & (hue < 165),
            (hue >= 190) & (hue < 245),
            (hue >= 255) & (hue < 305),
        ],
        [
            "black",
            "white",
            "black",
            "gray",
            "",
            "",
            "brown",
            "pink",
            "red",
            "red",
            "orange",
            "yellow",
            "green",
            "blue",
            "purple",
        ],
        "",
    )
