"""Scenes: exact visible masks, phrases that are true or false by construction."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from efficientsam3.errors import ArgumentError
from efficientsam3_stickers import scenes as module
from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.backgrounds import Background, random_background
from efficientsam3_stickers.clips import make_clip
from efficientsam3_stickers.compositor import mask_to_box
from efficientsam3_stickers.concepts import SPLITS, Part
from efficientsam3_stickers.scenes import Scene, SceneGenerator

SEEDS = range(40)


@pytest.fixture(scope="module")
def scenes(generator: SceneGenerator) -> list[Scene]:
    return [generator.scene(seed) for seed in SEEDS]


def test_equal_seeds_give_equal_scenes(generator: SceneGenerator, scenes: list[Scene]) -> None:
    for seed in (0, 5, 11):
        same = generator.scene(seed)
        np.testing.assert_array_equal(same.image, scenes[seed].image)
        assert same.queries == scenes[seed].queries
    assert not np.array_equal(scenes[0].image, scenes[1].image)


def test_splits_differ_where_seeds_are_equal(
    stickers: StickerArt, generator: SceneGenerator
) -> None:
    first, other = generator.scene(3), SceneGenerator(stickers, SPLITS["seen"], 96).scene(3)
    assert not np.array_equal(first.image, other.image)


def test_masks_are_disjoint_and_fit_their_boxes(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (96, 96, 3)
        assert scene.objects
        masks = np.stack([o.mask for o in scene.objects])
        assert masks.sum(0).max() == 1  # each pixel shows one object
        for one in scene.objects:
            assert one.mask.sum() >= 8
            np.testing.assert_array_equal(one.box, mask_to_box(one.mask))


def test_queries_are_true_of_their_objects(scenes: list[Scene]) -> None:
    kinds = set()
    for scene in scenes:
        phrases = [q.phrase for q in scene.queries]
        assert len(phrases) == len(set(phrases))
        for query in scene.queries:
            kinds.add(query.kind)
            called = {i for i, o in enumerate(scene.objects) if o.concept.is_called(query.phrase)}
            if query.kind in ("name", "synonym", "category"):
                assert set(query.objects) == called
                assert called
            elif query.kind == "attribute":
                assert query.objects
                word, _, name = query.phrase.partition(" ")
                for i in query.objects:
                    one = scene.objects[i]
                    assert one.concept.is_called(name)
                    if word == "upside-down":
                        assert abs(one.angle) > 120
                    elif word not in ("small", "large"):
                        assert one.color == word
            else:
                assert not query.objects
                assert not called
    assert kinds >= {"name", "category", "attribute", "near", "not-attribute"}


def test_twins_are_never_called_absent(scenes: list[Scene], stickers: StickerArt) -> None:
    for scene in scenes:
        shown = {o.concept.name for o in scene.objects}
        for query in scene.queries:
            if not query.objects and query.phrase in stickers.concepts:
                assert not shown & set(stickers.concepts[query.phrase].twins)


def test_kept_backgrounds_are_not_drawn_on(stickers: StickerArt) -> None:
    used = SceneGenerator(stickers, SPLITS["train"], 64, backgrounds=2)
    for seed in range(12):
        used.scene(seed)
    fresh = SceneGenerator(stickers, SPLITS["train"], 64, backgrounds=2)
    np.testing.assert_array_equal(used.scene(12).image, fresh.scene(12).image)
    assert set(used._kept_backgrounds) == {0, 1}


def test_no_query_may_be_true_of_the_background(
    stickers: StickerArt, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [SceneGenerator(stickers, SPLITS["train"], 64).scene(seed) for seed in range(12)]

    def shows_dogs_and_fruit(
        rng: np.random.Generator, size: int, part: Part, *, plain: bool = False
    ) -> Background:
        return Background(
            random_background(rng, size, part, plain=plain).image, frozenset({"dog", "fruit"})
        )

    monkeypatch.setattr(module, "random_background", shows_dogs_and_fruit)
    all_removed = set()
    for seed, before in enumerate(free):
        scene = SceneGenerator(stickers, SPLITS["train"], 64).scene(seed)
        np.testing.assert_array_equal(scene.image, before.image)
        kept = {q.phrase for q in scene.queries}
        removed = {q.phrase for q in before.queries} - kept
        assert all({"dog", "fruit"} & set(p.split()) for p in removed)
        assert not any({"dog", "fruit"} & set(p.split()) for p in kept)
        all_removed |= removed
    assert {"fruit", "dog"} <= all_removed


def test_tiled_scenes_have_plain_backgrounds_and_names_alone(
    stickers: StickerArt, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_backgrounds = []

    def record(rng: np.random.Generator, size: int, part: Part, *, plain: bool = False) -> Any:
        plain_backgrounds.append(plain)
        return random_background(rng, size, part, plain=plain)

    monkeypatch.setattr(module, "random_background", record)
    scene = SceneGenerator(stickers, SPLITS["train"], 64, tiles=2).scene(0)
    SceneGenerator(stickers, SPLITS["train"], 64).scene(0)
    assert plain_backgrounds == [True, False]
    assert len(scene.objects) == 4
    assert {q.kind for q in scene.queries} == {"name"}


def test_scenes_show_only_their_split(stickers: StickerArt) -> None:
    for name, split in SPLITS.items():
        generator = SceneGenerator(stickers, split, 64)
        for seed in range(4):
            for one in generator.scene(seed).objects:
                assert one.style in split.styles
                assert (one.concept.name == "violin") == (split.concepts == "unseen"), name


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "no concept is left to show"), (["dog", "violin"], "'train' does not show violin")],
)
def test_names_that_cannot_be_shown_are_an_error(
    stickers: StickerArt, names: list[str], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        SceneGenerator(stickers, SPLITS["train"], 96, names)


# Published figures depend on scenes that stay the same, bit by bit ------------------------------


def digest(*content: object) -> str:
    parts = (c.tobytes() if isinstance(c, np.ndarray) else repr(c).encode() for c in content)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def describe(scene: Scene) -> list[object]:
    objects = [
        part
        for obj in scene.objects
        for part in (obj.mask, obj.box, obj.concept.name, obj.style, obj.side, obj.color, obj.angle)
    ]
    queries = [(q.phrase, q.objects, q.kind) for q in scene.queries]
    return [scene.image, *objects, queries]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"split": "train"}, "b689279a509cb204"),
        ({"split": "unseen"}, "ba40a1f8d8a43b6e"),
        ({"split": "train", "tiles": 2}, "996b603ada5ae285"),
        ({"split": "seen", "backgrounds": 3}, "2f813346bafa23a8"),
    ],
)
def test_scenes_stay_the_same(stickers: StickerArt, options: dict[str, Any], expected: str) -> None:
    settings = dict(options)
    generator = SceneGenerator(stickers, SPLITS[settings.pop("split")], 96, **settings)
    assert (
        digest(*(part for seed in range(6) for part in describe(generator.scene(seed)))) == expected
    )


def test_clips_stay_the_same(stickers: StickerArt) -> None:
    clip = make_clip(SceneGenerator(stickers, SPLITS["seen"], 96), 5, 8)
    parts: list[object] = [part for frame in clip for part in (frame.image, frame.masks)]
    queries = [(q.phrase, q.objects, q.kind) for q in clip.queries]
    assert digest(*parts, queries) == "bae170d6eab1cb3a"
