"""The losses of Stage 3, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision

from efficientsam3.distill import losses
from efficientsam3.distill.losses import (
    LossWeights,
    Terms,
    box_losses,
    count_objects,
    dice_loss,
    focal_loss,
    label_loss,
    mask_losses,
    presence_loss,
)
from efficientsam3.distill.matcher import Matches, Targets

BOX = [0.5, 0.5, 0.2, 0.2]
ONE = Matches(torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
WHOLE = LossWeights(padded_queries=0)


def targets(present: list[bool], exhaustive: list[bool] | None = None) -> Targets:
    rows = len(present)
    boxes = torch.tensor(BOX).expand(rows, 1, 4)
    whole = torch.tensor(exhaustive or [True] * rows)
    return Targets(boxes, torch.tensor(present)[:, None], None, whole)


def test_focal_loss_is_torchvisions() -> None:
    torch.manual_seed(0)
    logits, goal = torch.randn(3, 5), torch.randint(0, 2, (3, 5)).float()
    theirs = torchvision.ops.sigmoid_focal_loss(logits, goal, 0.25, 2.0)
    torch.testing.assert_close(focal_loss(logits, goal), theirs)


def test_dice_loss_by_hand() -> None:
    # Half of a mask of 4 cells, all sure: 1 - (2 * 2 + 1) / (2 + 4 + 1).
    logits = torch.tensor([[[50.0, 50.0], [-50.0, -50.0]]])
    torch.testing.assert_close(dice_loss(logits, torch.ones(1, 2, 2)), torch.tensor([2 / 7]))
    assert float(dice_loss(-50 * torch.ones(1, 2, 2), torch.zeros(1, 2, 2))) == pytest.approx(0)


def test_labels_by_hand() -> None:
    # Query 1 matches its box exactly at p = 0.5: its goal is 0.5^0.25 * 1.
    logits, boxes = torch.zeros(1, 2), torch.tensor([[[0.1, 0.1, 0.1, 0.1], BOX]])
    goal = 0.5**0.25
    hit = -(goal * math.log(0.5) + (1 - goal) * math.log(0.5))
    miss = -math.log(0.5) * 0.5**2
    loss = label_loss(logits, boxes, targets([True]), ONE, WHOLE)
    assert float(loss) == pytest.approx((10 * hit + miss) / 2, rel=1e-5)
    # Few queries count as 128, so that models with few and many learn at one rate.
    padded = label_loss(logits, boxes, targets([True]), ONE, LossWeights())
    assert float(padded) == pytest.approx((10 * hit + miss) / 128, rel=1e-5)


def test_a_bad_box_lowers_the_goal_to_a_hundredth() -> None:
    logits, boxes = torch.full((1, 2), -9.0), torch.tensor([[BOX, [0.1, 0.1, 0.1, 0.1]]])
    logits.requires_grad_()
    label_loss(logits, boxes, targets([True]), ONE, WHOLE).backward()
    # d BCE / d logit = p - goal, weighted by 10 and averaged over two queries.
    wanted = 10 * (1 / (1 + math.exp(9)) - 0.01) / 2
    assert logits.grad is not None
    assert float(logits.grad[0, 1]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("quality", [1.0, 0.5])
def test_scores_come_to_be_a_power_of_the_iou(quality: float) -> None:
    """Where the label is the probability itself, nothing pulls any more."""
    half = [0.5, 0.5, 0.1, 0.2]  # IoU 0.5 with BOX
    exponent = 0.75 * quality / (1 - 0.25 * quality)
    p = 0.5**exponent
    logits = torch.tensor([[-9.0, math.log(p / (1 - p))]], requires_grad=True)
    weights = LossWeights(padded_queries=0, quality=quality)
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], half]])
    label_loss(logits, boxes, targets([True]), ONE, weights).backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 1]) == pytest.approx(0, abs=1e-5)


def test_prompts_without_objects_leave_queries_alone() -> None:
    nothing = Matches(*(torch.zeros(0, dtype=torch.long) for _ in range(3)))
    boxes = torch.rand(2, 3, 4)
    assert float(label_loss(torch.randn(2, 3), boxes, targets([False, False]), nothing, WHOLE)) == 0


def test_what_is_not_exhaustive_blames_no_query() -> None:
    logits, boxes = torch.tensor([[5.0, 0.0]]), torch.tensor([[[0.1, 0.1, 0.1, 0.1], BOX]])
    sure = label_loss(logits, boxes, targets([True]), ONE, WHOLE)
    unsure = label_loss(logits, boxes, targets([True], [False]), ONE, WHOLE)
    p = 1 / (1 + math.exp(-5))
    assert float(sure - unsure) == pytest.approx(-math.log(1 - p) * p**2 / 2, rel=1e-4)


def test_presence_by_hand() -> None:
    # Half of the mean cross-entropy of p = 0.5 (there) and p = 0.5 (absent).
    assert float(presence_loss(torch.zeros(2), targets([True, False]))) == pytest.approx(
        0.5 * math.log(2)
    )
    # Absent, but objects may be missing: no say.
    loss = presence_loss(torch.tensor([0.0, 9.0]), targets([True, False], [True, False]))
    assert float(loss) == pytest.approx(0.5 * math.log(2))


def test_boxes_by_hand() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.6, 0.5, 0.2, 0.2]]])
    l1, giou = box_losses(boxes, targets([True]), ONE, torch.tensor(2.0))
    assert float(l1) == pytest.approx(0.1 / 2)
    # Shifted by half of its side: IoU 1/3, and the hull is the union.
    assert float(giou) == pytest.approx((1 - 1 / 3) / 2, rel=1e-5)


def test_masks_are_means_over_cells_and_sums_over_objects() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 4, 4), torch.randint(0, 2, (3, 4, 4))
    focal, dice = mask_losses(logits, masks, torch.tensor(6.0))
    torch.testing.assert_close(focal, focal_loss(logits, masks.float()).mean() * 3 / 6)
    torch.testing.assert_close(dice, dice_loss(logits, masks.float()).mean() * 3 / 6)


def test_objects_count_alike_in_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = targets([True, True])
    assert float(count_objects(ours)) == 2
    assert float(count_objects(targets([False]))) == 1
    # Another process has 4: both divide by the mean.
    monkeypatch.setattr(losses.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(losses.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(losses.dist, "all_reduce", lambda count: count.add_(4))
    assert float(count_objects(ours)) == 3


def test_terms_are_summed_by_weight() -> None:
    terms = Terms()
    value = torch.tensor(2.0, requires_grad=True)
    terms.add("a", value, 10.0)
    terms.add("a", torch.tensor(3.0), 0.5)
    terms.add("b", torch.tensor(1.0), 0.0)
    out = terms.all()
    assert {k: float(v.detach()) for k, v in out.items()} == {"a": 5, "b": 1, "loss": 21.5}
    assert not out["a"].requires_grad
    out["loss"].backward()
    assert float(value.grad or 0) == 10
