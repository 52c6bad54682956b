"""Grids of captioned pictures, and sheets of evenly spaced frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam3.viz.contact_sheet import (
    BACKGROUND,
    GAP,
    LINE_HEIGHT,
    Caption,
    Cell,
    ContactSheet,
    draw_grid,
)

RED, GREEN = (255, 0, 0), (0, 255, 0)


def test_cells_are_placed_in_rows_with_room_for_the_most_captions() -> None:
    cells = [
        Cell(Image.new("RGB", (40, 30), RED), ["one", "two"]),
        Cell(np.full((30, 20, 3), 200, np.uint8)),
        Cell(Image.new("RGB", (40, 30), GREEN)),
    ]
    sheet = draw_grid(cells, columns=2)
    width, height = 40, 30 + 2 * LINE_HEIGHT
    assert sheet.size == (2 * width + 3 * GAP, 2 * height + 3 * GAP)
    assert sheet.getpixel((GAP, GAP)) == RED
    assert sheet.getpixel((2 * GAP + width, GAP)) == (200, 200, 200)
    assert sheet.getpixel((2 * GAP + width + 20, GAP)) == BACKGROUND
    assert sheet.getpixel((GAP, 2 * GAP + height)) == GREEN
    lines = np.asarray(sheet)[GAP + 30 : GAP + height, GAP : GAP + width]
    written = (lines != BACKGROUND).any(2)
    assert written[:LINE_HEIGHT].any() and written[LINE_HEIGHT:].any()


def test_a_long_caption_is_cut_before_its_note() -> None:
    caption = Caption("a very long phrase " * 9, "3 of 4", color=GREEN, note_color=RED)
    sheet = np.asarray(draw_grid([Cell(Image.new("RGB", (200, 20)), [caption])]), int)
    line = sheet[GAP + 20 :]
    columns = [np.flatnonzero((line[..., c] > 128).any(0)) for c in (1, 0)]
    assert columns[0].min() >= GAP and columns[0].max() < columns[1].min()
    assert columns[1].max() < GAP + 200


def test_pictures_are_scaled_to_a_side() -> None:
    cells = [Cell(Image.new("RGB", (40, 20))), Cell(np.zeros((400, 200, 3), np.uint8))]
    assert draw_grid(cells, columns=2, side=100).size == (2 * 100 + 3 * GAP, 100 + 2 * GAP)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 2), (12, 4)])
def test_the_sheet_is_about_four_to_three(count: int, columns: int) -> None:
    sheet = draw_grid([Cell(Image.new("RGB", (40, 40)))] * count)
    assert (sheet.width - GAP) // (40 + GAP) == columns


def test_no_cells_give_an_empty_picture() -> None:
    assert draw_grid([], side=16).size == (16 + 2 * GAP, 16 + 2 * GAP)


@pytest.mark.parametrize(("frames", "cells"), [(1, 1), (5, 5), (12, 12), (13, 12), (1000, 12)])
def test_a_sheet_has_frames_of_the_whole_clip(tmp_path: Path, frames: int, cells: int) -> None:
    sheet = ContactSheet(tmp_path / "a.png")
    drawn = []
    for i in range(frames):
        sheet.show(lambda i=i: drawn.append(i) or Image.new("RGB", (64, 48)), i, i / 10)  # type: ignore[misc]
        assert len(sheet._kept) < 24
    assert len(drawn) <= 24 + 12 * 7
    picture = sheet.picture()
    sheet.close()
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.size == picture.size
    columns, rows = picture.width // 70, picture.height // 74
    assert cells <= columns * rows < cells + columns
    shown = [int(str(cell.captions[0]).split()[1]) for cell in sheet._kept]
    assert shown[0] == 0 and shown[-1] > 0.9 * frames - 1
    gaps = np.diff(shown)
    assert len(set(gaps)) <= 1, "evenly spaced"


def test_no_frames_no_sheet(tmp_path: Path) -> None:
    ContactSheet(tmp_path / "a.png").close()
    assert not list(tmp_path.iterdir())
