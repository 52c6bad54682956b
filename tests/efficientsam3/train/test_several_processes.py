"""Processes of torchrun over gloo: equal to one process, restarted where one is killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from efficientsam3.checkpoints.save import save_folder
from efficientsam3.config import TEXTS, TextConfig
from efficientsam3.train import checkpoint
from efficientsam3.train.errors import SettingsError
from efficientsam3.train.loop import train
from efficientsam3.train.recipe import Recipe, Run, Stage, run_recipe
from efficientsam3.train.recipes import stage1_text
from efficientsam3.train.settings import LoopSettings
from efficientsam3.train.task import Task
from tests.efficientsam3.train.conftest import tiny_net
from tests.efficientsam3.train.regression import (
    STEPS,
    Regression,
    assert_same,
    make_batch,
    settings,
    table,
)


class Plain(Regression):
    """Without dropout, batch norm and noise, which differ by process.

    Args:
        together: Batches that a step of one process joins.
    """

    def __init__(self, together: int = 1) -> None:
        super().__init__()
        self.together = together
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 1))

    def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
        single = super().batches(start * self.together, rank, world)
        while parts := list(itertools.islice(single, self.together)):
            numbers, x, y = zip(*parts, strict=True)
            yield numbers[0], torch.cat(x), torch.cat(y)

    def loss(self, module: nn.Module, batch: tuple[int, Tensor, Tensor]) -> dict[str, Tensor]:
        return {"loss": (module(batch[1]) - batch[2]).square().mean()}

    def validate(self, module: nn.Module) -> dict[str, float]:
        batch = make_batch(10**6, np.random.default_rng(0))
        return {"error": float(self.loss(module, batch)["loss"])}


def write_slowly(run: Run, task: Task) -> None:
    time.sleep(2)
    (run.stage_folder / "model").write_text("done")


def work_alone(run: Run) -> None:
    run.stage_folder.mkdir(exist_ok=True)
    with (run.stage_folder / "ranks").open("a") as file:
        file.write(os.environ["RANK"])
    time.sleep(2)
    (run.stage_folder / "result").write_text("done")


def read_what_was_written(run: Run) -> tuple[Task, LoopSettings]:
    assert (run.folder_of("first") / "model").read_text() == "done"
    assert (run.folder_of("alone") / "ranks").read_text() == "0"
    assert (run.folder_of("alone") / "result").read_text() == "done"
    return Plain(), settings()


STAGES = Recipe(
    "stages",
    "stages of which the last reads what the others write at their ends",
    (
        Stage("first", lambda run: (Plain(), settings()), "writes", write_slowly),
        Stage("alone", work_alone, "is the work of one process", alone=True),
        Stage("second", read_what_was_written, "reads"),
    ),
)


def distill_text(folder: Path, batch: int) -> None:
    """Stage 1 of the text encoder, with a small student, from the files beside a folder."""
    options = {
        "captions": str(folder.parent / "captions.txt"),
        "teacher": str(folder.parent / "teacher"),
        "student": "small",
        "held_out": "4",
        "batch": str(batch),
        "workers": "0",
        "captions.accumulate": "1",
        "captions.lr": "0.001",
        "captions.log_every": "1",
        "loop.accelerator": "cpu",
        "loop.precision": "32-true",
    }
    small = TextConfig("mobileclip", 16, 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TEXTS, "small", small)
        run_recipe(stage1_text.RECIPE, folder, steps=6, overrides=options, stages=["captions"])


def child() -> None:
    """What each process of torchrun does."""
    torch.set_num_threads(1)
    folder, what = sys.argv[1:]
    if what == "text":
        distill_text(Path(folder), 4)
        return
    if what == "stages":
        run_recipe(STAGES, Path(folder))
        return
    task: Regression = Plain() if what == "plain" else Regression()
    if what == "killed" and (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (
        *("1", "0"),
    ):
        task.at[2 * 12 + 1] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    train(task, settings(), folder)


def torchrun(folder: Path, what: str) -> str:
    """Train in two processes; gives what torchrun says."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--max-restarts=1", "--monitor-interval=0.1"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, __file__, str(folder), what],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    torchrun(tmp_path / "two", "plain")
    train(Plain(together=2), settings(), tmp_path / "one")
    two, one = (load_file(tmp_path / n / "weights.safetensors") for n in ("two", "one"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6)
    errors = [
        [float(row["error"]) for row in table(tmp_path / n / "validation.csv")]
        for n in ("two", "one")
    ]
    assert len(errors[0]) == 3 and errors[0] == pytest.approx(errors[1], rel=1e-4)
    alone = Plain()
    train(alone, settings(), tmp_path / "half")
    half = load_file(tmp_path / "half" / "weights.safetensors")
    assert any(not torch.allclose(half[n], one[n], rtol=1e-2, atol=1e-3) for n in one)


@pytest.mark.slow
def test_a_recipe_in_two_processes_is_one_with_twice_the_batch(tmp_path: Path) -> None:
    """The captions have as many tokens each: the loss of a batch is the mean over its tokens."""
    config, net = tiny_net()
    save_folder(tmp_path / "teacher", "tiny", config, net)
    (tmp_path / "captions.txt").write_text(
        "\n".join(f"a picture of {i} dogs" for i in range(10, 70))
    )
    torchrun(tmp_path / "two", "text")
    distill_text(tmp_path / "one", 8)
    distill_text(tmp_path / "half", 4)
    names = ("two", "one", "half")
    folders = [tmp_path / name / "captions" for name in names]
    two, one, half = ([float(row["loss"]) for row in table(f / "log.csv")] for f in folders)
    assert two == pytest.approx(one, rel=1e-4) and one[-1] < one[0]
    assert half != pytest.approx(one, rel=1e-2)
    # AdamW makes steps of full length of gradients that are rounding alone: few weights differ.
    two, one, half = (
        torch.cat([w.flatten() for w in load_file(f / "weights.safetensors").values()])
        for f in folders
    )
    assert (two - one).norm() < 0.05 * (half - one).norm()


@pytest.mark.slow
def test_a_stage_begins_when_the_stage_before_has_written_its_result(tmp_path: Path) -> None:
    torchrun(tmp_path, "stages")
    assert (tmp_path / "second" / "weights.safetensors").is_file()


@pytest.mark.slow
def test_a_killed_process_is_restarted_and_the_run_goes_on(tmp_path: Path) -> None:
    said = torchrun(tmp_path / "killed", "killed")
    assert "exitcode: -9" in said
    torchrun(tmp_path / "whole", "whole")
    assert max(checkpoint.list_checkpoints(tmp_path / "killed")) == STEPS
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_strategies_that_split_the_module_are_refused(tmp_path: Path, strategy: str) -> None:
    with pytest.raises(SettingsError, match="every process has the whole module"):
        train(Regression(), settings(strategy=strategy), tmp_path)


if __name__ == "__main__":
    child()
