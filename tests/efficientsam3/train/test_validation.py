"""Validation in training: scores of the complete queries of held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.config import ModelConfig
from efficientsam3.data.sample import TrainingSample
from efficientsam3.data.types import PhraseQuery
from efficientsam3.errors import DataError
from efficientsam3.masks.overlap import mask_iou
from efficientsam3.nn.detector import Detector
from efficientsam3.train import validation
from efficientsam3.train.validation import complete_queries, predict, score

from .conftest import Shapes, replace, tiny_net


class Oracle:
    """Predicts the true masks, or none for the phrase ``wrong``."""

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

    monkeypatch.setattr(validation, "predict", answered)
    config, net = tiny_net()
    return score(net, config, samples)


def test_right_predictions_have_the_highest_score(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = judge(monkeypatch, Shapes())
    assert figures["cgF1"] == pytest.approx(100, abs=0.1)
    figures = judge(monkeypatch, Shapes(), wrong="left one")
    # Two of the three instances of an image are found, and one of its two positive phrases.
    assert figures["recall"] == pytest.approx(200 / 3, abs=0.1)
    assert figures["IL_recall"] == pytest.approx(50, abs=0.1)


def test_only_complete_queries_count(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert [q.phrase for q in complete_queries(sample)] == ["left one", "dog"]
    assert judge(monkeypatch, [sample])["cgF1"] == pytest.approx(100, abs=0.1)
    assert judge(monkeypatch, [replace(sample, queries=())])["recall"] == 0


def test_predictions_are_those_of_each_phrase_alone() -> None:
    config, net = tiny_net()
    net.eval()
    sample = Shapes()[0]
    with torch.no_grad():
        answers = predict(net, config, sample, sample.queries)
        alone = predict(net, config, sample, sample.queries[1:2])
    assert answers.scores.shape == (3, config.queries)
    torch.testing.assert_close(answers.scores[1], alone.scores[0], atol=1e-5, rtol=1e-4)
    lowered = answers._replace(scores=torch.full_like(answers.scores, 0.4))
    assert lowered.masks(net, 0)[0].shape == (0, 32, 32)
    lowered.scores[2, 5] = 0.5
    masks, scores = lowered.masks(net, 2)
    assert masks.shape == (1, 32, 32)
    assert scores.tolist() == [0.5]


def test_duplicates_are_suppressed() -> None:
    """Also under autocast, in which the loop validates."""
    config, net = tiny_net(nms=0.5)
    sample = Shapes()[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        answers = predict(net.eval(), config, sample, sample.queries)
        every = answers._replace(scores=torch.full_like(answers.scores, 0.9))
        every.scores[0, 7] = 0.95
        masks, scores = every.masks(net, 0)
        all_masks, _ = every._replace(nms=None).masks(net, 0)
    assert len(all_masks) == config.queries
    assert 0 < len(masks) < config.queries
    assert scores[0] == pytest.approx(0.95)
    overlap = mask_iou((masks > 0).numpy(), (masks > 0).numpy())
    assert (overlap - np.eye(len(masks)) * overlap <= 0.5).all()


def test_samples_without_masks_are_an_error() -> None:
    config, net = tiny_net()
    with pytest.raises(DataError, match="shape 0 has no masks"):
        score(net, config, [replace(Shapes()[0], masks=None)])
