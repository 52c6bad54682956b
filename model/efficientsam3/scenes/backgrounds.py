"""Backgrounds: parts of photographs that installed packages have, and textures made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .concepts import Part
from .sources import ArtError

Pixels = NDArray[np.uint8]
Field = NDArray[np.float32]
"""(S, S) in [0, 1]: where a texture is between its colours."""

Texture = Callable[[np.random.Generator, int], Field]
"""Draws a texture of a size."""

PHOTOGRAPHS = 0.5
"""Share of backgrounds that are photographs."""


@dataclass(frozen=True, eq=False)
class Background:
    """image: (S, S, 3) uint8 RGB. shows: words of what a person might see in it."""

    image: Pixels
    shows: frozenset[str] = frozenset()

    def may_show(self, phrase: str) -> bool:
        """Whether the phrase might be true of something in the background."""
        return not self.shows.isdisjoint((phrase, *phrase.split()))


def background(rng: np.random.Generator, size: int, part: Part) -> Pixels:
    """A background (size, size, 3) uint8 RGB: no photograph of anything that has a name.

    Args:
        part: "seen" or "unseen": they share no photograph and no kind of texture.
    """
    return draw(rng, size, part, plain=True).image


def draw(rng: np.random.Generator, size: int, part: Part, *, plain: bool = False) -> Background:
    """A background, and what it may show.

    Args:
        plain: no photographs of things; ``shows`` still says which textures have shapes.

    Raises:
        ArtError: a package with photographs is not installed.
    """
    if rng.random() < PHOTOGRAPHS:
        found = [p for p in photographs() if p.part == part and not (plain and p.shows)]
        photograph = found[rng.integers(len(found))]
        return Background(photograph.crop(rng, size), photograph.shows)
    textures = TEXTURES[part]
    texture = textures[rng.integers(len(textures))]
    return Background(_coloured(rng, texture(rng, size)), SHAPES.get(texture.__name__, frozenset()))


# Photographs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photograph:
    """A part of a photograph.

    region: left, top, right, bottom as shares of its sides. shows: words of what is in it.
    """

    package: str
    file: str
    part: Part
    region: tuple[float, float, float, float] = (0, 0, 1, 1)
    shows: frozenset[str] = frozenset()

    def crop(self, rng: np.random.Generator, size: int) -> Pixels:
        """A square of it, at random: place, scale, mirroring, light and tint."""
        image = _read(self.package, self.file)
        width, height = image.size
        x0, y0, x1, y1 = np.multiply(self.region, [width, height, width, height])
        side = min(x1 - x0, y1 - y0) * rng.uniform(0.5, 1)
        left, top = rng.uniform(x0, x1 - side), rng.uniform(y0, y1 - side)
        cut = image.resize(
            (size, size),
            Image.Resampling.BILINEAR,
            (left, top, left + side, top + side),
            reducing_gap=2.0,
        )
        if rng.random() < 0.5:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        gains = rng.uniform(0.7, 1.2) * rng.uniform(0.85, 1.15, 3)
        table = np.clip(gains[:, None] * np.arange(256), 0, 255).astype(np.uint8)
        return np.array(cut.point(table.ravel().tolist()))


def photographs() -> tuple[Photograph, ...]:
    """All of them; none is read before it is drawn."""
    return _PHOTOGRAPHS


@lru_cache(maxsize=32)
def _read(package: str, file: str) -> Image.Image:
    from importlib.util import find_spec

    # The file alone: importing these packages takes longer than a thousand scenes.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ArtError(
            f"scenes read photographs of {package}, which is not installed: "
            "pip install 'efficientsam3[scenes]'"
        )
    path = Path(spec.origin).parent / file
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ArtError(f"{package} has no photograph {path} ({error})") from error


def _sets(
    package: str, folder: str, entries: Iterable[tuple[str, Part, tuple[float, ...] | None, str]]
) -> tuple[Photograph, ...]:
    found = []
    for name, part, region, shows in entries:
        x0, y0, x1, y1 = region or (0, 0, 1, 1)
        words = frozenset(w.strip() for w in shows.split(",") if w.strip())
        found.append(Photograph(package, f"{folder}/{name}", part, (x0, y0, x1, y1), words))
    return tuple(found)


_PERSON = "person, man, woman, face, adult, hair, eye, eyes, nose, lips, ear, hand, smile, "

_PHOTOGRAPHS = _sets(
    "skimage",
    "data",
    [
        ("brick.png", "seen", None, ""),
        ("grass.png", "seen", None, ""),
        ("ihc.png", "seen", None, ""),
        ("retina.jpg", "seen", (0.2, 0.2, 0.8, 0.8), ""),
        ("gravel.png", "unseen", None, ""),
        ("moon.png", "unseen", None, ""),
        ("camera.png", "unseen", (0.7, 0.55, 1, 0.95), ""),
        ("coffee.png", "unseen", (0.82, 0.2, 1, 1), ""),
        (
            "astronaut.png",
            "seen",
            None,
            _PERSON + "astronaut, clothing, flag, rocket, helmet, badge, pilot, aircraft, vehicle,"
            "circle, teeth, gloves, coat, star",
        ),
        (
            "chelsea.png",
            "seen",
            None,
            "cat, animal, mammal, face, eye, eyes, nose, ear, tiger, lion, leopard, pet, fur",
        ),
        (
            "rocket.jpg",
            "seen",
            (0, 0, 1, 1),
            "rocket, tower, building, light, star, stars, crane, vehicle, candle, night, sparkles",
        ),
        (
            "hubble_deep_field.jpg",
            "seen",
            None,
            "star, stars, sky, galaxy, milky, way, planet, sparkles, sparkle, fireworks, comet",
        ),
        (
            "motorcycle_left.png",
            "unseen",
            None,
            "motorcycle, motorbike, vehicle, bicycle, bike, scooter, wheel, tool, box, package, "
            "ladder, lamp, light, shelf, furniture, door, bottle, chair, mirror, gear, chain, seat",
        ),
        (
            "coins.png",
            "unseen",
            None,
            "coin, money, medal, circle, face, moon, button",
        ),
        (
            "coffee.png",
            "unseen",
            None,
            "coffee, cup, drink, food, spoon, plate, tea, glass, bowl, circle, table, wood, egg",
        ),
    ],
) + _sets(
    "sklearn",
    "datasets/images",
    [
        ("flower.jpg", "seen", (0, 0, 0.27, 1), ""),
        ("flower.jpg", "seen", (0.72, 0, 1, 1), ""),
        ("china.jpg", "seen", (0.52, 0, 0.85, 0.5), ""),
        (
            "flower.jpg",
            "seen",
            None,
            "flower, plant, leaf, blossom, rose, herb, sunflower, hibiscus",
        ),
        (
            "china.jpg",
            "seen",
            None,
            "building, temple, castle, house, tower, tree, plant, mountain, shrine, leaf, water, "
            "hut",
        ),
    ],
)


# Textures -------------------------------------------------------------------------------------


def _coloured(rng: np.random.Generator, field: Field) -> Pixels:
    """A field in two to four colours of a palette, more often muted than not."""
    stops = int(rng.integers(2, 5))
    hue = rng.random() + rng.uniform(-0.25, 0.25, stops)
    saturation = rng.uniform(0, 0.55 if rng.random() < 0.7 else 1, stops)
    # A narrow range of light is more common than a loud one.
    middle, reach = rng.uniform(0.2, 0.9), rng.uniform(0.05, 0.5)
    value = np.clip(middle + rng.uniform(-reach, reach, stops), 0.05, 1)
    sector = (hue[:, None] * 6 + np.array([5, 3, 1])) % 6
    colours = value[:, None] * (
        1 - saturation[:, None] * np.clip(np.minimum(sector, 4 - sector), 0, 1)
    )
    at = np.linspace(0, 1, 256)
    table = np.zeros((256, 4), np.uint8)
    for channel, values in enumerate(colours.T):
        table[:, channel] = np.interp(at, np.linspace(0, 1, stops), values) * 255
    # Four bytes at once: looking up rows of three is ten times slower.
    packed = table.view(np.uint32)[:, 0][(field * 255).astype(np.uint8, order="C")]
    return packed.view(np.uint8).reshape(*field.shape, 4)[..., :3].copy()


def _grid(size: int) -> tuple[Field, Field]:
    """Columns (1, S) and rows (S, 1) from -1 to 1."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return line[None], line[:, None]


