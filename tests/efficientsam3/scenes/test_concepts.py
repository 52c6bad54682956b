"""Names, the words that are true of them, and the splits."""

from __future__ import annotations

import pytest

from efficientsam3.scenes.concepts import (
    SPLITS,
    STYLES,
    Concept,
    part_of,
    plain_code,
    read_concepts,
)

from .conftest import rows


@pytest.fixture(scope="module")
def concepts() -> dict[str, Concept]:
    return {c.name: c for c in read_concepts(rows(), {})}


def row(name: str, group: str, subgroup: str, short: str = "", code: str = "1F000") -> dict:
    return {
        "unified": code,
        "name": name,
        "category": group,
        "subcategory": subgroup,
        "short_names": [short or name.lower()],
        "sort_order": 0,
    }


def names(*found: dict) -> list[str]:
    return [c.name for c in read_concepts(found, {})]


def test_categories_are_true_narrow_first(concepts: dict[str, Concept]) -> None:
    assert concepts["red apple"].categories == ("apple", "fruit", "food")
    assert concepts["dog face"].categories == ("dog", "mammal", "animal")
    assert concepts["dog"].categories == ("mammal", "animal")
    assert concepts["car"].categories == ("vehicle",)


def test_a_short_name_that_is_another_concepts_name_is_no_synonym(
    concepts: dict[str, Concept],
) -> None:
    assert "dog" not in concepts["dog face"].synonyms
    assert concepts["dog face"].is_called("dog")
    assert not concepts["dog"].is_called("dog face")


def test_names_that_people_type(concepts: dict[str, Concept]) -> None:
    assert "automobile" not in concepts
    assert concepts["car"].synonyms == ("automobile",)


def test_people_drawn_without_a_sign_are_twins_of_both(concepts: dict[str, Concept]) -> None:
    assert set(concepts["farmer"].twins) == {"man farmer", "woman farmer"}
    assert concepts["woman farmer"].categories == ("farmer", "woman", "person")
    assert "farmer" in concepts["man farmer"].twins


def test_no_two_concepts_share_a_name_or_synonym(concepts: dict[str, Concept]) -> None:
    words = [w for c in concepts.values() for w in (c.name, *c.synonyms)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("name", "group", "subgroup"),
    [
        ("flag: Norway", "Flags", "country-flag"),
        ("keycap: 3", "Symbols", "keycap"),
        ("up arrow", "Symbols", "arrow"),
        ("person walking: facing right", "People & Body", "person-activity"),
        ("three o'clock", "Travel & Places", "time"),
        ("four-thirty", "Travel & Places", "time"),
        ("thumbs down", "People & Body", "hand-fingers-closed"),
        ("family: man, boy", "People & Body", "family"),
    ],
)
def test_what_is_no_thing_or_only_a_direction_is_left_out(
    name: str, group: str, subgroup: str
) -> None:
    assert names(row(name, group, subgroup)) == []


def test_the_best_known_of_the_signs_are_kept() -> None:
    assert names(row("right arrow", "Symbols", "arrow")) == ["arrow"]
    assert names(row("twelve o’clock", "Travel & Places", "time")) == ["clock"]
    assert names(row("yin yang", "Symbols", "religion")) == ["yin yang"]


def test_the_names_of_unicodes_own_repository_win_over_the_lists() -> None:
    found = read_concepts(
        [row("BLACK SUN WITH RAYS", "Travel & Places", "sky & weather")],
        {
            "1f000": "Sun",
        },
    )
    assert [c.name for c in found] == ["sun"]


def test_plain_code_is_the_same_for_all_spellings() -> None:
    assert plain_code("2764-FE0F-200D-1F525") == plain_code("2764-200d-1f525")


@pytest.mark.parametrize(
    ("name", "part"),
    [("red apple", "seen"), ("dog", "seen"), ("guitar", "seen"), ("violin", "unseen")],
)
def test_parts_never_change(name: str, part: str) -> None:
    assert part_of(name) == part


def test_about_15_percent_of_names_are_unseen() -> None:
    share = sum(part_of(f"thing {i}") == "unseen" for i in range(4000)) / 4000
    assert 0.13 < share < 0.17


def test_openmoji_is_never_trained_on() -> None:
    assert "openmoji" in STYLES
    assert "openmoji" not in SPLITS["train"].styles
    assert SPLITS["unseen-style"].styles == ("openmoji",)


def test_splits_draw_from_different_streams() -> None:
    assert len({split.stream for split in SPLITS.values()}) == len(SPLITS)
    assert all(name == split.name for name, split in SPLITS.items())
