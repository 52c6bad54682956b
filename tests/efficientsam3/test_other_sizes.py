"""Models of this project's own sizes, untrained: whatever SAM3's sizes do, they do too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import efficientsam3 as es3
from efficientsam3.config import ModelConfig
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.tokenizer import tokenize
from efficientsam3_stickers.recipes.common import new_model, student_config, teacher_config

Pixels = npt.NDArray[np.uint8]
MAKERS = {"teacher": teacher_config, "student": student_config}


@pytest.fixture(scope="module", params=MAKERS)
def learned(request: pytest.FixtureRequest) -> tuple[ModelConfig, Detector]:
    config = MAKERS[request.param]()
    net = new_model(config, 0).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        # As after some training: fresh norms change nothing when they are folded, and what is
        # fresh may be nothing at all.
        if value.ndim > 1 and not value.any() and value.is_floating_point():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
        elif value.ndim == 1 and value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.add_(0.2 * (noise if name.endswith(("weight", "var")) else noise - 0.5))
    return config, net


def model_of(learned: tuple[ModelConfig, Detector], **options: str) -> es3.ImageModel:
    config, net = learned
    options = {"device": "cpu", "dtype": "float32", **options}
    return es3.ImageModel("own", config, lambda: net, **options)


@pytest.fixture(scope="module")
def model(learned: tuple[ModelConfig, Detector]) -> es3.ImageModel:
    return model_of(learned)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    scale = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=tolerance * scale)


def test_raw_answers_are_those_of_the_learned_form(
    learned: tuple[ModelConfig, Detector], model: es3.ImageModel, photo: Pixels
) -> None:
    config, net = learned
    pixels = model.preprocess(photo)
    side, q = config.resolution, config.queries
    assert pixels.shape == (1, 3, side, side)
    said = model.ground(pixels, ["red apple"])
    assert said.logits.shape == (1, q) and said.boxes.shape == (1, q, 4)
    assert said.masks is not None and said.masks.shape == (1, q, 4 * config.grid, 4 * config.grid)
    with torch.inference_mode():
        image = net.read_image(pixels)
        text = net.read_text(tokenize(["red apple"], config.context))
        answer = net.answer(image, *net.read_prompt(image, text))
        masks = net.masks_of(image, answer, 0, torch.arange(q))
    for ours, theirs in (
        (said.logits, answer.logits),
        (said.presence, answer.presence),
        (said.boxes, answer.boxes),
        (said.masks[0], masks),
        (said.memory, answer.memory),
    ):
        assert theirs.numel() < 3 or theirs.std() > 1e-3
        close(ours, theirs, 1e-4)


def test_batch_norms_of_a_student_are_folded(
    learned: tuple[ModelConfig, Detector], model: es3.ImageModel
) -> None:
    _, net = learned
    trunk: nn.Module = net.part("trunk")
    before = sum(isinstance(m, nn.BatchNorm2d) for m in trunk.modules())
    after = sum(isinstance(m, nn.BatchNorm2d) for m in model.net.part("trunk").modules())
    assert after == 0
    assert before > 0 or not hasattr(trunk, "backbone")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_answers_nearly_the_same(
    learned: tuple[ModelConfig, Detector], model: es3.ImageModel, photo: Pixels, dtype: str
) -> None:
    half = model_of(learned, dtype=dtype)
    a, b = (m.ground(m.preprocess(photo), ["dog"]) for m in (model, half))
    assert a.masks is not None and b.masks is not None
    for exact, rounded in ((a.memory, b.memory), (a.boxes, b.boxes), (a.masks, b.masks)):
        difference = (exact - rounded.float()).square().mean().sqrt()
        assert 0 < difference < 0.1 * exact.square().mean().sqrt()


def test_fast_mode(
    learned: tuple[ModelConfig, Detector], model: es3.ImageModel, photo: Pixels
) -> None:
    fast = model_of(learned, speed="fast")
    a, b = (m.ground(m.preprocess(photo), ["dog"]).memory for m in (model, fast))
    assert not torch.equal(a, b)
    assert torch.cosine_similarity(a, b, dim=-1).mean() > 0.8


@pytest.mark.slow
def test_concepts_exemplars_and_sizes(model: es3.ImageModel, photo: Pixels) -> None:
    for image in (photo, photo[:, :7], np.repeat(photo, 9, 1)):
        out = model.segment(image, ["dog", "red apple"], threshold=0.0, nms=1.0)
        assert out.masks.shape == (2 * model.config.queries, *image.shape[:2])
        assert (out.boxes >= 0).all()
        assert (out.boxes[:, 2:] <= [image.shape[1], image.shape[0]]).all()
    bare = model.segment(photo, "dog", threshold=0.0, nms=1.0)
    shown = model.segment(
        photo, "dog", boxes=[[4, 4, 30, 40]], points=[[8, 9]], threshold=0.0, nms=1.0
    )
    assert not np.allclose(np.sort(bare.scores), np.sort(shown.scores), atol=1e-6)
    alone = model.segment(photo, boxes=[[4, 4, 30, 40]], box_labels=[0], threshold=0.0, nms=1.0)
    assert set(alone.labels) == {"visual"}
    assert model.embed(photo).shape == (model.config.width,)
    assert model.embed_patches(photo).shape[1:] == (model.config.grid,) * 2


def test_the_interactive_head_is_missed_with_a_sentence(
    model: es3.ImageModel, photo: Pixels
) -> None:
    assert model.abilities == {"concepts", "exemplars", "masks"}
    asks = (
        lambda: model.segment(photo, points=[[3, 4]]),
        lambda: model.segment_objects(photo, boxes=[[1, 1, 9, 9]]),
    )
    for ask in asks:
        with pytest.raises(es3.MissingAbilityError, match=r"no interactive head.*`efficientsam3 m"):
            ask()


@pytest.mark.slow
def test_saved_in_half_precision_it_answers_alike(
    model: es3.ImageModel, photo: Pixels, tmp_path: Path
) -> None:
    model.save(tmp_path, "float16")
    again = es3.load(tmp_path, device="cpu", dtype="float32")
    assert again.config == model.config
    a, b = (m.ground(m.preprocess(photo), ["dog"]) for m in (model, again))
    assert a.masks is not None and b.masks is not None
    assert (a.logits.sigmoid() - b.logits.sigmoid()).abs().max() < 0.02
    assert ((a.masks > 0) == (b.masks > 0)).float().mean() > 0.99
