"""Exemplar boxes and points, positive and negative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import efficientsam3 as es3
from efficientsam3.io import rle
from efficientsam3.segmenter import VISUAL

from .conftest import BOXES, same

Pixels = npt.NDArray[np.uint8]


def test_exemplars_are_boxes_in_pixels(tiny: es3.ImageModel, photo: Pixels) -> None:
    out = tiny.segment(photo, "bus", boxes=BOXES, box_labels=[1, 0], threshold=0.0)
    raw = tiny.ground(
        tiny.preprocess(photo),
        ["bus"],
        boxes=torch.tensor(
            [
                [
                    [17.5 / 64, 17.5 / 48, 25 / 64, 25 / 48],
                    [42.25 / 64, 29 / 48, 43.5 / 64, 38 / 48],
                ]
            ]
        ),
        box_labels=torch.tensor([[1, 0]]),
    )
    scores = (raw.logits.sigmoid() * raw.presence.sigmoid())[0].sort(descending=True).values
    torch.testing.assert_close(torch.from_numpy(out.scores), scores, rtol=0, atol=1e-5)


def test_exemplars_are_points_in_pixels(tiny: es3.ImageModel, photo: Pixels) -> None:
    points, labels = [[16, 12], [64, 0]], [1, 0]
    out = tiny.segment(photo, "bus", points=points, point_labels=labels, threshold=0.0)
    raw = tiny.ground(
        tiny.preprocess(photo),
        ["bus"],
        points=torch.tensor([[[0.25, 0.25], [1.0, 0.0]]]),
        point_labels=torch.tensor([labels]),
    )
    scores = (raw.logits.sigmoid() * raw.presence.sigmoid())[0].sort(descending=True).values
    torch.testing.assert_close(torch.from_numpy(out.scores), scores, rtol=0, atol=1e-5)


def test_positive_and_negative_exemplars_say_different_things(
    tiny: es3.ImageModel, photo: Pixels
) -> None:
    encoded = tiny.encode(photo)

    def ask(**options: Any) -> list[float]:
        return tiny.segment(encoded, "bus", threshold=0.0, **options).scores.tolist()

    answers = [
        ask(),
        ask(boxes=BOXES[:1]),
        ask(boxes=BOXES[:1], box_labels=[0]),
        ask(points=[[10, 10]]),
        ask(points=[[10, 10]], point_labels=[0]),
        ask(boxes=BOXES[:1], points=[[10, 10]]),
    ]
    for i, a in enumerate(answers):
        for b in answers[:i]:
            assert np.abs(np.subtract(a, b)).max() > 1e-3
    assert ask(boxes=BOXES[:1], box_labels=[1]) == answers[1]
    assert ask(points=[[10, 10]], point_labels=[1]) == answers[3]


def test_the_order_of_exemplars_means_nothing(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    a = tiny.segment(encoded, "bus", boxes=BOXES, box_labels=[1, 0], threshold=0.0)
    b = tiny.segment(encoded, "bus", boxes=BOXES[::-1], box_labels=[0, 1], threshold=0.0)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


@pytest.mark.parametrize(
    "form", [list, tuple, np.array, torch.tensor, lambda x: np.array(x, np.int64), torch.Tensor]
)
def test_prompts_of_any_array_type(
    tiny: es3.ImageModel, photo: Pixels, form: Callable[[Any], Any]
) -> None:
    encoded = tiny.encode(photo)
    whole = [[5, 5, 30, 30], [20, 10, 64, 48]]
    expected = tiny.segment(encoded, "bus", boxes=whole, box_labels=[1, 0], threshold=0.45)
    labels = torch.tensor([1, 0]) if form in (torch.tensor, torch.Tensor) else form([1, 0])
    same(
        tiny.segment(encoded, "bus", boxes=form(whole), box_labels=labels, threshold=0.45),
        expected,
    )
    objects = tiny.segment_objects(encoded, boxes=whole)
    same(tiny.segment_objects(encoded, boxes=form(whole)), objects)


def test_exemplars_alone_define_the_concept(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    alone = tiny.segment(encoded, boxes=BOXES, threshold=0.45)
    assert set(alone.labels) <= {VISUAL}
    assert alone.concepts == (VISUAL,)
    same(alone, tiny.segment(encoded, VISUAL, boxes=BOXES, threshold=0.45))
    raw = tiny.ground(tiny.preprocess(photo), [None], boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]))
    named = tiny.ground(
        tiny.preprocess(photo), [VISUAL], boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    )
    assert torch.equal(raw.logits, named.logits)
    with_point = tiny.segment(encoded, boxes=BOXES, points=[[3, 3]], threshold=0.0)
    assert with_point.concepts == (VISUAL,)


def test_a_box_that_reaches_over_the_edge_is_a_box(tiny: es3.ImageModel, photo: Pixels) -> None:
    assert len(tiny.segment(photo, "bus", boxes=[[-3, -5, 70, 50]], threshold=0.0)) == 12
    assert len(tiny.segment_objects(photo, boxes=[[-3, -5, 70, 50]])) == 1


def test_a_mask_is_read_as_its_box(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    mask = np.zeros(photo.shape[:2], bool)
    mask[5:30, 5] = mask[9, 5:30] = True
    expected = tiny.segment(encoded, "bus", boxes=BOXES[:1], threshold=0.45)
    corners = [[5, 5], [30, 5], [30, 30], [5, 30]]
    for masks in (mask, [mask], mask[None], [corners], [rle.encode(mask)[0]]):
        same(tiny.segment(encoded, "bus", masks=masks, threshold=0.45), expected)
    both = tiny.segment(encoded, "bus", boxes=BOXES, box_labels=[1, 0], threshold=0.45)
    mixed: dict[str, Any] = {"boxes": BOXES[1:], "box_labels": [0], "masks": mask}
    same(tiny.segment(encoded, "bus", **mixed, threshold=0.45), both, 1e-5)
    alone = tiny.segment(encoded, masks=mask, threshold=0.45)
    same(alone, tiny.segment(encoded, boxes=BOXES[:1], threshold=0.45))
    signed = tiny.segment(encoded, "bus", masks=[mask], mask_labels=[0], threshold=0.45)
    same(signed, tiny.segment(encoded, "bus", boxes=BOXES[:1], box_labels=[0], threshold=0.45))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": np.ones((9, 9), bool)}, "9 x 9 pixels .* its image 64 x 48: resize"),
        ({"masks": np.zeros((48, 64), bool)}, "no pixel"),
        ({"masks": [[[1, 1], [9, 9]]]}, "at least three corners; got 2"),
        ({"masks": [[1, 1], [9, 1], [9, 9]]}, "Several objects are a list of polygons"),
        ({"masks": []}, "no exemplar"),
        ({"masks": np.ones((48, 64), bool), "mask_labels": [1, 0]}, "mask_labels have shape"),
        ({"boxes": BOXES, "mask_labels": [1]}, "mask_labels are given without masks"),
    ],
)
def test_wrong_masks(
    tiny: es3.ImageModel, photo: Pixels, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(es3.PromptError, match=message):
        tiny.segment(photo, **options)
