"""Scores of late fusion, which depend on all objects of an image."""

from __future__ import annotations

import pytest
import torch

from efficientsam3.nn.late_prompts import PromptDecoder
from efficientsam3.nn.late_scores import Rescorer, both, overlaps

Logits = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def logits() -> Logits:
    """Of seven objects and two prompts: meant, found, presence, and boxes of one image."""
    generator = torch.Generator().manual_seed(0)
    meant, found = (3 * torch.randn(2, 7, generator=generator) for _ in range(2))
    boxes = 0.2 + 0.4 * torch.rand(1, 7, 4, generator=generator)
    return meant, found, torch.tensor([1.0, -2.0]), boxes


def trained() -> Rescorer:
    torch.manual_seed(1)
    rescorer = Rescorer(16)
    for parameter in rescorer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return rescorer.requires_grad_(False)


def test_an_untrained_rescorer_adds_nothing(logits: Logits) -> None:
    meant, found, presence, boxes = logits
    plain = PromptDecoder(16, 2, 16, 1, 4)
    learned = PromptDecoder(16, 2, 16, 1, 4, rescoring=8)
    for decoder in (plain, learned):
        scores, present = decoder.score_objects(meant, found, presence, boxes)
        torch.testing.assert_close(scores, both(meant, found))
        torch.testing.assert_close(present, presence)


def test_scores_depend_on_the_strongest_objects_and_not_on_their_order(logits: Logits) -> None:
    meant, found, presence, boxes = logits
    rescorer = trained()
    scores, present = rescorer(meant, found, presence, boxes)
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    turned, same = rescorer(meant[:, order], found[:, order], presence, boxes[:, order])
    torch.testing.assert_close(turned, scores[:, order])
    torch.testing.assert_close(same, present)
    stronger = meant.clone()
    stronger[0, int(both(meant, found)[0].argmax())] += 3
    changed, more = rescorer(stronger, found, presence, boxes)
    assert not torch.allclose(changed[0], scores[0]) and not torch.allclose(more[0], present[0])
    torch.testing.assert_close(changed[1], scores[1])  # another prompt


def test_the_boxes_of_one_image_serve_all_its_prompts(logits: Logits) -> None:
    meant, found, presence, boxes = logits
    rescorer = trained()
    for ours, theirs in zip(
        rescorer(meant, found, presence, boxes),
        rescorer(meant, found, presence, boxes.expand(2, -1, -1)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_score_depends_on_what_stronger_objects_cover(logits: Logits) -> None:
    _, found, presence, _ = logits
    meant = torch.arange(7.0).expand(2, -1)
    found = torch.ones_like(found)
    apart = torch.tensor([0.05, 0.05, 0.04, 0.04]) + torch.arange(7.0)[:, None] * torch.tensor(
        [0.1, 0.1, 0.0, 0.0]
    )
    same = apart.clone()
    same[0] = apart[6]  # the weakest lies on the strongest
    rescorer = trained()
    before, after = (rescorer(meant, found, presence, b[None])[0] for b in (apart, same))
    assert not torch.allclose(before[:, 0], after[:, 0])
    torch.testing.assert_close(before[:, 1:], after[:, 1:])


def test_overlaps_of_boxes() -> None:
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.2, 0.4], [0.9, 0.9, 0.1, 0.1]]])
    found = overlaps(boxes)[0]
    torch.testing.assert_close(found[0, 1], torch.tensor([0.5, 0.5, 1.0]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1, 0], torch.tensor([0.5, 1.0, 0.5]), atol=1e-4, rtol=1e-4)
    assert found[0, 2].tolist() == [0.0, 0.0, 0.0]


def test_extreme_logits_stay_finite() -> None:
    rescorer = trained()
    meant, found = torch.full((1, 4), 90.0), torch.tensor([[90.0, -90.0, 0.0, 90.0]])
    scores, present = rescorer(meant, found, torch.tensor([-200.0]), torch.zeros(1, 4, 4))
    assert bool(torch.isfinite(scores).all()) and bool(torch.isfinite(present).all())


@pytest.mark.parametrize("rescoring", [0, 8])
def test_biases_shift_every_logit_by_the_same(rescoring: int, logits: Logits) -> None:
    """Calibration changes them, and what it has measured stays true."""
    torch.manual_seed(0)
    decoder = PromptDecoder(16, 2, 16, 1, 4, rescoring=rescoring).requires_grad_(False)
    queries, prompt, mask = torch.randn(2, 7, 16), torch.randn(2, 5, 16), torch.ones(2, 5).bool()

    def answer() -> tuple[torch.Tensor, torch.Tensor]:
        meant, presence = decoder(queries, prompt, mask, torch.arange(2))
        scores, present = decoder.score_objects(meant, logits[1], presence, logits[3])
        return scores, present

    scores, present = answer()
    decoder.presence_bias().add_(0.5)
    torch.testing.assert_close(answer()[1], present + 0.5)
    if rescoring:
        decoder.object_bias().add_(0.25)
        torch.testing.assert_close(answer()[0], scores + 0.25)
