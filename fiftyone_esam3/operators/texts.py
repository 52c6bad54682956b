"""Read what is typed into a form."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from efficientsam3 import PromptError
from efficientsam3.concepts import read_classes

from ..runs.steps import RunError


def free_key(key: str, known: Collection[str]) -> str:
    """The key, with a number where it is taken.

    Args:
        key: the key.
        known: the keys that are taken.
    """
    numbered = (f"{key}_{number}" for number in itertools.count(2))
    return key if key not in known else next(k for k in numbered if k not in known)


def read_class_text(text: str) -> dict[str, list[str]]:
    """Read classes and their phrases.

    Args:
        text: classes with semicolons between; after a colon the phrases of a class, with commas.

    Raises:
        PromptError: a part has another form.
    """
    classes: dict[str, list[str]] = {}
    for part in filter(str.strip, re.split(r"[;\n]", str(text))):
        name, colon, phrases = part.partition(":")
        listed = [phrase.strip() for phrase in phrases.split(",") if phrase.strip()]
        if not colon or not name.strip() or not listed:
            raise PromptError(
                f"{part.strip()!r} is no class with phrases; write vehicle: car, truck"
            )
        classes.setdefault(name.strip(), []).extend(listed)
    return read_classes(classes) or {}


def add_classes(phrases: Sequence[str], text: str | None) -> list[str] | dict[str, list[str]]:
    """Add classes of several phrases to phrases that are classes of their own.

    Args:
        phrases: the phrases.
        text: see :func:`read_class_text`; or None.

    Raises:
        PromptError: a part of the text has another form.
    """
    if not text:
        return list(phrases)
    return {**{name: [name] for name in phrases}, **read_class_text(text)}


def split_phrases(texts: str | Iterable[str]) -> list[str]:
    """Split typed texts at commas; empty parts are left out.

    Args:
        texts: one text, or several.
    """
    texts = [texts] if isinstance(texts, str) else texts
    return [part.strip() for text in texts for part in str(text).split(",") if part.strip()]


def read_numbers(value: Any) -> list[int]:
    """Read numbers of frames.

    Args:
        value: numbers, or a text with commas between them.

    Raises:
        RunError: one is not a whole number from 1.
    """
    parts = value.split(",") if isinstance(value, str) else list(value)
    try:
        numbers = [int(part) for part in parts if str(part).strip()]
    except (TypeError, ValueError):
        numbers = [0]
    if any(number < 1 for number in numbers):
        raise RunError(f"frames are whole numbers from 1, with commas between; got {value!r}")
    return numbers
