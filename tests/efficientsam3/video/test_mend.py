"""Masks put right."""

from __future__ import annotations

import numpy as np
import torch

from efficientsam3.types import Array
from efficientsam3.video.mend import hide_occluded, mend, share_out, shrunk

SIDE = 288


def mask(*blocks: tuple[int, int, int, int, float]) -> Array:
    """Logits: -5, and blocks of (top, left, height, width, value) one over another."""
    out = np.full((SIDE, SIDE), -5, np.float32)
    for top, left, high, wide, value in blocks:
        out[top : top + high, left : left + wide] = value
    return out


def test_small_holes_are_filled_and_large_ones_stay() -> None:
    out = mend(mask((50, 50, 40, 40, 5), (60, 60, 4, 4, -3), (75, 60, 4, 5, -3)), 16)
    assert (out[60:64, 60:64] == np.float32(0.1)).all()
    assert (out[75:79, 60:65] == -3).all()


def test_cells_that_touch_at_corners_are_one_hole() -> None:
    out = mend(mask((50, 50, 40, 40, 5), (60, 60, 3, 3, -3), (63, 63, 3, 3, -3)), 16)
    assert (out[60:63, 60:63] == -3).all()


def test_specks_go_but_not_a_small_object() -> None:
    speck = mend(mask((50, 50, 40, 40, 5), (10, 10, 4, 4, 2)), 16)
    assert (speck[10:14, 10:14] == np.float32(-0.1)).all()
    small = mask((10, 10, 3, 3, 2))
    assert mend(small, 16) is small


def test_what_lies_between_a_mask_and_the_border_is_a_hole_only_if_it_ends_there() -> None:
    corner = mask((0, 0, 20, 20, 5), (0, 0, 3, 3, -5))
    assert (mend(corner, 16)[:3, :3] > 0).all()
    # A narrow band is joined to the background around.
    gap = mask((1, 50, 40, 10, 5))
    assert mend(gap, 16) is gap


def test_areas_are_those_of_large_masks() -> None:
    small = np.full((72, 72), -5, np.float32)
    small[10:40, 10:40] = 5
    small[20, 20] = -5
    small[30, 30:32] = -5
    out = mend(small, 16)
    assert out[20, 20] > 0
    assert (out[30, 30:32] < 0).all()
    assert mend(small, 0) is small


def test_of_two_with_one_mask_the_one_that_was_away_more_recently_gives_way() -> None:
    same = np.array([[1, 0.9, 0], [0.9, 1, 0.2], [0, 0.2, 1]])
    assert hide_occluded(same, [3, 7, 9], 0.7) == [1]
    assert hide_occluded(same, [7, 3, 9], 0.7) == [0]
    assert hide_occluded(same, [-1, 7, 9], 0.7) == []  # the other was never away
    assert hide_occluded(same, [7, 7, 9], 0.7) == []


def test_what_stronger_masks_leave() -> None:
    weak = torch.from_numpy(mask((50, 50, 40, 40, 1)))
    strong = torch.from_numpy(mask((50, 50, 40, 30, 5)))
    apart = torch.from_numpy(mask((200, 200, 9, 9, 1)))
    nothing = torch.full_like(weak, -1024)
    lost, present = shrunk(torch.stack([weak, strong, apart, nothing]), 4 * SIDE, 0.3)
    assert lost.tolist() == [True, False, False, True]
    assert present.tolist() == [True, True, True, False]
    assert not shrunk(torch.stack([weak, strong]), 4 * SIDE, 0.2)[0].any()
    twins = shrunk(torch.stack([strong, strong]), 4 * SIDE, 0.3)[0]
    assert twins.tolist() == [False, True]


def test_shared_pixels_go_to_the_surest() -> None:
    full = np.ones((4, 4), bool)
    crops = [(full, (0, 0, 4, 4)), (full, (2, 2, 6, 6)), (full, (10, 10, 14, 14))]
    left = share_out(crops, [0.5, 0.9, 0.1])
    assert list(left) == [0]
    assert left[0].sum() == 12
    assert not left[0][2:, 2:].any()
    assert full.all()
    assert list(share_out(crops, [0.5, 0.5, 0.5])) == [1]
