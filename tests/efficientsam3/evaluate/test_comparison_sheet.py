"""Comparison sheets: matching, colors and captions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from efficientsam3.evaluate.comparison_sheet import PhraseResult, draw_comparison
from efficientsam3.viz.contact_sheet import GAP, LINE_HEIGHT
from efficientsam3.viz.mask_comparison import EXTRA, HIT, MISSED

Mask = npt.NDArray[np.bool_]


def block(top: int, left: int, height: int = 20, width: int = 20) -> Mask:
    mask = np.zeros((80, 100), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_each_found_instance_counts_once() -> None:
    there = [block(0, 0), block(0, 40), block(50, 0)]
    found = [block(0, 2), block(0, 1), block(50, 60), block(8, 40)]
    hits, missed, extra = PhraseResult("dog", found, there).match()
    assert [m.argmax() for m in hits] == [found[1].argmax()]
    assert [m.argmax() for m in missed] == [there[1].argmax(), there[2].argmax()]
    assert len(extra) == 3


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [([], [], (0, 0, 0)), ([block(0, 0)], [], (0, 0, 1)), ([], [block(0, 0)], (0, 1, 0))],
)
def test_one_side_is_empty(
    found: list[Mask], truth: list[Mask], expected: tuple[int, int, int]
) -> None:
    assert tuple(map(len, PhraseResult("dog", found, truth).match())) == expected


def test_a_cell_for_each_phrase_with_its_colors() -> None:
    image = np.full((80, 100, 3), 200, np.uint8)
    results = [
        PhraseResult("dog", [block(10, 10)], [block(10, 10)]),
        PhraseResult(
            "a phrase that is much too long for a panel of this width", [], [block(10, 10)]
        ),
        PhraseResult("cat", [block(10, 10)], []),
    ]
    sheet = np.asarray(draw_comparison(image, results, columns=2, side=200))
    height, width = 160 + LINE_HEIGHT + GAP, 200 + GAP
    assert sheet.shape == (2 * height + GAP, 2 * width + GAP, 3)
    for number, color in enumerate((HIT, MISSED, EXTRA)):
        row, column = divmod(number, 2)
        cell = sheet[GAP + row * height :, GAP + column * width :][: 160 + LINE_HEIGHT, :200]
        edge = (cell[:160] == color).all(-1)
        assert edge[20, 20:60].all() and edge[20:60, 20].all()
        assert not edge[:19].any() and not edge[62:].any() and not edge[24:56, 24:56].any()
        assert cell[160:].max() > 200, "the phrase is not written"


def test_an_image_without_a_phrase_gives_an_empty_cell() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    assert draw_comparison(image, [], side=16).size == (16 + 2 * GAP, 16 + 2 * GAP)
