"""Matching, compared with brute force and with values computed by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
import torchvision

from efficientsam3.nn.layers import cxcywh_to_xyxy
from efficientsam3.train.losses.matcher import (
    HungarianMatcher,
    OneToManyMatcher,
    Targets,
    paired_iou,
    pairwise_iou,
)


def random_boxes(*shape: int) -> torch.Tensor:
    return torch.cat([torch.rand(*shape, 2) * 0.6 + 0.2, torch.rand(*shape, 2) * 0.3 + 0.05], -1)


def targets(boxes: torch.Tensor, counts: list[int]) -> Targets:
    valid = torch.arange(boxes.shape[1])[None] < torch.tensor(counts)[:, None]
    return Targets(boxes, valid, None, torch.ones(len(counts), dtype=torch.bool))


def test_box_iou_equals_torchvision() -> None:
    torch.manual_seed(0)
    a, b = cxcywh_to_xyxy(random_boxes(7)), cxcywh_to_xyxy(random_boxes(5))
    iou, giou = pairwise_iou(a, b)
    torch.testing.assert_close(iou, torchvision.ops.box_iou(a, b))
    torch.testing.assert_close(giou, torchvision.ops.generalized_box_iou(a, b))
    same, generalized = paired_iou(a[:5], b)
    torch.testing.assert_close(same, iou[:5].diagonal())
    torch.testing.assert_close(generalized, giou[:5].diagonal())


def test_the_iou_of_boxes_without_area_is_finite() -> None:
    flat = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert torch.isfinite(torch.stack(pairwise_iou(flat, flat))).all()


def test_the_assignment_has_the_lowest_cost() -> None:
    torch.manual_seed(1)
    logits, boxes = torch.randn(1, 5), random_boxes(1, 5)
    wanted = targets(random_boxes(1, 3), [3])
    matcher = HungarianMatcher()
    rows, queries, objects = matcher(logits, boxes, wanted)
    cost = matcher._cost(logits, boxes, wanted.boxes)[0]

    def price(order: tuple[int, ...]) -> float:
        return float(sum(cost[q, o] for o, q in enumerate(order)))

    best = min(itertools.permutations(range(5), 3), key=price)
    assert rows.tolist() == [0, 0, 0]
    assert {o: q for q, o in zip(queries.tolist(), objects.tolist(), strict=True)} == dict(
        enumerate(best)
    )


def test_the_cost_by_hand() -> None:
    # One query with logit 0 exactly on the box: focal cost (0.25 - 0.75) * 0.25 * ln 2, no
    # distance, generalized IoU of 1.
    box = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    cost = HungarianMatcher()._cost(torch.zeros(1, 1), box, box)
    expected = 2 * (0.25 - 0.75) * 0.25 * torch.log(torch.tensor(2.0)) - 2
    torch.testing.assert_close(cost.squeeze(), expected)


def test_prompts_without_objects_match_nothing() -> None:
    torch.manual_seed(2)
    wanted = targets(random_boxes(3, 2), [0, 2, 0])
    rows, _, objects = HungarianMatcher()(torch.randn(3, 4), random_boxes(3, 4), wanted)
    assert rows.tolist() == [1, 1] and sorted(objects.tolist()) == [0, 1]
    none = targets(torch.zeros(2, 0, 4), [0, 0])
    for matcher in (HungarianMatcher(), OneToManyMatcher()):
        assert not len(matcher(torch.randn(2, 4), random_boxes(2, 4), none).rows)


def test_more_objects_than_queries_leave_objects_unmatched() -> None:
    torch.manual_seed(3)
    wanted = targets(random_boxes(1, 6), [6])
    _, queries, objects = HungarianMatcher()(torch.randn(1, 2), random_boxes(1, 2), wanted)
    assert len(set(queries.tolist())) == 2 and len(set(objects.tolist())) == 2


def test_padding_before_targets_is_an_error() -> None:
    gap = Targets(
        random_boxes(1, 2), torch.tensor([[False, True]]), None, torch.ones(1, dtype=torch.bool)
    )
    with pytest.raises(ValueError, match="padding after them"):
        HungarianMatcher()(torch.randn(1, 4), random_boxes(1, 4), gap)


def test_one_to_many_matches_the_best_queries_above_the_threshold() -> None:
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    far = torch.tensor([0.1, 0.1, 0.1, 0.1])
    boxes = torch.stack([box, far, box, box, far, box])[None]
    logits = torch.tensor([[0.0, 9.0, 1.0, 2.0, 9.0, -9.0]])
    wanted = targets(box.view(1, 1, 4), [1])
    # On the box: 0.3 p + 0.7; beside it at most 0.3: below the threshold.
    assert OneToManyMatcher(top=4)(logits, boxes, wanted).queries.tolist() == [0, 2, 3, 5]
    assert OneToManyMatcher(top=2)(logits, boxes, wanted).queries.tolist() == [2, 3]
    assert not len(OneToManyMatcher(threshold=1.1)(logits, boxes, wanted).queries)
