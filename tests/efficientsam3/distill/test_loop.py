"""The training loop: it learns, and nothing that stops it changes what it learns."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from efficientsam3.distill import checkpoint
from efficientsam3.distill.loop import LoopSettings, Progress, Stopped, Task, TrainingError, train
from efficientsam3.distill.settings import SettingsError
from efficientsam3.errors import CheckpointError, EfficientSam3Error

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 24


class Regression(Task):
    """Learn a sum, with dropout and batch norm: all that makes exact resume hard."""

    def __init__(self, **options: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = nn.Sequential(
                nn.Linear(6, 12), nn.BatchNorm1d(12), nn.GELU(), nn.Dropout(0.2), nn.Linear(12, 1)
            )
        self.nan: tuple[int, ...] = options.pop("nan", ())
        self.at: dict[int, Any] = options.pop("at", {})
        self.options = options
        self.seen: list[int] = []

    def batches(self, start: int, rank: int, world: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        for number in itertools.count(start * world + rank, world):
            if number in self.at:
                self.at.pop(number)()
            rng = np.random.default_rng((7, number))
            x = torch.from_numpy(rng.standard_normal((16, 6))).float()
            self.seen.append(number)
            yield number, x, x.sum(1, keepdim=True)

    def loss(self, module: nn.Module, batch: tuple[int, Tensor, Tensor]) -> dict[str, Tensor]:
        number, x, y = batch
        # What numpy and Python draw must come again, too.
        noise = 0.01 * (np.random.random() + random.gauss(0, 1))
        x = x * math.nan if number in self.nan else x
        squares = (module(x + noise) - y).pow(2).mean()
        return {"loss": squares + 0.5, "squares": squares, "number": torch.tensor(float(number))}

    def validate(self, module: nn.Module) -> dict[str, float]:
        torch.rand(3)  # must not change the training
        _, x, y = next(self.batches(10**6, 0, 1))
        return {"error": (module(x) - y).detach().pow(2).mean().item()}

    def pictures(self, module: nn.Module) -> dict[str, Any]:
        return {"a b": np.zeros((4, 5, 3), np.uint8)}

    def describe(self) -> dict[str, Any]:
        return self.options


def settings(**changes: Any) -> LoopSettings:
    return LoopSettings(**{
        "steps": STEPS, "lr": 0.01, "warmup": 3, "ema": 0.9, "accelerator": "cpu",
        "log_every": 4, "save_every": 5, "validate_every": 8, "picture_every": 12,
        **changes,
    })  # fmt: skip


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(folder: Path) -> list[dict[str, str]]:
    """The log without its times."""
    clocks = ("rate", "waited", "seconds")
    return [{k: v for k, v in r.items() if k not in clocks} for r in table(folder / "log.csv")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    train(Regression(), settings(), folder)
    torch.set_num_threads(threads)
    return folder


def same(a: Path, b: Path) -> None:
    """Two runs gave the same bits and the same tables."""
    first, second = load_file(a / "weights.safetensors"), load_file(b / "weights.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert numbers(a) == numbers(b)
    assert (a / "validation.csv").read_text() == (b / "validation.csv").read_text()
    ours, theirs = (checkpoint.load(checkpoint.path_of(f, STEPS)) for f in (a, b))
    for name, state in ours["optimiser"].items():
        for key, value in state.items():
            assert torch.equal(value, theirs["optimiser"][name][key]), (name, key)


# It learns ----------------------------------------------------------------------------------


def test_learns_and_leaves_what_it_says(tmp_path: Path) -> None:
    heard: list[Progress] = []
    task = Regression()
    outcome = train(task, settings(steps=300), tmp_path, on_progress=heard.append)
    losses = [float(r["squares"]) for r in table(tmp_path / "log.csv")]
    assert losses[-1] < losses[0] / 5
    assert outcome.steps == 300 and outcome.skipped == 0
    assert outcome.figures == {"error": pytest.approx(task.validate(task.module)["error"])}
    # The module has what the file has: averaged weights, not the last ones.
    state = load_file(outcome.weights)
    assert all(torch.equal(v, state[k]) for k, v in task.module.state_dict().items())
    last = checkpoint.load(checkpoint.path_of(tmp_path, 300))
    assert not torch.equal(last["module"]["0.weight"], state["0.weight"])
    assert torch.equal(last["ema"]["0.weight"], state["0.weight"])
    names = {p.name for p in (tmp_path / "pictures").iterdir()}
    assert {"a-b_0000012.png", "a-b_0000300.png"} <= names
    assert [p.step for p in heard if not p.figures][:2] == [4, 8]
    assert heard[-1].figures == outcome.figures and heard[-1].eta == 0
    assert not task.module.training


def test_log_has_means_since_the_last_row(whole: Path) -> None:
    rows = table(whole / "log.csv")
    assert [int(r["step"]) for r in rows] == [4, 8, 12, 16, 20, 24]
    assert [float(r["number"]) for r in rows] == [1.5, 5.5, 9.5, 13.5, 17.5, 21.5]
    assert [int(r["step"]) for r in table(whole / "validation.csv")] == [8, 16, 24]


def test_average_is_the_recursion(tmp_path: Path) -> None:
    task = Regression()
    follow = task.module[0].weight  # type: ignore[index]
    average, weights = follow.detach().clone(), []
    loss = task.loss
    task.loss = lambda m, b: (weights.append(follow.detach().clone()), loss(m, b))[1]  # type: ignore
    train(task, settings(steps=6, ema=0.3), tmp_path)
    last = checkpoint.load(checkpoint.path_of(tmp_path, 6))["module"]["0.weight"]
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
    saved = checkpoint.load(checkpoint.path_of(tmp_path, STEPS))["module"]
    assert {k for k in saved if not k.startswith("1.")} == {"4.weight", "4.bias"}
    # Other frozen weights would give other numbers.
    other = Regression()
    nn.init.zeros_(other.module[0].weight)  # type: ignore[index, arg-type]
    with pytest.raises(CheckpointError, match="frozen weights"):
        train(other, settings(parts=("4",)), tmp_path, resume=True)


def test_bfloat16_computes_in_it_and_spares_the_targets(tmp_path: Path) -> None:
    seen = []

    class Watching(Regression):
        def loss(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
            seen.append((module[0](batch[1]).dtype, batch[2].dtype))  # type: ignore[index]
            return super().loss(module, batch)

    task = Watching()
    train(task, settings(precision="bf16-mixed"), tmp_path)
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    assert all(p.dtype == torch.float32 for p in task.module.parameters())


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    want = (float(torch.rand(())), np.random.random(), random.random())
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    train(Regression(), settings(), tmp_path)
    assert (float(torch.rand(())), np.random.random(), random.random()) == want


# It is interrupted --------------------------------------------------------------------------


def killed_child(folder: Path, after: int) -> None:
    """Train in another process, and kill it once a checkpoint of that step is there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, __file__, str(folder)], env=environment)
    try:
        end = time.monotonic() + 120
        while max(checkpoint.saved(folder), default=0) < after:
            assert child.poll() is None and time.monotonic() < end
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_process_resumes_to_the_same_bits(tmp_path: Path, whole: Path) -> None:
    killed_child(tmp_path, 10)
    assert max(checkpoint.saved(tmp_path)) < STEPS
    train(Regression(), settings(), tmp_path, resume=True)
    same(tmp_path, whole)


