"""Concepts: phrases that are asked, and classes that name what several phrases find.

The rules for phrases are the same wherever phrases are given; ``read_classes`` has them.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .bpe import clean
from .errors import PromptError, PromptWarning, shorten

Concepts = str | Sequence[str] | Mapping[str, str | Sequence[str] | None]
"""One phrase, several phrases, or a mapping from class names to their phrases."""

MAX_LENGTH = 10_000
"""Largest number of characters of a phrase."""

EXAMPLE = "['person'] or {'vehicle': ['car', 'truck']}"


class PhraseWarning(PromptWarning):
    """A phrase looks like several phrases, or a mapping like one from phrases to classes."""


def read_classes(concepts: Concepts | None) -> dict[str, list[str]] | None:
    """Normalize concepts to classes and their phrases.

    A phrase is never split: each string is one phrase. White space around it is removed, and inside
    it becomes single spaces. Letters and accents are composed (NFC), and invisible marks such as
    those of the writing direction are removed. Phrases that the tokenizer reads as the same text,
    such as "Dog" and "dog", are one phrase with the first spelling.

    Args:
        concepts: One phrase; several phrases, each a class of its own; or a mapping from class
            names to phrases. A class whose phrases are None has its name as its phrase.

    Returns:
        The phrases of each class by its name, in the given order; None for None.

    Raises:
        PromptError: There is no phrase, one is empty or not text, or contains a control character.

    Warns:
        PhraseWarning: A phrase looks like several.
    """
    if concepts is None:
        return None
    if isinstance(concepts, Mapping):
        classes = _read_mapping(concepts)
        _hint_at_shared(classes)
    else:
        classes = {name: [name] for name in _read_list(concepts, "concepts")}
    if not classes:
        raise PromptError(f"concepts is empty: name at least one, such as {EXAMPLE}")
    return classes


def read_concepts(concepts: str | Sequence[str] | None) -> list[str] | None:
    """Normalize phrases that are classes of their own, by the rules of ``read_classes``.

    Args:
        concepts: One phrase or several, or None.

    Returns:
        The phrases without repeats; None for None.

    Raises:
        PromptError: There is no phrase, one is wrong, or ``concepts`` is a mapping.
    """
    if isinstance(concepts, Mapping):
        raise PromptError(f"phrases are expected here, not a mapping; got {shorten(concepts)}")
    classes = read_classes(concepts)
    return None if classes is None else list(classes)


def read_phrase(concept: Any, meaning: str = "a concept is a phrase") -> str:
    """Normalize one phrase by the rules of ``read_classes``.

    Args:
        concept: A phrase.
        meaning: How messages begin that say what it is.

    Returns:
        The phrase.

    Raises:
        PromptError: It is empty or not text, or contains a control character.
    """
    if not isinstance(concept, str):
        raise PromptError(f"{meaning}; got {shorten(concept)}")
    if len(concept) > MAX_LENGTH:
        raise PromptError(
            f"{meaning} of at most {MAX_LENGTH:,} characters; got {len(concept):,}: "
            f"{shorten(concept)}"
        )
    for character in concept:
        kind = unicodedata.category(character)
        if kind == "Cs" or (kind == "Cc" and not character.isspace()):
            raise PromptError(
                f"{meaning}; {shorten(concept)} contains U+{ord(character):04X}, "
                f"{'half of a surrogate pair' if kind == 'Cs' else 'a control character'}. "
                "Remove it"
            )
    visible = "".join(c for c in concept if not _is_mark(c))
    text = " ".join(unicodedata.normalize("NFC", visible).split())
    if all(unicodedata.category(c)[0] in "PZM" or c in "\u200c\u200d" for c in text):
        raise PromptError(f"{meaning} such as 'person'; got {shorten(concept)}")
    return text


def unique_phrases(classes: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Join the phrases of all classes, each once.

    Args:
        classes: From ``read_classes``.

    Returns:
        The first spelling of each phrase, by what ``bpe.clean`` makes of it.
    """
    unique: dict[str, str] = {}
    for phrases in classes.values():
        for phrase in phrases:
            unique.setdefault(clean(phrase), phrase)
    return unique


def plain_concepts(classes: Mapping[str, Sequence[str]]) -> list[str] | dict[str, list[str]]:
    """Return classes as a list of phrases where each class is its own phrase, else as a mapping.

    Args:
        classes: From ``read_classes``.
    """
    if all(list(phrases) == [name] for name, phrases in classes.items()):
        return list(classes)
    return {name: list(phrases) for name, phrases in classes.items()}


