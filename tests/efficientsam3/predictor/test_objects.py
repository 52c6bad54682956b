"""Single objects by points, boxes and masks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

import efficientsam3 as es3
from efficientsam3.outputs import OBJECT

from .conftest import BOXES, same

Pixels = npt.NDArray[np.uint8]


def test_a_click_gives_one_mask_or_three(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    one = tiny.segment(encoded, points=[[20, 20]])
    assert (len(one), one.labels, one.size) == (1, [OBJECT], (48, 64))
    assert one.low_res is not None
    assert one.low_res.shape == (1, 1, 32, 32)
    assert np.abs(one.low_res).max() <= 32
    three = tiny.segment(encoded, points=[[20, 20]], multimask=True)
    assert len(three) == 3
    assert three.low_res is not None
    assert three.low_res.shape == (3, 1, 32, 32)
    assert (np.diff(three.scores) <= 0).all()
    assert ((three.scores >= 0) & (three.scores <= 1)).all()
    assert len(set(three.presence)) == 1
    same(one, tiny.segment_objects(encoded, points=[[[20, 20]]]))
    same(one, tiny.segment(encoded, points=[[20, 20]], point_labels=[1]))


def test_boxes_of_objects_are_those_of_their_masks(tiny: es3.ImageModel, photo: Pixels) -> None:
    out = tiny.segment_objects(photo, boxes=BOXES, multimask=True)
    assert len(out) == 6
    for i in range(6):
        assert tuple(out.boxes[i]) == out.crop(i)[1]


def test_low_resolution_logits_belong_to_their_mask(tiny: es3.ImageModel, photo: Pixels) -> None:
    out = tiny.segment(photo, points=[[20, 20]], multimask=True)
    assert out.low_res is not None
    dense = F.interpolate(torch.from_numpy(out.low_res), (48, 64), mode="bilinear")[:, 0] > 0
    for i in range(3):
        # Small holes are filled in the mask and not in the logits.
        assert (dense[i].numpy() <= out.mask(i)).mean() > 0.999


def test_clicks_and_their_labels_matter(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    answers = [
        tiny.segment(encoded, points=[[20, 20]]),
        tiny.segment(encoded, points=[[40, 20]]),
        tiny.segment(encoded, points=[[20, 20]], point_labels=[0]),
        tiny.segment(encoded, points=[[20, 20], [40, 20]]),
        tiny.segment(encoded, points=[[20, 20], [40, 20]], point_labels=[1, 0]),
        tiny.segment_objects(encoded, boxes=[[20, 20, 40, 40]]),
        tiny.segment_objects(encoded, boxes=[[20, 20, 40, 40]], points=[[[20, 20]]]),
    ]
    for i, a in enumerate(answers):
        for b in answers[:i]:
            assert a.low_res is not None
            assert b.low_res is not None
            assert np.abs(a.low_res - b.low_res).max() > 1e-3


def test_a_mask_refines_the_next(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    first = tiny.segment(encoded, points=[[20, 20]])
    refined = tiny.segment(encoded, points=[[20, 20]], mask_input=first.low_res)
    assert first.low_res is not None
    assert refined.low_res is not None
    assert np.abs(refined.low_res - first.low_res).max() > 1e-3
    same(refined, tiny.segment_objects(encoded, points=[[[20, 20]]], masks=first.low_res))
    alone = tiny.segment_objects(encoded, masks=first.low_res)
    assert len(alone) == 1


def test_many_objects_at_once_are_each_as_alone(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    rng = np.random.default_rng(1)
    low = rng.uniform(0, [40, 30], (19, 2))  # more than one chunk
    boxes = np.concatenate([low, low + rng.uniform(5, 15, (19, 2))], 1)
    together = tiny.segment_objects(encoded, boxes=boxes)
    assert len(together) == 19
    assert together.low_res is not None
    for i in (0, 7, 15, 16, 18):
        alone = tiny.segment_objects(encoded, boxes=boxes[i : i + 1])
        np.testing.assert_allclose(together.low_res[i], alone.low_res[0], atol=1e-3)
        np.testing.assert_allclose(together.scores[i], alone.scores[0], atol=1e-5)
    three = tiny.segment_objects(encoded, boxes=boxes[:2], multimask=True)
    first = tiny.segment_objects(encoded, boxes=boxes[:1], multimask=True)
    np.testing.assert_allclose(three.scores[:3], first.scores, atol=1e-5)


def test_no_boxes_are_no_objects(tiny: es3.ImageModel, photo: Pixels) -> None:
    out = tiny.segment_objects(photo, boxes=np.zeros((0, 4)))
    assert len(out) == 0
    assert out.masks.shape == (0, 48, 64)
    assert out.boxes.shape == (0, 4)


def test_padding_points_may_lie_anywhere(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    answers = [
        tiny.segment_objects(encoded, points=[[[20, 20], padding]], point_labels=[[1, -1]])
        for padding in ([0, 0], [-1, -1], [9999, 5])
    ]
    same(answers[0], answers[1])
    same(answers[0], answers[2])
