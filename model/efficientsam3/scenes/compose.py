"""One scene from one seed: stickers on a background, with exact visible masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .backgrounds import Background, draw
from .canvas import Canvas, Look, Mask, Pixels, finish, render, tight_box
from .concepts import Concept, Split
from .phrases import Query, ask, name_all

if TYPE_CHECKING:
    from .art import Art

LEAST_PIXELS = 40
"""Visible pixels of the smallest object, at 336 x 336."""
TRIES = 8


@dataclass(frozen=True, eq=False)
class Placed:
    """An object in a scene.

    concept: what it is. style: of its art. mask: (H, W) bool, its visible part. box: xyxy in
    pixels around that, (4,) float32. side: its longer side, unrotated and whole, over the
    image's side. colour: what most of it is, or None. angle: degrees, counter-clockwise.
    """

    concept: Concept
    style: str
    mask: Mask
    box: NDArray[np.float32]
    side: float
    colour: str | None
    angle: float


@dataclass(frozen=True, eq=False)
class Scene:
    """An image, its objects from back to front, and what can be asked of it.

    image: (H, W, 3) uint8 RGB. queries: phrases that are true of some objects and phrases
    that are true of none.
    """

    seed: int
    image: Pixels
    objects: tuple[Placed, ...]
    queries: tuple[Query, ...]


class World:
    """Where scenes come from: art, a split of it, and so a pool of concepts.

    Args:
        split: which concepts, styles and backgrounds. size: pixels a side.
        names: concepts to draw from, for smaller worlds; None: all of the split.
        tiles: so many by so many objects, one in each tile of the image, and only names are
            asked: for a first look at the concepts, without empty space. 0: scenes.
        grounds: how many backgrounds there are, each kept once made; None: every scene has
            its own. They are a third of the time that a scene takes.

    Backgrounds may show things, and then nothing is asked that might be true of them; those
    of tiles show nothing that has a name.

    Raises:
        ValueError: there is no concept to draw from.
    """

    def __init__(
        self,
        art: Art,
        split: Split,
        size: int = 336,
        names: Sequence[str] | None = None,
        *,
        tiles: int = 0,
        grounds: int | None = None,
    ) -> None:
        self.art, self.split, self.size = art, split, size
        self.tiles, self.grounds = tiles, grounds
        self._made: dict[int, Background] = {}
        shown = art.names(split.concepts, split.styles)
        if names is not None:
            lost = sorted(set(names) - set(shown))
            if lost:
                raise ValueError(f"the split {split.name!r} does not show {', '.join(lost[:5])}")
            shown = list(names)
        self.pool = tuple(shown)
        self.allowed = frozenset(self.pool)
        if not self.pool:
            raise ValueError(f"the split {split.name!r} has no concept in {art.folder}")

    def scene(self, seed: int) -> Scene:
        """The scene of a seed: the same on every machine and in every process."""
        size, split, art = self.size, self.split, self.art
        rng = np.random.default_rng([split.stream, seed])
        ground = self._background(rng)
        canvas = Canvas(ground.image.copy())
        shadow = None
        if rng.random() < 0.35:
            reach = rng.integers(-size // 60, size // 60 + 1, 2)
            shadow = int(reach[0]), int(abs(reach[1])) + 1, float(rng.uniform(0.2, 0.5))
        least = max(8, round(LEAST_PIXELS * (size / 336) ** 2))
        drawn: list[tuple[Concept, str, Look]] = []
        for number, (name, sides) in enumerate(self._cast(rng)):
            concept = art.concepts[name]
            styles = [s for s in split.styles if s in concept.styles]
            favourite = styles[rng.integers(len(styles))]
            for side in sides:
                style = favourite if rng.random() < 0.7 else styles[rng.integers(len(styles))]
                look = _look(rng, side * size)
                patch = render(art.sticker(name, style), look)
                for _ in range(TRIES):
                    left, top = self._place(rng, patch.shape[:2], number)
                    if canvas.fits(patch, left, top, least):
                        canvas.draw(patch, left, top, shadow)
                        drawn.append((concept, style, look))
                        break
        objects = tuple(
            Placed(
                concept,
                style,
                mask,
                tight_box(mask),
                look.side / size,
                art.colour(concept.name, style),
                look.angle,
            )
            for (concept, style, look), mask in zip(drawn, canvas.masks, strict=True)
        )
        image = finish(rng, canvas.image)
        if self.tiles:
            return Scene(seed, image, objects, tuple(name_all(objects)))
        asked = (q for q in ask(rng, objects, self) if not ground.may_show(q.phrase))
        return Scene(seed, image, objects, tuple(asked))

    def _background(self, rng: np.random.Generator) -> Background:
        part, plain = self.split.backgrounds, bool(self.tiles)
        if self.grounds is None:
            return draw(rng, self.size, part, plain=plain)
        number = int(rng.integers(self.grounds))
        if number not in self._made:
            own = np.random.default_rng([self.split.stream, number, self.size])
            self._made[number] = draw(own, self.size, part, plain=plain)
        made = self._made[number]
        turned = np.rot90(made.image, int(rng.integers(4)))
        return Background(turned[:, ::-1] if rng.random() < 0.5 else turned, made.shows)

    def _place(
        self, rng: np.random.Generator, shape: tuple[int, ...], number: int
    ) -> tuple[int, int]:
        """Left and top of a patch; centres may lie close to the border: the rest is cut off."""
        h, w = shape
        if not self.tiles:
            left = rng.uniform(-0.3 * w, self.size - 0.7 * w)
            return round(left), round(rng.uniform(-0.3 * h, self.size - 0.7 * h))
        row, column = divmod(number, self.tiles)
        tile = self.size / self.tiles
        jitter = rng.uniform(-0.2, 0.2, 2)
        x, y = (column + 0.5 + jitter[0]) * tile, (row + 0.5 + jitter[1]) * tile
        return round(x - w / 2), round(y - h / 2)

    def _cast(self, rng: np.random.Generator) -> list[tuple[str, list[float]]]:
        """Which concepts, and the sides of their instances over the image's; back to front."""
        pool = self.pool
        kind = str(rng.choice(["plain", "crowd", "small", "single"], p=[0.62, 0.14, 0.12, 0.12]))
        first = pool[rng.integers(len(pool))]
        if self.tiles:
            drawn = [pool[i] for i in rng.integers(len(pool), size=self.tiles**2)]
            return [(n, [float(rng.uniform(0.35, 1.05) / self.tiles)]) for n in drawn]
        if kind == "single":
            return [(first, [float(rng.uniform(0.35, 0.75))])]
        low, high = {"plain": (0.11, 0.5), "crowd": (0.07, 0.22), "small": (0.06, 0.14)}[kind]
        count = int(rng.integers(2, 6)) if kind != "crowd" else int(rng.integers(1, 4))
        names = [first]
        # Look-alikes together: one is to be told from the other, not from the background.
        near = [n for n in self.art.concepts[first].near if n in self.allowed]
        if near and rng.random() < 0.35:
            names.append(near[rng.integers(min(len(near), 4))])
        while len(names) < count:
            names.append(pool[rng.integers(len(pool))])
        cast = []
        for i, name in enumerate(dict.fromkeys(names)):
            instances = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.26, 0.14, 0.1]))
            if kind == "crowd" and i == 0:
                instances = int(rng.integers(5, 13))
            base = math.exp(rng.uniform(math.log(low), math.log(high)))
            sides = [min(high, max(low, base * rng.uniform(0.7, 1.4))) for _ in range(instances)]
            cast.append((name, [float(s) for s in sides]))
        return [cast[i] for i in rng.permutation(len(cast))]


def make_scene(art: Art, seed: int, split: Split, size: int = 336) -> Scene:
    """One scene; for many, keep a ``World``."""
    return World(art, split, size).scene(seed)


def _look(rng: np.random.Generator, side: float) -> Look:
    turn = rng.random()
    if turn < 0.55:
        angle = rng.normal(0, 10)
    elif turn < 0.85:
        angle = rng.uniform(-60, 60)
    elif turn < 0.95:
        angle = 180 + rng.normal(0, 6)
    else:
        angle = rng.uniform(-180, 180)
    light = rng.uniform(0.8, 1.12)
    gain = light * rng.uniform(0.94, 1.06, 3)
    return Look(
        side,
        float((angle + 180) % 360 - 180),
        bool(rng.random() < 0.5),
        (float(gain[0]), float(gain[1]), float(gain[2])),
        float(rng.uniform(0.4, 1.2)) if rng.random() < 0.12 else 0.0,
    )
