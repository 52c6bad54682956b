"""The distillation tasks in the training loop: a resumed run takes the same steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from efficientsam3.nn.text import MobileClipText
from efficientsam3.train.batches import Generated
from efficientsam3.train.loop import LoopSettings, train
from efficientsam3.train.task import Task
from efficientsam3.train.tasks.image_distillation import ImageDistillation, ImageSettings
from efficientsam3.train.tasks.prompt_in_the_loop import PromptInTheLoop
from efficientsam3.train.tasks.prompted_batches import PromptedSettings
from efficientsam3.train.tasks.text_distillation import TextDistillation, TextSettings
from efficientsam3.train.teachers import ImageTeacher, TextTeacher

from ..conftest import Shapes, TinyTrunk, tiny_net


def trunk() -> TinyTrunk:
    torch.manual_seed(0)
    return TinyTrunk()


def images() -> Task:
    config, net = tiny_net()
    settings = ImageSettings(batch=2, validation=2)
    teacher = ImageTeacher.of(net, config)
    endless = Generated(Shapes(1 << 40).__getitem__)
    return ImageDistillation(trunk(), config, endless, teacher, None, settings, Shapes())


def prompts() -> Task:
    config, net = tiny_net()
    settings = PromptedSettings(batch=2, prompts=2, phrase=0.5, validation=2)
    return PromptInTheLoop(trunk(), net, config, Shapes(), settings, held_out=Shapes())


def words() -> Task:
    config, net = tiny_net()
    torch.manual_seed(0)
    student = MobileClipText(32, 1, 2, 16, mixers=True, out=16)
    phrases = ["red apple", "dog", "a cat on a mat"]
    settings = TextSettings(batch=2)
    return TextDistillation(student, phrases, TextTeacher.of(net, config), None, settings, phrases)


@pytest.mark.slow
@pytest.mark.parametrize("make", [images, prompts, words])
def test_a_resumed_run_equals_an_uninterrupted_one(
    make: Callable[[], Task], tmp_path: Path
) -> None:
    def run(steps: int, folder: str, **more: bool) -> dict[str, torch.Tensor]:
        settings = LoopSettings(
            steps=steps,
            lr=1e-3,
            schedule="constant",
            validate_every=2,
            picture_every=2,
            accelerator="cpu",
            devices=1,
        )
        train(make(), settings, tmp_path / folder, **more)
        return load_file(tmp_path / folder / "weights.safetensors")

    whole = run(4, "whole")
    run(2, "parts")
    parts = run(4, "parts", accept_changes=True)
    assert all(torch.equal(parts[k], whole[k]) for k in whole)
    assert (tmp_path / "whole" / "validation.csv").read_text().count("\n") >= 2
