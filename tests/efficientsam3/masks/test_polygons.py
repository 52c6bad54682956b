"""One polygon for a mask of any shape, drawn back as YOLO's readers draw it."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from efficientsam3.io import rle
from efficientsam3.masks.polygons import join, outline, part_polygons, simplify, trace

cv2 = pytest.importorskip("cv2", reason="draws the polygons; FiftyOne and Ultralytics bring it")
Mask = npt.NDArray[np.bool_]


def draw(polygon: npt.NDArray[np.int_], shape: tuple[int, ...]) -> Mask:
    out = np.zeros(shape, np.uint8)
    cv2.fillPoly(out, [polygon.astype(np.int32)], 1)
    return out.astype(bool)


def blobs(seed: int) -> Mask:
    """Noise of some softness: parts, holes, parts in holes, pixels that touch at a corner."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=rng.integers(1, 40, 2))
    return ndimage.gaussian_filter(noise, rng.uniform(0, 2)) > rng.uniform(-0.2, 0.3) * 0.3


def test_borders_are_opencvs() -> None:
    """As many as OpenCV finds, with the same pixels; around holes the other way."""
    for seed in range(60):
        mask = blobs(seed)
        theirs, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        ours = trace(mask)
        assert len(ours) == len(theirs)
        sets = [
            {frozenset(map(tuple, b.reshape(-1, 2).tolist())) for b in x} for x in (ours, theirs)
        ]
        parts = ndimage.label(mask, np.ones((3, 3)))[1]
        assert len(sets[0] & sets[1]) >= parts, "outer borders differ"


@pytest.mark.slow
def test_a_mask_in_one_part_comes_back_whole() -> None:
    """With all its holes, to the last pixel."""
    seen = 0
    for seed in range(200):
        labels, parts = ndimage.label(blobs(seed), np.ones((3, 3)))
        for part in range(1, parts + 1):
            mask = labels == part
            assert np.array_equal(draw(outline(mask), mask.shape), mask), seed
            seen += len(trace(mask)) > 1
    assert seen > 50, "hardly any holes"


def test_parts_are_joined_and_nothing_is_lost() -> None:
    """What is added is a line of one pixel's width between parts."""
    for seed in range(100):
        mask = blobs(seed)
        drawn = draw(outline(mask), mask.shape)
        assert not (mask & ~drawn).any()
        if mask.any():
            assert ndimage.label(drawn, np.ones((3, 3)))[1] == 1


def test_bridges_are_the_shortest() -> None:
    mask = np.zeros((40, 100), bool)
    mask[2:8, 2:8] = mask[2:8, 12:18] = mask[30:36, 90:96] = mask[2:8, 22:28] = True
    extra = draw(outline(mask), mask.shape) & ~mask
    assert extra.sum() <= 4 + 4 + 65


def test_the_least_masks() -> None:
    assert outline(np.zeros((3, 4), bool)).shape == (0, 2)
    assert trace(np.zeros((3, 4), bool)) == []
    assert outline(np.ones((1, 1), bool)).tolist() == [[0, 0]]
    assert len(outline(np.ones((1, 5), bool))) == 2
    assert len(outline(np.ones((7, 5), bool))) == 4
    assert join([]).shape == (0, 2)
    assert simplify(np.array([[0, 0], [0, 0]])).tolist() == [[0, 0]]
    corners = np.eye(5, dtype=bool)  # pixels that touch at corners are one part
    assert len(trace(corners)) == 1
    line = np.zeros((1, 20), bool)
    line[0, ::2] = True  # parts on one line make no triangles
    assert draw(outline(line), line.shape)[:, :19].all()


def worst(mask: Mask, drawn: Mask) -> float:
    """Distance in pixels of the farthest wrong pixel from the border of the mask."""
    wrong = mask ^ drawn
    if not wrong.any():
        return 0.0
    room = np.pad(mask, 1)
    inside, outside = (ndimage.distance_transform_edt(m)[1:-1, 1:-1] for m in (room, ~room))
    return float(np.where(mask, inside, outside)[wrong].max())


@pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.0, 3.0])
def test_simplified_polygons_stay_within_the_tolerance(tolerance: float) -> None:
    """A reader draws pixels wrong up to the tolerance and one pixel from the border."""
    fewer, more = 0, 0
    for seed in range(80):
        labels, parts = ndimage.label(blobs(seed), np.ones((3, 3)))
        for part in range(1, parts + 1):
            mask = labels == part
            polygon = outline(mask, tolerance)
            assert worst(mask, draw(polygon, mask.shape)) <= (tolerance and tolerance + 1), seed
            fewer, more = fewer + len(polygon), more + len(outline(mask))
    assert (fewer < 0.7 * more) == (tolerance >= 1)


@pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.0, 3.0])
def test_coco_polygons_have_a_polygon_a_part(tolerance: float) -> None:
    for seed in range(80):
        mask = blobs(seed)
        polygons = [p.astype(float).ravel().tolist() for p in part_polygons(mask, tolerance)]
        assert len(polygons) == ndimage.label(mask, np.ones((3, 3)))[1]
        drawn = rle.decode(rle.from_segmentation(polygons, mask.shape))
        assert worst(mask, drawn) <= (tolerance and tolerance + 1), seed
        labels, parts = ndimage.label(mask, np.ones((3, 3)))
        for part in range(1, parts + 1):
            assert (drawn & ndimage.binary_dilation(labels == part, iterations=4)).any()


def test_large_and_torn_masks_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    torn = rng.random((300, 300)) > 0.6
    started = time.process_time()
    assert not (torn & ~draw(outline(torn), torn.shape)).any()
    assert time.process_time() - started < 5
