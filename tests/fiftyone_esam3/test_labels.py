"""Conversion of the core's instances to FiftyOne labels."""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from efficientsam3 import Instances
from efficientsam3.types import BitPatch
from fiftyone_esam3.labels import presence_keys, to_detections, to_labels


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


def test_boxes_are_the_extent_of_the_masks_and_what_is_left_out_is_counted(
    found: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    rough = dataclasses.replace(found, boxes=found.boxes + np.float32(1.5))
    assert [d.bounding_box for d in to_detections(rough)] == [
        d.bounding_box for d in to_detections(found)
    ]
    assert "1 instance without a pixel is left out" in caplog.text


def test_given_class_names_stay_with_their_masks(found: Instances) -> None:
    assert [d.label for d in to_detections(found, ["a", "b", None])] == ["a", None]


def test_instances_without_masks_become_boxes(found: Instances) -> None:
    boxes = to_detections(dataclasses.replace(found, patches=None))
    assert [d.mask for d in boxes] == [None] * 3
    assert boxes[1].bounding_box == pytest.approx([0, 0, 0.1, 0.2])


def test_presence_can_be_queried_by_concept() -> None:
    keys = presence_keys({"mr. bean": 0.5, "$100": 0.25, "a_b": 0.1, "a.b": 0.2, "5%2E": 0.3})
    assert list(keys) == ["mr%2E bean", "%24100", "a_b", "a%2Eb", "5%252E"]
    assert [unquote(key) for key in keys] == ["mr. bean", "$100", "a_b", "a.b", "5%2E"]


def test_identities_are_kept_over_frames(found: Instances) -> None:
    """Instances without an identity yet, or with an empty mask, are left out."""
    tracked = dataclasses.replace(
        found, track_ids=np.array([3, 4, -1]), concept_presence={"cat": 0.9}
    )
    identities: dict[int, Any] = {}
    (first,) = to_labels(tracked, identities).detections
    again = to_labels(tracked, identities)
    assert first.index == 3 and first.instance is again.detections[0].instance
    assert list(identities) == [3] and again.concept_presence == {"cat": 0.9}