def test_failing_data_loses_nothing(tmp_path: Path, whole: Path) -> None:
    def fail() -> None:
        raise ValueError("a broken file")

    with pytest.raises(ValueError, match="a broken file"):
        train(Regression(at={13: fail}), settings(), tmp_path)
    assert max(checkpoint.saved(tmp_path)) == 13
    task = Regression()
    train(task, settings(), tmp_path, resume=True)
    assert task.seen[0] == 13
    same(tmp_path, whole)


def test_failing_validation_loses_nothing(tmp_path: Path, whole: Path) -> None:
    class Failing(Regression):
        def validate(self, module: nn.Module) -> dict[str, float]:
            raise OSError("no such picture")

        def describe(self) -> dict[str, Any]:
            return {"kind": "Regression"}

    with pytest.raises(OSError, match="no such picture"):
        train(Failing(), settings(), tmp_path)
    assert max(checkpoint.saved(tmp_path)) == 8
    train(Regression(), settings(), tmp_path, resume=True)  # makes up for the validation
    same(tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_say_so(number: signal.Signals, tmp_path: Path, whole: Path) -> None:
    before = signal.getsignal(number)
    task = Regression(at={6: lambda: os.kill(os.getpid(), number)})
    with pytest.raises(Stopped, match="at step 7 of 24; all is saved"):
        train(task, settings(), tmp_path)
    assert signal.getsignal(number) is before
    train(Regression(), settings(), tmp_path, resume=True)
    same(tmp_path, whole)


def test_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    def press() -> None:
        waiting = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        # Equal signals that wait for their handler are one, and a busy machine is slow to call it.
        end = time.monotonic() + 20
        while signal.getsignal(signal.SIGINT) is waiting and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    # A shell starts what is to run in the background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(Regression(at={2: press}), settings(), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def test_runs_in_a_thread(tmp_path: Path) -> None:
    worker = threading.Thread(target=train, args=(Regression(), settings(), tmp_path))
    worker.start()
    worker.join()
    assert (tmp_path / "weights.safetensors").exists()


def test_finished_run_is_not_trained_again(whole: Path) -> None:
    task = Regression()
    before = (whole / "log.csv").read_text()
    outcome = train(task, settings(), whole, resume=True)
    assert task.seen == []
    assert outcome.steps == STEPS and set(outcome.figures) == {"error"}
    assert (whole / "log.csv").read_text() == before


def test_times_add_up_over_sessions(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(
            Regression(at={6: lambda: os.kill(os.getpid(), signal.SIGTERM)}), settings(), tmp_path
        )
    outcome = train(Regression(), settings(), tmp_path, resume=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(s["from"], s["to"]) for s in report["sessions"]] == [(0, 7), (7, 24)]
    assert report["finished"] and report["seconds"] == pytest.approx(outcome.seconds, abs=1e-3)
    total = sum(s["seconds"] for s in report["sessions"])
    assert report["seconds"] == pytest.approx(total, abs=2e-3)


# It goes wrong ------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_leaves_no_trace(tmp_path: Path) -> None:
    task = Regression(nan=(9,))
    outcome = train(task, settings(), tmp_path)
    assert outcome.skipped == 1
    assert all(v.isfinite().all() for v in task.module.state_dict().values())
    rows = table(tmp_path / "log.csv")
    assert [r["skipped"] for r in rows] == ["0", "0", "1", "1", "1", "1"]
    assert all(math.isfinite(float(r["loss"])) for r in rows)


def test_three_in_a_row_stop_with_what_it_was(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 11, .* not finite in: loss, squares") as caught:
        train(Regression(nan=(9, 10, 11)), settings(), tmp_path)
    assert "resume" in str(caught.value)
    assert max(checkpoint.saved(tmp_path)) == 12
    outcome = train(Regression(), settings(), tmp_path, resume=True)
    assert outcome.skipped == 3


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
        ({"lr": 0.02}, "settings.lr: 0.01 -> 0.02"),
        ({"scales": {"0": 0.1}}, "settings.scales.0: None -> 0.1"),
        ({"parts": ("0",)}, "settings.parts: None -> "),
    ],
)
def test_other_settings_are_named(changes: Any, words: str, whole: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        train(Regression(), settings(**changes), whole, resume=True)
    assert words in str(caught.value)
    assert "step_0000024.pt" in str(caught.value)


def test_other_data_is_named(tmp_path: Path) -> None:
    train(Regression(batch=16), settings(), tmp_path)
    with pytest.raises(CheckpointError, match=r"task\.batch: 16 -> 8"):
        train(Regression(batch=8), settings(), tmp_path, resume=True)


def test_accepted_changes_go_on(tmp_path: Path) -> None:
    train(Regression(), settings(), tmp_path)
    task = Regression()
    more = settings(steps=40, lr=0.002, scales={"0": 0.5})
    outcome = train(task, more, tmp_path, resume=True, accept_changes=True)
    assert outcome.steps == 40 and task.seen[0] == STEPS
    last = float(table(tmp_path / "log.csv")[-1]["lr"])
    assert last == pytest.approx(more.lr_at(39), abs=1e-9)


def test_settings_that_only_watch_may_change(tmp_path: Path) -> None:
    train(Regression(), settings(), tmp_path)
    train(Regression(), settings(log_every=7, keep=5, validate_every=0), tmp_path, resume=True)


def test_another_module_is_refused(tmp_path: Path) -> None:
    train(Regression(), settings(), tmp_path)
    task = Regression()
    task.module = nn.Sequential(*task.module, nn.Linear(1, 1))  # type: ignore[misc]
    with pytest.raises(CheckpointError, match="trained"):
        train(task, settings(), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"5\.weight: None -> "):
        train(task, settings(), tmp_path, resume=True, accept_changes=True)


def test_a_folder_with_a_run_is_not_overwritten(whole: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a run at step 24: resume it"):
        train(Regression(), settings(), whole)


def test_two_runs_in_a_folder_are_kept_apart(tmp_path: Path) -> None:
    def second() -> None:
        with pytest.raises(TrainingError, match="another process trains"):
            train(Regression(), settings(), tmp_path, resume=True)

    train(Regression(at={3: second}), settings(steps=6, warmup=0), tmp_path)


def test_batches_must_not_end(tmp_path: Path) -> None:
    class Short(Regression):
        def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
            yield from itertools.islice(super().batches(start, rank, world), 4)

    with pytest.raises(TrainingError, match="ended at step 4"):
        train(Short(), settings(), tmp_path)


def test_a_loss_must_be_there_and_depend(tmp_path: Path) -> None:
    task = Regression()
    task.loss = lambda m, b: {"cost": m(b[1]).sum()}  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="it returned cost"):
        train(task, settings(), tmp_path / "a")
    task.loss = lambda m, b: {"loss": torch.zeros(())}  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="depends on what trains"):
        train(task, settings(), tmp_path / "b")


def test_something_must_train(tmp_path: Path) -> None:
    task = Regression()
    task.module.requires_grad_(False)
    with pytest.raises(SettingsError, match="nothing trains"):
        train(task, settings(), tmp_path)


def test_more_devices_than_processes_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="torchrun --nproc-per-node 2"):
        train(Regression(), settings(devices=2), tmp_path)


