"""Exemplars that are encoded with one image and found in others."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import efficientsam3 as es3
from efficientsam3.config import tiny_config, tiny_late_config
from efficientsam3.segmenter import VISUAL
from tests.conftest import tiny_model

from .conftest import BOXES, same

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def other(photo: Pixels) -> Pixels:
    """An image that is not the photo, of another size."""
    return np.ascontiguousarray(photo[::-1, 8:])


def test_in_their_own_image_they_are_exemplars(tiny: es3.ImageModel, photo: Pixels) -> None:
    given: dict[str, Any] = {"boxes": BOXES, "box_labels": [1, 0], "points": [[9, 9]]}
    shown = tiny.exemplar(photo, **given)
    assert shown.count == 3
    for concept in (None, "bus", {"vehicle": ["bus", "car"]}):
        expected = tiny.segment(photo, concept, **given, threshold=0.45)
        same(tiny.segment(photo, concept, exemplars=shown, threshold=0.45), expected)


def test_they_are_encoded_with_the_image_that_they_are_drawn_on(
    tiny: es3.ImageModel, photo: Pixels, other: Pixels
) -> None:
    box = [[5, 5, 30, 30]]
    shown = tiny.exemplar(other, boxes=box)
    found = tiny.segment(photo, exemplars=shown, threshold=0.0)
    assert found.concepts == (VISUAL,)
    assert found.size == photo.shape[:2]
    own = tiny.segment(photo, boxes=box, threshold=0.0)
    assert np.abs(found.scores - own.scores).max() > 1e-3


def test_exemplars_of_several_images_add_up(
    tiny: es3.ImageModel, photo: Pixels, other: Pixels
) -> None:
    encoded = tiny.encode(photo)
    first, second = (
        tiny.exemplar(i, boxes=[b]) for i, b in zip((other, photo), BOXES, strict=True)
    )

    def ask(**options: Any) -> es3.Instances:
        return tiny.segment(encoded, "bus", threshold=0.0, **options)

    both = ask(exemplars=[first, second])
    for alone in (first, second):
        assert np.abs(both.scores - ask(exemplars=alone).scores).max() > 1e-4
    # Those of the image itself can be drawn on it instead.
    np.testing.assert_allclose(
        ask(exemplars=[first], boxes=BOXES[1:]).scores, both.scores, atol=1e-6
    )


@pytest.mark.parametrize("make", [tiny_config, tiny_late_config], ids=["fusion", "late fusion"])
def test_one_exemplar_serves_a_list_of_images(
    tiny: es3.ImageModel, photo: Pixels, other: Pixels, make: Any
) -> None:
    model = tiny_model(config=make()) if make is tiny_late_config else tiny
    shown = model.exemplar(other, boxes=[[5, 5, 30, 30]])
    images = [photo, other, photo[:, ::-1].copy()]
    together = model.segment(images, "bus", exemplars=shown, threshold=0.3)
    for image, found in zip(images, together, strict=True):
        same(found, model.segment(image, "bus", exemplars=shown, threshold=0.3), 1e-5)


def test_they_go_with_tiles(tiny: es3.ImageModel, photo: Pixels) -> None:
    shown = tiny.exemplar(photo, boxes=BOXES[:1])
    large = np.tile(photo, (4, 4, 1))
    assert tiny.segment(large, exemplars=shown, tile=112, threshold=0.3).size == large.shape[:2]


def test_copies_and_pickles_find_the_same(
    tiny: es3.ImageModel, photo: Pixels, other: Pixels
) -> None:
    shown = tiny.exemplar(other, boxes=BOXES[:1])
    expected = tiny.segment(photo, exemplars=shown, threshold=0.45)
    for again in (copy.deepcopy(shown), pickle.loads(pickle.dumps(shown))):
        same(tiny.segment(photo, exemplars=again, threshold=0.45), expected)


def test_wrong_exemplars(tiny: es3.ImageModel, photo: Pixels) -> None:
    shown = tiny.exemplar(photo, boxes=BOXES)
    stranger = tiny_model(dtype="bfloat16")
    with pytest.raises(es3.PromptError, match=r"these exemplars were encoded by .* encode their"):
        stranger.segment(photo, exemplars=shown)
    for wrong in (BOXES, [shown, BOXES], [], 3, tiny.encode(photo)):
        with pytest.raises(es3.PromptError, match=r"model.exemplar\(image, boxes=...\)"):
            tiny.segment(photo, exemplars=wrong)  # type: ignore[arg-type]
    with pytest.raises(es3.PromptError, match="exemplars show one concept"):
        tiny.segment(photo, ["bus", "dog"], exemplars=shown)
    with pytest.raises(es3.PromptError, match="outside the image of 64 x 48"):
        tiny.exemplar(photo, boxes=[[70, 5, 90, 30]])
    with pytest.raises(es3.PromptError, match="no exemplar"):
        tiny.exemplar(photo)
    with pytest.raises(es3.PromptError, match="box_labels are given without boxes"):
        tiny.exemplar(photo, box_labels=[1])
    with pytest.raises(es3.PromptError, match=r"exemplars=model\.exemplar"):
        tiny.segment([photo, photo], boxes=BOXES)
    with pytest.raises(es3.ImageError, match="one image is expected"):
        tiny.exemplar([photo], boxes=BOXES)  # type: ignore[arg-type]
