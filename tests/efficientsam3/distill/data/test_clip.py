"""Clips: checked, squashed, reversed, shared out; and those of stickers."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.distill.data.clip import (
    ClipSubset,
    StickerClips,
    Stills,
    TrainingClip,
    hold_out_clips,
)
from efficientsam3.distill.data.sample import TrainingSample
from efficientsam3.distill.errors import DataError
from efficientsam3.scenes.clips import film
from efficientsam3.scenes.compose import World
from efficientsam3.scenes.concepts import SPLITS

from ...scenes.conftest import bake
from ..clips import Moving
from ..conftest import coloured

RANDOM = np.random.default_rng(0)


def test_masks_are_squashed_as_frames_are() -> None:
    clip = Moving().cut(0, 3, RANDOM)
    small = clip.mask_at(0, 0, 20)  # rows of 3 pixels, columns of 4: x 5..21, y 8..24
    assert small.shape == (20, 20) and small.dtype == torch.bool
    assert small[3:8, 2:5].all() and small.sum() == small[2:9, 1:6].sum()
    assert clip.pixels(28).shape == (3, 3, 28, 28)


def test_an_image_is_a_clip_of_one_frame() -> None:
    stills = pickle.loads(pickle.dumps(Stills(coloured, 5)))
    assert len(stills) == 5 and stills.key(3) == "still 3"
    sample, clip = coloured(3), stills.cut(3, 1, RANDOM)
    assert len(clip) == 1 and clip.objects == len(sample)
    assert np.array_equal(clip.images[0], sample.image)
    with pytest.raises(DataError, match="has not 2 frames"):
        stills.cut(3, 2, RANDOM)
    with pytest.raises(DataError, match="has boxes, but no masks"):
        Stills(of_boxes).cut(3, 1, RANDOM)


def of_boxes(number: int) -> TrainingSample:
    return dataclasses.replace(coloured(number), masks=None)


def test_backwards() -> None:
    clip = Moving().cut(0, 3, RANDOM)
    turned = clip.backwards()
    assert len(turned) == 3 and turned.objects == 2
    assert np.array_equal(turned.images[0], clip.images[2])
    assert np.array_equal(turned.masks[2][1], clip.masks[0][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: (c.images[:2], c.masks), r"2 frames and masks of 3"),
        (lambda c: ((c.images[0], c.images[1][:50], c.images[2]), c.masks), r"frame 1 is \(50, 80"),
        (lambda c: (c.images, (c.masks[0], c.masks[1][:1], c.masks[2])), r"frame 1 has masks of 1"),
        (
            lambda c: (c.images, (c.masks[0], (c.masks[1][0], c.masks[1][1].T), c.masks[2])),
            r"object 1 on frame 1 is of 60 x 80 pixels.*another copy",
        ),
    ],
)
def test_what_does_not_fit_is_said(change: object, message: str) -> None:
    clip = Moving().cut(0, 3, RANDOM)
    images, masks = change(clip)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        TrainingClip("c", images, masks)


def test_held_out_videos_are_not_trained_on() -> None:
    training, held_out = hold_out_clips(Moving(10), 3, seed=1)
    names = {training.key(i) for i in range(len(training))}
    others = {held_out.key(i) for i in range(len(held_out))}
    assert (len(names), len(others)) == (7, 3) and not names & others
    assert ClipSubset(Moving(10), [4]).cut(0, 2, RANDOM).key == "clip 4"
    with pytest.raises(DataError, match="held_out=NUMBER"):
        hold_out_clips(Moving(3), 3, seed=1)


def test_clips_of_stickers(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    world = World(bake(tmp_path), SPLITS["train"], 64, grounds=2)
    source = pickle.loads(pickle.dumps(StickerClips(world, length=6)))
    clip = source.cut(4, 3, np.random.default_rng(2))
    whole = [film(world, 4, 6).frame(t) for t in range(6)]
    start = int(np.random.default_rng(2).integers(6 - 3 + 1))
    assert clip.key == "clip 4" and len(clip) == 3
    for t in range(3):
        assert np.array_equal(clip.images[t], whole[start + t].image)
        assert np.array_equal(np.stack(clip.masks[t]), whole[start + t].masks)
