"""Suppression of instances within classes and across them, by IoU and by containment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from efficientsam3.errors import PromptError
from efficientsam3.masks.nms import nms_rows, non_max_suppression
from efficientsam3.types import BitPatch, Instances

SIZE = (40, 60)


def block(top: int, left: int, height: int, width: int) -> Any:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def make(*rows: tuple[str, float, Any], phrases: list[str] | None = None) -> Instances:
    patches = [BitPatch.cut(mask) for _, _, mask in rows]
    scores = np.array([score for _, score, _ in rows], np.float32)
    labels = [label for label, _, _ in rows]
    boxes = np.array([p.crop(SIZE)[1] for p in patches], np.float32).reshape(-1, 4)
    return Instances(boxes, scores, scores, labels, SIZE, list(patches), phrases=phrases or labels)


WHOLE, HALF, ELSEWHERE = block(0, 0, 20, 20), block(0, 0, 20, 12), block(20, 30, 10, 10)


def test_the_better_of_two_that_overlap_is_kept_within_a_class() -> None:
    found = make(("a", 0.6, HALF), ("a", 0.9, WHOLE), ("b", 0.5, WHOLE), ("a", 0.2, ELSEWHERE))
    kept = non_max_suppression(found, 0.5)
    assert [round(float(s), 1) for s in kept.scores] == [0.9, 0.5, 0.2]
    assert len(non_max_suppression(found, 0.6)) == 4  # the IoU is 0.6


def test_across_classes() -> None:
    found = make(("a", 0.6, HALF), ("b", 0.9, WHOLE), ("c", 0.5, ELSEWHERE))
    assert non_max_suppression(found, 0.5).labels == ["a", "b", "c"]
    assert non_max_suppression(found, 0.5, class_agnostic=True).labels == ["b", "c"]


def test_containment_drops_what_lies_within_another() -> None:
    found = make(("wheel", 0.6, block(2, 2, 5, 5)), ("car", 0.9, WHOLE))
    assert len(non_max_suppression(found, 0.5, class_agnostic=True)) == 2
    inside = non_max_suppression(found, 0.9, class_agnostic=True, overlap_metric="iom")
    assert inside.labels == ["car"]
    small = replace(found, scores=found.scores[::-1].copy())
    kept = non_max_suppression(small, 0.9, class_agnostic=True, overlap_metric="iom")
    assert kept.labels == ["wheel"]


def test_what_was_dropped_drops_nothing() -> None:
    masks = [block(0, 6 * i, 20, 20) for i in range(3)]  # neighbors overlap by 0.54
    found = make(*(("a", 0.9 - 0.1 * i, mask) for i, mask in enumerate(masks)))
    assert [round(float(s), 1) for s in non_max_suppression(found, 0.5).scores] == [0.9, 0.7]


def test_two_phrases_of_a_class_are_compared_and_one_phrase_with_itself_is_not() -> None:
    rows = [("v", 0.9, WHOLE), ("v", 0.8, WHOLE), ("v", 0.7, WHOLE)]
    found = make(*rows, phrases=["car", "car", "truck"])
    assert nms_rows(found, None, 0.5, None).tolist() == [0, 1]
    assert nms_rows(found, None, None, None).tolist() == [0, 1, 2]


def test_boxes_take_the_place_of_masks_and_nothing_is_nothing() -> None:
    found = replace(make(("a", 0.6, HALF), ("a", 0.9, WHOLE)), patches=None)
    assert len(non_max_suppression(found, 0.5)) == 1
    assert len(non_max_suppression(found[[]], 0.5)) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap_metric": "ios"}, ["'ios'", "'iou'", "'iom'"]),
        ({"overlap_metric": []}, ["[]", "'iou'"]),
        ({"class_agnostic": 0.7}, ["0.7", "True or False", "nms"]),
        ({"threshold": 2}, ["2", "between 0 and 1"]),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(PromptError) as caught:
        non_max_suppression(make(("a", 0.6, HALF)), **options)
    for word in words:
        assert word in str(caught.value)
