"""Queries of a scene: phrases that are true of some objects, and hard negatives.

Every phrase is true or false by construction. A color is used for stickers that mostly have it, a
size for sides well away from its limit, and nothing is called absent that a person might see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .colors import COLORS
from .concepts import Concept

if TYPE_CHECKING:
    from .scenes import SceneGenerator, SceneObject

SMALL, NOT_SMALL = 0.13, 0.18
LARGE, NOT_LARGE = 0.40, 0.32
"""Sides as shares of the image's side; between the two of a pair no phrase mentions the size."""

MAX_UPRIGHT, MIN_UPSIDE_DOWN = 50, 150
"""Degrees of rotation; between the two no phrase mentions the orientation."""

UPRIGHT_GROUPS = ("Animals & Nature", "People & Body", "Travel & Places")
"""Groups of things with an upper and a lower side; balls and plates have none."""

ATTRIBUTES = ("small", "large", "upside-down", *COLORS)
"""Words that phrases put before the name of a concept."""


@dataclass(frozen=True)
class Query:
    """A phrase and the objects that it names.

    Attributes:
        phrase: The phrase.
        objects: Indices of the objects; empty where the concept is absent.
        kind: "name", "synonym", "category" or "attribute"; of negatives "near", "random",
            "not-category" or "not-attribute".
    """

    phrase: str
    objects: tuple[int, ...]
    kind: str


def make_queries(
    rng: np.random.Generator, objects: Sequence[SceneObject], generator: SceneGenerator
) -> tuple[Query, ...]:
    """Random queries of a scene, positive ones first.

    Args:
        rng: Source of random numbers.
        objects: The objects of the scene.
        generator: The generator of the scene; negatives name concepts that it can show.
    """
    known, pool = generator.stickers.concepts, generator.names
    present = list({o.concept.name: o.concept for o in objects}.values())
    positive: dict[str, Query] = {}
    negative: dict[str, Query] = {}

    def add(phrase: str, indices: tuple[int, ...], kind: str) -> None:
        if indices and phrase not in negative:
            positive.setdefault(phrase, Query(phrase, indices, kind))

    def add_negative(phrase: str, kind: str) -> None:
        if phrase not in positive:
            negative.setdefault(phrase, Query(phrase, (), kind))

    for concept in present:
        named = _called(concept.name, objects)
        if _is_clear(concept.name, present):
            add(concept.name, named, "name")
            for phrase, indices in _attributes(concept, objects, named):
                if indices:
                    add(phrase, indices, "attribute")
                elif rng.random() < 0.5:
                    add_negative(phrase, "not-attribute")
        if concept.synonyms:
            synonym = concept.synonyms[rng.integers(len(concept.synonyms))]
            if _is_clear(synonym, present):
                add(synonym, _called(synonym, objects), "synonym")
        for category in concept.categories:
            if _is_clear(category, present):
                add(category, _called(category, objects), "category")
    for concept in present:
        near = [n for n in generator.near(concept.name) if _is_absent(n, known, present)]
        for name in near[: int(rng.integers(1, 4))]:
            add_negative(name, "near")
    for _ in range(3):
        concept = known[pool[rng.integers(len(pool))]]
        if _is_absent(concept.name, known, present):
            add_negative(concept.name, "random")
        for category in concept.categories:
            if rng.random() < 0.4 and _is_absent(category, known, present):
                add_negative(category, "not-category")
    return (*positive.values(), *negative.values())


def name_queries(objects: Sequence[SceneObject]) -> tuple[Query, ...]:
    """One query for the name of each concept that is present.

    Args:
        objects: The objects of the scene.
    """
    return tuple(
        Query(name, tuple(i for i, o in enumerate(objects) if o.concept.name == name), "name")
        for name in dict.fromkeys(o.concept.name for o in objects)
    )


def choose_queries(queries: Iterable[Query], count: int, seed: int) -> list[Query]:
    """A random part of the queries, half of them negative where there are enough of both.

    Args:
        queries: The queries of a scene.
        count: Number of queries to choose.
        seed: Seed of the choice.
    """
    rng = np.random.default_rng([seed, 8])
    queries = list(queries)
    positive = [q for q in queries if q.objects]
    negative = [q for q in queries if not q.objects]
    from_negative = min(len(negative), max(count // 2, count - len(positive)))
    from_positive = min(len(positive), count - from_negative)
    chosen = [positive[i] for i in sorted(rng.permutation(len(positive))[:from_positive])]
    return chosen + [negative[i] for i in sorted(rng.permutation(len(negative))[:from_negative])]


def _called(phrase: str, objects: Sequence[SceneObject]) -> tuple[int, ...]:
    return tuple(i for i, o in enumerate(objects) if o.concept.is_called(phrase))


def _is_clear(phrase: str, present: Sequence[Concept]) -> bool:
    """Whether the phrase is certainly true or certainly false of each concept that is present."""
    return not any(_is_doubtful(phrase, c) for c in present if not c.is_called(phrase))


def _is_absent(phrase: str, known: Mapping[str, Concept], present: Sequence[Concept]) -> bool:
    """Whether nothing that is present is, or looks like, what the phrase names."""
    twins = known[phrase].twins if phrase in known else ()
    return not any(
        c.is_called(phrase) or c.name in twins or _is_doubtful(phrase, c) for c in present
    )


def _is_doubtful(phrase: str, concept: Concept) -> bool:
    words = set(phrase.split())
    return phrase in concept.twins or any(
        words <= set(name.split()) for name in (concept.name, *concept.synonyms)
    )


def _attributes(
    concept: Concept, objects: Sequence[SceneObject], named: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Phrases with an attribute and the objects of which they are true; none: false of all."""
    name = concept.name
    colors = [objects[i].color for i in named]
    if all(colors) and not set(name.split()) & set(COLORS):
        for color in dict.fromkeys(c for c in colors if c):
            yield f"{color} {name}", tuple(i for i in named if objects[i].color == color)
        other = COLORS[(COLORS.index(str(colors[0])) + 3 + len(name)) % len(COLORS)]
        if other not in colors:
            yield f"{other} {name}", ()
    sides = [objects[i].side for i in named]
    if not any(SMALL < s < NOT_SMALL for s in sides):
        yield f"small {name}", tuple(i for i in named if objects[i].side <= SMALL)
    if not any(NOT_LARGE < s < LARGE for s in sides):
        yield f"large {name}", tuple(i for i in named if objects[i].side >= LARGE)
    angles = [abs(objects[i].angle) for i in named]
    if concept.group in UPRIGHT_GROUPS and not any(
        MAX_UPRIGHT < a < MIN_UPSIDE_DOWN for a in angles
    ):
        upside_down = (i for i in named if abs(objects[i].angle) >= MIN_UPSIDE_DOWN)
        yield f"upside-down {name}", tuple(upside_down)
