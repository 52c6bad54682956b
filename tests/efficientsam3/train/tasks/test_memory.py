"""The memory task: losses, learning from true masks and from a teacher, resuming, saving."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import efficientsam3 as es3
from efficientsam3.checkpoints.assemble import load_folder
from efficientsam3.checkpoints.save import save_folder
from efficientsam3.config import MemoryConfig, ModelConfig
from efficientsam3.data.clip import Stills
from efficientsam3.errors import DataError, MissingPartError
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.interactive import ObjectMasks
from efficientsam3.train.errors import SettingsError
from efficientsam3.train.loop import train
from efficientsam3.train.losses.tracking import (
    HeadOutput,
    MemoryWeights,
    memory_loss,
    teacher_losses,
    truth_losses,
)
from efficientsam3.train.merge import PartialCheckpoint, merge
from efficientsam3.train.pictures import SMALL
from efficientsam3.train.recipes.common import with_memory
from efficientsam3.train.settings import LoopSettings
from efficientsam3.train.tasks.clip_batches import ClipSettings
from efficientsam3.train.tasks.memory import MemoryTask
from efficientsam3.train.tasks.memory_init import init_local_attention, init_memory_from
from efficientsam3.viz.contact_sheet import GAP

from ..clips import Moving, tiny_tracker
from ..conftest import colored_sample, tiny_net, train_steps

PERCEIVED = MemoryConfig(depth=2, latents=5, cells=4)
QUICK: dict[str, Any] = {"frames": (3,), "clicks": 1, "backwards": 0.0}


def from_truth(**settings: Any) -> MemoryTask:
    config, net = tiny_tracker(memory=MemoryConfig(depth=2))
    return MemoryTask(net, config, Moving(1), ClipSettings(**{**QUICK, **settings}))


def from_teacher(held_out: int = 0, **settings: Any) -> MemoryTask:
    config, net = tiny_tracker(memory=MemoryConfig(depth=3))
    torch.manual_seed(0)
    student = with_memory(config, net, PERCEIVED)
    small = dataclasses.replace(config, memory=PERCEIVED)
    numbers = ClipSettings(**{**QUICK, "forced": 0.0, **settings})
    task = MemoryTask(student, small, Moving(1), numbers, teacher=(config, net), held_out=Moving(2))
    task.freeze(LoopSettings(steps=1, parts=("memory",)))
    return task


# Losses ---------------------------------------------------------------------------------------


def output(logits: torch.Tensor, quality: torch.Tensor, presence: torch.Tensor) -> HeadOutput:
    tokens = torch.zeros(*logits.shape[:2], 4)
    return HeadOutput(ObjectMasks(logits, quality, tokens, presence))


def test_the_best_of_several_masks_learns() -> None:
    truth = torch.zeros(1, 4, 4, dtype=torch.bool)
    truth[0, :2] = True
    good, bad = torch.where(truth[0], 9.0, -9.0), torch.where(truth[0], -9.0, 9.0)
    logits = torch.stack([bad, good, bad])[None].requires_grad_()
    quality = torch.tensor([[0.0, 1.0, 0.5]])
    terms = truth_losses(output(logits, quality, torch.tensor([8.0])), truth)
    assert terms["focal"] < 1e-3 and terms["dice"] < 1e-2 and terms["presence"] < 1e-2
    assert float(terms["iou"]) == pytest.approx(0.5 / 3)  # the predicted IoUs of all masks learn
    (terms["focal"] + terms["dice"]).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].abs().sum() > 0 and not logits.grad[0, [0, 2]].any()
    every = truth_losses(output(logits, quality, torch.tensor([8.0])), truth, all_masks=0.5)
    assert float(every["dice"].detach()) == pytest.approx(0.5 * 2 / 3, abs=0.05)


def test_absent_objects_have_no_mask_terms() -> None:
    truth = torch.zeros(2, 4, 4, dtype=torch.bool)
    terms = truth_losses(
        output(torch.randn(2, 3, 4, 4), torch.rand(2, 3), torch.tensor([-9.0, 9.0])), truth
    )
    assert not terms["focal"] and not terms["dice"] and not terms["iou"]
    assert float(terms["presence"]) == pytest.approx(4.5, abs=0.01)


def test_the_teacher_counts_where_it_predicts_an_object() -> None:
    logits, quality = torch.randn(2, 3, 4, 4) * 9, torch.rand(2, 3)
    teacher = output(logits, quality, torch.tensor([8.0, -8.0]))
    teacher.conditioned = torch.randn(2, 4, 2, 2)
    other = output(-logits, 1 - quality, torch.tensor([8.0, -8.0]))
    other.conditioned = teacher.conditioned + 2
    far, same = teacher_losses(other, teacher), teacher_losses(teacher, teacher)
    assert float(far["attention"]) == pytest.approx(4) and not same["attention"]
    assert same["teacher_mask"] < far["teacher_mask"] / 10 and not same["teacher_iou"]
    other.masks.logits[0] = logits[0]
    other.masks.quality[0] = quality[0]
    seen = teacher_losses(other, teacher)  # the teacher predicts that the second object is absent
    assert torch.equal(seen["teacher_mask"], same["teacher_mask"])
    assert torch.equal(seen["teacher_iou"], same["teacher_iou"])


def test_terms_and_their_weights() -> None:
    task = from_teacher(click=1, box=0, mask=0, corrected=0, clicks=0)
    batch = next(task.batches(0, 0, 1))
    steps = task.runner(batch).run()
    assert [s.frame for s in steps] == [0, 1, 2]
    assert [s.student.conditioned is None for s in steps] == [True, False, False]
    terms = memory_loss(steps, batch.masks, MemoryWeights())
    weights = MemoryWeights()
    total = sum(float(v.detach()) * getattr(weights, k) for k, v in terms.items() if k != "loss")
    assert float(terms["loss"].detach()) == pytest.approx(total, rel=1e-4)
    alone = memory_loss(steps, batch.masks, MemoryWeights(focal=0, dice=0, iou=0, presence=0))
    assert {k for k in alone if not k.startswith("teacher")} == {"loss", "attention"}
    with pytest.raises(SettingsError, match="attention is -1"):
        MemoryWeights(attention=-1)


def test_each_prompt_and_correction_is_predicted() -> None:
    for prompt in ("click", "box", "mask"):
        shares = {"click": 0, "box": 0, "mask": 0, prompt: 1}
        task = from_truth(**shares, clicks=0, corrected=0)
        batch = next(task.batches(0, 0, 1))
        batch = batch._replace(clicks=0 if prompt == "mask" else 2, corrected=(1,))
        steps = task.runner(batch).run()
        first = 1 if prompt == "mask" else 3
        assert [s.frame for s in steps] == [0] * first + [1, 1, 2]
        masks = [s.student.masks.logits.shape[1] for s in steps]
        assert masks == [*([3, 1, 1] if prompt == "click" else [1] * first), 3, 3, 3]


# Learning --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_loss_falls_with_true_masks() -> None:
    first, last = train_steps(from_truth(), 14)
    assert last < 0.6 * first


def test_the_loss_falls_on_still_images() -> None:
    config, net = tiny_tracker()
    settings = ClipSettings(frames=(1,), batch=2, objects=4, mask=0, clicks=1, corrected=0)
    held_out = Stills(colored_sample, 2)
    task = MemoryTask(net, config, Stills(colored_sample, 2), settings, held_out=held_out)
    before, after = train_steps(task, 12)
    assert after < 0.9 * before
    figures = task.validate(net)
    assert set(figures) == {"J", "J_click", "presence"}
    assert all(0 <= value <= 1 for value in figures.values())


@pytest.mark.slow
def test_the_loss_falls_with_a_teacher() -> None:
    task = from_teacher()
    before = {k: v.clone() for k, v in task.module.state_dict().items()}
    task.weights = MemoryWeights(focal=0, dice=0, iou=0, presence=0)
    first, last = train_steps(task, 12)
    assert task.same_features  # each frame is encoded once for both
    assert last < 0.8 * first
    changed = {k for k, v in task.module.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in changed} == {"memory"}
    assert any("perceiver" in k for k in changed)


def test_a_teacher_with_another_image_encoder_computes_its_own_features() -> None:
    config, net = tiny_tracker()
    other = dataclasses.replace(config.vision, depth=1, everywhere=(0,))  # type: ignore[type-var]
    small, student = tiny_tracker(vision=other)
    task = MemoryTask(student, small, Moving(1), ClipSettings(**QUICK), teacher=(config, net))
    task.freeze(LoopSettings(steps=1, parts=("memory",)))
    task.start(torch.device("cpu"))
    assert not task.same_features
    terms = task.loss(task.module, next(task.batches(0, 0, 1)))
    assert terms["loss"].isfinite() and terms["attention"] > 0


def test_figures_and_pictures() -> None:
    task = from_teacher(held_out=2)
    task.module.eval()
    with torch.no_grad():
        figures = task.validate(task.module)
        pictures = task.pictures(task.module)
    assert set(figures) == {"J", "J_click", "presence"}
    assert all(0 <= v <= 1 for v in figures.values())
    assert pictures["clips"].shape == (2 * (SMALL + GAP) + GAP, 3 * (SMALL + GAP) + GAP, 3)
    assert from_truth().validate(task.module) == {}


def test_unusable_students_and_teachers_are_errors() -> None:
    config, net = tiny_tracker()
    with pytest.raises(MissingPartError, match="interactive"):
        MemoryTask(tiny_net()[1], tiny_net()[0], Moving())
    nothing = MemoryWeights(focal=0, dice=0, iou=0, presence=0)
    with pytest.raises(DataError, match="without a teacher"):
        MemoryTask(net, config, Moving(), weights=nothing)
    wide = tiny_tracker(width=32)
    with pytest.raises(DataError, match="the teacher's width is 32, the student's 16: they"):
        MemoryTask(net, config, Moving(), teacher=wide)
    with pytest.raises(DataError, match="there are no videos"):
        MemoryTask(net, config, Moving(0))


# Initialization of a memory -------------------------------------------------------------------


def test_a_memory_starts_from_a_larger_one() -> None:
    config, net = tiny_tracker(memory=MemoryConfig(depth=4))
    large, small = net.part("memory"), with_memory(config, net, PERCEIVED).part("memory")
    for key, value in small.state_dict().items():
        if key.startswith("perceiver."):
            continue
        key = key.replace("attention.layers.1.", "attention.layers.3.")
        assert torch.equal(value, large.state_dict()[key]), key
    again = init_memory_from(with_memory(config, net, MemoryConfig(depth=4)).part("memory"), small)
    assert torch.equal(
        again.attention.layers[3].linear1.weight, small.attention.layers[1].linear1.weight
    )


def test_local_attention_falls_with_distance() -> None:
    _, net = tiny_tracker()
    memory = init_local_attention(net.part("memory"))
    part, turns = memory.attention.layers[0].cross_attn_image, memory.rotary_tables()
    from efficientsam3.nn.positions import rotate

    bias = part.k_proj.bias.expand(64, -1)
    turned = rotate(bias, turns.cos, turns.sin)
    logits = (turned @ turned.T / 16**0.5).view(8, 8, 8, 8)[4, 4]
    assert logits.argmax() == 4 * 8 + 4
    assert 0.2 < logits[4, 4] - logits[4, 5] < 1.0
    assert logits[4, 4] - logits[4, 7] > 1.0


# A run ------------------------------------------------------------------------------------------


def loop(steps: int) -> LoopSettings:
    return LoopSettings(
        steps=steps,
        lr=1e-3,
        accelerator="cpu",
        parts=("memory",),
        ema=0.9,
        schedule="constant",
    )


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, half, again = (from_teacher(frames=(2,)) for _ in range(3))
    train(whole, loop(3), tmp_path / "whole")
    train(half, loop(1), tmp_path / "half")
    train(again, loop(3), tmp_path / "half", accept_changes=True)
    for key, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[key]), key


@pytest.mark.slow
def test_a_merged_saved_and_loaded_memory_is_unchanged(tmp_path: Path) -> None:
    task = from_teacher()
    train(task, loop(1), tmp_path / "run")
    part = PartialCheckpoint.of(task.config, task.module, ["memory"])
    part.save(tmp_path / "part.safetensors")
    base: tuple[ModelConfig, Detector] = tiny_tracker(memory=MemoryConfig(depth=3))
    config, net = merge(*base, PartialCheckpoint.load(tmp_path / "part.safetensors"))
    save_folder(tmp_path / "model", "tiny", config, net)
    _, loaded_config, loaded = load_folder(tmp_path / "model")
    assert loaded_config == task.config
    for key, value in task.module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    model = es3.load(str(tmp_path / "model"), device="cpu")
    assert model.abilities >= {"video", "interactive"}
