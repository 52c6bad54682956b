"""The detection losses, computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from efficientsam3.train.losses import detection
from efficientsam3.train.losses.common import dice_loss, focal_loss
from efficientsam3.train.losses.detection import (
    LossWeights,
    box_losses,
    count_objects,
    label_loss,
    mask_losses,
    presence_loss,
)
from efficientsam3.train.losses.matcher import Matches, Targets

BOX = [0.5, 0.5, 0.2, 0.2]
ONE = Matches(torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
WHOLE = LossWeights(padded_queries=0)


def targets(present: list[bool], exhaustive: list[bool] | None = None) -> Targets:
    rows = len(present)
    boxes = torch.tensor(BOX).expand(rows, 1, 4)
    whole = torch.tensor(exhaustive or [True] * rows)
    return Targets(boxes, torch.tensor(present)[:, None], None, whole)


def test_labels_by_hand() -> None:
    # Query 1 matches its box exactly at p = 0.5, so its label is 0.5^0.25 * 1.
    logits, boxes = torch.zeros(1, 2), torch.tensor([[[0.1, 0.1, 0.1, 0.1], BOX]])
    goal = 0.5**0.25
    hit = -(goal * math.log(0.5) + (1 - goal) * math.log(0.5))
    miss = -math.log(0.5) * 0.5**2
    loss = label_loss(logits, boxes, targets([True]), ONE, WHOLE)
    assert float(loss) == pytest.approx((10 * hit + miss) / 2, rel=1e-5)
    # Few queries count as 128, so that models with few and many learn at one rate.
    padded = label_loss(logits, boxes, targets([True]), ONE, LossWeights())
    assert float(padded) == pytest.approx((10 * hit + miss) / 128, rel=1e-5)


def test_the_label_of_a_bad_box_is_at_least_a_hundredth() -> None:
    logits, boxes = torch.full((1, 2), -9.0), torch.tensor([[BOX, [0.1, 0.1, 0.1, 0.1]]])
    logits.requires_grad_()
    label_loss(logits, boxes, targets([True]), ONE, WHOLE).backward()
    # d BCE / d logit = p - label, weighted by 10 and averaged over two queries.
    wanted = 10 * (1 / (1 + math.exp(9)) - 0.01) / 2
    assert logits.grad is not None
    assert float(logits.grad[0, 1]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("quality", [1.0, 0.5])
def test_the_optimal_score_is_a_power_of_the_iou(quality: float) -> None:
    """The gradient is zero where the label is the probability itself."""
    half = [0.5, 0.5, 0.1, 0.2]  # IoU 0.5 with BOX
    exponent = 0.75 * quality / (1 - 0.25 * quality)
    p = 0.5**exponent
    logits = torch.tensor([[-9.0, math.log(p / (1 - p))]], requires_grad=True)
    weights = LossWeights(padded_queries=0, quality=quality)
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], half]])
    label_loss(logits, boxes, targets([True]), ONE, weights).backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 1]) == pytest.approx(0, abs=1e-5)


def test_prompts_without_objects_have_no_label_loss() -> None:
    nothing = Matches(*(torch.zeros(0, dtype=torch.long) for _ in range(3)))
    boxes = torch.rand(2, 3, 4)
    assert float(label_loss(torch.randn(2, 3), boxes, targets([False, False]), nothing, WHOLE)) == 0


def test_unmatched_queries_are_not_penalised_without_exhaustive_annotation() -> None:
    logits, boxes = torch.tensor([[5.0, 0.0]]), torch.tensor([[[0.1, 0.1, 0.1, 0.1], BOX]])
    sure = label_loss(logits, boxes, targets([True]), ONE, WHOLE)
    unsure = label_loss(logits, boxes, targets([True], [False]), ONE, WHOLE)
    p = 1 / (1 + math.exp(-5))
    assert float(sure - unsure) == pytest.approx(-math.log(1 - p) * p**2 / 2, rel=1e-4)


def test_presence_by_hand() -> None:
    # Half of the mean cross-entropy of p = 0.5 (present) and p = 0.5 (absent).
    assert float(presence_loss(torch.zeros(2), targets([True, False]))) == pytest.approx(
        0.5 * math.log(2)
    )
    # A prompt without objects and without exhaustive annotation does not count.
    loss = presence_loss(torch.tensor([0.0, 9.0]), targets([True, False], [True, False]))
    assert float(loss) == pytest.approx(0.5 * math.log(2))


def test_boxes_by_hand() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.6, 0.5, 0.2, 0.2]]])
    l1, giou = box_losses(boxes, targets([True]), ONE, torch.tensor(2.0))
    assert float(l1) == pytest.approx(0.1 / 2)
    # Shifted by half of its side: IoU 1/3, and the hull is the union.
    assert float(giou) == pytest.approx((1 - 1 / 3) / 2, rel=1e-5)


def test_mask_losses_are_means_over_pixels_and_sums_over_objects() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 4, 4), torch.randint(0, 2, (3, 4, 4))
    focal, dice = mask_losses(logits, masks, torch.tensor(6.0))
    torch.testing.assert_close(focal, focal_loss(logits, masks.float()).mean() * 3 / 6)
    torch.testing.assert_close(dice, dice_loss(logits, masks.float()).mean() * 3 / 6)


def test_objects_are_counted_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = targets([True, True])
    assert float(count_objects(ours)) == 2
    assert float(count_objects(targets([False]))) == 1
    # Another process has 4: both divide by the mean.
    monkeypatch.setattr(detection.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(detection.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(detection.dist, "all_reduce", lambda count: count.add_(4))
    assert float(count_objects(ours)) == 3
