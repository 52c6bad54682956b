"""Pictures of answers beside the truth: what was found, what was missed, what is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from .concept import IOU_LEVELS
from .overlap import mask_iou

Array = npt.NDArray[Any]
Colour = tuple[int, int, int]

HIT, MISSED, EXTRA = (60, 220, 90), (255, 160, 0), (255, 40, 60)
"""Found and there; there and not found; found and not there."""

_BACK, _INK, _QUIET = (24, 24, 27), (240, 240, 240), (150, 150, 155)
_LINE = 30


@dataclass(frozen=True, eq=False)
class Answered:
    """A phrase, what a model found, and what is there.

    found: N masks (H, W) bool, of those that score enough. truth: M masks; none: it is absent.
    """

    phrase: str
    found: Sequence[Array]
    truth: Sequence[Array]

    def sort(self) -> tuple[list[Array], list[Array], list[Array]]:
        """Masks that were found, that were missed, and that are not there (IoU 0.5, one to one)."""
        if not len(self.found) or not len(self.truth):
            return [], list(self.truth), list(self.found)
        from scipy.optimize import linear_sum_assignment

        overlap = mask_iou(np.stack(list(self.found)), np.stack(list(self.truth)))
        rows, columns = linear_sum_assignment(overlap, maximize=True)
        pairs = [(r, c) for r, c in zip(rows, columns, strict=True) if overlap[r, c] >= LEAST]
        hits, there = {r for r, _ in pairs}, {c for _, c in pairs}
        return (
            [self.found[r] for r in sorted(hits)],
            [m for i, m in enumerate(self.truth) if i not in there],
            [m for i, m in enumerate(self.found) if i not in hits],
        )


LEAST = float(IOU_LEVELS[0])


def hits_and_misses(
    image: Array, answers: Sequence[Answered], *, columns: int = 4, side: int = 300
) -> Image.Image:
    """One panel a phrase: green what was found, orange what was missed, red what is not there.

    Args:
        image: (H, W, 3) uint8 RGB. columns: of panels. side: pixels of a panel's longer side.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    columns = max(1, min(columns, len(answers)))
    rows = max(1, math.ceil(len(answers) / columns))
    sheet = Image.new("RGB", (columns * size[0], rows * (size[1] + _LINE)), _BACK)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, answer in enumerate(answers):
        row, column = divmod(number, columns)
        left, top = column * size[0], row * (size[1] + _LINE)
        hits, missed, extra = answer.sort()
        parts = ((missed, MISSED), (extra, EXTRA), (hits, HIT))
        sheet.paste(_panel(image, parts, size), (left, top))
        said, colour = _said(answer, len(hits), len(missed), len(extra))
        room = size[0] - 12 - draw.textlength(said, font=font)
        phrase = _cut(answer.phrase, room - 8, draw, font)
        line = top + size[1] + 6
        draw.text((left + 6, line), phrase, _INK if answer.truth else _QUIET, font)
        draw.text((left + 6 + room, line), said, colour, font)
    return sheet


def _said(answer: Answered, hits: int, missed: int, extra: int) -> tuple[str, Colour]:
    if not answer.truth:
        return (f"absent, {extra} found", EXTRA) if extra else ("absent, none found", HIT)
    said = f"{hits} of {hits + missed}" + (f", {extra} wrong" if extra else "")
    return said, EXTRA if extra else MISSED if missed else HIT


def _panel(
    image: Array, parts: Sequence[tuple[list[Array], Colour]], size: tuple[int, int]
) -> Image.Image:
    """The image, darker, with the masks of each part filled and outlined."""
    pixels = np.asarray(Image.fromarray(image).resize(size), np.float32) * 0.6
    for masks, colour in parts:
        for mask in masks:
            area = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
            padded = np.pad(area, 1)
            inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
            pixels[area] = pixels[area] * 0.75 + 0.25 * np.array(colour, np.float32)
            pixels[area & ~inner] = colour
    return Image.fromarray(pixels.astype(np.uint8))


def _cut(text: str, room: float, draw: ImageDraw.ImageDraw, font: Any) -> str:
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(text + "…", font=font) > room:
        text = text[:-1]
    return text + "…"
