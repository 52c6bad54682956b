"""Pictures of hits and misses: every colour where it belongs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from efficientsam3.evaluate.pictures import EXTRA, HIT, MISSED, Answered, hits_and_misses

Mask = npt.NDArray[np.bool_]


def block(top: int, left: int, height: int = 20, width: int = 20) -> Mask:
    mask = np.zeros((80, 100), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_each_found_instance_counts_once() -> None:
    there = [block(0, 0), block(0, 40), block(50, 0)]
    found = [block(0, 2), block(0, 1), block(50, 60), block(8, 40)]
    hits, missed, extra = Answered("dog", found, there).sort()
    assert [m.argmax() for m in hits] == [found[1].argmax()]
    assert [m.argmax() for m in missed] == [there[1].argmax(), there[2].argmax()]
    assert len(extra) == 3


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [([], [], (0, 0, 0)), ([block(0, 0)], [], (0, 0, 1)), ([], [block(0, 0)], (0, 1, 0))],
)
def test_nothing_found_and_nothing_there(
    found: list[Mask], truth: list[Mask], expected: tuple[int, int, int]
) -> None:
    assert tuple(map(len, Answered("dog", found, truth).sort())) == expected


def test_a_panel_a_phrase_with_its_colours() -> None:
    image = np.full((80, 100, 3), 200, np.uint8)
    answers = [
        Answered("dog", [block(10, 10)], [block(10, 10)]),
        Answered("a phrase that is much too long for a panel of this width", [], [block(10, 10)]),
        Answered("cat", [block(10, 10)], []),
    ]
    sheet = np.asarray(hits_and_misses(image, answers, columns=2, side=200))
    assert sheet.shape == (2 * (160 + 30), 2 * 200, 3)
    for number, colour in enumerate((HIT, MISSED, EXTRA)):
        row, column = divmod(number, 2)
        panel = sheet[row * 190 : row * 190 + 160, column * 200 : column * 200 + 200]
        edge = (panel == colour).all(-1)
        assert edge[20, 20:60].all() and edge[20:60, 20].all()
        assert not edge[:19].any() and not edge[62:].any() and not edge[24:56, 24:56].any()
        words = sheet[row * 190 + 160 : row * 190 + 190, column * 200 : column * 200 + 200]
        assert words.max() > 200, "the phrase is not written"


def test_no_phrase_is_no_error() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    assert hits_and_misses(image, [], side=16).size == (16, 16 + 30)
