"""Baking: reading of emoji sets, what is written, and what remains when baking fails."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from efficientsam3.errors import MissingPackageError
from efficientsam3_stickers import bake as baking
from efficientsam3_stickers.art import ArtError, StickerArt
from efficientsam3_stickers.concepts import STYLES
from efficientsam3_stickers.vocabulary import read_concepts

from ..efficientsam3.io.test_archives import write_tar
from .conftest import SHAPES, bake_shapes, draw_pictures, emoji_rows

CONCEPTS = read_concepts(emoji_rows(), {})


def ignore(title: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def test_similar_concepts_are_hard_negatives_and_never_true(stickers: StickerArt) -> None:
    apple = stickers.concepts["red apple"]
    assert "green apple" in apple.near[:3]
    assert "red apple" not in apple.near
    for concept in stickers.concepts.values():
        assert not set(concept.near) & set(concept.twins)
        for other in concept.near:
            assert not concept.is_called(other)
            assert not stickers.concepts[other].is_called(concept.name)


def test_equal_pictures_are_twins(tmp_path: Path) -> None:
    def grapes_like_lemons(style: str) -> Iterator[tuple[str, Image.Image]]:
        shown = dict(draw_pictures(style))
        shown["1f347"] = shown["1f34b"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield from shown.items()

    pictures = {style: grapes_like_lemons(style) for style in STYLES}
    stickers = baking.bake(tmp_path, CONCEPTS, pictures, "", ignore)
    assert "lemon" in stickers.concepts["grapes"].twins


def test_baking_that_fails_leaves_the_earlier_stickers(copied: Path) -> None:
    def broken(style: str) -> Iterator[tuple[str, Image.Image]]:
        yield from draw_pictures(style)
        raise ArtError("incomplete")

    with pytest.raises(ArtError, match="incomplete"):
        baking.bake(copied, CONCEPTS, {"noto": broken("noto")}, "new", ignore)
    assert StickerArt.open(copied).fingerprint == "shapes"
    assert [p.name for p in copied.iterdir()] == ["art"]


def test_new_stickers_replace_the_earlier_ones(copied: Path) -> None:
    before = StickerArt.open(copied).sticker("dog", "noto")
    assert bake_shapes(copied, "new").fingerprint == "new"
    assert before.any()  # files that are mapped keep their content
    assert [p.name for p in copied.iterdir()] == ["art"]


def test_progress_is_reported(tmp_path: Path) -> None:
    reports = []
    pictures = {"noto": draw_pictures("noto")}
    baking.bake(tmp_path, CONCEPTS, pictures, "", lambda *report: reports.append(report))
    assert reports[0] == ("Baking noto", 0, len(SHAPES))
    assert reports[-1] == ("Baking noto", len(SHAPES), len(SHAPES))


def test_a_transparent_picture_gives_no_sticker() -> None:
    assert baking.fit_sticker(Image.new("RGBA", (20, 20), (255, 0, 0, 8))) is None


def test_fingerprints_depend_on_archives_and_names() -> None:
    fingerprint = baking.fingerprint_of(CONCEPTS, ["a"])
    assert fingerprint == baking.fingerprint_of(CONCEPTS, ["a"])
    assert fingerprint != baking.fingerprint_of(CONCEPTS, ["b"])
    assert fingerprint != baking.fingerprint_of(CONCEPTS[:-1], ["a"])


# Reading --------------------------------------------------------------------------------------


def encode_png(color: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (6, 6), color).save(out, "PNG")
    return out.getvalue()


def test_pictures_are_read_by_code(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tgz",
        {
            "package/assets/1f34e.png": encode_png("red"),
            "package/assets/2764-fe0f.png": encode_png("blue"),
            "package/assets/1f34f.png": encode_png("green"),
            "package/other/1f415.png": encode_png("brown"),
        },
    )
    found = dict(baking.read_pictures(path, "package/assets", {"1f34e", "2764", "1f415"}))
    assert set(found) == {"1f34e", "2764"}
    assert found["1f34e"].getpixel((0, 0)) == (255, 0, 0, 255)


def test_an_svg_is_rendered_large() -> None:
    pytest.importorskip("resvg_py")
    left_half = b'<path fill="#0f0" d="M0 0h18v36H0z"/>'
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36">' + left_half + b"</svg>"
    image = baking.render_svg(svg)
    assert image.size == (baking.SVG_SIDE, baking.SVG_SIDE)
    assert image.getpixel((10, 100)) == (0, 255, 0, 255)
    assert image.getpixel((280, 100)) == (0, 0, 0, 0)


def test_a_damaged_svg_is_an_error() -> None:
    pytest.importorskip("resvg_py")
    with pytest.raises(ArtError, match="cannot be rendered"):
        baking.render_svg(b"<svg")


def test_names_come_from_both_lists(tmp_path: Path) -> None:
    emoji_list = write_tar(tmp_path / "a.tgz", {"package/emoji.json": b'[{"unified": "1F34E"}]'})
    named = json.dumps([{"hexcode": "2764-FE0F", "annotation": "red heart"}]).encode()
    openmoji = write_tar(tmp_path / "b.tgz", {"package/data/openmoji.json": named})
    expected = [{"unified": "1F34E"}], {"2764": "red heart"}
    assert baking.read_names(emoji_list, openmoji) == expected


def test_a_font_without_bitmaps_is_an_error() -> None:
    pytest.importorskip("fontTools")
    with pytest.raises(ArtError, match="is not Noto Color Emoji with bitmaps"):
        list(baking.read_font(b"not a font", {"1f34e"}))


def test_a_missing_package_is_an_error_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(module: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(baking, "import_module", fail)
    with pytest.raises(MissingPackageError, match=r"resvg_py: pip install 'efficientsam3\[scenes"):
        baking.render_svg(b"<svg/>")


@pytest.mark.slow
def test_the_real_emojis_are_downloaded_verified_and_baked(tmp_path: Path) -> None:
    for module in ("resvg_py", "fontTools"):
        pytest.importorskip(module)
    stickers = baking.fetch_stickers(tmp_path)
    assert len(stickers.concepts) > 1200
    assert baking.fetch_stickers(tmp_path).fingerprint == stickers.fingerprint
    for name in ("red apple", "dog", "black cat", "farmer"):
        assert set(stickers.concepts[name].styles) == set(STYLES)
    assert stickers.color("red apple", "fluent") == "red"
    seen = stickers.concept_names("seen")
    assert 0.8 < len(seen) / len(stickers.concepts) < 0.9
