"""Concepts of stickers, and the splits that say which of them a set of scenes shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

STYLES = ("noto", "fluent", "twemoji", "openmoji")
"""Emoji sets. No recipe trains on the last one."""

Part = Literal["seen", "unseen"]
"""Whether training may use a concept, a photograph or a texture."""

UNSEEN_SHARE = 0.15
"""Share of the concepts that no recipe trains on."""


@dataclass(frozen=True)
class Concept:
    """A thing that stickers show and that people can name.

    Attributes:
        name: Such as "red apple".
        synonyms: Other names that are as true.
        group: Group in the emoji list.
        subgroup: Subgroup in the emoji list.
        categories: Wider words that are true of it ("apple", "fruit", "food"), narrow ones first.
        styles: Emoji sets that have it.
        near: Names of similar concepts, the most similar first: hard negatives.
        twins: Names of concepts that look so similar that they are not called absent where this
            one is shown.
        code: Code points of the emoji, without variation selectors.
    """

    name: str
    synonyms: tuple[str, ...]
    group: str
    subgroup: str
    categories: tuple[str, ...]
    styles: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    twins: tuple[str, ...] = ()
    code: str = ""

    def is_called(self, phrase: str) -> bool:
        """Whether a phrase is the name, a synonym or a category word.

        Args:
            phrase: The phrase, in lower case.
        """
        return phrase == self.name or phrase in self.synonyms or phrase in self.categories


@dataclass(frozen=True)
class Split:
    """Which concepts, styles and backgrounds a set of scenes shows.

    Attributes:
        name: Name of the split.
        concepts: Part of the concepts.
        styles: Emoji sets.
        backgrounds: Part of the photographs and textures.
        stream: Joins the seed of each scene, so that splits differ where their seeds are equal.
    """

    name: str
    concepts: Part
    styles: tuple[str, ...]
    backgrounds: Part
    stream: int


SEEN_STYLES, UNSEEN_STYLES = STYLES[:-1], STYLES[-1:]

SPLITS = {
    split.name: split
    for split in (
        Split("train", "seen", SEEN_STYLES, "seen", 0),
        Split("seen", "seen", SEEN_STYLES, "seen", 1),
        Split("unseen-style", "seen", UNSEEN_STYLES, "seen", 2),
        Split("unseen-concepts", "unseen", SEEN_STYLES, "seen", 3),
        Split("unseen-backgrounds", "seen", SEEN_STYLES, "unseen", 4),
        Split("unseen", "unseen", UNSEEN_STYLES, "unseen", 5),
    )
}
"""All splits by name. "seen" shows what "train" shows, in scenes that no recipe trains on."""


def part_of(name: str) -> Part:
    """The part of a concept, which depends on nothing but its name.

    Args:
        name: The concept's name.
    """
    value = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return "unseen" if value < UNSEEN_SHARE else "seen"
