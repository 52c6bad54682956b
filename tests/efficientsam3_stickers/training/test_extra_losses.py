"""The extra losses of training from scratch: dense terms and names of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam3.train.losses.grounding import GroundingLoss
from efficientsam3.train.losses.matcher import Targets
from efficientsam3.train.tasks.grounding_batches import GroundingCollator, PromptSettings
from efficientsam3_stickers.training.dense_loss import DenseLoss, token_coverage, token_terms
from efficientsam3_stickers.training.token_classification import (
    TokenClassification,
    TokenLabeler,
    name_logits,
    name_losses,
)

from ...efficientsam3.train.conftest import COLORS, Shapes, colored_sample, replace, tiny_net


def half_covered(**changes: Any) -> Targets:
    """One prompt with an object on the upper half of the image, and one without an object."""
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, 0, :4] = 1
    given = {
        "boxes": torch.tensor([[[0.5, 0.25, 1.0, 0.5]]] * 2),
        "valid": torch.tensor([[True], [False]]),
        "masks": masks,
        "exhaustive": torch.tensor([True, True]),
        **changes,
    }
    return Targets(**given)


def loss_of(targets: Targets, logits: Tensor, used: tuple[bool, bool] = (True, True)) -> float:
    covered = token_coverage(targets, (2, 2))
    terms = token_terms("x", logits, covered, targets, torch.tensor(used), 1.0)
    assert [name for name, _, _ in terms] == ["x_focal", "x_dice"]
    return float(sum(weight * value for _, value, weight in terms))


def test_tokens_lie_on_the_object_that_covers_them() -> None:
    targets = half_covered()
    assert token_coverage(targets, (2, 2)).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    none = half_covered(
        boxes=torch.zeros(2, 0, 4),
        valid=torch.zeros(2, 0, dtype=torch.bool),
        masks=torch.zeros(2, 0, 8, 8),
    )
    assert token_coverage(none, (2, 2)).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
    right = torch.tensor([[9.0, 9, -9, -9], [-9, -9, -9, -9]])
    assert loss_of(targets, right) < 0.01
    wrong = right.clone()
    wrong[1, 0] = 9
    assert loss_of(targets, wrong) > 1


def test_unknown_tokens_have_no_loss() -> None:
    incomplete = half_covered(exhaustive=torch.tensor([False, False]))
    everywhere = torch.full((2, 4), 9.0)  # wrong outside of the object, if that were known
    assert loss_of(incomplete, everywhere) < 0.01
    assert loss_of(incomplete, -everywhere) > 1
    assert loss_of(half_covered(), -everywhere, (False, False)) == 0


@pytest.mark.parametrize("box_only", [0.0, 1.0])
def test_dense_terms_are_added(box_only: float) -> None:
    """Phrases learn from tokens, but not "visual", which names no concept."""
    config, net = tiny_net()
    settings = PromptSettings(prompts=1, positive_share=1.0, text_and_box=0, box_only=box_only)
    batch = GroundingCollator(config, settings)([Shapes()[0]], np.random.default_rng(0))
    terms = GroundingLoss(extra=(DenseLoss(align=2.0, dense=3.0),))(net, batch)
    plain = GroundingLoss()(net, batch)
    assert (float(terms["align_dice"]) > 0) == (not box_only)
    assert float(terms["dense_dice"]) > 0
    added = sum(
        weight * (10 * terms[f"{name}_focal"] + terms[f"{name}_dice"])
        for name, weight in (("align", 2.0), ("dense", 3.0))
    )
    torch.testing.assert_close(terms["loss"] - plain["loss"], torch.as_tensor(added))
    (added_alone,) = (GroundingLoss(extra=(DenseLoss(align=0),))(net, batch),)
    assert not {k for k in added_alone if k.startswith("align")}
    without_masks = batch._replace(targets=batch.targets._replace(masks=None))
    assert "dense_dice" not in GroundingLoss(extra=(DenseLoss(),))(net, without_masks)


def test_names_are_learned_along() -> None:
    config, net = tiny_net()
    vocabulary = TokenLabeler(config, (*COLORS, "dog"))
    make = GroundingCollator(config, PromptSettings(prompts=2), vocabulary)
    batch = make([colored_sample(0), colored_sample(1)], np.random.default_rng(0))
    assert batch.extra_targets is not None
    assert len(batch.extra_targets.tokens) == len(COLORS) + 1
    weighed = GroundingLoss(extra=(TokenClassification(10.0),))
    terms = weighed(net, batch)
    logits = name_logits(net, net.read_image(batch.pixels).tokens, batch.extra_targets.tokens)
    wanted = name_losses(logits, batch.extra_targets)
    torch.testing.assert_close(terms["names"], wanted["loss"].detach())
    assert "names" not in GroundingLoss()(net, batch)
    assert "names" not in weighed(net, batch._replace(extra_targets=None))
    (weighed(net, batch)["loss"] - GroundingLoss()(net, batch)["loss"]).backward()
    for part in ("trunk", "text", "scoring"):
        assert any(p.grad is not None and p.grad.any() for p in net.part(part).parameters()), part


def test_an_object_without_a_name_is_ignored() -> None:
    config, _ = tiny_net()
    sample = replace(colored_sample(0), queries=colored_sample(0).queries[:1])
    labels = TokenLabeler(config, COLORS)([sample], np.random.default_rng(0))
    assert int((labels.objects[0] > 0).sum()) == 1
    assert int((labels.objects[0] < 0).sum()) == 1
