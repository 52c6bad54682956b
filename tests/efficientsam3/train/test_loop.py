"""The training loop: it learns, and what goes wrong is named."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from efficientsam3.errors import CheckpointError, MissingPackageError
from efficientsam3.train import checkpoint
from efficientsam3.train.errors import SettingsError, TrainingError
from efficientsam3.train.fabric import without_hints_of_ddp
from efficientsam3.train.logs import Progress
from efficientsam3.train.loop import train

from .regression import (
    STEPS,
    Regression,
    assert_same,
    settings,
    table,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(Regression(), settings(), folder)
    return folder


# It learns ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_and_writes_its_files(tmp_path: Path) -> None:
    reports: list[Progress] = []
    task = Regression()
    result = train(task, settings(steps=300), tmp_path, on_progress=reports.append)
    losses = [float(r["squares"]) for r in table(tmp_path / "log.csv")]
    assert losses[-1] < losses[0] / 5
    assert result.steps == 300 and result.skipped == 0
    assert result.metrics == {"error": pytest.approx(task.validate(task.module)["error"])}
    # The module has what the file has: averaged weights, not the last ones.
    state = load_file(result.weights)
    assert all(torch.equal(v, state[k]) for k, v in task.module.state_dict().items())
    last = checkpoint.load_checkpoint(checkpoint.checkpoint_path(tmp_path, 300))
    assert not torch.equal(last["module"]["0.weight"], state["0.weight"])
    assert torch.equal(last["ema"]["0.weight"], state["0.weight"])
    names = {p.name for p in (tmp_path / "pictures").iterdir()}
    assert {"a-b_0000012.png", "a-b_0000300.png"} <= names
    assert [p.step for p in reports if not p.metrics][:2] == [4, 8]
    assert reports[-1].metrics == result.metrics and reports[-1].eta == 0
    assert not task.module.training


def test_log_has_means_since_the_last_row(whole: Path) -> None:
    rows = table(whole / "log.csv")
    assert [int(r["step"]) for r in rows] == [4, 8, 12, 16, 20, 24]
    assert [float(r["number"]) for r in rows] == [1.5, 5.5, 9.5, 13.5, 17.5, 21.5]
    assert [int(r["step"]) for r in table(whole / "validation.csv")] == [8, 16, 24]


def test_ema_follows_its_recursion(tmp_path: Path) -> None:
    task = Regression()
    follow = task.module[0].weight  # type: ignore[index]
    average, weights = follow.detach().clone(), []
    loss = task.loss
    task.loss = lambda m, b: (weights.append(follow.detach().clone()), loss(m, b))[1]  # type: ignore
    train(task, settings(steps=6, ema=0.3), tmp_path)
    last = checkpoint.load_checkpoint(checkpoint.checkpoint_path(tmp_path, 6))["module"]["0.weight"]
    for step, weight in enumerate([*weights[1:], last], 1):
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert torch.allclose(follow, average, atol=1e-6)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    class Plain(Regression):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.module, self.size = nn.Linear(6, 1), size
            with torch.no_grad():
                for p in self.module.parameters():
                    p.fill_(0.1)

        def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
            small = super().batches(start * self.size, rank, world)
            while True:
                parts = [next(small) for _ in range(self.size)]
                yield 0, torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])

        def loss(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
            return {"loss": (module(batch[1]) - batch[2]).pow(2).mean()}

        def validate(self, module: nn.Module) -> dict[str, float]:
            return {}

    one, two = Plain(1), Plain(2)
    train(one, settings(accumulate=2), tmp_path / "one")
    train(two, settings(), tmp_path / "two")
    assert one.seen == two.seen
    torch.testing.assert_close(one.module.weight, two.module.weight)


def test_frozen_parts_stay_and_are_not_saved(tmp_path: Path) -> None:
    task = Regression()
    before = {k: v.clone() for k, v in task.module.state_dict().items()}
    modes = []
    loss = task.loss
    task.loss = lambda m, b: (modes.append([p.training for p in m]), loss(m, b))[1]  # type: ignore
    train(task, settings(parts=("4",)), tmp_path)
    after = task.module.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) == (not name.startswith("4.")), name
    assert modes[-1] == [False, False, True, True, True]  # what has no weights is not frozen
    saved = checkpoint.load_checkpoint(checkpoint.checkpoint_path(tmp_path, STEPS))["module"]
    assert {k for k in saved if not k.startswith("1.")} == {"4.weight", "4.bias"}
    # Other frozen weights would give other numbers.
    other = Regression()
    nn.init.zeros_(other.module[0].weight)  # type: ignore[index, arg-type]
    with pytest.raises(CheckpointError, match="frozen weights"):
        train(other, settings(parts=("4",)), tmp_path)


def test_bfloat16_is_used_for_layers_but_not_for_targets(tmp_path: Path) -> None:
    seen = []

    class Watching(Regression):
        def loss(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
            seen.append((module[0](batch[1]).dtype, batch[2].dtype))  # type: ignore[index]
            return super().loss(module, batch)

    task = Watching()
    train(task, settings(precision="bf16-mixed"), tmp_path)
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    assert all(p.dtype == torch.float32 for p in task.module.parameters())


def test_the_callers_random_state_is_preserved(tmp_path: Path) -> None:
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    want = (float(torch.rand(())), np.random.random(), random.random())
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    train(Regression(), settings(), tmp_path)
    assert (float(torch.rand(())), np.random.random(), random.random()) == want


# It goes wrong ------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    task = Regression(nan=(9,))
    result = train(task, settings(), tmp_path)
    assert result.skipped == 1
    assert all(v.isfinite().all() for v in task.module.state_dict().values())
    rows = table(tmp_path / "log.csv")
    assert [r["skipped"] for r in rows] == ["0", "0", "1", "1", "1", "1"]
    assert all(math.isfinite(float(r["loss"])) for r in rows)


def test_three_skips_in_a_row_stop_and_name_the_cause(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 11, .* not finite in: loss, squares") as caught:
        train(Regression(nan=(9, 10, 11)), settings(), tmp_path)
    assert "run the same command again to continue" in str(caught.value)
    assert max(checkpoint.list_checkpoints(tmp_path)) == 12
    result = train(Regression(), settings(), tmp_path)
    assert result.skipped == 3


def test_gradients_that_are_not_finite_are_named(tmp_path: Path) -> None:
    class Steep(Regression):
        def loss(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
            parts = super().loss(module, batch)
            cliff = module[4].bias.mul(0).sqrt().sum()  # type: ignore[index]
            return {"loss": parts["squares"] + cliff}

    with pytest.raises(TrainingError, match=r"not finite in: the gradient of 4\.bias\."):
        train(Steep(), settings(clip=None), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.02}, "settings.lr was 0.01 and is 0.02"),
        ({"scales": {"0": 0.1}}, "settings.scales.0 was None and is 0.1"),
        ({"parts": ("0",)}, "settings.parts was None and is "),
    ],
)
def test_other_settings_are_named(changes: Any, words: str, whole: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        train(Regression(), settings(**changes), whole)
    assert words in str(caught.value)
    assert "step_0000024.pt" in str(caught.value)


def test_other_data_is_named(tmp_path: Path) -> None:
    train(Regression(batch=16), settings(), tmp_path)
    with pytest.raises(CheckpointError, match=r"task\.batch was 16 and is 8"):
        train(Regression(batch=8), settings(), tmp_path)


def test_accepted_changes_continue(tmp_path: Path) -> None:
    train(Regression(), settings(), tmp_path)
    task = Regression()
    more = settings(steps=40, lr=0.002, scales={"0": 0.5})
    result = train(task, more, tmp_path, accept_changes=True)
    assert result.steps == 40 and task.seen[0] == STEPS
    last = float(table(tmp_path / "log.csv")[-1]["lr"])
    assert last == pytest.approx(more.lr_at(39), abs=1e-9)


def test_logging_settings_may_change(tmp_path: Path) -> None:
    train(Regression(), settings(), tmp_path)
    train(Regression(), settings(log_every=7, keep=5, validate_every=0), tmp_path)


def test_another_module_is_refused(tmp_path: Path) -> None:
    train(Regression(), settings(), tmp_path)
    task = Regression()
    task.module = nn.Sequential(*task.module, nn.Linear(1, 1))  # type: ignore[misc]
    with pytest.raises(CheckpointError, match="trained"):
        train(task, settings(), tmp_path)
    with pytest.raises(CheckpointError, match=r"5\.weight was None and is "):
        train(task, settings(), tmp_path, accept_changes=True)


def test_restart_deletes_the_run_and_starts_again(tmp_path: Path, whole: Path) -> None:
    train(Regression(), settings(lr=0.02, steps=8), tmp_path)
    train(Regression(), settings(), tmp_path, restart=True)
    assert_same(tmp_path, whole)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(s["from"], s["to"]) for s in report["sessions"]] == [(0, STEPS)]
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {
        p.name for p in (whole / "pictures").iterdir()
    }


def test_a_damaged_run_can_be_restarted(tmp_path: Path) -> None:
    train(Regression(), settings(steps=8), tmp_path)
    checkpoint.checkpoint_path(tmp_path, 8).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be continued from"):
        train(Regression(), settings(steps=8), tmp_path)
    assert train(Regression(), settings(steps=8), tmp_path, restart=True).steps == 8


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    def second() -> None:
        with pytest.raises(TrainingError, match="another process trains"):
            train(Regression(), settings(), tmp_path)

    train(Regression(at={3: second}), settings(steps=6, warmup=0), tmp_path)


def test_batches_must_not_end(tmp_path: Path) -> None:
    class Short(Regression):
        def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
            yield from itertools.islice(super().batches(start, rank, world), 4)

    with pytest.raises(TrainingError, match="ended at step 4"):
        train(Short(), settings(), tmp_path)


def test_a_loss_must_exist_and_depend_on_the_module(tmp_path: Path) -> None:
    task = Regression()
    task.loss = lambda m, b: {"cost": m(b[1]).sum()}  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="it returned cost"):
        train(task, settings(), tmp_path / "a")
    task.loss = lambda m, b: {"loss": torch.zeros(())}  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="depends on what trains"):
        train(task, settings(), tmp_path / "b")


def test_a_frozen_module_is_refused(tmp_path: Path) -> None:
    task = Regression()
    task.module.requires_grad_(False)
    with pytest.raises(SettingsError, match="nothing trains"):
        train(task, settings(), tmp_path)


def test_more_devices_than_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="torchrun --nproc-per-node 2"):
        train(Regression(), settings(devices=2), tmp_path)


def test_missing_lightning_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(MissingPackageError, match=r"efficientsam3\[train\]"):
        train(Regression(), settings(), tmp_path)


def test_hints_of_ddp_are_left_out_and_other_warnings_are_not() -> None:
    with pytest.warns(UserWarning) as caught, without_hints_of_ddp():
        warnings.warn("Grad strides do not match bucket view strides.", stacklevel=1)
        warnings.warn("find_unused_parameters=True was specified in DDP", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(one.message) for one in caught] == ["something else"]
