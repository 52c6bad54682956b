"""Run lengths equal pycocotools' and are checked: pycocotools reads damaged ones as noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from efficientsam3.errors import MaskError
from efficientsam3.io import rle
from efficientsam3.types import BitPatch


def full(mask: np.ndarray) -> dict:
    out = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": out["counts"].decode()}


def cut(mask: np.ndarray) -> dict:
    return rle.encode_cut(*BitPatch.cut(mask).crop(mask.shape), mask.shape)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_crops_are_encoded_as_full_masks(share: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        mask = random.random(random.integers(1, 8, 2)) < share
        assert cut(mask) == full(mask)


def test_runs_that_continue_in_the_next_column() -> None:
    mask = np.zeros((4, 6), bool)
    mask[:, 2:5] = True  # One run, three columns long.
    assert cut(mask) == full(mask)
    mask[0, 3] = False
    assert cut(mask) == full(mask)


def test_a_large_mask() -> None:
    y, x = np.ogrid[:900, :1200]
    mask = (y - 400) ** 2 + (x - 700) ** 2 < 300**2
    assert cut(mask) == full(mask)


def random_mask(random: np.random.Generator) -> np.ndarray:
    return random.random(random.integers(1, 50, 2)) < random.random()


def test_decoding_of_all_forms() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        mask = random_mask(random)
        compressed = coco.encode(np.asfortranarray(mask, np.uint8))
        assert (rle.decode(compressed) == mask).all()
        assert (rle.decode(full(mask)) == mask).all()
    mask = rle.decode({"size": [2, 3], "counts": [1, 2, 3]})
    assert mask.tolist() == [[False, True, False], [True, False, False]]  # Column by column.
    array = np.eye(3, dtype=bool)
    assert rle.decode(array) is array


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"size": [2, 3], "counts": [1, 2]}, "cover 3 pixels, but their size 2 x 3 has 6"),
        ({"size": [4, 4], "counts": [1, 2, -3]}, "whole numbers from 0"),
        ({"size": [2, 3], "counts": None}, "text or a list of numbers; got None"),
        ({"size": [2, 3], "counts": ""}, "cover 0 pixels"),
        ({"size": [2, 3], "counts": "\x7f\x7f"}, "not COCO's compressed run lengths"),
        ({"size": [2, 3], "counts": "\xe9"}, "not ASCII"),
        ({"size": [2], "counts": [6]}, r"\[height, width\]; got \[2\]"),
        ({"counts": [6]}, "run lengths are {size, counts}"),
        (7, "run lengths are {size, counts}; got 7"),
    ],
)
def test_damaged_run_lengths_are_refused(value: Any, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        rle.decode(value)


@pytest.mark.parametrize("form", [str, bytes])
def test_run_lengths_cut_short_or_of_another_size(form: type) -> None:
    mask = np.zeros((40, 50), bool)
    mask[5:30, 7:33] = True
    counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    counts = counts.decode() if form is str else counts
    with pytest.raises(MaskError, match="cover 2000 pixels, but their size 41 x 50 has 2050"):
        rle.decode({"size": [41, 50], "counts": counts})
    with pytest.raises(MaskError):
        rle.decode({"size": [40, 50], "counts": counts[:-3]})


def test_polygons_and_sizes_of_segmentations() -> None:
    polygon = rle.from_segmentation([[2, 1, 6, 1, 6, 5, 2, 5]], (8, 9))
    assert rle.box_of(polygon) == (2, 1, 6, 5)
    assert rle.mask_size(polygon) == (8, 9)
    line = rle.from_segmentation([[1, 1, 2, 2]], (8, 9))  # COCO has a few of two corners.
    assert not rle.decode(line).any()
    assert rle.box_of(line) == (0, 0, 0, 0)
    with pytest.raises(MaskError, match=r"4 x 5 pixels .*, but the image has 8 x 9"):
        rle.from_segmentation({"size": [4, 5], "counts": [20]}, (8, 9))
    with pytest.raises(MaskError, match=r"a polygon is \[x, y, x, y, ...\]"):
        rle.from_segmentation([[1, 2, 3]], (8, 9))