def add_written(classes: dict[str, list[str]], value: str) -> None:
    """Add a concept as people write it in one text: a phrase, or "class=phrase,phrase".

    Args:
        classes: The phrases of each class so far.
        value: The text.

    Raises:
        PromptError: A class has no name or no phrase.
    """
    name, is_class, listed = value.partition("=")
    if not is_class:
        classes.setdefault(value, [value])
        return
    phrases = [phrase.strip() for phrase in listed.split(",") if phrase.strip()]
    if not name.strip() or not phrases:
        raise PromptError(
            f"{value!r} is not class=phrase,phrase: name the class before the sign and at least "
            "one phrase after it, as in vehicle=car,truck"
        )
    known = classes.setdefault(name.strip(), [])
    known += [phrase for phrase in phrases if phrase not in known]


def read_written(classes: dict[str, list[str]]) -> list[str] | dict[str, list[str]]:
    """Normalize what ``add_written`` collected.

    Args:
        classes: The phrases of each class.

    Returns:
        Phrases, or phrases by class where there are classes.

    Raises:
        PromptError: A phrase is wrong.
    """
    has_classes = any(phrases != [name] for name, phrases in classes.items())
    return plain_concepts(read_classes(classes if has_classes else list(classes)) or {})


def _read_list(phrases: Any, place: str) -> list[str]:
    if isinstance(phrases, str):
        phrases = [phrases]
    if isinstance(phrases, bytes) or not isinstance(phrases, Iterable):
        raise PromptError(f"{place} are phrases such as {EXAMPLE}; got {shorten(phrases)}")
    unique: dict[str, str] = {}
    for phrase in phrases:
        text = read_phrase(phrase)
        _hint_at_several(phrase)
        unique.setdefault(clean(text), text)
    return list(unique.values())


def _read_mapping(concepts: Mapping[Any, Any]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    for key, phrases in concepts.items():
        name = read_phrase(key, "the name of a class is text")
        same = next((known for known in classes if clean(known) == clean(name)), None)
        if same is not None:
            raise PromptError(
                f"the class {shorten(name)} is given twice, also as {shorten(same)}; join the "
                "phrases of both"
            )
        where = f"the phrases of the class {shorten(name)}"
        classes[name] = _read_list(name if phrases is None else phrases, where)
        if not classes[name]:
            raise PromptError(f"{where} are empty: name at least one, or None for its name")
    return classes


def _is_mark(character: str) -> bool:
    """Whether a character is invisible and has no meaning in a phrase.

    The joiners belong to words of some scripts and to emoji, and tags to emoji.
    """
    is_needed = character in "\u200c\u200d" or "\U000e0020" <= character <= "\U000e007f"
    return unicodedata.category(character) == "Cf" and not is_needed


# Hints ----------------------------------------------------------------------------------------

_SEPARATORS = re.compile(r"[,;|\n、，；]|\.(?=\s|$)|(?<=\s)(?:/|&)(?=\s)")
_AND = re.compile(r"\s(?:and|or)\s", re.IGNORECASE)


def suspected_phrases(phrase: str) -> list[str]:
    """Return the phrases that a phrase seems to consist of; itself where it looks like one.

    Args:
        phrase: What a user passed as one phrase.
    """
    parts = [part.strip() for part in _SEPARATORS.split(phrase)]
    parts = [part for part in parts if any(c.isalnum() for c in part)]
    if len(parts) > 1:
        return parts
    sides = _AND.split(phrase.strip())
    is_pair = all(" " not in side for side in sides)
    is_plural = all(side.lower().endswith("s") for side in sides)
    return sides if len(sides) > 1 and (is_pair or is_plural) else [phrase]


def _hint_at_several(phrase: str) -> None:
    parts = suspected_phrases(phrase)
    if len(parts) > 1:
        shown = parts[:4] + ["..."] * (len(parts) > 4)
        warnings.warn(
            f"{shorten(phrase)} is asked as one phrase. If these are {len(parts)} concepts, give "
            f"each by itself: {', '.join(shorten(part, 40) for part in shown)}",
            PhraseWarning,
            stacklevel=2,
        )


def _hint_at_shared(classes: Mapping[str, Sequence[str]]) -> None:
    owners: dict[str, list[str]] = {}
    for name, phrases in classes.items():
        for phrase in phrases:
            owners.setdefault(clean(phrase), []).append(name)
    for phrase, names in owners.items():
        if len(names) > 1:
            warnings.warn(
                f"the phrase {shorten(phrase)} is of {len(names)} classes, "
                f"{', '.join(shorten(name, 40) for name in names[:4])}: what it finds is in each "
                "of them. A mapping has the form {class: [phrases]}",
                PhraseWarning,
                stacklevel=2,
            )
