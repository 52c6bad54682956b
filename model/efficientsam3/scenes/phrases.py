"""What can be asked of a scene: phrases that are true of some objects, and hard negatives.

Every phrase is true or false by construction: a colour is said of art that mostly has it, a
size of sides well away from the limit, and nothing is called absent that a person might see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .concepts import Concept

if TYPE_CHECKING:
    from .compose import Placed, World

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray",
)  # fmt: skip
SMALL, NOT_SMALL = 0.13, 0.18
LARGE, NOT_LARGE = 0.40, 0.32
"""Sides over the image's; between the two of a pair nothing is said about the size."""
UPRIGHT_GROUPS = ("Animals & Nature", "People & Body", "Travel & Places")
"""Things with an up and a down; a ball or a plate has none."""


@dataclass(frozen=True)
class Query:
    """A phrase and the indices of the objects that it names; none: it is absent.

    kind: "name", "synonym", "category", "attribute"; of negatives "near", "random",
    "not-category", "not-attribute".
    """

    phrase: str
    objects: tuple[int, ...]
    kind: str


def ask(rng: np.random.Generator, objects: Sequence[Placed], world: World) -> tuple[Query, ...]:
    """Queries of a scene, positive ones first; negatives name concepts of the world."""
    known, pool = world.art.concepts, world.pool
    present = list({o.concept.name: o.concept for o in objects}.values())
    positive: dict[str, Query] = {}
    negative: dict[str, Query] = {}

    def say(phrase: str, indices: tuple[int, ...], kind: str) -> None:
        if indices and phrase not in negative:
            positive.setdefault(phrase, Query(phrase, indices, kind))

    def deny(phrase: str, kind: str) -> None:
        if phrase not in positive:
            negative.setdefault(phrase, Query(phrase, (), kind))

    for concept in present:
        named = _called(concept.name, objects)
        if _is_clear(concept.name, present):
            say(concept.name, named, "name")
            for phrase, indices in _attributes(concept, objects, named):
                if indices:
                    say(phrase, indices, "attribute")
                elif rng.random() < 0.5:
                    deny(phrase, "not-attribute")
        if concept.synonyms:
            synonym = concept.synonyms[rng.integers(len(concept.synonyms))]
            if _is_clear(synonym, present):
                say(synonym, _called(synonym, objects), "synonym")
        for category in concept.categories:
            if _is_clear(category, present):
                say(category, _called(category, objects), "category")
    for concept in present:
        near = [n for n in concept.near if n in world.allowed and _is_absent(n, known, present)]
        for name in near[: int(rng.integers(1, 4))]:
            deny(name, "near")
    for _ in range(3):
        concept = known[pool[rng.integers(len(pool))]]
        if _is_absent(concept.name, known, present):
            deny(concept.name, "random")
        for category in concept.categories:
            if rng.random() < 0.4 and _is_absent(category, known, present):
                deny(category, "not-category")
    return (*positive.values(), *negative.values())


def name_all(objects: Sequence[Placed]) -> Iterator[Query]:
    """The name of each concept that is there, and nothing else."""
    for name in dict.fromkeys(o.concept.name for o in objects):
        same = tuple(i for i, o in enumerate(objects) if o.concept.name == name)
        yield Query(name, same, "name")


def _called(phrase: str, objects: Sequence[Placed]) -> tuple[int, ...]:
    return tuple(i for i, o in enumerate(objects) if o.concept.is_called(phrase))


def _is_clear(phrase: str, present: Sequence[Concept]) -> bool:
    """Whether it is certain of each concept present that the phrase is true or false of it."""
    return not any(_is_doubtful(phrase, c) for c in present if not c.is_called(phrase))


def _is_absent(phrase: str, known: Mapping[str, Concept], present: Sequence[Concept]) -> bool:
    """Whether nothing present is, or might be taken for, what the phrase names."""
    twins = known[phrase].twins if phrase in known else ()
    return not any(
        c.is_called(phrase) or c.name in twins or _is_doubtful(phrase, c) for c in present
    )


def _is_doubtful(phrase: str, concept: Concept) -> bool:
    if phrase in concept.twins:
        return True
    words = set(phrase.split())
    return any(words <= set(name.split()) for name in (concept.name, *concept.synonyms))


def _attributes(
    concept: Concept, objects: Sequence[Placed], named: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Phrases with an attribute, and of which objects they are true; none: false of all."""
    name = concept.name
    colours = [objects[i].colour for i in named]
    if all(colours) and not set(name.split()) & set(COLOURS):
        for colour in dict.fromkeys(c for c in colours if c):
            yield f"{colour} {name}", tuple(i for i in named if objects[i].colour == colour)
        other = COLOURS[(COLOURS.index(str(colours[0])) + 3 + len(name)) % len(COLOURS)]
        if other not in colours:
            yield f"{other} {name}", ()
    sides = [objects[i].side for i in named]
    if not any(SMALL < s < NOT_SMALL for s in sides):
        yield f"small {name}", tuple(i for i in named if objects[i].side <= SMALL)
    if not any(NOT_LARGE < s < LARGE for s in sides):
        yield f"large {name}", tuple(i for i in named if objects[i].side >= LARGE)
    angles = [abs(objects[i].angle) for i in named]
    if concept.group in UPRIGHT_GROUPS and not any(50 < a < 150 for a in angles):
        yield f"upside-down {name}", tuple(i for i in named if abs(objects[i].angle) >= 150)
