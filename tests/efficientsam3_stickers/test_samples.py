"""Scenes and clips as training data: equal in every process."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np

from efficientsam3_stickers.clips import make_clip
from efficientsam3_stickers.concepts import SPLITS
from efficientsam3_stickers.samples import (
    Interleaved,
    SceneSource,
    StickerClips,
    to_training_sample,
)
from efficientsam3_stickers.scenes import SceneGenerator


def test_a_scene_is_a_sample(generator: SceneGenerator) -> None:
    for seed in range(5):
        scene = generator.scene(seed)
        sample = to_training_sample(scene)
        assert sample.key == str(seed)
        np.testing.assert_array_equal(sample.image, scene.image)
        assert len(sample) == len(scene.objects)
        for index, obj in enumerate(scene.objects):
            np.testing.assert_array_equal(sample.mask(index), obj.mask)
            np.testing.assert_array_equal(sample.boxes[index], obj.box)
        assert [(q.phrase, q.objects, q.kind) for q in sample.queries] == [
            (q.phrase, q.objects, q.kind) for q in scene.queries
        ]
        assert all(q.exhaustive for q in sample.queries)


def test_an_empty_scene_has_no_boxes(generator: SceneGenerator) -> None:
    empty = dataclasses.replace(generator.scene(0), objects=(), queries=())
    assert to_training_sample(empty).boxes.shape == (0, 4)


def test_numbers_start_at_the_first_seed(generator: SceneGenerator) -> None:
    one, other = SceneSource(generator, first_seed=7)(2), SceneSource(generator)(9)
    assert one.key == other.key == "9"
    np.testing.assert_array_equal(one.image, other.image)


def test_a_source_can_be_pickled(generator: SceneGenerator) -> None:
    copy = pickle.loads(pickle.dumps(SceneSource(generator)))
    np.testing.assert_array_equal(copy(4).image, SceneSource(generator)(4).image)


def test_sources_are_interleaved(generator: SceneGenerator) -> None:
    tiled = SceneSource(
        SceneGenerator(generator.stickers, SPLITS["train"], 64, tiles=2, backgrounds=2)
    )
    both = Interleaved([SceneSource(generator), tiled])
    for number in range(3):
        assert np.array_equal(both(2 * number).image, SceneSource(generator)(number).image)
        assert np.array_equal(both(2 * number + 1).image, tiled(number).image)


def test_clips_are_cut_from_longer_ones(generator: SceneGenerator) -> None:
    source = pickle.loads(pickle.dumps(StickerClips(generator, length=6)))
    clip = source.cut(4, 3, np.random.default_rng(2))
    frames = [make_clip(generator, 4, 6).frame(t) for t in range(6)]
    start = int(np.random.default_rng(2).integers(6 - 3 + 1))
    assert clip.key == "clip 4" and len(clip) == 3
    for t in range(3):
        assert np.array_equal(clip.images[t], frames[start + t].image)
        assert np.array_equal(np.stack(clip.masks[t]), frames[start + t].masks)
