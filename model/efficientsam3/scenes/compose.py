"""One scene from one seed: stickers on a background, with exact visible masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .backgrounds import background
from .concepts import Concept, Split
from .phrases import Query, ask, name_all

if TYPE_CHECKING:
    from .art import Art

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

LEAST_VISIBLE = 0.35
"""Of an object's own pixels, what must stay in sight; what would hide more is put elsewhere."""
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


@dataclass(frozen=True)
class Look:
    """How a sticker is shown: side in pixels, angle in degrees, colour gains, blur in pixels."""

    side: float
    angle: float = 0.0
    mirrored: bool = False
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0


def render(sticker: Pixels, look: Look) -> Pixels:
    """A sticker (S, S, 4) with straight alpha -> a patch (h, w, 4), premultiplied."""
    # Premultiplied, so that resampling does not pull in the colour of what is transparent.
    image = Image.fromarray(sticker).convert("RGBa")
    if look.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = max(4, round(look.side * sticker.shape[0] / (sticker.shape[0] - 4)))
    image = image.resize((side, side), Image.Resampling.BILINEAR)
    if look.angle:
        image = image.rotate(look.angle, Image.Resampling.BILINEAR, expand=True)
    if look.blur:
        image = image.filter(ImageFilter.GaussianBlur(look.blur))
    patch = np.array(image)
    if look.gain != (1.0, 1.0, 1.0):
        colour = patch[..., :3] * np.asarray(look.gain, np.float32)
        patch[..., :3] = np.minimum(colour, patch[..., 3:])  # never brighter than opaque white
    return patch


class Canvas:
    """An image that objects are drawn on, front after back, and what of each can be seen."""

    def __init__(self, image: Pixels) -> None:
        self.image = image
        self.masks: list[Mask] = []
        self.areas: list[int] = []

    def region(self, patch: Pixels, left: int, top: int) -> tuple[slice, slice, Pixels]:
        """Rows and columns of the image that a patch covers, and the part of it that does."""
        height, width = self.image.shape[:2]
        h, w = patch.shape[:2]
        y0, y1, x0, x1 = max(top, 0), min(top + h, height), max(left, 0), min(left + w, width)
        inside = patch[max(y0 - top, 0) : max(y1 - top, 0), max(x0 - left, 0) : max(x1 - left, 0)]
        return slice(y0, max(y0, y1)), slice(x0, max(x0, x1)), inside

    def fits(self, patch: Pixels, left: int, top: int, least: int) -> bool:
        """Whether the patch, drawn here, would be in sight and leave all others in sight."""
        rows, columns, inside = self.region(patch, left, top)
        opaque = inside[..., 3] > 127
        own = int(opaque.sum())
        if own < max(least, LEAST_VISIBLE * int((patch[..., 3] > 127).sum())):
            return False
        for mask, area in zip(self.masks, self.areas, strict=True):
            under = mask[rows, columns]
            lost = int((under & opaque).sum())
            if lost and int(mask.sum()) - lost < max(least, LEAST_VISIBLE * area):
                return False
        return True

    def draw(
        self, patch: Pixels, left: int, top: int, shadow: tuple[int, int, float] | None = None
    ) -> None:
        """Draw a premultiplied patch with its corner at (left, top).

        Args:
            shadow: pixels right and down, and darkness from 0 to 1.
        """
        if shadow is not None:
            self._shade(patch, left, top, *shadow)
        rows, columns, inside = self.region(patch, left, top)
        under = self.image[rows, columns]
        clear = 255 - inside[..., 3:].astype(np.uint16)
        self.image[rows, columns] = inside[..., :3] + ((under * clear + 127) // 255).astype(
            np.uint8
        )
        opaque = inside[..., 3] > 127
        for mask in self.masks:
            mask[rows, columns] &= ~opaque
        own = np.zeros(self.image.shape[:2], bool)
        own[rows, columns] = opaque
        self.masks.append(own)
        self.areas.append(int((patch[..., 3] > 127).sum()))

    def _shade(
        self, patch: Pixels, left: int, top: int, right: int, down: int, dark: float
    ) -> None:
        soft = max(1, patch.shape[0] // 24)
        alpha = Image.fromarray(np.pad(patch[..., 3], 2 * soft))
        blurred = np.array(alpha.filter(ImageFilter.BoxBlur(soft)))[..., None]
        rows, columns, inside = self.region(blurred, left + right - 2 * soft, top + down - 2 * soft)
        light = 255 - (inside * dark).astype(np.uint16)
        self.image[rows, columns] = (self.image[rows, columns] * light // 255).astype(np.uint8)


# A scene --------------------------------------------------------------------------------------


class World:
    """Where scenes come from: art, a split of it, and so a pool of concepts.

    Args:
        split: which concepts, styles and backgrounds. size: pixels a side.
        names: concepts to draw from, for smaller worlds; None: all of the split.
        tiles: so many by so many objects, one in each tile of the image, and only names are
            asked: for a first look at the concepts, without empty space. 0: scenes.
        grounds: how many backgrounds there are, each kept once made; None: every scene has
            its own. They are a third of the time that a scene takes.

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
        self._made: dict[int, Pixels] = {}
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
        canvas = Canvas(self._background(rng))
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
        return Scene(seed, image, objects, ask(rng, objects, self))

    def _background(self, rng: np.random.Generator) -> Pixels:
        if self.grounds is None:
            return background(rng, self.size, self.split.backgrounds)
        number = int(rng.integers(self.grounds))
        if number not in self._made:
            own = np.random.default_rng([self.split.stream, number, self.size])
            self._made[number] = background(own, self.size, self.split.backgrounds)
        turned = np.rot90(self._made[number], int(rng.integers(4)))
        return np.ascontiguousarray(turned[:, ::-1] if rng.random() < 0.5 else turned)

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


def tight_box(mask: Mask) -> NDArray[np.float32]:
    """xyxy in pixels around a mask, (4,) float32."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def finish(rng: np.random.Generator, image: Pixels) -> Pixels:
    """What a camera adds: some blur, some noise, some light."""
    if rng.random() < 0.15:
        radius = float(rng.uniform(0.4, 1.0))
        image = np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
    if rng.random() < 0.4:
        light = (
            rng.uniform(0.85, 1.12, 3) if rng.random() < 0.5 else np.full(3, rng.uniform(0.8, 1.15))
        )
        table = np.clip(np.arange(256)[:, None] * light, 0, 255).astype(np.uint8)
        image = np.stack([table[:, c][image[..., c]] for c in range(3)], -1)
    if rng.random() < 0.3:
        reach = int(rng.integers(3, 12))
        noise = rng.integers(-reach, reach + 1, image.shape, dtype=np.int8)
        image = np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    return image
