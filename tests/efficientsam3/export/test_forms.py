"""The forms that are exported give the numbers of the network, in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from efficientsam3.config import MemoryConfig, StudentConfig, tiny_config, tiny_late_config
from efficientsam3.export import forms
from efficientsam3.export.graphs import graphs_of
from efficientsam3.nn.detector import FoldedDetector, fold
from efficientsam3.nn.geometry import Exemplars

from ...conftest import tiny_model

STUDENT = StudentConfig("repvit-m0.9", {"embed_dim": (8, 16, 24, 32), "depth": (1, 1, 1, 1)})
CONFIGS = {
    "vit": {},
    "student": {"vision": STUDENT, "resolution": 128, "grid": 9},
    "boxed": {"boxed_masks": True},
    "perceiver": {"memory": MemoryConfig(2, latents=3, cells=4)},
}


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    scale = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * scale)


@pytest.fixture(scope="module", params=CONFIGS)
def made(request: pytest.FixtureRequest) -> tuple[FoldedDetector, dict[str, Any]]:
    """The network, and the graphs by name."""
    model = tiny_model(config=tiny_config(**CONFIGS[request.param]))
    net = fold(model.learned(), torch.float32)
    side = model.config.resolution
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return net, {graph.name: graph for graph in graphs_of(model, net, pixels)}


@torch.inference_mode()
def test_images_prompts_heads_and_masks(made: tuple[FoldedDetector, dict[str, Any]]) -> None:
    net, graphs = made
    image = net.read_image(graphs["image"].inputs["pixels"])
    found = graphs["image"].example
    close(found["tokens"], image.tokens)
    close(found["seen"], image.seen)
    prompt, valid = graphs["heads"].inputs["prompt"], graphs["heads"].inputs["valid"]
    words = graphs["text"].example["words"]
    ids = graphs["text"].inputs["ids"]
    expected, mask = net.read_prompt(image, (words, ids != 0))
    close(prompt, expected)
    assert torch.equal(valid, mask)
    answer = net.answer(image, expected, mask)
    heads = graphs["heads"].example
    close(heads["logits"], answer.logits)
    close(heads["presence"], answer.presence)
    close(heads["boxes"], answer.boxes)
    masks = net.masks_of(image, answer, 0, torch.arange(3))
    assert masks.std() > 1e-3
    close(graphs["masks"].example["masks"][0], masks)


@torch.inference_mode()
def test_exemplars(made: tuple[FoldedDetector, dict[str, Any]]) -> None:
    net, graphs = made
    image = net.read_image(graphs["image"].inputs["pixels"])
    given = graphs["exemplars"].inputs
    exemplars = Exemplars(*(given[name] for name in list(given)[3:]))
    close(
        graphs["exemplars"].example["shown"],
        net.part("geometry")(image.tokens, image.grid, image.geometry, exemplars)[0],
    )


@torch.inference_mode()
def test_the_memory(made: tuple[FoldedDetector, dict[str, Any]]) -> None:
    net, graphs = made
    memory = net.tracker()[1]
    frame = graphs["look"].inputs["frame"]
    close(graphs["look"].example["looked"], memory.look(frame))
    projected = memory.encoder.project(frame)
    mask, present = (graphs["remember"].inputs[name] for name in ("mask", "present"))
    close(graphs["remember"].example["entry"], memory.tokens(projected, mask, present))
    random = torch.Generator().manual_seed(0)
    shapes = {name: x.shape for name, x in graphs["recall"].inputs.items()}
    looked = torch.randn(shapes["looked"], generator=random)
    entries = torch.randn(1, 3, *shapes["entries"][2:], generator=random)
    pointers = torch.randn(1, 2, shapes["pointers"][2], generator=random)
    ages = torch.tensor([[0.2, 0.9]])
    seen = []
    for when in (torch.tensor([[0, 1, 4]]), torch.tensor([[4, 1, 0]])):
        seen.append(memory.recall(looked, memory.gather(entries, when, pointers, ages)))
        close(graphs["recall"].module(looked, entries, when, pointers, ages), seen[-1])
    assert (seen[0] - seen[1]).abs().max() > 1e-3


@torch.inference_mode()
def test_single_objects(made: tuple[FoldedDetector, dict[str, Any]]) -> None:
    net, graphs = made
    image = net.read_image(graphs["image"].inputs["pixels"])
    features = net.interactive_features(image)
    points, given = graphs["points"].inputs, graphs["objects"].inputs
    found = graphs["objects"].example
    head = net.part("interactive")
    for row, earlier in ((0, None), (1, given["mask_input"][1:])):
        args = points["points"][row : row + 1], points["labels"][row : row + 1], earlier
        one, three = (head(features, *args, multimask=multimask) for multimask in (False, True))
        close(found["logits"][row : row + 1], torch.cat([one.logits, three.logits], 1))
        close(found["quality"][row : row + 1], torch.cat([one.quality, three.quality], 1))
        close(found["presence"][row : row + 1], one.presence)


@torch.inference_mode()
def test_late_fusion() -> None:
    model = tiny_model(config=tiny_late_config())
    net = fold(model.learned(), torch.float32)
    side = model.config.resolution
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    graphs = {graph.name: graph for graph in graphs_of(model, net, pixels)}
    image = net.read_image(pixels)
    assert image.objects is not None
    found = graphs["image"].example
    close(found["tokens"], image.tokens)
    close(found["objects"], image.objects.queries)
    ids, words = graphs["text"].inputs["ids"], graphs["text"].example["words"]
    prompt, mask = net.read_prompt(image, (words, ids != 0))
    close(graphs["heads"].inputs["prompt"], prompt)
    answer, heads = net.answer(image, prompt, mask), graphs["heads"].example
    close(heads["logits"], answer.logits)
    close(heads["presence"], answer.presence)
    close(heads["boxes"], answer.boxes)
    masks = net.masks_of(image, answer, 0, torch.arange(3))
    assert masks.std() > 1e-3
    close(graphs["masks"].example["masks"][0], masks)
    given = graphs["exemplars"].inputs
    exemplars = Exemplars(*(given[name] for name in list(given)[3:]))
    shown = net.part("geometry")(image.tokens, image.grid, image.geometry, exemplars)[0]
    close(graphs["exemplars"].example["shown"], shown)
    frame = net.frame_features(image)
    close(graphs["frame"].example["frame"], frame.coarse)
    close(graphs["frame"].example["fine"], frame.fine)


def test_a_model_without_parts_has_fewer_graphs() -> None:
    model = tiny_model(config=tiny_config(parts=("geometry",)))
    net = fold(model.learned(), torch.float32)
    names = [graph.name for graph in graphs_of(model, net, torch.zeros(1, 3, 112, 112))]
    assert names == ["image", "text", "exemplars", "heads"]


def test_inputs_are_named_as_arguments() -> None:
    assert forms.names_of(forms.TextForm.__new__(forms.TextForm)) == ("ids",)