def _enlarged(small: Field, size: int) -> Field:
    image = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _unit(field: Field) -> Field:
    low, high = field.min(), field.max()
    return (field - low) / max(float(high - low), 1e-6)


def _noise(rng: np.random.Generator, size: int, first: int = 2, octaves: int = 4) -> Field:
    """Value noise: random grids, each finer and weaker than the last."""
    half = (size + 1) // 2  # half the pixels, a quarter of the time
    total = np.zeros((half, half), np.float32)
    cells, weight = first, 1.0
    for _ in range(octaves):
        total += weight * _enlarged(rng.random((cells + 1, cells + 1), np.float32), half)
        cells, weight = min(cells * 2, half - 1), weight * 0.55
    return _unit(np.clip(_enlarged(_unit(total), size), 0, 1))


def clouds(rng: np.random.Generator, size: int) -> Field:
    return _noise(rng, size, int(rng.integers(1, 7)), int(rng.integers(2, 6)))


def gradient(rng: np.random.Generator, size: int) -> Field:
    x, y = _grid(size)
    if rng.random() < 0.3:
        left, top = rng.uniform(-1, 1, 2)
        return _unit(np.hypot(x - np.float32(left), y - np.float32(top)))
    angle = rng.uniform(0, 2 * np.pi)
    return _unit(x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))


