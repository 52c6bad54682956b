"""Masks, run lengths and polygons of a person are read as masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.errors import PromptError
from efficientsam3.io import rle
from efficientsam3.masks.shapes import read_shape, read_shapes

SIZE = (6, 8)
MASK = np.zeros(SIZE, bool)
MASK[1:4, 2:6] = True
CORNERS = [[2, 1], [6, 1], [6, 4], [2, 4]]
FLAT = [2, 1, 6, 1, 6, 4, 2, 4]


@pytest.mark.parametrize(
    "shape",
    [
        MASK,
        MASK.astype(np.uint8),
        torch.from_numpy(MASK),
        MASK[None],
        MASK[..., None],
        rle.encode(MASK)[0],
        {"size": list(SIZE), "counts": [13, 3, 3, 3, 3, 3, 3, 3, 14]},
        CORNERS,
        FLAT,
        [FLAT],
        [CORNERS],
        np.array(CORNERS, np.float32),
        np.array(FLAT),
        [np.array(CORNERS)],
        torch.tensor(CORNERS),
        [[2, 1, 4, 1, 4, 4, 2, 4], [4, 1, 6, 1, 6, 4, 4, 4]],  # one object in two parts
    ],
)
def test_all_forms_are_one_mask(shape: Any) -> None:
    np.testing.assert_array_equal(read_shape(shape, SIZE), MASK)
    (read,) = read_shapes([shape], SIZE)
    np.testing.assert_array_equal(read, MASK)


def test_several() -> None:
    for shapes in (np.stack([MASK, MASK]), [FLAT, rle.encode(MASK)[0]], (MASK, CORNERS)):
        assert [mask.sum() for mask in read_shapes(shapes, SIZE)] == [12, 12]
    for one in (MASK, rle.encode(MASK)[0]):  # one mask needs no list
        assert len(read_shapes(one, SIZE)) == 1
    assert read_shapes([], SIZE) == []


def test_a_mask_of_two_columns_is_a_mask() -> None:
    mask = np.ones((5, 2), np.uint8)
    assert read_shape(mask, (5, 2)).sum() == 10


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (np.ones((8, 6), bool), "6 x 8 pixels .* its image 8 x 6: resize"),
        (np.zeros(SIZE, bool), "no pixel in the image of 8 x 6"),
        (MASK * 7, "0 and 1"),
        (MASK.astype(str), "0 and 1"),
        (np.ones((2, 6, 8), bool), r"\(H, W\); got shape"),
        (rle.encode(np.ones((8, 6), bool))[0], "8 x 6 .* image has 6 x 8"),
        ({"size": [6, 8]}, "run lengths"),
        ([[1, 1], [3, 3]], "at least three corners; got 2"),
        ([1, 1, 3, 3], "at least three corners; got 2"),
        ([], "at least three corners; got 0"),
        ([1, 2, 3], "a mask is an array"),
        ([[1, 1], [2, 3], [1, 2, 3]], "at least three corners; got 1"),
        ([[20, 1], [30, 1], [25, 5]], "outside the image of 8 x 6"),
        ([[1, 1], [3, np.nan], [2, 5]], "a polygon"),
        ([[1, 1], [3, 1], [2, 1]], "no pixel"),
        ("mask.png", "a mask is an array"),
        (None, "a mask is an array"),
        (5, "a mask is an array"),
        ([{"size": [6, 8], "counts": "x"}], "a mask is an array"),
    ],
)
def test_wrong_shapes(shape: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_shape(shape, SIZE)


@pytest.mark.parametrize("shapes", [CORNERS, FLAT, "mask.png", 5, None, np.ones(4)])
def test_a_polygon_alone_is_no_list_of_shapes(shapes: Any) -> None:
    with pytest.raises(PromptError):
        read_shapes(shapes, SIZE)
