"""Phrases and classes: one set of rules, wherever they are given."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from efficientsam3.concepts import (
    MAX_LENGTH,
    PhraseWarning,
    plain_concepts,
    read_classes,
    read_concepts,
    suspected_phrases,
    unique_phrases,
)
from efficientsam3.errors import PromptError


def quietly(concepts: Any) -> dict[str, list[str]] | None:
    """The classes, with hints off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PhraseWarning)
        return read_classes(concepts)


@pytest.mark.parametrize(
    ("given", "classes"),
    [
        ("person", {"person": ["person"]}),
        (["person", "bus"], {"person": ["person"], "bus": ["bus"]}),
        (("bus", "bus"), {"bus": ["bus"]}),
        (iter(["bus", "dog"]), {"bus": ["bus"], "dog": ["dog"]}),
        ({"vehicle": ["car", "truck"]}, {"vehicle": ["car", "truck"]}),
        ({"vehicle": "car", "dog": None}, {"vehicle": ["car"], "dog": ["dog"]}),
        ({" big  cat ": (" lion", "tiger\n")}, {"big cat": ["lion", "tiger"]}),
    ],
    ids=["text", "list", "tuple", "iterator", "class", "class-of-text", "spaces"],
)
def test_phrases_and_mappings_become_classes(given: Any, classes: dict[str, list[str]]) -> None:
    found = read_classes(given)
    assert found == classes
    assert list(found) == list(classes)


@pytest.mark.parametrize(
    "spellings",
    [
        ["hippopotamus", "Hippopotamus", "HIPPOPOTAMUS"],
        ["yellow bus", " yellow  bus\t", "yellow\nbus", "yellow\u00a0bus", "Yellow Bus"],
        ["caf\u00e9", "cafe\u0301", "CAF\u00c9"],
        ["dog", "\u200fdog", "\ufeffdog", "d\u00adog", "\u202adog\u202c"],
        ["\uff41\uff42", "ab"],
        ["child's toy", "child\u2019s toy"],
        ["salt & pepper shaker", "salt &amp; pepper shaker"],
    ],
    ids=str,
)
def test_spellings_of_one_text_are_one_concept_with_the_first_spelling(
    spellings: list[str],
) -> None:
    (classes,) = (quietly(spellings),)
    assert classes is not None
    assert len(classes) == 1
    (name,) = classes
    assert name == " ".join(spellings[0].split())
    assert classes == {name: [name]}


@pytest.mark.parametrize(
    "kept",
    ["C++", "5", "7-Eleven", "\u043a\u043e\u0448\u043a\u0430", "\u732b", "\U0001f697", "a.b"],
)
def test_unusual_phrases_are_taken_as_they_are(kept: str) -> None:
    assert read_classes([kept]) == {kept: [kept]}


def test_joiners_that_words_and_emoji_need_are_kept() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert read_classes([family]) == {family: [family]}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("", ["''", "'person'"]),
        (" \t", ["'person'"]),
        ("...", ["'...'", "'person'"]),
        ("\u200f", ["'person'"]),
        ("a\x00b", [r"'a\x00b'", "U+0000", "control character", "Remove"]),
        ("bell\x07", ["U+0007"]),
        ("a\ud800", [r"'a\ud800'", "U+D800", "surrogate"]),
        ([], ["empty", "['person']"]),
        ((), ["empty", "['person']"]),
        ({}, ["empty", "['person']"]),
        ({"vehicle": []}, ["'vehicle'", "empty"]),
        ({"vehicle": ["car", ""]}, ["''"]),
        ({"": ["car"]}, ["name of a class", "''"]),
        ({True: ["car"]}, ["name of a class", "True"]),
        ({"a": 3}, ["'a'", "3"]),
        ({"Car": ["x"], "car ": ["y"]}, ["'car'", "'Car'", "twice"]),
        ([None], ["None", "phrase"]),
        (3, ["3", "phrases"]),
        (b"dog", ["b'dog'"]),
        ("x" * (MAX_LENGTH + 1), ["10,000", "10,001", "xxx ... xxx"]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_wrong_phrases_are_refused_with_the_value_and_the_rule(
    wrong: Any, words: list[str]
) -> None:
    with pytest.raises(PromptError) as caught:
        read_classes(wrong)
    message = str(caught.value)
    assert len(message) < 300
    assert message.isprintable()
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("phrase", "parts"),
    [
        ("cat, dog", ["cat", "dog"]),
        ("person . car .", ["person", "car"]),
        ("person. car.", ["person", "car"]),
        ("cat;dog", ["cat", "dog"]),
        ("cat | dog", ["cat", "dog"]),
        ("cat\ndog", ["cat", "dog"]),
        ("cats and dogs", ["cats", "dogs"]),
        ("cat or dog", ["cat", "dog"]),
        ("red cars and blue trucks", ["red cars", "blue trucks"]),
        ("cat\u3001dog", ["cat", "dog"]),
    ],
)
def test_a_phrase_that_looks_like_several_is_taken_as_one_with_a_hint(
    phrase: str, parts: list[str]
) -> None:
    with pytest.warns(PhraseWarning) as caught:
        classes = read_classes([phrase])
    assert list(classes or ()) == [" ".join(phrase.split())]
    assert suspected_phrases(phrase) == parts
    (warning,) = caught
    for part in parts:
        assert repr(part) in str(warning.message)


@pytest.mark.parametrize(
    "phrase",
    ["black and white cat", "a.b", "person.", "3.5 inch disk", "android", "a/c"],
)
def test_a_phrase_that_looks_like_one_has_no_hint(phrase: str) -> None:
    assert suspected_phrases(phrase) == [phrase]
    read_classes([phrase])


def test_a_mapping_from_phrases_to_classes_has_a_hint() -> None:
    with pytest.warns(PhraseWarning, match="'vehicle' is of 2 classes, 'car', 'truck'"):
        classes = read_classes({"car": "vehicle", "truck": "vehicle"})
    assert classes == {"car": ["vehicle"], "truck": ["vehicle"]}


def test_each_phrase_is_asked_once() -> None:
    classes = quietly({"a": ["Dog", "cat"], "b": ["dog"]})
    assert classes == {"a": ["Dog", "cat"], "b": ["dog"]}
    assert unique_phrases(classes) == {"dog": "Dog", "cat": "cat"}


def test_plain_phrases_stay_a_list() -> None:
    assert plain_concepts({"a": ["a"], "b": ["b"]}) == ["a", "b"]
    assert plain_concepts({"a": ["a"], "b": ["c"]}) == {"a": ["a"], "b": ["c"]}
    assert read_concepts(["b", " B"]) == ["b"]
    with pytest.raises(PromptError, match="not a mapping"):
        read_concepts({"a": ["b"]})  # type: ignore[arg-type]
