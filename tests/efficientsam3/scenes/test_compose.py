"""Scenes: exact visible masks, phrases that are true or false by construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efficientsam3.scenes import compose
from efficientsam3.scenes.art import Art
from efficientsam3.scenes.backgrounds import Background, draw
from efficientsam3.scenes.canvas import tight_box
from efficientsam3.scenes.compose import Scene, World, make_scene
from efficientsam3.scenes.concepts import SPLITS, Part

pytest.importorskip("skimage")
pytest.importorskip("sklearn")
SEEDS = range(40)


@pytest.fixture(scope="module")
def scenes(world: World) -> list[Scene]:
    return [world.scene(seed) for seed in SEEDS]


def test_a_seed_is_one_scene(world: World, scenes: list[Scene]) -> None:
    for seed in (0, 5, 11):
        again = world.scene(seed)
        np.testing.assert_array_equal(again.image, scenes[seed].image)
        assert again.queries == scenes[seed].queries
    assert not np.array_equal(scenes[0].image, scenes[1].image)


def test_train_and_seen_show_other_scenes(art: Art) -> None:
    first, other = (make_scene(art, 3, SPLITS[name], 96) for name in ("train", "seen"))
    assert not np.array_equal(first.image, other.image)


def test_masks_are_what_is_visible(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (96, 96, 3)
        assert scene.objects
        masks = np.stack([o.mask for o in scene.objects])
        assert masks.sum(0).max() == 1  # each pixel shows one object
        for one in scene.objects:
            assert one.mask.sum() >= 8
            np.testing.assert_array_equal(one.box, tight_box(one.mask))


def test_queries_name_what_is_there(scenes: list[Scene]) -> None:
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
                        assert one.colour == word
            else:
                assert not query.objects
                assert not called
    assert kinds >= {"name", "category", "attribute", "near", "not-attribute"}


def test_twins_are_never_called_absent(scenes: list[Scene], art: Art) -> None:
    for scene in scenes:
        shown = {o.concept.name for o in scene.objects}
        for query in scene.queries:
            if not query.objects and query.phrase in art.concepts:
                assert not shown & set(art.concepts[query.phrase].twins)


def test_kept_backgrounds_stay_clean(art: Art) -> None:
    """A scene is the same whatever was drawn on its background before."""
    used = World(art, SPLITS["train"], 64, grounds=2)
    for seed in range(12):
        used.scene(seed)
    fresh = World(art, SPLITS["train"], 64, grounds=2)
    np.testing.assert_array_equal(used.scene(12).image, fresh.scene(12).image)
    assert set(used._made) == {0, 1}


def test_nothing_is_asked_that_the_background_may_show(
    art: Art, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [World(art, SPLITS["train"], 64).scene(seed) for seed in range(12)]

    def shown(
        rng: np.random.Generator, size: int, part: Part, *, plain: bool = False
    ) -> Background:
        return Background(draw(rng, size, part, plain=plain).image, frozenset({"dog", "fruit"}))

    monkeypatch.setattr(compose, "draw", shown)
    lost = set()
    for seed, before in enumerate(free):
        scene = World(art, SPLITS["train"], 64).scene(seed)
        np.testing.assert_array_equal(scene.image, before.image)
        kept = {q.phrase for q in scene.queries}
        gone = {q.phrase for q in before.queries} - kept
        assert all({"dog", "fruit"} & set(p.split()) for p in gone)
        assert not any({"dog", "fruit"} & set(p.split()) for p in kept)
        lost |= gone
    assert {"fruit", "dog"} <= lost


def test_tiles_lie_on_nothing_that_has_a_name(art: Art, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def watched(rng: np.random.Generator, size: int, part: Part, *, plain: bool = False) -> Any:
        asked.append(plain)
        return draw(rng, size, part, plain=plain)

    monkeypatch.setattr(compose, "draw", watched)
    scene = World(art, SPLITS["train"], 64, tiles=2).scene(0)
    World(art, SPLITS["train"], 64).scene(0)
    assert asked == [True, False]
    assert len(scene.objects) == 4
    assert {q.kind for q in scene.queries} == {"name"}


def test_splits_hold(art: Art) -> None:
    for name, split in SPLITS.items():
        world = World(art, split, 64)
        for seed in range(4):
            for one in world.scene(seed).objects:
                assert one.style in split.styles
                assert (one.concept.name == "violin") == (split.concepts == "unseen"), name


def test_a_split_without_concepts_is_said(art: Art) -> None:
    with pytest.raises(ValueError, match="has no concept"):
        World(art, SPLITS["train"], 64, names=[])
