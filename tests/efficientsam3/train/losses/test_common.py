"""Losses that tasks share, computed by hand."""

from __future__ import annotations

import pytest
import torch
import torchvision

from efficientsam3.train.losses.common import LossTerms, dice_loss, focal_loss, paired_mask_iou


def test_focal_loss_equals_torchvision() -> None:
    torch.manual_seed(0)
    logits, goal = torch.randn(3, 5), torch.randint(0, 2, (3, 5)).float()
    theirs = torchvision.ops.sigmoid_focal_loss(logits, goal, 0.25, 2.0)
    torch.testing.assert_close(focal_loss(logits, goal), theirs)


def test_dice_loss_by_hand() -> None:
    # Half of a mask of 4 cells, all sure: 1 - (2 * 2 + 1) / (2 + 4 + 1).
    logits = torch.tensor([[[50.0, 50.0], [-50.0, -50.0]]])
    torch.testing.assert_close(dice_loss(logits, torch.ones(1, 2, 2)), torch.tensor([2 / 7]))
    assert float(dice_loss(-50 * torch.ones(1, 2, 2), torch.zeros(1, 2, 2))) == pytest.approx(0)


def test_mask_iou_of_two_empty_masks_is_one() -> None:
    a, b = torch.zeros(3, 4, 4, dtype=torch.bool), torch.zeros(3, 4, 4, dtype=torch.bool)
    a[0, :2] = b[0, 1:3] = True
    a[1, 0] = True
    assert paired_mask_iou(a, b).tolist() == pytest.approx([1 / 3, 0, 1])


def test_terms_are_summed_by_weight() -> None:
    terms = LossTerms()
    value = torch.tensor(2.0, requires_grad=True)
    terms.add("a", value, 10.0)
    terms.add("a", torch.tensor(3.0), 0.5)
    terms.add("b", torch.tensor(1.0), 0.0)
    out = terms.total()
    assert {k: float(v.detach()) for k, v in out.items()} == {"a": 5, "b": 1, "loss": 21.5}
    assert not out["a"].requires_grad
    out["loss"].backward()
    assert float(value.grad or 0) == 10
