"""Textures: random patterns in random palettes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .compositor import Pixels
from .concepts import Part

Field = NDArray[np.float32]
"""(S, S) in [0, 1]: the position in a palette."""

Texture = Callable[[np.random.Generator, int], Field]
"""Draws a field of a size in pixels."""


def color_field(rng: np.random.Generator, field: Field) -> Pixels:
    """Color a field by a random palette of two to four colors, which are mostly muted.

    Args:
        rng: Source of random numbers.
        field: The field.

    Returns:
        (S, S, 3) uint8 RGB.
    """
    stops = int(rng.integers(2, 5))
    hue = rng.random() + rng.uniform(-0.25, 0.25, stops)
    saturation = rng.uniform(0, 0.55 if rng.random() < 0.7 else 1, stops)
    middle, spread = rng.uniform(0.2, 0.9), rng.uniform(0.05, 0.5)
    value = np.clip(middle + rng.uniform(-spread, spread, stops), 0.05, 1)
    sector = (hue[:, None] * 6 + np.array([5, 3, 1])) % 6
    colors = value[:, None] * (
        1 - saturation[:, None] * np.clip(np.minimum(sector, 4 - sector), 0, 1)
    )
    positions = np.linspace(0, 1, 256)
    table = np.zeros((256, 4), np.uint8)
    for channel, values in enumerate(colors.T):
        table[:, channel] = np.interp(positions, np.linspace(0, 1, stops), values) * 255
    # Looking up four bytes as one number is ten times faster than looking up rows of three.
    packed = table.view(np.uint32)[:, 0][(field * 255).astype(np.uint8, order="C")]
    return packed.view(np.uint8).reshape(*field.shape, 4)[..., :3].copy()


def _grid(size: int) -> tuple[Field, Field]:
    """Columns (1, S) and rows (S, 1) from -1 to 1."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return line[None], line[:, None]


def _resize(small: Field, size: int) -> Field:
    image = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _normalize(field: Field) -> Field:
    low, high = field.min(), field.max()
    return (field - low) / max(float(high - low), 1e-6)


def _noise(rng: np.random.Generator, size: int, first: int = 2, octaves: int = 4) -> Field:
    """Value noise: a sum of random grids, each finer and weaker than the one before."""
    half = (size + 1) // 2  # at half the resolution, in a quarter of the time
    total = np.zeros((half, half), np.float32)
    cells, weight = first, 1.0
    for _ in range(octaves):
        total += weight * _resize(rng.random((cells + 1, cells + 1), np.float32), half)
        cells, weight = min(cells * 2, half - 1), weight * 0.55
    return _normalize(np.clip(_resize(_normalize(total), size), 0, 1))


def clouds(rng: np.random.Generator, size: int) -> Field:
    """Smooth noise.

    Args:
        rng: Source of random numbers.
        size: Side in pixels.
    """
    return _noise(rng, size, int(rng.integers(1, 7)), int(rng.integers(2, 6)))


def gradient(rng: np.random.Generator, size: int) -> Field:
    """A linear or radial gradient.

    Args:
        rng: Source of random numbers.
        size: Side in pixels.
    """
    x, y = _grid(size)
    if rng.random() < 0.3:
        left, top = rng.uniform(-1, 1, 2)
        return _normalize(np.hypot(x - np.float32(left), y - np.float32(top)))
    angle = rng.uniform(0, 2 * np.pi)
    return _normalize(x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))


def stripes(rng: np.random.Generator, size: int) -> Field:
    """Parallel stripes with soft or hard edges.

    Args:
        rng: Source of random numbers.
        size: Side in pixels.
    """
    x, y = _grid(size)
    angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    phase = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    wave = np.sin(phase * np.float32(np.pi * rng.uniform(2, 24)))
    return np.clip(wave * np.float32(rng.choice([0.5, 1, 8])) + np.float32(0.5), 0, 1)


def checks(rng: np.random.Generator, size: int) -> Field:
    """A chessboard, or checked cloth.

    Args:
        rng: Source of random numbers.
        size: Side in pixels.
    """
    x, y = _grid(size)
    count = np.float32(np.pi * rng.uniform(2, 12))
    wave_x, wave_y = np.sin(x * count), np.sin(y * count)
    if rng.random() < 0.5:  # cloth: the mean of stripes in both directions
        field = (wave_x > 0).astype(np.float32) + (wave_y > 0)
        return field / 2
    return (wave_x * wave_y > 0).astype(np.float32)


def grain(rng: np.random.Generator, size: int) -> Field:
    """Wood: noise along the fibres, slightly bent, with fine lines.

    Args:
        rng: Source of random numbers.
        size: Side in pixels.
    """
    cells = int(rng.integers(4, 14))
    long = _resize(rng.random((2, cells), np.float32), size)
    fine = _resize(rng.random((4, max(8, size // 3)), np.float32), size)
    rings = np.sin(long * np.float32(rng.uniform(6, 30)))
    field = _normalize(rings + np.float32(0.5) * fine)
    return field if rng.random() < 0.5 else field.T


def speckle(rng: np.random.Generator, size: int) -> Field:
    """Fine noise on coarse noise, as on plaster, sand or carpet.

    Args:
        rng: Source of random numbers.
        size: Side in pixels.
    """
    coarse = _noise(rng, size, 2, 2)
    fine = _resize(rng.random((size // int(rng.integers(1, 4)),) * 2, np.float32), size)
    return np.clip(coarse * np.float32(0.6) + fine * np.float32(0.4), 0, 1)


def dots(rng: np.random.Generator, size: int) -> Field:
    """A grid of dots.

    Args:
        rng: Source of random numbers.
        size: Side in pixels.
    """
    x, y = _grid(size)
    count = np.float32(np.pi * rng.uniform(3, 14))
    wave = np.sin(x * count) * np.sin(y * count)
    if rng.random() < 0.5:
        wave = np.abs(wave)
    sharpness, level = np.float32(rng.uniform(4, 20)), np.float32(rng.uniform(0.3, 0.7))
    return np.clip((wave - level) * sharpness + np.float32(0.5), 0, 1)


def waves(rng: np.random.Generator, size: int) -> Field:
    """Marble: stripes bent by noise.

    Args:
        rng: Source of random numbers.
        size: Side in pixels.
    """
    x, y = _grid(size)
    angle = rng.uniform(0, np.pi)
    phase = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    bend = _noise(rng, size, 2, 3) * np.float32(rng.uniform(0.5, 2))
    wave = np.sin((phase + bend) * np.float32(np.pi * rng.uniform(2, 10)))
    return wave * np.float32(0.5) + np.float32(0.5)


def mosaic(rng: np.random.Generator, size: int) -> Field:
    """Rectangles of random shades.

    Args:
        rng: Source of random numbers.
        size: Side in pixels.
    """
    rows, columns = (int(n) for n in rng.integers(3, 26, 2))
    small = rng.random((rows, columns), np.float32)
    image = Image.fromarray(small).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(image)


TEXTURES: dict[Part, tuple[Texture, ...]] = {
    "seen": (clouds, gradient, stripes, checks, grain, speckle),
    "unseen": (dots, waves, mosaic),
}
"""Textures of each part of the backgrounds."""

SHAPES = {
    "checks": frozenset({"square", "diamond"}),
    "dots": frozenset({"circle", "ball"}),
    "mosaic": frozenset({"square"}),
}
"""Words for the shapes that a texture shows, by its name."""
