"""J&F by hand, and against TrackEval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco
from scipy import ndimage

from efficientsam3.evaluate import JFScore, PredictionError, contour_accuracy, region_similarity
from efficientsam3.evaluate.metrics.jf import contour

Array = npt.NDArray[Any]


def square(x: int, y: int, side: int = 10) -> Array:
    mask = np.zeros((40, 40), bool)
    mask[y : y + side, x : x + side] = True
    return mask


NOTHING = np.zeros((40, 40), bool)


def test_region_similarity() -> None:
    assert region_similarity(square(0, 0), square(5, 0)) == pytest.approx(50 / 150)
    assert region_similarity(NOTHING, NOTHING) == 1
    assert region_similarity(NOTHING, square(0, 0)) == 0


def test_contours_are_at_the_upper_left() -> None:
    assert contour(np.ones((5, 5), bool)).sum() == 0  # the image's border is no contour
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    # Right, lower or lower right neighbor differs: all round but the inside pixel (1, 1).
    assert contour(mask).astype(int).tolist() == [
        [1, 1, 1, 0],
        [1, 0, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 0],
    ]


def test_contours_match_within_the_tolerance() -> None:
    # The diagonal is 56.6 pixels, 0.8 % of it 0.45: contours may be one pixel apart.
    assert contour_accuracy(square(10, 10), square(11, 10)) == 1
    # Two apart: of the 40 pixels of a ring 10 + 10 of the level sides have one within a pixel, and
    # 2 of an upright side, next to its corners.
    two = contour_accuracy(square(10, 10), square(12, 10))
    assert two == pytest.approx(22 / 40)
    assert contour_accuracy(square(10, 10), square(12, 10), tolerance=2) == 1
    assert contour_accuracy(square(0, 0), square(25, 25)) == 0
    assert contour_accuracy(NOTHING, NOTHING) == 1
    assert contour_accuracy(NOTHING, square(9, 9)) == contour_accuracy(square(9, 9), NOTHING) == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
def test_contour_accuracy_equals_trackevals() -> None:
    reference = pytest.importorskip("trackeval").metrics.JAndF
    rng = np.random.default_rng(0)
    partial = 0
    for _ in range(40):
        size, smooth = rng.integers(3, 140, 2), rng.uniform(0.5, 8, 2)
        limit = rng.choice([0, 0.02, 9], 2, p=[0.45, 0.45, 0.1])
        a, b = (
            ndimage.gaussian_filter(rng.standard_normal(size), s) > t
            for s, t in zip(smooth, limit, strict=True)
        )
        packed = [[[coco.encode(np.asfortranarray(m, np.uint8))]] for m in (a, b)]
        expected = reference._compute_f(*packed, 0, 0, 0.008)[0]
        assert contour_accuracy(b, a) == pytest.approx(expected, abs=1e-12)
        partial += 0 < expected < 1
    assert partial > 20


def test_objects_are_averaged_over_frames_then_over_objects() -> None:
    score = JFScore()
    score.update([square(0, 0), NOTHING], [square(0, 0), square(0, 0)])  # J (1 + 0) / 2
    score.update([square(0, 0)], [square(0, 0)])  # J 1
    metrics = score.compute()
    assert metrics == pytest.approx({"J&F": 75, "J": 75, "F": 75})
    assert (score + score).compute() == metrics
    assert math.isnan(JFScore().compute()["J&F"])


def test_objects_that_were_not_given_are_matched() -> None:
    score = JFScore()
    one, two = [square(0, 0)] * 2, [square(20, 20)] * 2
    assert score.update_unsupervised([two, one], [one, two, [square(0, 25)] * 2]) == [1, 0, None]
    assert score.compute()["J"] == pytest.approx(100 * 2 / 3)
    assert JFScore().update_unsupervised([], [one]) == [None]
    assert JFScore().update_unsupervised([one], []) == []


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(PredictionError, match=r"one size; got \(4, 4\), \(5, 4\)"):
        region_similarity(np.ones((4, 4)), np.ones((5, 4)))
    with pytest.raises(PredictionError, match="got 1 for 2 frames"):
        JFScore().update([NOTHING], [NOTHING, NOTHING])
