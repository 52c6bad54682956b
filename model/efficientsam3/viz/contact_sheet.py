"""Contact sheets: a grid of captioned pictures, and one of evenly spaced frames of a video."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..io.atomic import write_picture
from ..types import Array

Color = tuple[int, int, int]

BACKGROUND: Color = (24, 24, 27)
TEXT_COLOR: Color = (225, 225, 230)
FONT_SIZE, LINE_HEIGHT, GAP = 13, 20, 6
"""Pixels: of the captions' font, from one caption line to the next, between cells."""

SIDE = 480
"""Pixels of the longer side of a frame of a video on its sheet."""

FRAME_PIXELS = SIDE * SIDE * 3 // 4
"""Pixels at which an overlay is drawn for a cell: labels of a larger one are too small to read."""


@dataclass(frozen=True)
class Caption:
    """One line of text below a picture.

    Attributes:
        text: Text at the left; it is cut to the room that ``note`` leaves.
        note: Text at the right.
        color: Color of ``text``, RGB.
        note_color: Color of ``note``, RGB.
    """

    text: str
    note: str = ""
    color: Color = TEXT_COLOR
    note_color: Color = TEXT_COLOR


@dataclass(frozen=True, eq=False)
class Cell:
    """One picture of a grid.

    Attributes:
        image: PIL image, or (H, W, 3) uint8 RGB.
        captions: Lines below the picture, from top to bottom.
    """

    image: Image.Image | Array
    captions: Sequence[Caption | str] = field(default=())


def draw_grid(
    cells: Sequence[Cell], *, columns: int | None = None, side: int | None = None
) -> Image.Image:
    """Draw pictures in rows and columns, with their captions.

    Args:
        cells: Pictures in reading order. Without any, the grid has one empty cell.
        columns: Pictures in a row. None: as many as make the sheet about 4 to 3.
        side: Pixels of a picture's longer side; larger and smaller ones are scaled. None: as they
            are.

    Returns:
        A new RGB picture.
    """
    images = [_scaled(cell.image, side) for cell in cells]
    width = max((image.width for image in images), default=side or SIDE)
    height = max((image.height for image in images), default=side or SIDE)
    row_height = height + LINE_HEIGHT * max((len(cell.captions) for cell in cells), default=0)
    if columns is None:
        columns = round(math.sqrt(len(cells) * 4 / 3 * row_height / width))
    columns = max(1, min(columns, len(cells)))
    rows = max(1, math.ceil(len(cells) / columns))
    size = (columns * (width + GAP) + GAP, rows * (row_height + GAP) + GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, (cell, image) in enumerate(zip(cells, images, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (row_height + GAP)
        sheet.paste(image, (left, top))
        for line, caption in enumerate(cell.captions):
            caption = Caption(caption) if isinstance(caption, str) else caption
            y = top + image.height + line * LINE_HEIGHT + 2
            note_x = left + width - 2 - draw.textlength(caption.note, font)
            room = note_x - left - (10 if caption.note else 2)
            text = _cut(caption.text, room, draw, font)
            draw.text((left + 2, y), text, caption.color, font)
            draw.text((note_x, y), caption.note, caption.note_color, font)
    return sheet


def _scaled(image: Image.Image | Array, side: int | None) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    longer = max(picture.size)
    if side is None or longer == side:
        return picture.convert("RGB")
    width, height = (max(1, round(length * side / longer)) for length in picture.size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _cut(text: str, room: float, draw: ImageDraw.ImageDraw, font: Any) -> str:
    """The text, or its beginning with an ellipsis where it is wider than ``room`` pixels."""
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "…", font) > room:
        text = text[:-1]
    return text + "…"


class ContactSheet:
    """Collects evenly spaced frames of a video whose length is not known; ``close`` writes them.

    When twice as many frames are kept as the sheet shows, every second one is dropped, and from
    then on half as many are kept.

    Args:
        path: The file to write: .png, or another format that Pillow writes.
        frames: Frames on the sheet, at most.
    """

    def __init__(self, path: str | Path, frames: int = 12) -> None:
        self.path = Path(path)
        self.frames = frames
        self._kept: list[Cell] = []
        self._every, self._shown = 1, 0

    def show(self, draw: Callable[[], Image.Image], index: int, time: float | None) -> None:
        """Take the next frame of the video into account.

        Args:
            draw: Draws the frame; it is called only if the frame is kept.
            index: The frame's number in the video, from 0.
            time: Seconds from the start of the video, or None.
        """
        is_kept = self._shown % self._every == 0
        self._shown += 1
        if not is_kept:
            return
        caption = f"frame {index}" + ("" if time is None else f"   {time:.2f} s")
        picture = draw()
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        self._kept.append(Cell(picture, [caption]))
        if len(self._kept) >= 2 * self.frames:
            del self._kept[1::2]
            self._every *= 2

    def close(self) -> None:
        """Write the sheet. Nothing is written if no frame came."""
        if not self._kept:
            return
        sheet = self.picture()
        kind = Image.registered_extensions().get(self.path.suffix.lower(), "PNG")
        write_picture(sheet, self.path, kind)

    def picture(self) -> Image.Image:
        """The sheet of the frames so far."""
        count = min(self.frames, len(self._kept))
        step = (len(self._kept) - 1) / max(1, count - 1)
        return draw_grid([self._kept[round(i * step)] for i in range(count)])

    def __enter__(self) -> ContactSheet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
