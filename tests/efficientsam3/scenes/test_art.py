"""Baked art: what it holds, and what is said when it is missing or damaged."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import efficientsam3 as es3
from efficientsam3.scenes import art as art_module
from efficientsam3.scenes.art import SIZE, Art, ArtNotFoundError, cache_folder, fit
from efficientsam3.scenes.concepts import STYLES, read_concepts
from efficientsam3.scenes.likeness import colour_word
from efficientsam3.scenes.sources import ArtError

from .conftest import SHAPES, bake, pictures, rows


def test_stickers_are_tight_centred_and_read_only(art: Art) -> None:
    for concept in art.concepts.values():
        for style in concept.styles:
            sticker = art.sticker(concept.name, style)
            assert sticker.shape == (SIZE, SIZE, 4)
            assert sticker.dtype == np.uint8
            ys, xs = np.nonzero(sticker[..., 3] > 15)
            height, width = np.ptp(ys) + 1, np.ptp(xs) + 1
            assert 138 <= max(height, width) <= 140
            assert abs(ys.min() + ys.max() - (SIZE - 1)) <= 2
            assert abs(xs.min() + xs.max() - (SIZE - 1)) <= 2
            assert not sticker.flags.writeable


def test_alpha_is_straight(art: Art) -> None:
    sticker = art.sticker("red apple", "noto").astype(int)
    edge = sticker[(sticker[..., 3] > 40) & (sticker[..., 3] < 200)]
    assert len(edge) > 20
    # Were it premultiplied, half-transparent red would be half as bright.
    assert edge[:, 0].min() > 180
    assert not sticker[sticker[..., 3] == 0].any()


def test_upright_and_unmirrored(art: Art) -> None:
    triangle = art.sticker("dog", "noto")[..., 3] > 127
    assert triangle[40].sum() < triangle[110].sum()


def test_a_style_that_lacks_a_concept_is_said(art: Art) -> None:
    assert art.concepts["horse"].styles == ("noto", "twemoji", "openmoji")
    with pytest.raises(ArtError, match="not drawn in the style 'fluent', but in noto, twemoji"):
        art.sticker("horse", "fluent")


def test_an_unknown_name_is_said(art: Art) -> None:
    with pytest.raises(ArtError, match=r"no art is called 'dgo'.*15 names"):
        art.sticker("dgo", "noto")


def test_names_by_part_and_style(art: Art) -> None:
    assert art.names("unseen") == ["violin"]
    assert set(art.names()) == set(art.concepts)
    assert "horse" not in art.names("seen", ["fluent"])


def test_colours_are_of_the_art(art: Art) -> None:
    assert art.colour("red apple", "noto") == "red"
    assert art.colour("guitar", "fluent") == "black"
    assert art.colour("horse", "fluent") is None


def test_look_alikes_are_near_and_never_true_of_it(art: Art) -> None:
    apple = art.concepts["red apple"]
    assert "green apple" in apple.near[:3]
    assert "red apple" not in apple.near
    for concept in art.concepts.values():
        assert not set(concept.near) & set(concept.twins)
        for other in concept.near:
            assert not concept.is_called(other)
            assert not art.concepts[other].is_called(concept.name)


def test_equal_pictures_are_twins(tmp_path: Path) -> None:
    def same(style: str) -> Iterator[tuple[str, Image.Image]]:
        shown = dict(pictures(style))
        shown["1f347"] = shown["1f34b"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        yield from shown.items()

    source = {style: same(style) for style in STYLES}
    art_module.bake(tmp_path, read_concepts(rows(), {}), source, "", lambda *report: None)
    assert "lemon" in Art.open(tmp_path).concepts["grapes"].twins


def test_a_worker_opens_the_files_itself(art: Art) -> None:
    art.sticker("dog", "noto")
    sent = pickle.dumps(art)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    np.testing.assert_array_equal(again.sticker("dog", "noto"), art.sticker("dog", "noto"))


def test_nothing_fetched_yet(tmp_path: Path) -> None:
    with pytest.raises(ArtNotFoundError, match="efficientsam3 scenes fetch") as caught:
        Art.open(tmp_path)
    assert isinstance(caught.value, es3.EfficientSam3Error)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTSAM3_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere/scenes")
    monkeypatch.delenv("EFFICIENTSAM3_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/efficientsam3/scenes")


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 1}'])
def test_a_damaged_index_is_said(copied: Path, damage: str) -> None:
    (copied / "art" / "index.json").write_text(damage)
    with pytest.raises(ArtError, match=r"index.json is damaged.*fetch. again"):
        Art.open(copied)


def test_an_index_of_another_version_is_said(copied: Path) -> None:
    path = copied / "art" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ArtError, match="of format 99"):
        Art.open(copied)


def test_a_map_cut_short_is_said(copied: Path) -> None:
    art = Art.open(copied)
    path = copied / "art" / "noto.npy"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ArtError, match=r"noto.npy is damaged"):
        art.sticker("dog", "noto")


def test_a_bake_that_breaks_leaves_the_old_art(copied: Path) -> None:

    def broken(style: str) -> Iterator[tuple[str, Image.Image]]:
        yield from pictures(style)
        raise ArtError("cut short")

    concepts = read_concepts(rows(), {})
    with pytest.raises(ArtError, match="cut short"):
        art_module.bake(copied, concepts, {"noto": broken("noto")}, "new", lambda *report: None)
    assert Art.open(copied).fingerprint == "shapes"
    assert [p.name for p in copied.iterdir()] == ["art"]


def test_a_new_bake_takes_the_place_of_the_old(copied: Path) -> None:
    before = Art.open(copied).sticker("dog", "noto")
    assert bake(copied, "new").fingerprint == "new"
    assert before.any()  # whoever has the old maps keeps them
    assert [p.name for p in copied.iterdir()] == ["art"]


def test_progress_is_told(tmp_path: Path) -> None:
    told = []
    source = {"noto": pictures("noto")}
    art_module.bake(tmp_path, read_concepts(rows(), {}), source, "", lambda *r: told.append(r))
    assert told[0] == ("Baking noto", 0, len(SHAPES))
    assert told[-1] == ("Baking noto", len(SHAPES), len(SHAPES))


def test_nothing_opaque_is_no_sticker() -> None:
    assert fit(Image.new("RGBA", (20, 20), (255, 0, 0, 8))) is None


def test_fingerprints_tell_art_and_names_apart() -> None:
    concepts = read_concepts(rows(), {})
    mark = art_module.fingerprint(concepts, ["a"])
    assert mark == art_module.fingerprint(concepts, ["a"])
    assert mark != art_module.fingerprint(concepts, ["b"])
    assert mark != art_module.fingerprint(concepts[:-1], ["a"])


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        ((221, 46, 68), "red"),
        ((244, 144, 12), "orange"),
        ((253, 203, 88), "yellow"),
        ((120, 177, 89), "green"),
        ((85, 172, 238), "blue"),
        ((170, 142, 214), "purple"),
        ((244, 171, 186), "pink"),
        ((130, 80, 50), "brown"),
        ((30, 30, 30), "black"),
        ((245, 245, 245), "white"),
        ((150, 152, 150), "gray"),
    ],
)
def test_colour_words_of_plain_colours(rgb: tuple[int, int, int], word: str) -> None:
    sticker = np.zeros((8, 8, 4), np.uint8)
    sticker[2:6] = (*rgb, 255)
    assert colour_word(sticker) == word


def test_half_one_and_half_another_colour_has_no_word() -> None:
    sticker = np.full((8, 8, 4), 255, np.uint8)
    sticker[:4, :, :3] = (220, 30, 30)
    assert colour_word(sticker) is None
    sticker[4:5, :, :3] = (220, 30, 30)
    assert colour_word(sticker) == "red"
