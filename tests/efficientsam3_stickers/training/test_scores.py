"""Scores that are learned from a model's answers: what counts as found, and what changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientsam3.build import build
from efficientsam3.config import tiny_late_config
from efficientsam3.errors import DataError
from efficientsam3.nn.late_detector import LateDetector
from efficientsam3.nn.late_objects import ObjectQueries
from efficientsam3.nn.late_scores import Rescorer
from efficientsam3_stickers.scenes import SceneGenerator
from efficientsam3_stickers.training.object_batches import ObjectBatch, ObjectBatches, PromptShares
from efficientsam3_stickers.training.object_matching import Assignment
from efficientsam3_stickers.training.phrase_table import PhraseTable
from efficientsam3_stickers.training.scores import (
    Answers,
    fit_rescorer,
    read_answers,
    score_targets,
)

CONFIG = tiny_late_config(parts=("geometry", "masks"))
TABLE = PhraseTable((), 0, torch.zeros(0, 0), CONFIG.context)


@pytest.fixture
def batch(generator: SceneGenerator) -> ObjectBatch:
    shares = PromptShares(box_only=0.5, negative_box=0.5)
    return ObjectBatches(CONFIG, [generator], 4, generator.names, shares)(
        0, np.random.default_rng(0)
    )


@pytest.fixture
def net() -> LateDetector:
    torch.manual_seed(0)
    made = build(CONFIG).eval().requires_grad_(False)
    assert isinstance(made, LateDetector)
    return made


def test_a_query_counts_if_its_mask_is_good_and_twins_are_not_judged(batch: ObjectBatch) -> None:
    one = batch._replace(
        boxes=torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]]),
        valid=torch.ones(1, 2, dtype=torch.bool),
        images=torch.tensor([0, 0, 0]),
        meant=torch.tensor([[True, False], [True, True], [False, False]]),
    )
    boxes = torch.tensor(
        [[[0.3, 0.3, 0.2, 0.2], [0.305, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9]]]
    )
    queries = ObjectQueries(torch.zeros(1, 4, 16), boxes, torch.zeros(1, 4))
    matched = Assignment(torch.tensor([0, 0]), torch.tensor([0, 2]), torch.tensor([0, 1]))
    target, judged = score_targets(queries, matched, torch.tensor([True, True]), one)
    assert target.tolist() == [[True, False, False, False], [True, False, True, False], [False] * 4]
    assert judged.tolist() == [[True, False, True, True]] * 3
    target, judged = score_targets(queries, matched, torch.tensor([True, False]), one)
    assert target[1].tolist() == [True, False, False, False]
    assert judged[1].tolist() == [True, False, True, True]  # a bad mask is an error


def test_answers_are_those_of_the_model(batch: ObjectBatch, net: LateDetector) -> None:
    answers = read_answers(net, [batch, batch], TABLE)
    count = len(batch.phrases)
    assert len(answers.present) == 2 * count
    assert answers.present[:count].tolist() == batch.meant.any(1).tolist()
    image = net.read_image(batch.pixels)
    assert image.objects is not None
    torch.testing.assert_close(answers.found[:count], image.objects.logits[batch.images])
    scores, presence = net.part("decoder").score_objects(*answers[:4])
    assert scores.shape == answers.target.shape and presence.shape == (2 * count,)


def test_scenes_without_prompts_are_an_error(batch: ObjectBatch, net: LateDetector) -> None:
    none = batch._replace(phrases=(), images=torch.zeros(0, dtype=torch.long), exemplars=None)
    with pytest.raises(DataError, match="no scene has a prompt"):
        read_answers(net, [none], TABLE)


def test_a_rescorer_learns_what_the_product_does_not_know() -> None:
    """Presence says nothing here, and of two queries at one place the weaker one is wrong."""
    draw = torch.Generator().manual_seed(0)
    count, queries = 600, 5
    present = torch.rand(count, generator=draw) < 0.5
    boxes = torch.rand(count, queries, 4, generator=draw) * 0.1 + torch.tensor([0.1, 0.1, 0.1, 0.1])
    boxes[:, 2:, 0] += 0.5
    meant = torch.randn(count, queries, generator=draw) - 1
    meant[present, 0] += 3
    meant[present, 1] = meant[present, 0] - 0.5
    boxes[:, 1] = boxes[:, 0] + 0.005
    target = torch.zeros(count, queries, dtype=torch.bool)
    target[:, 0] = present
    answers = Answers(
        meant,
        torch.full_like(meant, 2.0),
        torch.zeros(count),
        boxes,
        target,
        torch.ones_like(target),
        present,
    )
    torch.manual_seed(0)
    rescorer = Rescorer(16)
    before, after = fit_rescorer(rescorer, answers, steps=300)
    assert after < 0.6 * before
    logits, presence = rescorer(*answers[:4])
    right = ((logits > 0) & (presence > 0)[:, None]) == target
    assert float(right.float().mean()) > 0.95
    again = Rescorer(16)
    again.load_state_dict(_untrained(16))
    assert fit_rescorer(again, answers, steps=300) == pytest.approx((before, after), rel=1e-3)


def _untrained(hidden: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return Rescorer(hidden).state_dict()
