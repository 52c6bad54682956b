"""Augmentation: masks, boxes, points and phrases follow the image; results depend on the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from efficientsam3.data.augment import Augment, AugmentSettings, transform
from efficientsam3.data.sample import TrainingSample
from efficientsam3.data.types import PhraseQuery
from efficientsam3.errors import ArgumentError
from efficientsam3.io.rle import box_of, decode
from efficientsam3.masks.overlap import box_iou

from .conftest import packed, rectangle

BOXES = [(2, 3, 8, 9), (20, 10, 30, 20), (34, 22, 40, 30)]
FULL = (0, 0, 40, 30)


def make(form: str = "rle", **changes: Any) -> TrainingSample:
    """A sample of 40 x 30 pixels with three rectangles; "rle", "array" or "boxes"."""
    dense = [rectangle(*box) for box in BOXES]
    masks = {"rle": tuple(map(packed, dense)), "array": tuple(dense), "boxes": None}[form]
    values: dict[str, Any] = {
        "key": "a",
        "image": np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8),
        "boxes": np.array(BOXES, np.float32),
        "masks": masks,
        "queries": (PhraseQuery("dog", (0, 1)), PhraseQuery("cat", (2,)), PhraseQuery("bus")),
        "points": np.array([[5, 5], [21, 11], [36, 24]], np.float32),
    }
    return TrainingSample(**{**values, **changes})


@pytest.mark.parametrize("form", ["rle", "array"])
def test_flip(form: str) -> None:
    sample = make(form)
    flipped = transform(sample, FULL, flip=True)
    assert np.array_equal(flipped.image, sample.image[:, ::-1])
    assert flipped.boxes.tolist() == [[32, 3, 38, 9], [10, 10, 20, 20], [0, 22, 6, 30]]
    assert flipped.points is not None
    assert flipped.points.tolist() == [[35, 5], [19, 11], [4, 24]]
    for index in range(3):
        assert np.array_equal(flipped.mask(index), sample.mask(index)[:, ::-1])
    assert flipped.queries == sample.queries
    back = transform(flipped, FULL, flip=True)
    assert np.array_equal(back.image, sample.image) and np.array_equal(back.boxes, sample.boxes)


@pytest.mark.parametrize("form", ["rle", "array", "boxes"])
def test_crop(form: str) -> None:
    sample = make(form)
    cut = transform(sample, (4, 2, 26, 24), min_visible=0.25)
    # Of the first two, 2 / 3 and 6 / 10 are inside; the third is outside.
    assert cut.size == (22, 22)
    assert np.array_equal(cut.image, sample.image[2:24, 4:26])
    assert cut.boxes.tolist() == [[0, 1, 4, 7], [16, 8, 22, 18]]
    if form != "boxes":
        for index, box in enumerate([(0, 1, 4, 7), (16, 8, 22, 18)]):
            assert np.array_equal(cut.mask(index), rectangle(*box, size=(22, 22)))
    # All cats were annotated, and none is in the crop.
    assert [(q.phrase, q.objects, q.exhaustive, q.kind) for q in cut.queries] == [
        ("dog", (0, 1), True, "name"),
        ("cat", (), True, "negative"),
        ("bus", (), True, "name"),
    ]
    assert cut.points is not None
    assert cut.points.tolist() == [[1, 3], [17, 9]]


def test_objects_and_phrases_that_a_crop_cuts_off() -> None:
    sample = make()
    # Columns 2 and 3 of the first object are inside, a third of it; nothing of the others.
    third = transform(sample, (0, 0, 4, 30), min_visible=0.5)
    assert len(third) == 0
    assert [q.phrase for q in third.queries] == ["cat", "bus"]  # A dog is still visible.
    kept = transform(sample, (0, 0, 4, 30), min_visible=0.3)
    assert kept.boxes.tolist() == [[2, 3, 4, 9]]
    assert [(q.phrase, q.objects, q.exhaustive) for q in kept.queries] == [
        ("dog", (0,), True),  # The other dog is outside.
        ("cat", (), True),
        ("bus", (), True),
    ]
    assert kept.points is not None
    assert kept.mask(0)[int(kept.points[0, 1]), int(kept.points[0, 0])]  # A new point on it.
    both = transform(sample, (0, 0, 22, 30), min_visible=0.3)  # A fifth of the second dog.
    dog = both.queries[0]
    assert (dog.phrase, dog.objects, dog.exhaustive) == ("dog", (0,), False)
    partial = make(queries=(PhraseQuery("cat", (2,), exhaustive=False),))
    assert transform(partial, (0, 0, 22, 22)).queries == ()  # Other cats may be in the crop.


def test_run_lengths_are_cropped_as_arrays_are() -> None:
    from efficientsam3.io import rle

    random = np.random.default_rng(0)
    for _ in range(200):
        mask = random.random(random.integers(1, 12, 2)) < random.random()
        y, x = (np.sort(random.choice(n + 1, 2, replace=False)).tolist() for n in mask.shape)
        box, flip = (x[0], y[0], x[1], y[1]), bool(random.random() < 0.5)
        wanted = rle.crop(mask, box, flip)
        found = rle.crop(packed(mask), box, flip)
        assert np.array_equal(decode(found), wanted)
        assert found["counts"] == coco.encode(np.asfortranarray(wanted, np.uint8))["counts"]
        assert rle.area_of(found) == rle.area_of(wanted) == wanted.sum()
        assert rle.box_of(found) == rle.box_of(wanted)


def test_boxes_stay_around_masks() -> None:
    y, x = np.ogrid[:30, :40]
    ellipses = [((y - r) / 5) ** 2 + ((x - c) / 7) ** 2 < 1 for r, c in ((8, 9), (15, 30))]
    boxes = np.array([box_of(mask) for mask in ellipses], np.float32)
    sample = make("array", masks=tuple(ellipses), boxes=boxes, queries=(), points=None)
    augment, counts = Augment(AugmentSettings(flip=0.5, crop=1)), set()
    for seed in range(50):
        out = augment(sample, seed)
        counts.add(len(out))
        for index in range(len(out)):
            around = np.array([box_of(out.mask(index))])
            assert box_iou(out.boxes[index : index + 1], around)[0, 0] == pytest.approx(1)
    assert counts >= {1, 2}


def test_the_seed_decides() -> None:
    augment, results = Augment(), []
    for state in range(2):
        np.random.seed(state)  # State of the process is of no account.
        torch.manual_seed(state)
        results.append([augment(make(), 3, position) for position in range(8)])
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.boxes, other.boxes) and one.masks == other.masks
    assert len({(out.size, float(out.image.sum())) for out in results[0]}) == 8
    found = [(out.size, out.boxes.tolist()) for out in results[0][:3]]
    assert found == [
        ((27, 32), [[27, 3, 32, 9], [5, 10, 15, 20]]),
        ((20, 29), [[9, 5, 19, 15], [0, 17, 5, 20]]),
        ((30, 40), [[32, 3, 38, 9], [10, 10, 20, 20], [0, 22, 6, 30]]),
    ]


@pytest.mark.parametrize(
    ("phrase", "flips", "crops"),
    [
        ("dog", True, True),
        ("hand on the left", False, False),
        ("Rightmost car", False, False),
        ("largest dog", True, False),
        ("upright piano", True, True),  # "right" is not a word here.
    ],
)
def test_phrases_that_name_places(phrase: str, flips: bool, crops: bool) -> None:
    sample = make(queries=(PhraseQuery(phrase, (0,)),), points=None)
    gray = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    flipped = Augment(AugmentSettings(flip=1, crop=0, **gray))(sample, 0)
    wanted = sample.image[:, ::-1] if flips else sample.image
    assert np.array_equal(flipped.image, wanted)
    cut = Augment(AugmentSettings(flip=0, crop=1, **gray))(sample, 0)
    assert (cut.size != sample.size) == crops


def test_colors() -> None:
    sample = make()
    out = Augment(AugmentSettings(flip=0, crop=0, brightness=0.5))(sample, 1)
    assert out.size == sample.size and not np.array_equal(out.image, sample.image)
    assert np.array_equal(out.boxes, sample.boxes) and out.masks == sample.masks
    off = AugmentSettings(flip=0, crop=0, brightness=0, contrast=0, saturation=0)
    assert np.array_equal(Augment(off)(sample, 1).image, sample.image)


def test_drawn_scenes_stay_as_they_are() -> None:
    sample = make(photograph=False)
    assert Augment(AugmentSettings(flip=1, crop=1))(sample, 0) is sample


@pytest.mark.parametrize(
    ("values", "message"),
    [({"flip": 1.5}, "flip is 1.5; it must be from 0 to 1"), ({"min_side": 0}, "without 0")],
)
def test_settings_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        AugmentSettings(**values)