def test_lightning_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(EfficientSam3Error, match=r"efficientsam3\[train\]"):
        train(Regression(), settings(), tmp_path)


# On many, and fast --------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_shares_the_batches(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=29711", __file__, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STOP": "9"}
    subprocess.run(command, env=environment, check=False, timeout=240)
    assert max(checkpoint.saved(tmp_path)) < STEPS
    del environment["STOP"]
    subprocess.run(command, env=environment, check=True, timeout=240)
    rows = table(tmp_path / "log.csv")
    assert [int(r["step"]) for r in rows] == [4, 8, 12, 16, 20, 24]
    assert [float(r["number"]) for r in rows] == [3, 11, 19, 27, 35, 43]  # rank 0: the even ones
    assert len(checkpoint.load(checkpoint.path_of(tmp_path, STEPS))["random"]) == 2


@pytest.mark.slow
def test_the_loop_itself_costs_little(tmp_path: Path) -> None:
    """Less than 1 % of a step of 0.3 s, that is 3 ms, forward and backward included."""
    rates: list[float] = []
    changes = settings(steps=400, warmup=0, validate_every=0, picture_every=0, save_every=0)
    train(Regression(), changes, tmp_path, on_progress=lambda p: rates.append(p.rate))
    assert 1 / max(rates) < 0.003


def child() -> None:
    torch.set_num_threads(1)
    task = Regression()
    if "STOP" in os.environ and os.environ.get("RANK") == "1":
        # Only one rank hears it; all must stop.
        number = 2 * int(os.environ["STOP"]) + 1
        task.at[number] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    slow = task.loss
    task.loss = lambda m, b: (time.sleep(0.02), slow(m, b))[1]  # type: ignore[method-assign]
    train(task, settings(), sys.argv[1], resume=True)


if __name__ == "__main__":
    child()
