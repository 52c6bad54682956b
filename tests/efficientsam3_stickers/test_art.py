"""Baked stickers: content, and errors for missing or damaged files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import efficientsam3 as es3
from efficientsam3_stickers.art import SIZE, ArtError, ArtNotFoundError, StickerArt, cache_folder


def test_stickers_are_tight_centered_and_read_only(stickers: StickerArt) -> None:
    for concept in stickers.concepts.values():
        for style in concept.styles:
            sticker = stickers.sticker(concept.name, style)
            assert sticker.shape == (SIZE, SIZE, 4)
            assert sticker.dtype == np.uint8
            ys, xs = np.nonzero(sticker[..., 3] > 15)
            height, width = np.ptp(ys) + 1, np.ptp(xs) + 1
            assert 138 <= max(height, width) <= 140
            assert abs(ys.min() + ys.max() - (SIZE - 1)) <= 2
            assert abs(xs.min() + xs.max() - (SIZE - 1)) <= 2
            assert not sticker.flags.writeable


def test_alpha_is_straight(stickers: StickerArt) -> None:
    sticker = stickers.sticker("red apple", "noto").astype(int)
    edge = sticker[(sticker[..., 3] > 40) & (sticker[..., 3] < 200)]
    assert len(edge) > 20
    # With premultiplied alpha, half-transparent red would be half as bright.
    assert edge[:, 0].min() > 180
    assert not sticker[sticker[..., 3] == 0].any()


def test_stickers_are_upright_and_not_mirrored(stickers: StickerArt) -> None:
    triangle = stickers.sticker("dog", "noto")[..., 3] > 127
    assert triangle[40].sum() < triangle[110].sum()


def test_a_missing_style_is_an_error(stickers: StickerArt) -> None:
    assert stickers.concepts["horse"].styles == ("noto", "twemoji", "openmoji")
    with pytest.raises(ArtError, match="style 'fluent': its styles are noto, twemoji"):
        stickers.sticker("horse", "fluent")


def test_an_unknown_name_is_an_error(stickers: StickerArt) -> None:
    with pytest.raises(ArtError, match=r"no sticker 'dgo'.*15 other names"):
        stickers.sticker("dgo", "noto")


def test_concept_names_by_part_and_style(stickers: StickerArt) -> None:
    assert stickers.concept_names("unseen") == ["violin"]
    assert set(stickers.concept_names()) == set(stickers.concepts)
    assert "horse" not in stickers.concept_names("seen", ["fluent"])


def test_stickers_have_colors(stickers: StickerArt) -> None:
    assert stickers.color("red apple", "noto") == "red"
    assert stickers.color("guitar", "fluent") == "black"
    assert stickers.color("horse", "fluent") is None


def test_a_worker_opens_the_files_itself(stickers: StickerArt) -> None:
    stickers.sticker("dog", "noto")
    pickled = pickle.dumps(stickers)
    assert len(pickled) < 1000
    opened = pickle.loads(pickled)
    np.testing.assert_array_equal(opened.sticker("dog", "noto"), stickers.sticker("dog", "noto"))


def test_without_stickers_the_error_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ArtNotFoundError, match="efficientsam3 scenes fetch") as caught:
        StickerArt.open(tmp_path)
    assert isinstance(caught.value, es3.EfficientSam3Error)


def test_the_environment_moves_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTSAM3_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere/scenes")
    monkeypatch.delenv("EFFICIENTSAM3_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/efficientsam3/scenes")


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}'])
def test_a_damaged_index_is_an_error(copied: Path, content: str) -> None:
    (copied / "art" / "index.json").write_text(content)
    with pytest.raises(ArtError, match=r"index.json is damaged.*fetch. again"):
        StickerArt.open(copied)


def test_an_index_of_another_version_is_an_error(copied: Path) -> None:
    path = copied / "art" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ArtError, match="of format 99"):
        StickerArt.open(copied)


def test_an_incomplete_file_of_stickers_is_an_error(copied: Path) -> None:
    stickers = StickerArt.open(copied)
    path = copied / "art" / "noto.npy"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ArtError, match=r"noto.npy is damaged"):
        stickers.sticker("dog", "noto")


def test_a_file_of_other_arrays_is_an_error(copied: Path) -> None:
    np.save(copied / "art" / "noto.npy", np.zeros((2, 3)))
    with pytest.raises(ArtError, match=r"contains float64 \(2, 3\) instead of stickers"):
        StickerArt.open(copied).sticker("dog", "noto")
