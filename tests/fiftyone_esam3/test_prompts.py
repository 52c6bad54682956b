"""Prompts in pixels from the fields of a sample."""

from __future__ import annotations

from typing import Any

import fiftyone as fo
import numpy as np
import pytest

from efficientsam3 import PromptError
from fiftyone_esam3.prompts import read_prompts

SIZE = (100, 200)


def detection(box: list[float], **kwargs: Any) -> fo.Detection:
    return fo.Detection(bounding_box=box, **kwargs)


@pytest.mark.parametrize(
    ("value", "concepts"),
    [
        (None, ()),
        ("yellow school bus", ("yellow school bus",)),
        (["person", " bus ", "person", ""], ("person", "bus")),
        (fo.Classification(label="cat"), ("cat",)),
        (
            fo.Classifications(
                classifications=[fo.Classification(label="cat"), fo.Classification(label="dog")]
            ),
            ("cat", "dog"),
        ),
        (fo.Detections(detections=[detection([0, 0, 1, 1], label="bus")]), ("bus",)),
    ],
)
def test_concepts_are_read_from_strings_and_labels(value: Any, concepts: tuple[str, ...]) -> None:
    assert read_prompts({"text_prompt_field": value}, SIZE).concepts == concepts


def test_without_a_field_a_sample_has_no_concepts() -> None:
    assert read_prompts({"filepath": "a.png"}, SIZE).concepts is None


@pytest.mark.parametrize("value", [3, [1.5], fo.Regression(value=1.0)])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(PromptError, match="text_prompt_field holds"):
        read_prompts({"text_prompt_field": value}, SIZE)


@pytest.mark.parametrize("key", ["prompt_field", "box_prompt_field"])
def test_boxes_are_corners_in_pixels(key: str) -> None:
    boxes = fo.Detections(detections=[detection([0.1, 0.2, 0.5, 0.3], label="cat")])
    for value in (boxes, boxes.detections[0]):
        (box,) = read_prompts({key: value}, SIZE).boxes
        np.testing.assert_allclose(box.corners, [20, 20, 120, 50], rtol=1e-6)
        assert (box.label, box.sign) == ("cat", 1)


@pytest.mark.parametrize(
    ("attributes", "sign"),
    [
        ({}, 1),
        ({"sam_label": True}, 1),
        ({"sam_label": False}, 0),
        ({"sam3_label": 0}, 0),
        ({"sam_label": 1, "sam3_label": 0}, 1),
    ],
)
def test_a_box_can_be_a_negative_example(attributes: dict[str, Any], sign: int) -> None:
    (box,) = read_prompts({"prompt_field": detection([0, 0, 1, 1], **attributes)}, SIZE).boxes
    assert box.sign == sign


@pytest.mark.parametrize("attribute", ["sam_labels", "sam2_labels", "sam3_labels"])
def test_points_are_in_pixels_and_nan_is_left_out(attribute: str) -> None:
    keypoint = fo.Keypoint(points=[(0.5, 0.5), (float("nan"), 0.1), (1.0, 0.0)])
    keypoint[attribute] = [1, 1, 0]
    (clicks,) = read_prompts({"prompt_field": keypoint}, SIZE).clicks
    np.testing.assert_allclose(clicks.points, [[100, 50], [200, 0]])
    assert clicks.signs.tolist() == [1, 0]


def test_points_without_labels_are_positive() -> None:
    keypoints = fo.Keypoints(keypoints=[fo.Keypoint(points=[(0.5, 0.5), (0.1, 0.1)])])
    (clicks,) = read_prompts({"point_prompt_field": keypoints}, SIZE).clicks
    assert clicks.signs.tolist() == [1, 1]


def test_prompts_outside_the_image_are_left_out_with_a_note() -> None:
    prompts = read_prompts(
        {
            "box_prompt_field": fo.Detections(
                detections=[
                    detection([0.2, 0.2, 0.0, 0.5]),
                    detection([1.5, 0.2, 0.5, 0.5]),
                    detection([0.9, 0.9, 0.5, 0.5]),
                ]
            ),
            "point_prompt_field": fo.Keypoints(
                keypoints=[
                    fo.Keypoint(points=[(0.5, 0.5), (3.0, 0.5)]),
                    fo.Keypoint(points=[(float("nan"), float("nan"))]),
                ]
            ),
        },
        SIZE,
    )
    assert len(prompts.boxes) == 1
    assert [c.points.tolist() for c in prompts.clicks] == [[[100, 50]]]
    assert len(prompts.notes) == 4
    assert "no area" in prompts.notes[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"box_prompt_field": fo.Keypoints()}, "holds Keypoints; Detections"),
        ({"point_prompt_field": fo.Detections()}, "holds Detections; Keypoints"),
        ({"prompt_field": "person"}, "holds str"),
        (
            {"prompt_field": fo.Keypoint(points=[(0.5, 0.5)], sam_labels=[1, 0])},
            "1 points and 2 sam_labels",
        ),
    ],
)
def test_fields_of_the_wrong_kind_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_prompts(values, SIZE)


def test_prompts_are_grouped_by_class_in_order() -> None:
    prompts = read_prompts(
        {
            "box_prompt_field": fo.Detections(
                detections=[
                    detection([0, 0, 1, 1], label="b"),
                    detection([0, 0, 1, 1]),
                    detection([0, 0, 0.5, 1], label="b"),
                ]
            ),
            "point_prompt_field": fo.Keypoint(label="a", points=[(0.5, 0.5)]),
        },
        SIZE,
    )
    groups = prompts.by_label()
    assert list(groups) == ["b", None, "a"]
    assert [len(g.boxes) for g in groups.values()] == [2, 1, 0]
    assert [len(g.clicks) for g in groups.values()] == [0, 0, 1]
