"""The vocabulary: tables that fit the emoji list, and concepts with true words."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import pytest

from efficientsam3_stickers.concepts import Concept
from efficientsam3_stickers.vocabulary import plain_code, read_concepts, vocabulary

from .conftest import emoji_rows


@pytest.fixture(scope="module")
def concepts() -> dict[str, Concept]:
    return {c.name: c for c in read_concepts(emoji_rows(), {})}


def row(name: str, group: str, subgroup: str, short: str = "", code: str = "1F000") -> dict:
    """An entry of the emoji list."""
    return {
        "unified": code,
        "name": name,
        "category": group,
        "subcategory": subgroup,
        "short_names": [short or name.lower()],
        "sort_order": 0,
    }


def names(*rows: dict) -> list[str]:
    return [c.name for c in read_concepts(rows, {})]


def test_published_figures_depend_on_the_vocabulary() -> None:
    """A change of the tables changes scenes, so that figures have to be measured again."""
    content = json.dumps(asdict(vocabulary()), sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest()[:16] == "8666f4e0b1afb3aa"


def test_tables_have_clean_words_without_repetition() -> None:
    tables = asdict(vocabulary())
    lists = [tables[n] for n in ("dropped_subgroups", "kept", "dropped", "false_synonyms")]
    lists += tables["lookalikes"]
    for name in ("synonyms", "subgroup_categories", "subgroup_exceptions", "parts"):
        lists += tables[name].values()
    lists += tables["category_members"].values()
    lists += [[old, new] for old, new in tables["renamed"].items()]
    for words in lists:
        assert words
        assert all(word == " ".join(word.lower().split()) and "," not in word for word in words)


def test_categories_are_true_and_narrow_ones_come_first(concepts: dict[str, Concept]) -> None:
    assert concepts["red apple"].categories == ("apple", "fruit", "food")
    assert concepts["dog face"].categories == ("dog", "mammal", "animal")
    assert concepts["dog"].categories == ("mammal", "animal")
    assert concepts["car"].categories == ("vehicle",)


def test_a_short_name_that_names_another_concept_is_not_a_synonym(
    concepts: dict[str, Concept],
) -> None:
    assert "dog" not in concepts["dog face"].synonyms
    assert concepts["dog face"].is_called("dog")
    assert not concepts["dog"].is_called("dog face")


def test_concepts_have_names_that_people_use(concepts: dict[str, Concept]) -> None:
    assert "automobile" not in concepts
    assert concepts["car"].synonyms == ("automobile",)


def test_a_person_without_visible_gender_is_a_twin_of_both(concepts: dict[str, Concept]) -> None:
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
def test_signs_and_directions_are_not_concepts(name: str, group: str, subgroup: str) -> None:
    assert names(row(name, group, subgroup)) == []


def test_well_known_signs_are_concepts() -> None:
    assert names(row("right arrow", "Symbols", "arrow")) == ["arrow"]
    assert names(row("twelve o’clock", "Travel & Places", "time")) == ["clock"]
    assert names(row("yin yang", "Symbols", "religion")) == ["yin yang"]


def test_cldr_names_replace_those_of_the_list() -> None:
    rows = [row("BLACK SUN WITH RAYS", "Travel & Places", "sky & weather")]
    assert [c.name for c in read_concepts(rows, {"1f000": "Sun"})] == ["sun"]


def test_plain_codes_of_all_spellings_are_equal() -> None:
    assert plain_code("2764-FE0F-200D-1F525") == plain_code("2764-200d-1f525")
