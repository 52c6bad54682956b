"""Training clips: checks, resized masks, reversal, held-out videos."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from efficientsam3.data.clip import Stills, TrainingClip
from efficientsam3.data.sample import TrainingSample
from efficientsam3.data.subsets import ClipSubset, hold_out_clips
from efficientsam3.errors import DataError

from ..train.clips import Moving
from ..train.conftest import colored_sample

RANDOM = np.random.default_rng(0)


def test_masks_are_resized_as_frames_are() -> None:
    clip = Moving().cut(0, 3, RANDOM)
    small = clip.mask_at(
        0, 0, 20
    )  # A cell has 3 x 4 pixels; the object is at x 5 to 21, y 8 to 24.
    assert small.shape == (20, 20) and small.dtype == torch.bool
    assert small[3:8, 2:5].all() and small.sum() == small[2:9, 1:6].sum()
    assert clip.pixels(28).shape == (3, 3, 28, 28)


def test_an_image_is_a_clip_of_one_frame() -> None:
    stills = pickle.loads(pickle.dumps(Stills(colored_sample, 5)))
    assert len(stills) == 5 and stills.key(3) == "still 3"
    sample, clip = colored_sample(3), stills.cut(3, 1, RANDOM)
    assert len(clip) == 1 and clip.objects == len(sample)
    assert np.array_equal(clip.images[0], sample.image)
    with pytest.raises(DataError, match="has not 2 frames"):
        stills.cut(3, 2, RANDOM)
    with pytest.raises(DataError, match="has boxes, but no masks"):
        Stills(of_boxes).cut(3, 1, RANDOM)


def of_boxes(number: int) -> TrainingSample:
    return dataclasses.replace(colored_sample(number), masks=None)


def test_a_clip_is_reversed() -> None:
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
            r"frame 1: the mask of object 1 has 60 x 80 pixels.*another copy",
        ),
    ],
)
def test_contradictions_are_refused(change: object, message: str) -> None:
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
