"""Where presence decides."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from efficientsam3.build import ModelConfig
from efficientsam3.distill import held_out
from efficientsam3.distill.calibrate import calibrate
from efficientsam3.distill.data.sample import PhraseQuery, TrainingSample
from efficientsam3.distill.errors import DataError
from efficientsam3.distill.held_out import Answers, score, scores_of
from efficientsam3.nn.detector import Answer, Detector

from .conftest import Shapes, replace, tiny_net


def bias(net: Detector) -> torch.Tensor:
    """Without a gradient, in place."""
    found: torch.Tensor = net.part("decoder").presence_token_head.layers[-1].bias
    return found.detach()


@pytest.fixture
def shy(monkeypatch: pytest.MonkeyPatch) -> tuple[ModelConfig, Detector]:
    """A model that finds every rectangle, and takes none of its phrases for present."""
    config, net = tiny_net()
    own = float(bias(net))

    def answered(
        net: Detector, config: ModelConfig, sample: TrainingSample, queries: Sequence[PhraseQuery]
    ) -> Answers:
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
        return Answers(image, answer, scores_of(answer))  # type: ignore[arg-type]

    monkeypatch.setattr(held_out, "ask", answered)
    return config, net


def test_the_best_shift_is_found_and_kept(shy: tuple[ModelConfig, Detector]) -> None:
    config, net = shy
    samples = list(Shapes())
    assert score(net, config, samples)["cgF1"] == 0
    # At 2 what is absent is found too; at 0.5 nothing is yet.
    told = calibrate(net, config, samples, (-1.0, 0.5, 1.0, 2.0))
    assert told.shift == 1.0
    assert told.before == 0
    assert told.after == pytest.approx(100, abs=0.1)
    assert score(net, config, samples)["cgF1"] == pytest.approx(told.after)
    assert calibrate(net, config, samples, (-1.0, 0.5)).shift == 0


def test_each_shift_is_judged_as_a_model_with_it_would_be(
    shy: tuple[ModelConfig, Detector],
) -> None:
    config, net = shy
    samples = list(Shapes())
    for shift in (1.0, 2.0):
        bias(net).add_(shift)
        by_hand = score(net, config, samples)["cgF1"]
        bias(net).sub_(shift)
        told = calibrate(net, config, samples, (shift,))
        assert told.after == pytest.approx(by_hand)
        bias(net).sub_(told.shift)


def test_a_model_that_knows_nothing_stays() -> None:
    config, net = tiny_net()
    bias(net).sub_(50.0)
    told = calibrate(net.eval(), config, [Shapes()[0]])
    assert told == (0.0, told.before, told.before)


def test_samples_that_say_nothing_are_an_error() -> None:
    config, net = tiny_net()
    with pytest.raises(DataError, match="no sample has a query"):
        calibrate(net, config, [replace(Shapes()[0], queries=())])
    with pytest.raises(DataError, match="shape 0 has no masks"):
        calibrate(net, config, [replace(Shapes()[0], masks=None)])
