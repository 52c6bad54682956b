"""Fractions taken for pixels, and negative exemplars that a model was not trained with."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import efficientsam3 as es3
from efficientsam3.config import tiny_config
from efficientsam3.errors import PromptWarning
from efficientsam3.prompts import read_boxes, read_points
from efficientsam3.video.concept_tracker import ConceptTracker

from ...conftest import tiny_model

Pixels = npt.NDArray[np.uint8]
FRACTION = [[0.1, 0.2, 0.5, 0.6]]


def ask(model: es3.ImageModel, photo: Pixels) -> dict[str, Any]:
    """Each door that takes a box."""
    tracker = ConceptTracker(model, ["dog"])
    return {
        "exemplar": lambda: model.segment(photo, "dog", boxes=FRACTION),
        "exemplar alone": lambda: model.segment(photo, boxes=FRACTION),
        "object": lambda: model.segment_objects(photo, boxes=FRACTION),
        "track": lambda: next(iter(es3.track(model, [photo], ["dog"], boxes=FRACTION))),
        "tracker": lambda: tracker.add_exemplars(FRACTION, concept="dog"),
    }


@pytest.mark.parametrize("door", ["exemplar", "exemplar alone", "object", "track", "tracker"])
def test_boxes_in_fractions_are_refused(tiny: es3.ImageModel, photo: Pixels, door: str) -> None:
    with pytest.raises(es3.PromptError, match="pixels of the image, not fractions") as caught:
        ask(tiny, photo)[door]()
    assert "got [0.1, 0.2, 0.5, 0.6]" in str(caught.value) and "multiply them" in str(caught.value)


def test_several_points_in_fractions_are_refused(tiny: es3.ImageModel, photo: Pixels) -> None:
    points = [[0.2, 0.3], [0.7, 0.9]]
    with pytest.raises(es3.PromptError, match="64 and 48"):
        tiny.segment(photo, points=points)
    with pytest.raises(es3.PromptError, match="fractions"):
        tiny.segment(photo, "dog", points=points)
    with pytest.raises(es3.PromptError, match="fractions"):
        tiny.segment_objects(photo, points=[points, points])


@pytest.mark.parametrize(
    "boxes",
    [
        [[0, 0, 1, 1]],  # the first pixel, or the whole image
        [[10, 10, 30, 30], [0.1, 0.2, 0.5, 0.6]],
        [[20.2, 30.1, 20.9, 30.4]],
    ],
)
def test_a_box_within_one_pixel_has_a_warning(boxes: list[list[float]]) -> None:
    with pytest.warns(PromptWarning, match="lies within one pixel"):
        read_boxes(boxes, (48, 64))


def test_the_only_point_within_the_first_pixel_has_a_warning() -> None:
    with pytest.warns(PromptWarning, match=r"point \[0.5, 0.25\] lies within one pixel"):
        read_points([[0.5, 0.25]], (48, 64))


def test_small_boxes_and_points_in_pixels_are_taken_as_they_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_boxes([[0, 0, 2, 2], [10, 20, 11, 21]], (48, 64))
        read_boxes([[0.2, 0.2, 0.9, 0.9]], (1, 1))
        read_points([[0, 0], [1, 1]], (48, 64))
        read_points([[0, 1]], (48, 64))
        read_points([[0.5, 0.5], [30, 20]], (48, 64))


def test_negatives_of_a_model_that_was_not_trained_with_them(photo: Pixels) -> None:
    boxes = [[5, 5, 30, 30], [20.5, 10, 64, 48]]
    untrained = tiny_model(config=replace(tiny_config(), negative_exemplars=False))
    with pytest.warns(PromptWarning, match="tiny was not trained with negative exemplars"):
        found = untrained.segment(photo, "dog", boxes=boxes, box_labels=[1, 0], threshold=0.0)
    with pytest.warns(PromptWarning, match="negative exemplars"):
        untrained.segment(photo, "dog", points=[[20, 20]], point_labels=[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        untrained.segment(photo, "dog", boxes=boxes)
        untrained.segment(photo, points=[[20, 20], [40, 30]], point_labels=[1, 0])  # clicks
        trained = tiny_model().segment(photo, "dog", boxes=boxes, box_labels=[1, 0], threshold=0.0)
    assert (found.scores == trained.scores).all(), "the answer is the same"