def stripes(rng: np.random.Generator, size: int) -> Field:
    x, y = _grid(size)
    angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    phase = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    wave = np.sin(phase * np.float32(np.pi * rng.uniform(2, 24)))
    return np.clip(wave * np.float32(rng.choice([0.5, 1, 8])) + np.float32(0.5), 0, 1)


def checks(rng: np.random.Generator, size: int) -> Field:
    x, y = _grid(size)
    count = np.float32(np.pi * rng.uniform(2, 12))
    wave_x, wave_y = np.sin(x * count), np.sin(y * count)
    if rng.random() < 0.5:  # like a cloth: each way half
        field = (wave_x > 0).astype(np.float32) + (wave_y > 0)
        return field / 2
    return (wave_x * wave_y > 0).astype(np.float32)


def grain(rng: np.random.Generator, size: int) -> Field:
    """Wood: long noise, bent a little, and fine lines."""
    cells = int(rng.integers(4, 14))
    long = _enlarged(rng.random((2, cells), np.float32), size)
    fine = _enlarged(rng.random((4, max(8, size // 3)), np.float32), size)
    rings = np.sin(long * np.float32(rng.uniform(6, 30)))
    field = _unit(rings + np.float32(0.5) * fine)
    return field if rng.random() < 0.5 else field.T


def speckle(rng: np.random.Generator, size: int) -> Field:
    """Fine noise on a coarse one, like plaster, sand or carpet."""
    coarse = _noise(rng, size, 2, 2)
    fine = _enlarged(rng.random((size // int(rng.integers(1, 4)),) * 2, np.float32), size)
    return np.clip(coarse * np.float32(0.6) + fine * np.float32(0.4), 0, 1)


def dots(rng: np.random.Generator, size: int) -> Field:
    x, y = _grid(size)
    count = np.float32(np.pi * rng.uniform(3, 14))
    wave = np.sin(x * count) * np.sin(y * count)
    if rng.random() < 0.5:
        wave = np.abs(wave)
    sharpness, level = np.float32(rng.uniform(4, 20)), np.float32(rng.uniform(0.3, 0.7))
    return np.clip((wave - level) * sharpness + np.float32(0.5), 0, 1)


def waves(rng: np.random.Generator, size: int) -> Field:
    """Marble: stripes bent by noise."""
    x, y = _grid(size)
    angle = rng.uniform(0, np.pi)
    phase = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    bend = _noise(rng, size, 2, 3) * np.float32(rng.uniform(0.5, 2))
    wave = np.sin((phase + bend) * np.float32(np.pi * rng.uniform(2, 10)))
    return wave * np.float32(0.5) + np.float32(0.5)


def mosaic(rng: np.random.Generator, size: int) -> Field:
    """Tiles of random shades."""
    rows, columns = (int(n) for n in rng.integers(3, 26, 2))
    small = rng.random((rows, columns), np.float32)
    image = Image.fromarray(small).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(image)


TEXTURES: dict[Part, tuple[Texture, ...]] = {
    "seen": (clouds, gradient, stripes, checks, grain, speckle),
    "unseen": (dots, waves, mosaic),
}

SHAPES = {
    "checks": frozenset({"square", "diamond"}),
    "dots": frozenset({"circle", "ball"}),
    "mosaic": frozenset({"square"}),
}
