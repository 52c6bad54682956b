"""Contact sheets: scenes and clips with their truth drawn on them, to look at."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .clips import film

if TYPE_CHECKING:
    from .canvas import Mask, Pixels
    from .compose import World
    from .phrases import Query

TILE = 300
"""Pixels a side of a scene on the sheet, where it is larger."""
TEXT = 14


def scene_sheet(world: World, seed: int = 0, rows: int = 3, columns: int = 4) -> Image.Image:
    """Scenes of seeds from ``seed`` on; under each, phrases that are true of it, and are not."""
    lines = 8
    side = min(TILE, world.size)
    sheet = Image.new("RGB", (columns * side, rows * (side + lines * TEXT)), "white")
    for i in range(rows * columns):
        scene = world.scene(seed + i)
        tile = outlined(scene.image, [o.mask for o in scene.objects])
        left, top = (i % columns) * side, (i // columns) * (side + lines * TEXT)
        sheet.paste(Image.fromarray(tile).resize((side, side)), (left, top))
        _write(sheet, left, top + side, side, _lines(scene.queries, lines))
    return sheet


def clip_sheet(world: World, seed: int = 0, rows: int = 4, columns: int = 8) -> Image.Image:
    """Clips of seeds from ``seed`` on, a row each; under each its phrases."""
    lines = 2
    side = min(TILE, world.size) * 2 // 3
    sheet = Image.new("RGB", (columns * side, rows * (side + lines * TEXT)), "white")
    for row in range(rows):
        clip = film(world, seed + row, 2 * columns)
        top = row * (side + lines * TEXT)
        for column in range(columns):
            frame = clip.frame(2 * column)
            tile = outlined(frame.image, list(frame.masks))
            sheet.paste(Image.fromarray(tile).resize((side, side)), (column * side, top))
        true = "; ".join(_said(q) for q in clip.queries if q.objects)
        false = "absent: " + "; ".join(q.phrase for q in clip.queries if not q.objects)
        _write(sheet, 0, top + side, columns * side, [true, false])
    return sheet


def outlined(image: Pixels, masks: list[Mask]) -> Pixels:
    """The image with the inner edge of each mask in a colour of its own."""
    picture = image.copy()
    for i, mask in enumerate(masks):
        picture[_edge(mask)] = [round(255 * v) for v in colorsys.hsv_to_rgb(0.38 * i % 1, 1, 1)]
    return picture


def _edge(mask: Mask) -> NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: NDArray[np.bool_] = mask & ~inner
    return edge


def _lines(queries: tuple[Query, ...], count: int) -> list[str]:
    positive = [_said(q) for q in queries if q.objects]
    negative = [f"not {q.phrase}" for q in queries if not q.objects]
    half = count // 2
    return positive[: max(half, count - len(negative))] + negative[:half]


def _said(query: Query) -> str:
    return f"{query.phrase} ({len(query.objects)})"


def _write(sheet: Image.Image, left: int, top: int, width: int, lines: list[str]) -> None:
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        while draw.textlength(line) > width - 4:
            line = line[:-2]
        draw.text((left + 2, top + i * TEXT), line, fill="black")
