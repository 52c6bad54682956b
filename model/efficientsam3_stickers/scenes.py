"""Scenes: one seed gives one image of stickers on a background, with exact visible masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from efficientsam3.errors import ArgumentError

from .backgrounds import Background, random_background
from .compositor import (
    Appearance,
    Compositor,
    Mask,
    Pixels,
    add_camera_effects,
    mask_to_box,
    random_shadow,
    render_sticker,
)
from .concepts import Concept, Split
from .queries import Query, make_queries, name_queries
from .restyle import restyle

if TYPE_CHECKING:
    from .art import StickerArt

MIN_PIXELS = 40
"""Least visible pixels of an object in an image of 336 x 336 pixels."""

MAX_PLACEMENTS = 8
"""Random places that are tried for an object; without a fitting one it is left out."""


@dataclass(frozen=True, eq=False)
class SceneObject:
    """An object of a scene.

    Attributes:
        concept: What it is.
        style: Style of its sticker.
        mask: (H, W) bool, its visible pixels.
        box: (4,) float32, xyxy in pixels around the mask.
        side: Its longer side before rotation and occlusion, as a share of the image's side.
        color: Word for the color of most of it, or None.
        angle: Rotation in degrees, counter-clockwise.
    """

    concept: Concept
    style: str
    mask: Mask
    box: NDArray[np.float32]
    side: float
    color: str | None
    angle: float


@dataclass(frozen=True, eq=False)
class Scene:
    """An image with its objects and queries.

    Attributes:
        seed: Seed of the scene.
        image: (H, W, 3) uint8 RGB.
        objects: The objects from back to front.
        queries: Phrases that are true of some objects, and phrases that are true of none.
    """

    seed: int
    image: Pixels
    objects: tuple[SceneObject, ...]
    queries: tuple[Query, ...]


class SceneGenerator:
    """Generates the scenes and clips of a split.

    Backgrounds may show things; no query of a scene might be true of those. Backgrounds of tiled
    scenes show nothing that has a name.

    Args:
        stickers: The stickers.
        split: Which concepts, styles and backgrounds are shown.
        size: Side of the images in pixels.
        names: Concepts that are shown; None: all of the split.
        tiles: Each image has ``tiles`` x ``tiles`` objects, one in each cell of a grid, and queries
            are names alone: an easy beginning, without empty space. 0: free scenes.
        backgrounds: Number of different backgrounds, each kept once it is made, which saves a
            third of the time; None: every scene has its own.
        restyled: Share of the stickers that are drawn in another style, see ``restyle``.

    Attributes:
        names: Names of the concepts that are shown.

    Raises:
        ArgumentError: there is no concept to show, or the split does not have a name.
    """

    def __init__(
        self,
        stickers: StickerArt,
        split: Split,
        size: int = 336,
        names: Sequence[str] | None = None,
        *,
        tiles: int = 0,
        backgrounds: int | None = None,
        restyled: float = 0.0,
    ) -> None:
        self.restyled = restyled
        self.stickers, self.split, self.size = stickers, split, size
        self.tiles, self.backgrounds = tiles, backgrounds
        self._kept_backgrounds: dict[int, Background] = {}
        available = stickers.concept_names(split.concepts, split.styles)
        self.names = tuple(available if names is None else names)
        unknown = sorted(set(self.names) - set(available))
        if unknown:
            raise ArgumentError(
                f"the split {split.name!r} does not show {', '.join(unknown[:5])}; it shows "
                f"{len(available)} concepts of {stickers.folder}"
            )
        if not self.names:
            raise ArgumentError(
                f"no concept is left to show: the split {split.name!r} shows {len(available)} "
                f"concepts of {stickers.folder}, and names={names!r}"
            )
        self._name_set = frozenset(self.names)

    def near(self, name: str) -> list[str]:
        """Hard negatives of a concept that the generator can show, the most similar first.

        Args:
            name: The concept's name.
        """
        return [n for n in self.stickers.concepts[name].near if n in self._name_set]

    def random_name(self, rng: np.random.Generator) -> str:
        """The name of a random concept.

        Args:
            rng: Source of random numbers.
        """
        return self.names[rng.integers(len(self.names))]

    def similar_pair(self, rng: np.random.Generator, name: str, probability: float) -> list[str]:
        """A concept, and with a probability one of the four most similar to it.

        In scenes with both, a model has to tell two concepts apart, not just an object from the
        background.

        Args:
            rng: Source of random numbers.
            name: The first concept's name.
            probability: Probability of a second one, where similar concepts can be shown.
        """
        near = self.near(name)
        if near and rng.random() < probability:
            return [name, near[rng.integers(min(len(near), 4))]]
        return [name]

    def fill_names(self, rng: np.random.Generator, names: list[str], count: int) -> list[str]:
        """Names with random ones added up to a number of draws; each name is given once.

        Args:
            rng: Source of random numbers.
            names: The first names.
            count: Number of draws.
        """
        more = [self.random_name(rng) for _ in range(count - len(names))]
        return list(dict.fromkeys([*names, *more]))

    def scene(self, seed: int) -> Scene:
        """The scene of a seed, the same on every machine.

        Args:
            seed: The seed, from 0.
        """
        size, stickers = self.size, self.stickers
        rng = np.random.default_rng([self.split.stream, seed])
        background = self._background(rng)
        compositor = Compositor(background.image.copy())
        shadow = random_shadow(rng, size, 0.35)
        min_pixels = max(8, round(MIN_PIXELS * (size / 336) ** 2))
        placed: list[tuple[Concept, str, Appearance]] = []
        for index, (name, sides) in enumerate(self._choose_objects(rng)):
            concept = stickers.concepts[name]
            styles = self.styles(concept)
            main_style = styles[rng.integers(len(styles))]
            for side in sides:
                style = main_style if rng.random() < 0.7 else styles[rng.integers(len(styles))]
                appearance = _random_appearance(rng, side * size)
                sticker = stickers.sticker(name, style)
                if self.restyled and rng.random() < self.restyled:
                    sticker = restyle(rng, sticker)
                patch = render_sticker(sticker, appearance)
                for _ in range(MAX_PLACEMENTS):
                    left, top = self._random_place(rng, patch.shape[:2], index)
                    if compositor.fits(patch, left, top, min_pixels):
                        compositor.draw(patch, left, top, shadow)
                        placed.append((concept, style, appearance))
                        break
        objects = tuple(
            SceneObject(
                concept,
                style,
                mask,
                mask_to_box(mask),
                appearance.side / size,
                stickers.color(concept.name, style),
                appearance.angle,
            )
            for (concept, style, appearance), mask in zip(placed, compositor.masks, strict=True)
        )
        image = add_camera_effects(rng, compositor.image)
        if self.tiles:
            return Scene(seed, image, objects, name_queries(objects))
        queries = make_queries(rng, objects, self)
        fair = tuple(query for query in queries if not background.may_show(query.phrase))
        return Scene(seed, image, objects, fair)

    def styles(self, concept: Concept) -> list[str]:
        """The styles of the split that have a concept.

        Args:
            concept: The concept.
        """
        return [style for style in self.split.styles if style in concept.styles]

    def _background(self, rng: np.random.Generator) -> Background:
        part, plain = self.split.backgrounds, bool(self.tiles)
        if self.backgrounds is None:
            return random_background(rng, self.size, part, plain=plain)
        number = int(rng.integers(self.backgrounds))
        if number not in self._kept_backgrounds:
            own = np.random.default_rng([self.split.stream, number, self.size])
            self._kept_backgrounds[number] = random_background(own, self.size, part, plain=plain)
        kept = self._kept_backgrounds[number]
        turned = np.rot90(kept.image, int(rng.integers(4)))
        return Background(turned[:, ::-1] if rng.random() < 0.5 else turned, kept.shows)

    def _random_place(
        self, rng: np.random.Generator, shape: tuple[int, ...], index: int
    ) -> tuple[int, int]:
        """Left and top of a patch. Objects at the border may be cut off."""
        h, w = shape
        if not self.tiles:
            left = rng.uniform(-0.3 * w, self.size - 0.7 * w)
            return round(left), round(rng.uniform(-0.3 * h, self.size - 0.7 * h))
        row, column = divmod(index, self.tiles)
        tile = self.size / self.tiles
        jitter = rng.uniform(-0.2, 0.2, 2)
        x, y = (column + 0.5 + jitter[0]) * tile, (row + 0.5 + jitter[1]) * tile
        return round(x - w / 2), round(y - h / 2)

    def _choose_objects(self, rng: np.random.Generator) -> list[tuple[str, list[float]]]:
        """Names of concepts, and sides of their instances as shares of the image's side."""
        kind = str(rng.choice(["plain", "crowd", "small", "single"], p=[0.62, 0.14, 0.12, 0.12]))
        first = self.random_name(rng)
        if self.tiles:
            drawn = [self.names[i] for i in rng.integers(len(self.names), size=self.tiles**2)]
            return [(n, [float(rng.uniform(0.35, 1.05) / self.tiles)]) for n in drawn]
        if kind == "single":
            return [(first, [float(rng.uniform(0.35, 0.75))])]
        low, high = {"plain": (0.11, 0.5), "crowd": (0.07, 0.22), "small": (0.06, 0.14)}[kind]
        count = int(rng.integers(2, 6)) if kind != "crowd" else int(rng.integers(1, 4))
        names = self.fill_names(rng, self.similar_pair(rng, first, 0.35), count)
        chosen = []
        for i, name in enumerate(names):
            instances = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.26, 0.14, 0.1]))
            if kind == "crowd" and i == 0:
                instances = int(rng.integers(5, 13))
            base = math.exp(rng.uniform(math.log(low), math.log(high)))
            sides = [min(high, max(low, base * rng.uniform(0.7, 1.4))) for _ in range(instances)]
            chosen.append((name, [float(s) for s in sides]))
        return [chosen[i] for i in rng.permutation(len(chosen))]


def _random_appearance(rng: np.random.Generator, side: float) -> Appearance:
    kind = rng.random()
    if kind < 0.55:
        angle = rng.normal(0, 10)
    elif kind < 0.85:
        angle = rng.uniform(-60, 60)
    elif kind < 0.95:
        angle = 180 + rng.normal(0, 6)
    else:
        angle = rng.uniform(-180, 180)
    brightness = rng.uniform(0.8, 1.12)
    gain = brightness * rng.uniform(0.94, 1.06, 3)
    return Appearance(
        side,
        float((angle + 180) % 360 - 180),
        bool(rng.random() < 0.5),
        (float(gain[0]), float(gain[1]), float(gain[2])),
        float(rng.uniform(0.4, 1.2)) if rng.random() < 0.12 else 0.0,
    )
