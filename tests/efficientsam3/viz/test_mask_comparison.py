"""Pictures that compare masks."""

from __future__ import annotations

import numpy as np

from efficientsam3.viz.mask_comparison import EXTRA, HIT, MISSED, paint_mask_errors


def test_each_kind_of_pixel_has_its_color() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    found, truth = np.array([[1, 1], [0, 0]], bool), np.array([[1, 0], [1, 0]], bool)
    painted = paint_mask_errors(image, found, truth).astype(int)
    for place, color in (((0, 0), HIT), ((0, 1), EXTRA), ((1, 0), MISSED)):
        assert np.abs(painted[place] - (np.array(color) / 2 + 27)).max() <= 1
    assert (painted[1, 1] == 55).all()
    assert (image == 100).all()
