"""The core's instances -> FiftyOne labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from efficientsam3 import Instances
from efficientsam3.types import BitPatch
from fiftyone_esam3.labels import presence_keys, to_detections


@pytest.fixture
def found() -> Instances:
    """Three instances in an image of 40 x 20 pixels; the second has an empty mask."""
    masks = np.zeros((3, 20, 40), bool)
    masks[0, 5:10, 8:16] = True
    masks[0, 5, 8] = False
    masks[2, 0:20, 0:40] = True
    return Instances(
        boxes=np.array([[8, 5, 16, 10], [0, 0, 4, 4], [0, 0, 40, 20]], np.float32),
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        presence=np.array([0.95, 0.95, 0.75], np.float32),
        labels=["cat", "cat", "dog"],
        size=(20, 40),
        patches=[BitPatch.cut(mask) for mask in masks],
    )


def test_masks_are_cut_to_their_boxes(found: Instances) -> None:
    first, second = to_detections(found)
    assert first.bounding_box == [0.2, 0.25, 0.2, 0.25]
    np.testing.assert_array_equal(first.mask, found.masks[0, 5:10, 8:16])
    assert first.mask.dtype == bool
    assert (first.label, second.label) == ("cat", "dog")
    assert first.confidence == pytest.approx(0.9)
    assert second.presence == pytest.approx(0.75)


def test_other_labels_stay_with_their_masks(found: Instances) -> None:
    assert [d.label for d in to_detections(found, ["a", "b", None])] == ["a", None]


def test_without_a_mask_head_there_are_boxes(found: Instances) -> None:
    boxes = to_detections(dataclasses.replace(found, patches=None))
    assert [d.mask for d in boxes] == [None] * 3
    assert boxes[1].bounding_box == pytest.approx([0, 0, 0.1, 0.2])


def test_presence_can_be_queried_by_concept() -> None:
    assert presence_keys({"mr. bean": 0.5, "$100": 0.25}) == {"mr_ bean": 0.5, "_100": 0.25}
