"""Scenes: exact visible masks, phrases that are true or false by construction."""

from __future__ import annotations

import numpy as np
import pytest

from efficientsam3.scenes.art import Art
from efficientsam3.scenes.compose import Canvas, Look, Scene, World, make_scene, render, tight_box
from efficientsam3.scenes.concepts import SPLITS

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


def test_occlusion_takes_from_the_mask_behind() -> None:
    canvas = Canvas(np.zeros((40, 40, 3), np.uint8))
    square = np.full((20, 20, 4), 255, np.uint8)
    canvas.draw(square, 5, 5)
    canvas.draw(square, 15, 5)
    assert canvas.masks[0].sum() == 20 * 10
    assert canvas.masks[1].sum() == 20 * 20
    canvas.draw(square, 30, 30)  # cut off at the border
    assert canvas.masks[2].sum() == 10 * 10
    assert canvas.areas == [400, 400, 400]


def test_a_patch_has_the_side_asked_for(art: Art) -> None:
    patch = render(art.sticker("guitar", "noto"), Look(70.0))
    assert abs(np.ptp(np.nonzero(patch[..., 3] > 127)[0]) + 1 - 70) <= 2
    turned = render(art.sticker("guitar", "noto"), Look(70.0, angle=90.0))
    assert abs(np.ptp(np.nonzero(turned[..., 3] > 127)[1]) + 1 - 70) <= 2


def test_a_dark_sticker_has_no_light_fringe(art: Art) -> None:
    patch = render(art.sticker("guitar", "noto"), Look(33.0, angle=20.0)).astype(int)
    assert (patch[..., :3] <= patch[..., 3:]).all()  # premultiplied
    edge = patch[(patch[..., 3] > 30) & (patch[..., 3] < 220)]
    assert (edge[:, 0] <= 0x10 * edge[:, 3] // 255 + 12).all()


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
