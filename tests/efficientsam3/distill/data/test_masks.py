"""Masks are checked before they are read: pycocotools answers nonsense with noise."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from efficientsam3.distill.data.masks import box_of, decode_mask, read_segmentation
from efficientsam3.distill.errors import DataError


def random_mask(random: np.random.Generator) -> np.ndarray:
    return random.random(random.integers(1, 50, 2)) < random.random()


def test_text_form_of_any_mask() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        mask = random_mask(random)
        rle = coco.encode(np.asfortranarray(mask, np.uint8))
        assert (decode_mask(rle) == mask).all()
        assert (decode_mask({**rle, "counts": rle["counts"].decode()}) == mask).all()


def test_list_form() -> None:
    mask = decode_mask({"size": [2, 3], "counts": [1, 2, 3]})
    assert mask.tolist() == [[False, True, False], [True, False, False]]  # column by column


def test_an_array_is_itself() -> None:
    mask = np.eye(3, dtype=bool)
    assert decode_mask(mask) is mask


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [2, 3], "counts": [1, 2]}, "cover 3 pixels"),
        ({"size": [4, 4], "counts": [1, 2, -3]}, "at least 0"),
        ({"size": [2, 3], "counts": None}, "text or a list"),
        ({"size": [2, 3], "counts": ""}, "text or a list"),
        ({"size": [2, 3], "counts": "\x7f\x7f"}, "text form"),
        ({"size": [2], "counts": [6]}, "'size'"),
        ({"counts": [6]}, "'size'"),
    ],
)
def test_what_is_no_mask(rle: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_mask(rle, "sa_1")


def test_run_lengths_cut_short_or_of_another_size() -> None:
    mask = np.zeros((40, 50), bool)
    mask[5:30, 7:33] = True
    counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    with pytest.raises(DataError, match=r"sa_1: run lengths cover .* but a mask of 50 x 41"):
        decode_mask({"size": [41, 50], "counts": counts}, "sa_1")
    with pytest.raises(DataError, match="sa_1"):
        decode_mask({"size": [40, 50], "counts": counts[:-3]}, "sa_1")


def test_polygons() -> None:
    found = read_segmentation([[2, 1, 6, 1, 6, 5, 2, 5]], (8, 9), "x")
    mask = decode_mask(found)
    assert mask.shape == (8, 9)
    assert box_of(mask) == (2, 1, 6, 5)
    assert not decode_mask(read_segmentation([[1, 1, 2, 2]], (8, 9), "x")).any()


def test_a_segmentation_of_another_image() -> None:
    with pytest.raises(DataError, match=r"annotation 7: .* 5 x 4 pixels, but the image has 9 x 8"):
        read_segmentation({"size": [4, 5], "counts": [20]}, (8, 9), "annotation 7")
    with pytest.raises(DataError, match="annotation 7: a segmentation is"):
        read_segmentation(None, (8, 9), "annotation 7")


def test_the_box_of_nothing() -> None:
    assert box_of(np.zeros((3, 4), bool)) == (0, 0, 0, 0)
