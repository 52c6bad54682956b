"""Overlaps are those of pycocotools; damaged run lengths are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco

from efficientsam3 import EfficientSam3Error
from efficientsam3.errors import MaskError
from efficientsam3.io.rle import compress, decode
from efficientsam3.masks.overlap import box_iou, mask_iou, track_iou

Array = npt.NDArray[Any]


def encode(mask: Array) -> dict[str, Any]:
    rle: dict[str, Any] = coco.encode(np.asfortranarray(mask, np.uint8))
    return rle


@pytest.fixture
def masks() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    found, truth = rng.random((5, 13, 17)) < 0.4, rng.random((4, 13, 17)) < 0.6
    found[0], truth[1] = False, False
    return found, truth


@pytest.mark.parametrize("crowd", [None, [0, 1, 0, 1]])
def test_masks_overlap_as_in_coco(masks: tuple[Array, Array], crowd: list[bool] | None) -> None:
    found, truth = masks
    packed = [encode(m) for m in found], [encode(m) for m in truth]
    expected = coco.iou(*packed, crowd or [0] * 4)
    np.testing.assert_array_equal(mask_iou(found, truth, crowd), expected)
    np.testing.assert_array_equal(mask_iou(*packed, crowd), expected)
    assert mask_iou(found[:0], truth).shape == (0, 4)
    assert mask_iou([], []).shape == (0, 0)


@pytest.mark.parametrize("crowd", [None, [0, 1, 1]])
def test_boxes_overlap_as_in_coco(crowd: list[bool] | None) -> None:
    rng = np.random.default_rng(0)
    found, truth = rng.random((6, 4)) * 50, rng.random((3, 4)) * 50  # xywh
    expected = coco.iou(found, truth, crowd or [0] * 3)
    corners = (np.c_[b[:, :2], b[:, :2] + b[:, 2:]] for b in (found, truth))
    np.testing.assert_allclose(box_iou(*corners, crowd), expected, atol=1e-12)
    assert box_iou(np.zeros((1, 4)), np.zeros((2, 4))).tolist() == [[0, 0]]


def test_tracks_overlap_in_space_and_time() -> None:
    whole, half = encode(np.ones((4, 4))), encode(np.eye(4)[:, [0, 0, 1, 1]])  # 16 and 4 pixels
    empty = encode(np.zeros((4, 4)))
    # Frame 1: both. Frame 2: only predicted. Frame 3: only true. Frame 4: neither.
    # (4 + 0 + 0) / (16 + 16 + 4)
    found, truth = [whole, whole, None, None], [half, None, half, None]
    assert track_iou([found, truth], [truth]).tolist() == [[pytest.approx(4 / 36)], [1.0]]
    assert track_iou([[empty, None]], [[None, None]]).tolist() == [[1.0]]
    assert track_iou([], [truth]).shape == (0, 1)
    with pytest.raises(MaskError, match="got 3 and 4"):
        track_iou([found[:3]], [truth])


@pytest.mark.parametrize("density", [0, 0.02, 0.5, 1])
def test_run_lengths_of_the_right_size_pass(density: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(12):
        height, width = (int(n) for n in rng.integers(1, 300, 2))
        mask = rng.random((height, width)) < density
        rle = encode(mask)
        flat = mask.T.ravel()
        runs = np.diff(np.r_[0, np.flatnonzero(np.diff(flat)) + 1, flat.size]).tolist()
        for counts in (rle["counts"], rle["counts"].decode(), [0] * int(flat[0]) + runs):
            checked = compress({"size": [height, width], "counts": counts})
            assert coco.toBbox(checked).tolist() == coco.toBbox(rle).tolist()
            np.testing.assert_array_equal(decode(checked), mask)


@pytest.mark.parametrize(
    ("rle", "sentence"),
    [
        ({"size": [4, 4], "counts": [10]}, "cover 10 pixels, but their size 4 x 4 has 16"),
        ({"size": [4, 5], "counts": encode(np.ones((4, 4)))["counts"].decode()}, "cover 16 pixels"),
        (
            {"size": [4, 4], "counts": "P"},
            "not COCO.s compressed run lengths",
        ),  # Cut.
        ({"size": [4, 4], "counts": "~~"}, "not COCO.s compressed run lengths"),
        ({"size": [4, 4], "counts": "é"}, "ASCII"),
        ({"size": [4, 4], "counts": [-1, 17]}, "whole numbers from 0"),
        ({"size": [4, 4], "counts": None}, "text or a list of numbers; got None"),
        ({"size": [4, 0], "counts": ""}, r"\[height, width\]; got \[4, 0\]"),
        ({"size": 4, "counts": ""}, r"\[height, width\]; got 4"),
        ({"counts": ""}, "size, counts"),
        ([[1, 2, 3]], "size, counts"),
    ],
)
def test_damaged_run_lengths_are_refused(rle: Any, sentence: str) -> None:
    with pytest.raises(EfficientSam3Error, match=sentence):
        compress(rle)


def test_flat_masks_are_refused() -> None:
    with pytest.raises(MaskError, match=r"\(N, H, W\); got an array of shape \(4, 4\)"):
        mask_iou(np.ones((4, 4)), np.ones((4, 4)))
