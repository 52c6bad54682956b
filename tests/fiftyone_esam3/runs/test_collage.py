"""The strip of examples beside an image, and removing what is found in it."""

from __future__ import annotations

import numpy as np
import pytest

from efficientsam3.types import BitPatch, Instances
from fiftyone_esam3.runs.collage import cut_out, make_collage, without_strip


def test_boxes_in_the_strip_are_around_the_examples() -> None:
    source = np.zeros((100, 80, 3), np.uint8)
    source[40:60, 20:50] = 255  # the example
    image = np.full((90, 120, 3), 7, np.uint8)
    box = (20, 40, 50, 60)
    cutouts = [cut_out(source, box), cut_out(source, box, positive=False)]
    collage = make_collage(image, cutouts)
    assert collage.pixels.shape == (90, 160, 3) and collage.size == (90, 120)
    assert collage.signs.tolist() == [1, 0]
    np.testing.assert_array_equal(collage.pixels[:, :120], image)
    bright = collage.pixels[..., 0] > 200
    for x0, y0, x1, y1 in collage.boxes.round().astype(int).tolist():
        assert bright[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].all()
        bright[max(0, y0 - 1) : y1 + 1, x0 - 1 : x1 + 1] = False
    assert not bright.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3)])
def test_images_of_any_shape_get_a_strip(size: tuple[int, int]) -> None:
    """The image is unchanged, and the boxes of all examples lie in the strip."""
    height, width = size
    image = np.full((*size, 3), 9, np.uint8)
    example = cut_out(np.full((50, 60, 3), 255, np.uint8), (10.5, 10.5, 11, 11))
    collage = make_collage(image, [example] * 4)
    np.testing.assert_array_equal(collage.pixels[:, :width], image)
    assert collage.size == size and collage.pixels.shape[0] == height
    strip = collage.pixels.shape[1] - width
    assert strip == max(1, round(width / 3))
    assert (collage.pixels[:, width:] == 255).any(), "the cutouts are not drawn"
    assert collage.boxes.shape == (4, 4) and collage.signs.tolist() == [1] * 4
    for x0, y0, x1, y1 in collage.boxes.tolist():
        assert width <= x0 < x1 <= width + strip
        assert 0 <= y0 < y1 <= height


def test_instances_in_the_strip_are_left_out() -> None:
    masks = np.zeros((3, 10, 16), bool)
    masks[0, 2:5, 1:4] = True  # in the image
    masks[1, 4:8, 8:14] = True  # across its edge, most of it inside
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
