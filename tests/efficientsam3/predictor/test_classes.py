"""Classes of several phrases, and suppression across classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import efficientsam3 as es3
from efficientsam3.masks.overlap import mask_iou
from efficientsam3.types import Instances

from .conftest import BOXES, same

Pixels = npt.NDArray[np.uint8]
VEHICLES = {"vehicle": ["red car", "bus"], "dog": ["dog"]}


def overlaps(found: Instances) -> Any:
    """The coarse masks' IoU, (N, N); suppression compares the masks of the model's own grid."""
    return mask_iou(found.masks, found.masks)


def test_labels_are_classes_and_phrases_are_kept(tiny: es3.ImageModel, photo: Pixels) -> None:
    found = tiny.segment(photo, VEHICLES, threshold=0.0, nms=1)  # nothing is suppressed
    assert found.concepts == ("vehicle", "dog")
    assert list(found.concept_presence) == ["vehicle", "dog"]
    assert set(zip(found.labels, found.phrases, strict=True)) == {
        ("vehicle", "red car"),
        ("vehicle", "bus"),
        ("dog", "dog"),
    }
    rows = [row for row, label in enumerate(found.labels) if label == "vehicle"]
    assert rows == list(range(len(rows))), "classes are in the order of the mapping"
    assert (np.diff(found.scores[rows]) <= 0).all(), "scores of a class fall"
    alone = tiny.segment(photo, ["red car", "bus", "dog"], threshold=0.0)
    assert len(found) == len(alone)
    assert alone.phrases == alone.labels
    presence = alone.concept_presence
    assert found.concept_presence["vehicle"] == max(presence["red car"], presence["bus"])
    assert found.concept_presence["dog"] == presence["dog"]
    assert same_rows(found, alone)


def same_rows(found: Instances, of: Instances) -> bool:
    """Whether each instance is one that its phrase finds alone."""
    known = {(p, float(s)) for p, s in zip(of.labels, of.scores, strict=True)}
    return {(p, float(s)) for p, s in zip(found.phrases, found.scores, strict=True)} <= known


def test_one_object_that_two_phrases_find_is_one(tiny: es3.ImageModel, photo: Pixels) -> None:
    alone = tiny.segment(photo, ["red car", "bus"], threshold=0.0)
    found = tiny.segment(photo, {"vehicle": ["red car", "bus"]}, threshold=0.0)
    assert 0 < len(found) < len(alone)
    other = np.not_equal.outer(np.array(found.phrases), np.array(found.phrases))
    assert not (other & (overlaps(found) > 0.55)).any()
    dropped = [
        row
        for row, key in enumerate(zip(alone.labels, alone.scores.tolist(), strict=True))
        if key not in set(zip(found.phrases, found.scores.tolist(), strict=True))
    ]
    assert len(found) + len(dropped) == len(alone)
    for row in dropped:  # each one that is gone overlaps a better one of the other phrase
        iou = mask_iou(alone.mask(row)[None], found.masks)[0]
        better = (found.scores >= alone.scores[row]) & (
            np.array(found.phrases) != alone.labels[row]
        )
        assert (iou[better] > 0.45).any()


def test_one_phrase_keeps_what_it_finds_alone(tiny: es3.ImageModel, photo: Pixels) -> None:
    named = tiny.segment(photo, {"thing": ["bus"]}, threshold=0.0)
    plain = tiny.segment(photo, "bus", threshold=0.0)
    assert (named.labels, named.phrases) == (["thing"] * len(plain), ["bus"] * len(plain))
    assert (named.scores == plain.scores).all() and named.rles == plain.rles


def test_two_spellings_are_one_concept(tiny: es3.ImageModel, photo: Pixels) -> None:
    once = tiny.segment(photo, ["Dog"], threshold=0.0)
    twice = tiny.segment(photo, ["Dog", "dog", " DOG "], threshold=0.0)
    same(once, twice)
    assert set(twice.labels) == {"Dog"}
    lower = tiny.segment(photo, ["dog"], threshold=0.0)
    assert (once.scores == lower.scores).all()


def test_across_classes_one_object_has_one_class(tiny: es3.ImageModel, photo: Pixels) -> None:
    both = tiny.segment(photo, ["red car", "bus"], threshold=0.0)
    found = tiny.segment(photo, ["red car", "bus"], threshold=0.0, class_agnostic=True)
    assert 0 < len(found) < len(both)
    assert found.concepts == ("red car", "bus")
    other = np.not_equal.outer(np.array(found.labels), np.array(found.labels))
    assert not (other & (overlaps(found) > 0.55)).any()
    strict = tiny.segment(
        photo, ["red car", "bus"], threshold=0.0, nms=0.5, class_agnostic=True, overlap_metric="iom"
    )
    masks = strict.masks.reshape(len(strict), -1).astype(float)
    shared, area = masks @ masks.T, masks.sum(1)
    inside = shared / np.maximum(np.minimum.outer(area, area), 1)
    np.fill_diagonal(inside, 0)
    assert len(strict) <= len(found) and (inside <= 0.6).all()


def test_the_best_are_kept_after_suppression(tiny: es3.ImageModel, photo: Pixels) -> None:
    everything = tiny.segment(photo, {"vehicle": ["red car", "bus"]}, threshold=0.0)
    few = tiny.segment(photo, {"vehicle": ["red car", "bus"]}, threshold=0.0, max_instances=3)
    assert few.scores.tolist() == everything.scores[:3].tolist()


def test_exemplars_refine_each_phrase_of_one_class(tiny: es3.ImageModel, photo: Pixels) -> None:
    classes = {"vehicle": ["red car", "bus"]}
    found = tiny.segment(photo, classes, boxes=BOXES, threshold=0.0)
    assert set(found.labels) == {"vehicle"} and set(found.phrases) <= {"red car", "bus"}
    alone = tiny.segment(photo, "bus", boxes=BOXES, threshold=0.0)
    assert found.scores.max() >= alone.scores.max()
    with pytest.raises(es3.PromptError, match="got 2: vehicle, dog"):
        tiny.segment(photo, VEHICLES, boxes=BOXES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap_metric": "giou"}, ["'giou'", "'iom'"]),
        ({"class_agnostic": 0.5}, ["0.5", "True or False"]),
    ],
)
def test_wrong_options(
    tiny: es3.ImageModel, photo: Pixels, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(es3.PromptError) as caught:
        tiny.segment(photo, "bus", **options)
    for word in words:
        assert word in str(caught.value)
