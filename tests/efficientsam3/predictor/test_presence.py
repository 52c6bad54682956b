"""Scores with presence and without."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

import efficientsam3 as es3

from .conftest import BOXES, CONCEPTS, same

Pixels = npt.NDArray[np.uint8]


def test_separate_scores_are_without_presence(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    product = tiny.segment(encoded, CONCEPTS, threshold=0.0)
    alone = tiny.segment(encoded, CONCEPTS, threshold=0.0, presence="separate")
    np.testing.assert_allclose(alone.scores * alone.presence, product.scores, atol=1e-6)
    np.testing.assert_array_equal(alone.presence, product.presence)
    assert alone.concept_presence == product.concept_presence
    assert alone.labels == product.labels
    assert (alone.presence < 0.999).any()
    same(tiny.segment(encoded, CONCEPTS, threshold=0.0, presence="multiply"), product)


def test_the_threshold_is_of_the_scores_that_are_returned(
    tiny: es3.ImageModel, photo: Pixels
) -> None:
    whole = tiny.segment(photo, "dog", threshold=0.0, presence="separate")
    middle = float(np.median(whole.scores))
    kept = tiny.segment(photo, "dog", threshold=middle, presence="separate")
    assert len(kept) == (whole.scores > middle).sum() > 0


def test_it_holds_for_exemplars_lists_and_tiles(tiny: es3.ImageModel, photo: Pixels) -> None:
    for options in ({"boxes": BOXES[:1]}, {"concepts": "dog", "tile": 40}):
        product = tiny.segment(photo, **options, threshold=0.0)
        alone = tiny.segment(photo, **options, threshold=0.0, presence="separate")
        assert alone.scores.max() > product.scores.max()
    found = tiny.segment([photo, photo[::-1].copy()], "dog", threshold=0.0, presence="separate")
    one = tiny.segment(photo, "dog", threshold=0.0, presence="separate")
    np.testing.assert_allclose(found[0].scores, one.scores, atol=1e-5)


@pytest.mark.parametrize("wrong", ["both", None, True, ["multiply"]])
def test_wrong_values(tiny: es3.ImageModel, photo: Pixels, wrong: object) -> None:
    with pytest.raises(es3.PromptError, match=r"'multiply' .* or 'separate'"):
        tiny.segment(photo, "dog", presence=wrong)  # type: ignore[arg-type]
