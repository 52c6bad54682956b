"""Run lengths equal pycocotools' of the whole mask."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco

from efficientsam3 import rle
from efficientsam3.types import BitPatch


def whole(mask: np.ndarray) -> dict:
    out = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": out["counts"].decode()}


def cut(mask: np.ndarray) -> dict:
    return rle.encode_cut(*BitPatch.cut(mask).crop(mask.shape), mask.shape)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_any_mask(share: float) -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        mask = random.random(random.integers(1, 8, 2)) < share
        assert cut(mask) == whole(mask)


def test_runs_that_go_on_in_the_next_column() -> None:
    mask = np.zeros((4, 6), bool)
    mask[:, 2:5] = True  # one run, three columns long
    assert cut(mask) == whole(mask)
    mask[0, 3] = False
    assert cut(mask) == whole(mask)


def test_a_large_mask() -> None:
    y, x = np.ogrid[:900, :1200]
    mask = (y - 400) ** 2 + (x - 700) ** 2 < 300**2
    assert cut(mask) == whole(mask)
