"""Calibration of presence and of scores."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from efficientsam3.build import build
from efficientsam3.config import ModelConfig, tiny_late_config
from efficientsam3.data.sample import TrainingSample
from efficientsam3.data.types import PhraseQuery
from efficientsam3.errors import DataError
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.features import Answer
from efficientsam3.train import validation
from efficientsam3.train.validation import Predictions, query_scores, score
from efficientsam3_stickers.training.calibrate import calibrate

from ...efficientsam3.train.conftest import Shapes, replace, tiny_net


def bias(net: Detector) -> torch.Tensor:
    """The bias of the presence head, without a gradient; it can be changed in place."""
    found: torch.Tensor = net.part("decoder").presence_token_head.layers[-1].bias
    return found.detach()


@pytest.fixture
def absent_model(monkeypatch: pytest.MonkeyPatch) -> tuple[ModelConfig, Detector]:
    """A model that finds every rectangle, but predicts that no phrase is present."""
    config, net = tiny_net()
    own = float(bias(net))

    def predict(
        net: Detector, config: ModelConfig, sample: TrainingSample, queries: Sequence[PhraseQuery]
    ) -> Predictions:
        logits = torch.full((len(queries), 4), -9.0)
        presence = torch.zeros(len(queries))
        for row, query in enumerate(queries):
            logits[row, : max(1, len(query.objects))] = 4.0
            presence[row] = (-0.8 if query.objects else -1.8) + float(bias(net)) - own
        none = torch.zeros(0)
        answer = Answer(logits, presence, none, none, none, none, none, [])

        def masks_of(image: object, answer: Answer, row: int, kept: torch.Tensor) -> torch.Tensor:
            shown = queries[row].objects or (0,)
            return sample.masks_at(32, tuple(shown[k] for k in kept.tolist())) - 0.5

        monkeypatch.setattr(net, "masks_of", masks_of, raising=False)
        image = SimpleNamespace(grid=(8, 8))
        return Predictions(image, answer, query_scores(answer))  # type: ignore[arg-type]

    monkeypatch.setattr(validation, "predict", predict)
    return config, net


def test_the_best_shift_is_found_and_kept(absent_model: tuple[ModelConfig, Detector]) -> None:
    config, net = absent_model
    samples = list(Shapes())
    assert score(net, config, samples)["cgF1"] == 0
    # A shift of 2 makes absent phrases present too; with 0.5 no phrase is present.
    result = calibrate(net, config, samples, (-1.0, 0.5, 1.0, 2.0))
    assert result.shift == 1.0
    assert result.before == 0
    assert result.after == pytest.approx(100, abs=0.1)
    assert score(net, config, samples)["cgF1"] == pytest.approx(result.after)
    assert calibrate(net, config, samples, (-1.0, 0.5)).shift == 0


def test_scores_of_objects_are_shifted_where_they_have_a_bias(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every rectangle is found with a score of 0.27, and what is absent is known to be absent."""
    config = tiny_late_config()
    net = build(config)
    of_objects = net.object_bias()
    of_objects.requires_grad_(False)
    own, side = float(of_objects), 4 * config.grid

    def predict(
        net: Detector, config: ModelConfig, sample: TrainingSample, queries: Sequence[PhraseQuery]
    ) -> Predictions:
        logits = torch.full((len(queries), 4), -9.0)
        for row, query in enumerate(queries):
            logits[row, : len(query.objects)] = -1.0
        logits += float(of_objects) - own
        presence = torch.tensor([6.0 if query.objects else -6.0 for query in queries])
        none = torch.zeros(0)
        answer = Answer(logits, presence, none, none, none, none, none, [])

        def masks_of(image: object, answer: Answer, row: int, kept: torch.Tensor) -> torch.Tensor:
            return (
                sample.masks_at(side, tuple(queries[row].objects[k] for k in kept.tolist())) - 0.5
            )

        monkeypatch.setattr(net, "masks_of", masks_of, raising=False)
        image = SimpleNamespace(grid=(config.grid, config.grid))
        return Predictions(image, answer, query_scores(answer))  # type: ignore[arg-type]

    monkeypatch.setattr(validation, "predict", predict)
    samples = list(Shapes())
    assert score(net, config, samples)["cgF1"] == 0
    result = calibrate(net, config, samples)
    assert (result.shift, result.object_shift) == (0.0, 1.25)
    assert result.after == pytest.approx(100, abs=0.1)
    assert score(net, config, samples)["cgF1"] == pytest.approx(result.after)


def test_a_shift_scores_as_a_model_with_that_bias(
    absent_model: tuple[ModelConfig, Detector],
) -> None:
    config, net = absent_model
    samples = list(Shapes())
    for shift in (1.0, 2.0):
        bias(net).add_(shift)
        expected = score(net, config, samples)["cgF1"]
        bias(net).sub_(shift)
        result = calibrate(net, config, samples, (shift,))
        assert result.after == pytest.approx(expected)
        bias(net).sub_(result.shift)


def test_a_model_that_finds_nothing_is_not_changed() -> None:
    config, net = tiny_net()
    bias(net).sub_(50.0)
    result = calibrate(net.eval(), config, [Shapes()[0]])
    assert result == (0.0, 0.0, result.before, result.before)


def test_samples_without_known_answers_are_an_error() -> None:
    config, net = tiny_net()
    with pytest.raises(DataError, match="no sample has a query"):
        calibrate(net, config, [replace(Shapes()[0], queries=())])
    with pytest.raises(DataError, match="shape 0 has no masks"):
        calibrate(net, config, [replace(Shapes()[0], masks=None)])
