"""Late fusion: a small model that finds objects once and lets prompts choose among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import efficientsam3 as es3
from efficientsam3.benchmark import costs
from efficientsam3.build import build
from efficientsam3.config import ModelConfig, tiny_config, tiny_late_config
from efficientsam3.errors import ArgumentError
from efficientsam3.nn.detector import fold
from efficientsam3.nn.late_detector import LateDetector
from efficientsam3.nn.late_objects import cell_at, separate
from efficientsam3.nn.late_scores import both
from efficientsam3.nn.tokenizer import tokenize
from efficientsam3.predictor import ImageModel


@pytest.fixture(scope="module")
def net() -> LateDetector:
    torch.manual_seed(0)
    made = build(tiny_late_config()).eval()
    assert isinstance(made, LateDetector)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # folding would be trivial without
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        made.part("fusion").score_head.bias.fill_(2.0)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def model(net: LateDetector) -> ImageModel:
    return ImageModel("late", tiny_late_config(), lambda: net, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)


def test_the_inference_form_gives_the_same_answers(net: LateDetector) -> None:
    pixels = torch.randn(2, 3, 96, 96)
    tokens = tokenize(["dog", "red apple"], 16)
    answers = []
    for form in (net, fold(net)):
        features = form.read_image(pixels)
        answer = form.answer(features, *form.read_prompt(features, form.read_text(tokens)))
        masks = form.masks_of(features, answer, 1, torch.arange(8))
        answers.append((answer.logits, answer.presence, answer.boxes, masks))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-3)
    assert answers[0][3].shape == (8, 24, 24)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_answers(
    model: ImageModel, net: LateDetector, image: np.ndarray, dtype: str
) -> None:
    half = ImageModel("late", tiny_late_config(), lambda: net, device="cpu", dtype=dtype)
    box = [[20, 20, 90, 70]]
    for asked in (
        {"concepts": ["dog", "red apple"], "threshold": 0.0},
        {"concepts": "dog", "boxes": box, "threshold": 0.0},
        {"points": [[60, 40]]},
    ):
        ours, theirs = (m.segment(image, **asked) for m in (half, model))
        assert len(ours) == len(theirs) > 0
        np.testing.assert_allclose(np.sort(ours.scores), np.sort(theirs.scores), atol=0.03)
        assert abs(int(ours.masks.sum()) - int(theirs.masks.sum())) < 0.1 * theirs.masks.size
    tracker = es3.InteractiveTracker(half, [image, image], cuts=None)
    tracker.add_box(0, 1, box[0])
    assert [frame.index for frame in tracker.propagate()] == [0, 1]


def test_phrases_do_not_influence_each_other(model: ImageModel, image: np.ndarray) -> None:
    together = model.segment(image, ["dog", "red apple"], threshold=0.0)
    alone = model.segment(image, "red apple", threshold=0.0)
    same = [i for i, label in enumerate(together.labels) if label == "red apple"]
    np.testing.assert_allclose(together[same].scores, alone.scores, atol=1e-5)
    np.testing.assert_array_equal(together[same].masks, alone.masks)


def test_exemplars_change_the_answer_and_their_sign_matters(
    model: ImageModel, image: np.ndarray
) -> None:
    box = [[10, 20, 60, 70]]
    scores = [
        model.ground(
            model.preprocess(image),
            ["dog"],
            None if label is None else torch.tensor([[[0.4, 0.4, 0.3, 0.3]]]),
            None if label is None else torch.tensor([[label]]),
        ).logits
        for label in (None, 1, 0)
    ]
    assert not torch.allclose(scores[0], scores[1])
    assert not torch.allclose(scores[1], scores[2])
    found = model.segment(image, boxes=box, threshold=0.0)
    assert found.masks.shape[1:] == (96, 128)


def test_a_saved_model_loads_with_the_same_answers(
    model: ImageModel, image: np.ndarray, tmp_path: Path
) -> None:
    model.save(tmp_path / "model")
    loaded = es3.load(str(tmp_path / "model"), device="cpu", dtype="float32")
    assert loaded.config == model.config
    wanted = model.segment(image, "dog", threshold=0.0)
    found = loaded.segment(image, "dog", threshold=0.0)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    np.testing.assert_array_equal(found.masks, wanted.masks)


def test_clicks_and_tracking_read_the_stages_of_the_encoder(
    model: ImageModel, image: np.ndarray
) -> None:
    clicked = model.segment(image, points=[[40, 40]])
    assert clicked.masks.shape == (1, 96, 128)
    frames = [image, np.roll(image, 4, 1), np.roll(image, 8, 1)]
    tracked = list(es3.track(model, frames, ["dog"]))
    assert [frame.index for frame in tracked] == [0, 1, 2]


def test_every_part_is_measured(model: ImageModel, image: np.ndarray) -> None:
    found = costs(model, image, "dog", repeat=1, kept=3)
    assert [cost.part for cost in found][-1] == "3 masks"
    assert all(cost.gflop > 0 for cost in found if cost.part in ("image encoder", "decoder"))


def test_late_fusion_needs_a_small_encoder() -> None:
    with pytest.raises(ArgumentError, match="StudentConfig"):
        ModelConfig(**{**vars(tiny_late_config()), "vision": tiny_config().vision})


def test_corrected_scores_need_three_queries() -> None:
    with pytest.raises(ArgumentError, match="as many queries; the configuration has 2"):
        tiny_late_config(queries=2)


def test_logits_of_a_product() -> None:
    a, b = torch.tensor([-30.0, 0.0, 3.0, 20.0]), torch.tensor([2.0, 0.0, -1.0, 20.0])
    product = both(a, b).double().sigmoid()
    wanted = a.double().sigmoid() * b.double().sigmoid()
    torch.testing.assert_close(product, wanted, atol=1e-5, rtol=1e-4)
    assert torch.isfinite(both(torch.tensor([90.0]), torch.tensor([90.0]))).all()


def test_given_queries_are_not_seen_by_others() -> None:
    mask = separate(2, 2, torch.device("cpu")).tolist()
    assert mask == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


def test_the_cell_under_a_box() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.99, 0.3, 0.1, 0.1], [1.0, 1.0, 0.1, 0.1]])
    assert cell_at(boxes, (4, 5)).tolist() == [0, 9, 19]
