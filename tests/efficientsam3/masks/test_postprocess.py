"""Post-processing of masks."""

from __future__ import annotations

import numpy as np

from efficientsam3.masks.postprocess import fill_holes, find_occluded, resolve_overlaps
from efficientsam3.masks.shrunk import find_shrunk
from efficientsam3.types import Array

SIDE = 288


def mask(*blocks: tuple[int, int, int, int, float]) -> Array:
    """Logits of -5, with blocks (top, left, height, width, value) on them."""
    out = np.full((SIDE, SIDE), -5, np.float32)
    for top, left, high, wide, value in blocks:
        out[top : top + high, left : left + wide] = value
    return out


def test_small_holes_are_filled_and_large_ones_stay() -> None:
    out = fill_holes(mask((50, 50, 40, 40, 5), (60, 60, 4, 4, -3), (75, 60, 4, 5, -3)), 16)
    assert (out[60:64, 60:64] == np.float32(0.1)).all()
    assert (out[75:79, 60:65] == -3).all()


def test_pixels_that_touch_at_corners_are_one_hole() -> None:
    out = fill_holes(mask((50, 50, 40, 40, 5), (60, 60, 3, 3, -3), (63, 63, 3, 3, -3)), 16)
    assert (out[60:63, 60:63] == -3).all()


def test_specks_are_removed_and_small_objects_kept() -> None:
    speck = fill_holes(mask((50, 50, 40, 40, 5), (10, 10, 4, 4, 2)), 16)
    assert (speck[10:14, 10:14] == np.float32(-0.1)).all()
    small = mask((10, 10, 3, 3, 2))
    assert fill_holes(small, 16) is small


def test_a_gap_at_the_border_is_a_hole_only_if_it_is_closed() -> None:
    corner = mask((0, 0, 20, 20, 5), (0, 0, 3, 3, -5))
    assert (fill_holes(corner, 16)[:3, :3] > 0).all()
    # A narrow band is connected to the background.
    gap = mask((1, 50, 40, 10, 5))
    assert fill_holes(gap, 16) is gap


def test_areas_are_scaled_to_a_288_pixel_mask() -> None:
    small = np.full((72, 72), -5, np.float32)
    small[10:40, 10:40] = 5
    small[20, 20] = -5
    small[30, 30:32] = -5
    out = fill_holes(small, 16)
    assert out[20, 20] > 0
    assert (out[30, 30:32] < 0).all()
    assert fill_holes(small, 0) is small


def test_the_more_recently_occluded_of_two_equal_masks_is_hidden() -> None:
    same = np.array([[1, 0.9, 0], [0.9, 1, 0.2], [0, 0.2, 1]])
    assert find_occluded(same, [3, 7, 9], 0.7) == [1]
    assert find_occluded(same, [7, 3, 9], 0.7) == [0]
    assert find_occluded(same, [-1, 7, 9], 0.7) == []  # the other was never occluded
    assert find_occluded(same, [7, 7, 9], 0.7) == []


def test_shrunk_objects_are_found() -> None:
    weak = mask((50, 50, 40, 40, 1))
    strong = mask((50, 50, 40, 30, 5))
    apart = mask((200, 200, 9, 9, 1))
    nothing = np.full_like(weak, -1024)
    lost, present = find_shrunk(np.stack([weak, strong, apart, nothing]), 4, 0.3)
    assert lost.tolist() == [True, False, False, True]
    assert present.tolist() == [True, True, True, False]
    assert not find_shrunk(np.stack([weak, strong]), 4, 0.2)[0].any()
    twins = find_shrunk(np.stack([strong, strong]), 4, 0.3)[0]
    assert twins.tolist() == [False, True]


def test_shared_pixels_go_to_the_highest_score() -> None:
    full = np.ones((4, 4), bool)
    crops = [(full, (0, 0, 4, 4)), (full, (2, 2, 6, 6)), (full, (10, 10, 14, 14))]
    left = resolve_overlaps(crops, [0.5, 0.9, 0.1])
    assert list(left) == [0]
    assert left[0].sum() == 12
    assert not left[0][2:, 2:].any()
    assert full.all()
    assert list(resolve_overlaps(crops, [0.5, 0.5, 0.5])) == [1]
