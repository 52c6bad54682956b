"""Stickers of the tests: plain shapes in the four styles, in place of the real emojis."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.bake import bake
from efficientsam3_stickers.concepts import SPLITS, STYLES
from efficientsam3_stickers.scenes import SceneGenerator
from efficientsam3_stickers.vocabulary import read_concepts

FRUIT = ("Food & Drink", "food-fruit")
MAMMAL = ("Animals & Nature", "animal-mammal")
ROLE = ("People & Body", "person-role")

# code, name, (group, subgroup), short names, shape, color
SHAPES = [
    ("1f34e", "red apple", FRUIT, ["apple"], "ellipse", "#d02020"),
    ("1f34f", "green apple", FRUIT, ["green_apple"], "ellipse", "#20a040"),
    ("1f34b", "lemon", FRUIT, ["lemon"], "ellipse", "#f0e020"),
    ("1f347", "grapes", FRUIT, ["grapes"], "triangle", "#7030b0"),
    ("1f415", "dog", MAMMAL, ["dog2"], "triangle", "#804820"),
    ("1f436", "dog face", MAMMAL, ["dog"], "diamond", "#a06030"),
    ("1f408", "cat", MAMMAL, ["cat2"], "bar", "#f08020"),
    ("1f40e", "horse", MAMMAL, ["racehorse"], "bar", "#603018"),
    ("1f9d1-200d-1f33e", "farmer", ROLE, ["farmer"], "tall", "#3060d0"),
    ("1f468-200d-1f33e", "man farmer", ROLE, ["male-farmer"], "tall", "#3070d0"),
    ("1f469-200d-1f33e", "woman farmer", ROLE, ["female-farmer"], "tall", "#30b0d0"),
    ("1f697", "automobile", ("Travel & Places", "transport-ground"), ["car"], "bar", "#d03030"),
    ("2b50", "star", ("Travel & Places", "sky & weather"), ["star"], "diamond", "#f0d020"),
    ("1f3b8", "guitar", ("Objects", "musical-instrument"), ["guitar"], "tall", "#101010"),
    ("1f3bb", "violin", ("Objects", "musical-instrument"), ["violin"], "triangle", "#a02818"),
]


def emoji_rows() -> list[dict[str, Any]]:
    """The shapes as entries of the emoji list."""
    return [
        {
            "unified": code.upper(),
            "name": name.upper(),
            "category": kind[0],
            "subcategory": kind[1],
            "short_names": short,
            "sort_order": i,
        }
        for i, (code, name, kind, short, _, _) in enumerate(SHAPES)
    ]


def draw_shape(shape: str, color: str, style: str) -> Image.Image:
    """A shape on a transparent background; each style has its own size and line."""
    width = 40 + 20 * STYLES.index(style)
    image = Image.new("RGBA", (3 * width, 3 * width), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    box = {"bar": (width, width, 3 * width, 2 * width), "tall": (width, 0, 2 * width, 3 * width)}
    x0, y0, x1, y1 = box.get(shape, (width // 2, width // 2, 5 * width // 2, 5 * width // 2))
    corners = {
        "triangle": [(x0, y1), (x1, y1), ((x0 + x1) // 2, y0)],
        "diamond": [(x0, width), (width, y0), (x1, width), (width, y1)],
    }
    if shape == "ellipse":
        draw.ellipse((x0, y0, x1, y1), fill=color)
    elif shape in corners:
        draw.polygon(corners[shape], fill=color)
    else:
        draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), radius=width // 4, fill=color)
    return image


def draw_pictures(style: str) -> Iterator[tuple[str, Image.Image]]:
    """All shapes of a style by code; the style "fluent" has no horse."""
    for code, _, _, _, shape, color in SHAPES:
        if (style, code) != ("fluent", "1f40e"):
            yield code, draw_shape(shape, color, style)


def bake_shapes(folder: Path, fingerprint: str = "shapes") -> StickerArt:
    """Bake the shapes into a folder of the cache."""
    pictures = {style: draw_pictures(style) for style in STYLES}
    concepts = read_concepts(emoji_rows(), {})
    return bake(folder, concepts, pictures, fingerprint, lambda title, done, total: None)


@pytest.fixture(scope="session")
def stickers(tmp_path_factory: pytest.TempPathFactory) -> StickerArt:
    """The baked shapes."""
    return bake_shapes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def copied(stickers: StickerArt, tmp_path: Path) -> Path:
    """A folder of the cache with the baked shapes, which a test may damage."""
    shutil.copytree(stickers.folder / "art", tmp_path / "art")
    return tmp_path


@pytest.fixture(scope="session")
def generator(stickers: StickerArt) -> SceneGenerator:
    """A generator of small training scenes."""
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    return SceneGenerator(stickers, SPLITS["train"], 96)
