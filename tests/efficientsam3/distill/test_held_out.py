"""Validation while training: the figure of all queries that are sure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.build import ModelConfig
from efficientsam3.distill import held_out
from efficientsam3.distill.data.sample import PhraseQuery, TrainingSample
from efficientsam3.distill.errors import DataError
from efficientsam3.distill.held_out import ask, score, sure
from efficientsam3.evaluate.overlap import mask_iou
from efficientsam3.nn.detector import Detector

from .conftest import Shapes, replace, tiny_net


class Oracle:
    """Answers with the truth, or with nothing."""

    def __init__(self, sample: TrainingSample, queries: Sequence[PhraseQuery], wrong: str) -> None:
        self.sample, self.queries, self.wrong = sample, queries, wrong

    def masks(self, net: Detector, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        query = self.queries[row]
        objects = () if query.phrase == self.wrong else query.objects
        masks = self.sample.masks_at(32, tuple(objects)) - 0.5
        return masks, torch.ones(len(masks))


def judge(monkeypatch: pytest.MonkeyPatch, samples: Any, wrong: str = "") -> dict[str, float]:
    def answered(
        net: Detector, config: ModelConfig, sample: TrainingSample, queries: Sequence[PhraseQuery]
    ) -> Oracle:
        return Oracle(sample, queries, wrong)

    monkeypatch.setattr(held_out, "ask", answered)
    config, net = tiny_net()
    return score(net, config, samples)


def test_right_answers_score_all(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = judge(monkeypatch, Shapes())
    assert figures["cgF1"] == pytest.approx(100, abs=0.1)
    figures = judge(monkeypatch, Shapes(), wrong="left one")
    # Of three instances an image two are found; of two positive phrases one.
    assert figures["recall"] == pytest.approx(200 / 3, abs=0.1)
    assert figures["IL_recall"] == pytest.approx(50, abs=0.1)


def test_only_what_is_sure_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = replace(
        Shapes()[0],
        queries=(
            PhraseQuery("rectangle", (0,), exhaustive=False),
            PhraseQuery("left one", (0,)),
            PhraseQuery("crowd", (0, 1)),
            PhraseQuery("dog"),
        ),
        crowd=np.array([False, True]),
    )
    assert [q.phrase for q in sure(sample)] == ["left one", "dog"]
    assert judge(monkeypatch, [sample])["cgF1"] == pytest.approx(100, abs=0.1)
    assert judge(monkeypatch, [replace(sample, queries=())])["recall"] == 0


def test_a_model_is_asked_as_in_use() -> None:
    config, net = tiny_net()
    net.eval()
    sample = Shapes()[0]
    with torch.no_grad():
        answers = ask(net, config, sample, sample.queries)
        alone = ask(net, config, sample, sample.queries[1:2])
    assert answers.scores.shape == (3, config.queries)
    torch.testing.assert_close(answers.scores[1], alone.scores[0], atol=1e-5, rtol=1e-4)
    lowered = answers._replace(scores=torch.full_like(answers.scores, 0.4))
    assert lowered.masks(net, 0)[0].shape == (0, 32, 32)
    lowered.scores[2, 5] = 0.5
    masks, scores = lowered.masks(net, 2)
    assert masks.shape == (1, 32, 32)
    assert scores.tolist() == [0.5]


def test_what_is_said_twice_counts_once() -> None:
    """Under autocast too, as the loop validates."""
    config, net = tiny_net(nms=0.5)
    sample = Shapes()[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        answers = ask(net.eval(), config, sample, sample.queries)
        every = answers._replace(scores=torch.full_like(answers.scores, 0.9))
        every.scores[0, 7] = 0.95
        masks, scores = every.masks(net, 0)
        all_masks, _ = every._replace(nms=None).masks(net, 0)
    assert len(all_masks) == config.queries
    assert 0 < len(masks) < config.queries
    assert scores[0] == pytest.approx(0.95)
    overlap = mask_iou((masks > 0).numpy(), (masks > 0).numpy())
    assert (overlap - np.eye(len(masks)) * overlap <= 0.5).all()


def test_boxes_alone_judge_nothing() -> None:
    config, net = tiny_net()
    with pytest.raises(DataError, match="shape 0 has no masks"):
        score(net, config, [replace(Shapes()[0], masks=None)])
