"""Backgrounds: crops of photographs that installed packages contain, and random textures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from .art import ArtError
from .compositor import Pixels, apply_gains
from .concepts import Part
from .textures import SHAPES, TEXTURES, color_field

PHOTOGRAPH_SHARE = 0.5
"""Share of the backgrounds that are photographs."""


@dataclass(frozen=True, eq=False)
class Background:
    """The background of a scene.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        shows: Words for everything that a person might see in it.
    """

    image: Pixels
    shows: frozenset[str] = frozenset()

    def may_show(self, phrase: str) -> bool:
        """Whether a phrase might be true of something in the background.

        Args:
            phrase: The phrase.
        """
        return not self.shows.isdisjoint((phrase, *phrase.split()))


def random_background(
    rng: np.random.Generator, size: int, part: Part, *, plain: bool = False
) -> Background:
    """A random background.

    Args:
        rng: Source of random numbers.
        size: Side in pixels.
        part: "seen" or "unseen"; they share no photograph and no texture.
        plain: Exclude photographs of things that have a name. Textures may show shapes all the
            same.

    Raises:
        ArtError: a package with photographs is not installed.
    """
    if rng.random() < PHOTOGRAPH_SHARE:
        allowed = [p for p in photographs() if p.part == part and not (plain and p.shows)]
        photograph = allowed[rng.integers(len(allowed))]
        return Background(photograph.crop(rng, size), photograph.shows)
    textures = TEXTURES[part]
    texture = textures[rng.integers(len(textures))]
    image = color_field(rng, texture(rng, size))
    return Background(image, SHAPES.get(texture.__name__, frozenset()))


@dataclass(frozen=True)
class Photograph:
    """A region of a photograph.

    Attributes:
        package: Package that contains the file.
        file: Path of the file in the package.
        part: Part of the backgrounds that it belongs to.
        region: Left, top, right and bottom as shares of its width and height.
        shows: Words for the things in it.
    """

    package: str
    file: str
    part: Part
    region: tuple[float, float, float, float] = (0, 0, 1, 1)
    shows: frozenset[str] = frozenset()

    def crop(self, rng: np.random.Generator, size: int) -> Pixels:
        """A random square of the region, with random mirroring, brightness and tint.

        Args:
            rng: Source of random numbers.
            size: Side of the result in pixels.

        Raises:
            ArtError: the package is not installed, or lacks the file.
        """
        image = _read_photograph(self.package, self.file)
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
        return apply_gains(cut, rng.uniform(0.7, 1.2) * rng.uniform(0.85, 1.15, 3))


@cache
def photographs() -> tuple[Photograph, ...]:
    """The photographs of ``data/photographs.json``. Their files are read when they are cropped."""
    file = resources.files(__package__).joinpath("data", "photographs.json")
    return tuple(
        Photograph(
            entry["package"],
            entry["file"],
            entry["part"],
            tuple(entry.get("region", (0, 0, 1, 1))),
            frozenset(entry.get("shows", ())),
        )
        for entry in json.loads(file.read_text(encoding="utf-8"))
    )


@lru_cache(maxsize=32)
def _read_photograph(package: str, file: str) -> Image.Image:
    # The package is located, not imported: importing it takes longer than a thousand scenes.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ArtError(
            f"scenes use photographs of {package}, which is not installed: "
            "pip install 'efficientsam3[scenes]'"
        )
    path = Path(spec.origin).parent / file
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ArtError(
            f"{package} has no readable photograph {path} ({error}): reinstall it with "
            "pip install --force-reinstall 'efficientsam3[scenes]'"
        ) from error
