"""Sticker scenes as samples: as the scene says, by number, in any process."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from efficientsam3.distill.data.scenes import SceneSource, Turns, to_sample
from efficientsam3.scenes.compose import World
from efficientsam3.scenes.concepts import SPLITS

from ...scenes.conftest import bake

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder: Path = tmp_path_factory.mktemp("art")
    return World(bake(folder), SPLITS["train"], 64, grounds=2)


def test_a_scene_is_a_sample(world: World) -> None:
    for seed in range(5):
        scene = world.scene(seed)
        sample = to_sample(scene)
        assert sample.key == str(seed)
        np.testing.assert_array_equal(sample.image, scene.image)
        assert len(sample) == len(scene.objects)
        for index, placed in enumerate(scene.objects):
            np.testing.assert_array_equal(sample.mask(index), placed.mask)
            np.testing.assert_array_equal(sample.boxes[index], placed.box)
        assert [(q.phrase, q.objects, q.kind) for q in sample.queries] == [
            (q.phrase, q.objects, q.kind) for q in scene.queries
        ]
        assert all(q.exhaustive for q in sample.queries)


def test_an_empty_scene(world: World) -> None:
    empty = dataclasses.replace(world.scene(0), objects=(), queries=())
    assert to_sample(empty).boxes.shape == (0, 4)


def test_numbers_begin_at_the_first_seed(world: World) -> None:
    one, other = SceneSource(world, first=7)(2), SceneSource(world)(9)
    assert one.key == other.key == "9"
    np.testing.assert_array_equal(one.image, other.image)


def test_workers_get_it(world: World) -> None:
    there = pickle.loads(pickle.dumps(SceneSource(world)))
    np.testing.assert_array_equal(there(4).image, SceneSource(world)(4).image)


def test_worlds_take_turns(world: World) -> None:
    tiled = SceneSource(World(world.art, SPLITS["train"], 64, tiles=2, grounds=2))
    both = Turns([SceneSource(world), tiled])
    for number in range(3):
        assert np.array_equal(both(2 * number).image, SceneSource(world)(number).image)
        assert np.array_equal(both(2 * number + 1).image, tiled(number).image)
