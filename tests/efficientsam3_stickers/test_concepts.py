"""Splits of concepts, styles and streams."""

from __future__ import annotations

import pytest

from efficientsam3_stickers.concepts import SPLITS, STYLES, part_of


@pytest.mark.parametrize(
    ("name", "part"),
    [("red apple", "seen"), ("dog", "seen"), ("guitar", "seen"), ("violin", "unseen")],
)
def test_the_part_of_a_concept_never_changes(name: str, part: str) -> None:
    assert part_of(name) == part


def test_about_15_percent_of_names_are_unseen() -> None:
    share = sum(part_of(f"thing {i}") == "unseen" for i in range(4000)) / 4000
    assert 0.13 < share < 0.17


def test_no_recipe_trains_on_openmoji() -> None:
    assert "openmoji" in STYLES
    assert "openmoji" not in SPLITS["train"].styles
    assert SPLITS["unseen-style"].styles == ("openmoji",)


def test_splits_draw_from_different_streams() -> None:
    assert len({split.stream for split in SPLITS.values()}) == len(SPLITS)
    assert all(name == split.name for name, split in SPLITS.items())
