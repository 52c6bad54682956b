"""A training run that is interrupted, or shared by processes, gives the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from efficientsam3.train import checkpoint
from efficientsam3.train.errors import TrainingStopped
from efficientsam3.train.loop import train

from . import regression
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


def train_and_kill(folder: Path, after: int) -> None:
    """Train in another process, whose batches a worker makes; kill it after a checkpoint."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, regression.__file__, str(folder)], env=environment)
    try:
        end = time.monotonic() + 120
        while max(checkpoint.list_checkpoints(folder), default=0) < after:
            assert child.poll() is None and time.monotonic() < end
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(tmp_path: Path, whole: Path) -> None:
    train_and_kill(tmp_path, 10)
    assert max(checkpoint.list_checkpoints(tmp_path)) < STEPS
    train(Regression(), settings(), tmp_path)
    assert_same(tmp_path, whole)


def test_failing_data_loses_nothing(tmp_path: Path, whole: Path) -> None:
    def fail() -> None:
        raise ValueError("a broken file")

    with pytest.raises(ValueError, match="a broken file"):
        train(Regression(at={13: fail}), settings(), tmp_path)
    assert max(checkpoint.list_checkpoints(tmp_path)) == 13
    task = Regression()
    train(task, settings(), tmp_path)
    assert task.seen[0] == 13
    assert_same(tmp_path, whole)


def test_failing_validation_loses_nothing(tmp_path: Path, whole: Path) -> None:
    class Failing(Regression):
        def validate(self, module: nn.Module) -> dict[str, float]:
            raise OSError("no such picture")

        def describe(self) -> dict[str, Any]:
            return {"kind": "Regression"}

    with pytest.raises(OSError, match="no such picture"):
        train(Failing(), settings(), tmp_path)
    assert max(checkpoint.list_checkpoints(tmp_path)) == 8
    train(Regression(), settings(), tmp_path)  # makes up for the validation
    assert_same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_stop(number: signal.Signals, tmp_path: Path, whole: Path) -> None:
    # In another process: a signal that is not handled would end the process of the tests.
    command = [sys.executable, regression.__file__, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SIGNAL": str(int(number))}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert "at step 7 of 24; everything is saved" in run.stdout
    assert "handler restored: True" in run.stdout
    train(Regression(), settings(), tmp_path)
    assert_same(tmp_path, whole)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
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


def test_it_runs_in_a_thread(tmp_path: Path) -> None:
    worker = threading.Thread(target=train, args=(Regression(), settings(), tmp_path))
    worker.start()
    worker.join()
    assert (tmp_path / "weights.safetensors").exists()


def test_a_finished_run_is_not_trained_again(whole: Path) -> None:
    task = Regression()
    before = (whole / "log.csv").read_text()
    result = train(task, settings(), whole)
    assert task.seen == []
    assert result.steps == STEPS and set(result.metrics) == {"error"}
    assert (whole / "log.csv").read_text() == before


def call_handler() -> None:
    """What SIGTERM does, if training handles it; an error, not the end of the process, if not."""
    handler = signal.getsignal(signal.SIGTERM)
    assert callable(handler)
    handler(signal.SIGTERM, None)


def test_times_add_up_over_sessions(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped):
        train(Regression(at={6: call_handler}), settings(), tmp_path)
    result = train(Regression(), settings(), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(s["from"], s["to"]) for s in report["sessions"]] == [(0, 7), (7, 24)]
    assert report["finished"] and report["seconds"] == pytest.approx(result.seconds, abs=1e-3)
    total = sum(s["seconds"] for s in report["sessions"])
    assert report["seconds"] == pytest.approx(total, abs=2e-3)


# On several processes -----------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_shares_the_batches(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += [
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        regression.__file__,
        str(tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STOP": "9"}
    subprocess.run(command, env=environment, check=False, timeout=240)
    assert max(checkpoint.list_checkpoints(tmp_path)) < STEPS
    del environment["STOP"]
    subprocess.run(command, env=environment, check=True, timeout=240)
    rows = table(tmp_path / "log.csv")
    assert [int(r["step"]) for r in rows] == [4, 8, 12, 16, 20, 24]
    # The means of both ranks, of eight batches each: every batch is there once.
    assert [float(r["number"]) for r in rows] == [3.5, 11.5, 19.5, 27.5, 35.5, 43.5]
    last = checkpoint.checkpoint_path(tmp_path, STEPS)
    assert len(checkpoint.load_checkpoint(last)["random"]) == 2
