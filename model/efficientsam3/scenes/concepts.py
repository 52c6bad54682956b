"""Concepts: a name, the words that are true of it, what looks like it; and the splits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from . import vocabulary
from .vocabulary import words_of

STYLES = ("noto", "fluent", "twemoji", "openmoji")
"""Sets of art. The last is held out: no model of ours trains on it."""

Part = Literal["seen", "unseen"]
UNSEEN_SHARE = 0.15
"""Of the concepts, how many are never trained on."""


@dataclass(frozen=True)
class Concept:
    """Something that art shows and a person can name.

    name: "red apple". synonyms: other names, just as true. categories: wider words that are true
    of it ("apple", "fruit", "food"), narrow ones first. group, subgroup: of the emoji list.
    styles: which sets of art have it. near: names of look-alikes, nearest first: hard negatives.
    twins: names too alike to call absent where this one is shown. code: the picture's code points.
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
        """Whether a name, synonym or category word of it is the phrase."""
        return phrase == self.name or phrase in self.synonyms or phrase in self.categories


# Splits -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Which concepts, styles and backgrounds a set of scenes draws from.

    stream: scenes of different streams differ though their seeds are the same.
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
"""By name. "train" is learned from; "seen" is of the same world, in scenes never trained on."""


def part_of(name: str) -> Part:
    """Whether models may train on a concept; it depends on nothing but the name."""
    value = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return "unseen" if value < UNSEEN_SHARE else "seen"


# From the emoji list ------------------------------------------------------------------------


def plain_code(code: str) -> str:
    """Code points without the variation selector, which art sets write or leave out at will."""
    return "-".join(c for c in code.lower().split("-") if c != "fe0f")


def read_concepts(rows: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[Concept]:
    """The concepts of an emoji list.

    Args:
        rows: of emoji-datasource's ``emoji.json``, each with "unified", "category",
            "subcategory", "short_names" and "sort_order".
        names: CLDR's short name by plain code.

    Returns:
        In the list's order, without look-alikes, ``twins`` only as far as words tell.
    """
    found: dict[str, Concept] = {}
    short: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: int(row["sort_order"])):
        code = plain_code(row["unified"])
        label = _clean(names.get(code, row["name"] or ""))
        if not _is_kept(label, row["category"], row["subcategory"]):
            continue
        name = vocabulary.RENAMED.get(label, label)
        if name in found:
            continue
        found[name] = Concept(
            name, (), row["category"], row["subcategory"], words_of(name, row["subcategory"])
        )
        found[name] = _with(found[name], code=code)
        short[name] = [label, *(_clean(s) for s in row["short_names"])]
    taken = set(found) | {word for c in found.values() for word in c.categories}
    result = []
    for name, concept in found.items():
        extra = vocabulary.EXTRA_SYNONYMS.get(name, "").split(", ")
        spelt = name.replace("-", " ")
        listed = [s for s in short[name] if _is_synonym(s) and s.replace("-", " ") != spelt]
        if concept.categories[-1:] == ("smiley",):
            listed = []  # a face is called by what it does ("sob"): no name of a thing
        own = [*extra, *listed]
        synonyms = tuple(dict.fromkeys(s for s in own if s and s not in taken))
        taken.update(synonyms)
        wider = tuple(
            dict.fromkeys((*(n for n in _neutral(name) if n in found), *concept.categories))
        )
        result.append(_with(concept, synonyms=synonyms, categories=wider))
    return [_with(c, twins=_twins(c, found)) for c in result]


def _with(concept: Concept, **changes: Any) -> Concept:
    return Concept(**(concept.__dict__ | changes))


def _clean(text: str) -> str:
    text = text.lower().replace("’", "'").replace("“", "").replace("”", "").replace("_", " ")
    return " ".join(text.split())


def _is_kept(label: str, group: str, subgroup: str) -> bool:
    if group in ("Flags", "Component"):
        return False
    if label in vocabulary.KEPT:
        return True
    directed = "facing right" in label or re.search(r"(-thirty|o'clock)$", label)
    if label == "twelve o'clock":
        return True
    return not (
        directed
        or subgroup in vocabulary.DROPPED_SUBGROUPS
        or label in vocabulary.DROPPED
        or label.startswith(("family:", "input "))
    )


def _is_synonym(text: str) -> bool:
    return (
        text not in vocabulary.FALSE_SYNONYMS
        and "probing" not in text
        and re.search(r"^[a-z][a-z' -]{2,}$", text) is not None
        and not re.search(r"^(female|male|lower left|large|small|heavy|black|white)[ -]", text)
    )


def _neutral(name: str) -> tuple[str, ...]:
    """ "woman farmer" -> "farmer", ...; "man walking" -> "person walking", ...; else nothing."""
    first, _, rest = name.partition(" ")
    if first not in ("man", "men", "woman", "women") or not rest:
        return ()
    return (rest, f"person {rest}", f"people {rest}")


def _twins(concept: Concept, known: Mapping[str, Concept]) -> tuple[str, ...]:
    name = concept.name
    found = vocabulary.confusable(name)
    # A person drawn without a sign of being a man or a woman is drawn as one of them.
    bare = name.removeprefix("person ").removeprefix("people ")
    found |= {f"{first} {bare}" for first in ("man", "men", "woman", "women")}
    found |= set(_neutral(name))
    return tuple(sorted(n for n in found if n in known and n != name))
