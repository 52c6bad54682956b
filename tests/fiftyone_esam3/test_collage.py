"""Examples beside an image: their boxes, and what is kept of what is found."""

from __future__ import annotations

import numpy as np
import pytest

from efficientsam3.types import BitPatch, Instances
from fiftyone_esam3.collage import cut, paste, without_strip


def test_boxes_in_the_strip_are_around_the_examples() -> None:
    source = np.zeros((100, 80, 3), np.uint8)
    source[40:60, 20:50] = 255  # the example
    image = np.full((90, 120, 3), 7, np.uint8)
    cuttings = [cut(source, (20, 40, 50, 60)), cut(source, (20, 40, 50, 60), positive=False)]
    collage = paste(image, cuttings)
    assert collage.pixels.shape == (90, 160, 3) and collage.size == (90, 120)
    assert collage.signs.tolist() == [1, 0]
    np.testing.assert_array_equal(collage.pixels[:, :120], image)
    bright = collage.pixels[..., 0] > 200
    for x0, y0, x1, y1 in collage.boxes.round().astype(int).tolist():
        assert bright[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].all()
        bright[max(0, y0 - 1) : y1 + 1, x0 - 1 : x1 + 1] = False
    assert not bright.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3)])
def test_any_shape_can_be_pasted(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    example = cut(np.zeros((50, 60, 3), np.uint8), (10.5, 10.5, 11, 11))
    collage = paste(image, [example] * 4)
    assert np.isfinite(collage.boxes).all() and len(collage.boxes) == 4


def test_what_lies_in_the_strip_is_left_out() -> None:
    masks = np.zeros((3, 10, 16), bool)
    masks[0, 2:5, 1:4] = True  # in the image
    masks[1, 4:8, 8:14] = True  # over its edge, most of it inside
    masks[2, 1:3, 13:16] = True  # in the strip
    boxes = np.array([[1, 2, 4, 5], [8, 4, 14, 8], [13, 1, 16, 3]], np.float32)
    found = Instances(
        boxes=boxes,
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        presence=np.ones(3, np.float32),
        labels=["a"] * 3,
        size=(10, 16),
        patches=[BitPatch.cut(m) for m in masks],
    )
    kept = without_strip(found, (10, 12))
    assert kept.size == (10, 12) and len(kept) == 2
    np.testing.assert_array_equal(kept.masks, masks[:2, :, :12])
    assert kept.boxes.tolist() == [[1, 2, 4, 5], [8, 4, 12, 8]]
