"""Backgrounds: decided by a seed and a part, with words for what they show."""

from __future__ import annotations

import numpy as np
import pytest

from efficientsam3_stickers import backgrounds
from efficientsam3_stickers.art import ArtError
from efficientsam3_stickers.backgrounds import Background, random_background
from efficientsam3_stickers.concepts import Part
from efficientsam3_stickers.textures import TEXTURES, Texture

pytest.importorskip("skimage")
pytest.importorskip("sklearn")
PARTS: tuple[Part, ...] = ("seen", "unseen")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("size", [48, 113, 336])
def test_a_background_has_the_size(part: Part, size: int) -> None:
    for seed in range(8):
        image = random_background(np.random.default_rng(seed), size, part).image
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8


@pytest.mark.parametrize("part", PARTS)
def test_equal_seeds_give_equal_backgrounds(part: Part) -> None:
    first, same, other = (
        random_background(np.random.default_rng(s), 64, part, plain=True).image for s in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "texture", [t for part in PARTS for t in TEXTURES[part]], ids=lambda t: t.__name__
)
@pytest.mark.parametrize("size", [48, 97])
def test_textures_have_values_from_0_to_1(texture: Texture, size: int) -> None:
    for seed in range(5):
        field = texture(np.random.default_rng(seed), size)
        assert field.shape == (size, size)
        assert field.dtype == np.float32
        assert field.min() >= 0
        assert field.max() <= 1
        assert np.ptp(field) > 0.1


def test_parts_share_no_photograph_and_no_texture() -> None:
    files = {part: {p.file for p in backgrounds.photographs() if p.part == part} for part in PARTS}
    assert files["seen"]
    assert files["unseen"]
    assert not files["seen"] & files["unseen"]
    assert not set(TEXTURES["seen"]) & set(TEXTURES["unseen"])


def test_every_photograph_can_be_cropped() -> None:
    for photograph in backgrounds.photographs():
        crops = [photograph.crop(np.random.default_rng(seed), 60) for seed in range(4)]
        assert {crop.shape for crop in crops} == {(60, 60, 3)}
        assert max(np.ptp(crop) for crop in crops) > 5


def test_plain_backgrounds_show_no_photograph_of_a_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backgrounds, "PHOTOGRAPH_SHARE", 1.0)
    rng = np.random.default_rng(0)
    assert not any(random_background(rng, 48, "seen", plain=True).shows for _ in range(30))
    assert any("cat" in random_background(rng, 48, "seen").shows for _ in range(60))


def test_shown_words_are_found_in_longer_phrases() -> None:
    cat = Background(np.zeros((1, 1, 3), np.uint8), frozenset({"cat", "milky way"}))
    assert cat.may_show("cat")
    assert cat.may_show("black cat")
    assert cat.may_show("milky way")
    assert not cat.may_show("catfish")


def test_a_missing_package_is_an_error() -> None:
    photograph = backgrounds.Photograph("no_such_package", "x.png", "seen")
    with pytest.raises(ArtError, match=r"no_such_package.*pip install 'efficientsam3\[scenes\]'"):
        photograph.crop(np.random.default_rng(0), 48)
