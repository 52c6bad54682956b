"""A contact sheet: some frames of a video in one picture, evenly spaced."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

TILE, GAP, LINE = 480, 6, 20
"""Pixels: the longer side of a tile, between tiles, and of the line under one."""
PIXELS = TILE * TILE * 3 // 4
"""Of a picture to draw for a tile: words on a larger one would be too small to read."""
GROUND, INK = (24, 24, 27), (225, 225, 230)


class _Tile(NamedTuple):
    picture: Image.Image
    said: str


class ContactSheet:
    """Keeps some of the pictures that are shown to it; ``close`` writes them.

    It need not know how many will come: when it has twice as many as it needs, it lets every
    second one go, and from then on takes half as many.

    Args:
        path: of a .png, or another format that Pillow writes. tiles: how many pictures, at most.
    """

    def __init__(self, path: str | Path, tiles: int = 12) -> None:
        self.path = Path(path)
        self.tiles = tiles
        self._kept: list[_Tile] = []
        self._every, self._shown = 1, 0

    def show(self, draw: Callable[[], Image.Image], index: int, time: float | None) -> None:
        """Look at a frame; it is drawn only if it is wanted."""
        wanted = self._shown % self._every == 0
        self._shown += 1
        if not wanted:
            return
        said = f"frame {index}" + ("" if time is None else f"   {time:.2f} s")
        picture = draw()
        picture.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        self._kept.append(_Tile(picture, said))
        if len(self._kept) >= 2 * self.tiles:
            del self._kept[1::2]
            self._every *= 2

    def close(self) -> None:
        """Write the sheet. Without a frame there is none."""
        from ..weights import replacing

        if not self._kept:
            return
        sheet = self.picture()
        with replacing(self.path) as path:
            kind = Image.registered_extensions().get(self.path.suffix.lower(), "PNG")
            sheet.save(path, format=kind)

    def picture(self) -> Image.Image:
        """The sheet as it is now."""
        count = min(self.tiles, len(self._kept))
        step = (len(self._kept) - 1) / max(1, count - 1)
        chosen = [self._kept[round(i * step)] for i in range(count)]
        width = max(tile.picture.width for tile in chosen)
        height = max(tile.picture.height for tile in chosen) + LINE
        columns = max(1, round(math.sqrt(count * 4 / 3 * height / width)))
        rows = math.ceil(count / columns)
        size = (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP)
        sheet = Image.new("RGB", size, GROUND)
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
        for i, tile in enumerate(chosen):
            left = GAP + i % columns * (width + GAP)
            top = GAP + i // columns * (height + GAP)
            sheet.paste(tile.picture, (left, top))
            pen.text((left + 2, top + tile.picture.height + 2), tile.said, INK, font)
        return sheet

    def __enter__(self) -> ContactSheet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
