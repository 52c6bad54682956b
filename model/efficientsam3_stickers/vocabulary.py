"""Which emojis are concepts, what people call them, and which words are true of them.

The words are written by hand, in ``data/vocabulary.json``, by the emojis' names (the short names of
Unicode's CLDR in lower case). Scenes turn and mirror emojis, so concepts never differ in direction
alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from .concepts import Concept

Words = list[str]


@dataclass(frozen=True)
class Vocabulary:
    """The tables of ``data/vocabulary.json``.

    Attributes:
        dropped_subgroups: Subgroups of signs and letters, of which only ``kept`` are concepts.
        kept: Emojis of dropped subgroups that are concepts.
        dropped: Emojis that another one shows already, or that differ only in direction or detail.
        renamed: Names that people use, by emoji name.
        synonyms: Further names, by concept.
        false_synonyms: Short names of the emoji list that are odd, rude, or true of other concepts.
        subgroup_categories: Category words of all concepts of a subgroup, wide ones first.
        subgroup_exceptions: Concepts of which such a word is not true, by category word.
        category_members: Concepts of which a word is true, whatever their subgroup, by category
            word.
        lookalikes: Groups of concepts that are hard to tell apart, so that none is a fair negative
            where another is shown.
        parts: Other concepts that are visible in an emoji, by concept. They are no fair negatives
            where it is shown.
    """

    dropped_subgroups: Words
    kept: Words
    dropped: Words
    renamed: dict[str, str]
    synonyms: dict[str, Words]
    false_synonyms: Words
    subgroup_categories: dict[str, Words]
    subgroup_exceptions: dict[str, Words]
    category_members: dict[str, Words]
    lookalikes: list[Words]
    parts: dict[str, Words]

    def categories(self, name: str, subgroup: str) -> tuple[str, ...]:
        """Category words that are true of a concept, narrow ones first, without its own name.

        Args:
            name: The concept's name.
            subgroup: Its subgroup in the emoji list.
        """
        found = [word for word, names in self.category_members.items() if name in names]
        for word in reversed(self.subgroup_categories.get(subgroup, [])):
            if word not in found and name not in self.subgroup_exceptions.get(word, []):
                found.append(word)
        first = name.split()[0]
        if "person" in found and first in ("man", "woman") and first not in found:
            found.insert(0, first)
        return tuple(word for word in found if word != name)

    def unfair_negatives(self, name: str) -> set[str]:
        """Names that may be true of an image that shows a concept; its own may be among them.

        Args:
            name: The concept's name.
        """
        found = set(self.parts.get(name, []))
        for group in self.lookalikes:
            if name in group:
                found.update(group)
        return found


@cache
def vocabulary() -> Vocabulary:
    """The vocabulary of the package, read once."""
    file = resources.files(__package__).joinpath("data", "vocabulary.json")
    return Vocabulary(**json.loads(file.read_text(encoding="utf-8")))


def plain_code(code: str) -> str:
    """Code points in lower case without variation selectors, which not every source writes.

    Args:
        code: Hexadecimal code points with hyphens between them, such as "2764-FE0F".
    """
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def read_concepts(rows: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[Concept]:
    """The concepts of an emoji list.

    Args:
        rows: Entries of emoji-datasource's ``emoji.json``, each with "unified", "name",
            "category", "subcategory", "short_names" and "sort_order".
        names: CLDR short names, by plain code.

    Returns:
        Concepts in the order of the list. ``near`` is empty, and ``twins`` holds only what the
        vocabulary says; pictures are compared when stickers are baked.
    """
    words = vocabulary()
    found: dict[str, Concept] = {}
    short_names: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: int(row["sort_order"])):
        code, group, subgroup = plain_code(row["unified"]), row["category"], row["subcategory"]
        label = _clean(names.get(code, row["name"] or ""))
        name = words.renamed.get(label, label)
        if name in found or not _is_kept(label, group, subgroup):
            continue
        categories = words.categories(name, subgroup)
        found[name] = Concept(name, (), group, subgroup, categories, code=code)
        short_names[name] = [label, *(_clean(short) for short in row["short_names"])]
    taken = set(found) | {word for concept in found.values() for word in concept.categories}
    concepts = []
    for name, concept in found.items():
        candidates = list(words.synonyms.get(name, []))
        # Faces are listed by what they express ("sob"), which does not name a thing.
        if concept.categories[-1:] != ("smiley",):
            candidates += [
                short
                for short in short_names[name]
                if _is_synonym(short) and short.replace("-", " ") != name.replace("-", " ")
            ]
        synonyms = tuple(dict.fromkeys(word for word in candidates if word not in taken))
        taken.update(synonyms)
        wider = [word for word in _without_gender(name) if word in found]
        categories = tuple(dict.fromkeys([*wider, *concept.categories]))
        twins = tuple(sorted((_twins(name) & found.keys()) - {name}))
        concepts.append(replace(concept, synonyms=synonyms, categories=categories, twins=twins))
    return concepts


def _clean(text: str) -> str:
    text = text.lower().replace("’", "'").replace("“", "").replace("”", "").replace("_", " ")
    return " ".join(text.split())


def _is_kept(label: str, group: str, subgroup: str) -> bool:
    words = vocabulary()
    if group in ("Flags", "Component"):
        return False
    if label in words.kept or label == "twelve o'clock":
        return True
    return not (
        "facing right" in label
        or label.endswith(("-thirty", "o'clock"))
        or label.startswith(("family:", "input "))
        or label in words.dropped
        or subgroup in words.dropped_subgroups
    )


def _is_synonym(text: str) -> bool:
    return (
        text not in vocabulary().false_synonyms
        and "probing" not in text
        and re.search(r"^[a-z][a-z' -]{2,}$", text) is not None
        and not re.search(r"^(female|male|lower left|large|small|heavy|black|white)[ -]", text)
    )


def _without_gender(name: str) -> tuple[str, ...]:
    """Map "woman farmer" to "farmer" and "man walking" to "person walking"; others to nothing."""
    first, _, rest = name.partition(" ")
    if first not in ("man", "men", "woman", "women") or not rest:
        return ()
    return (rest, f"person {rest}", f"people {rest}")


def _twins(name: str) -> set[str]:
    # A person without a visible gender is drawn as a man or a woman.
    bare = name.removeprefix("person ").removeprefix("people ")
    genders = {f"{first} {bare}" for first in ("man", "men", "woman", "women")}
    return vocabulary().unfair_negatives(name) | genders | set(_without_gender(name))
