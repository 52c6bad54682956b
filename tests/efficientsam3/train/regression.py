"""A small task for tests of the training loop. As a script, this file trains it."""

from __future__ import annotations

import csv
import itertools
import math
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from efficientsam3.train import checkpoint
from efficientsam3.train.errors import TrainingStopped
from efficientsam3.train.loader import stream
from efficientsam3.train.loop import train
from efficientsam3.train.settings import LoopSettings
from efficientsam3.train.task import Task

STEPS = 24


def make_batch(number: int, rng: np.random.Generator) -> tuple[int, Tensor, Tensor]:
    x = torch.from_numpy(rng.standard_normal((16, 6))).float()
    return number, x, x.sum(1, keepdim=True)


class Regression(Task):
    """Learn a sum with dropout and batch norm, whose states an exact resume must restore."""

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
            self.seen.append(number)
            yield make_batch(number, np.random.default_rng((7, number)))

    def loss(self, module: nn.Module, batch: tuple[int, Tensor, Tensor]) -> dict[str, Tensor]:
        number, x, y = batch
        # An exact resume restores the generators of NumPy and Python, too.
        noise = 0.01 * (np.random.random() + random.gauss(0, 1))
        x = x * math.nan if number in self.nan else x
        squares = (module(x + noise) - y).pow(2).mean()
        return {"loss": squares + 0.5, "squares": squares, "number": torch.tensor(float(number))}

    def validate(self, module: nn.Module) -> dict[str, float]:
        torch.rand(3)  # must not change the random numbers of the training
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
    clocks = ("rate", "data_wait", "seconds")
    return [{k: v for k, v in r.items() if k not in clocks} for r in table(folder / "log.csv")]


def assert_same(a: Path, b: Path) -> None:
    """Assert that two runs gave the same bits and the same tables."""
    first, second = load_file(a / "weights.safetensors"), load_file(b / "weights.safetensors")
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert numbers(a) == numbers(b)
    assert (a / "validation.csv").read_text() == (b / "validation.csv").read_text()
    ours, theirs = (
        checkpoint.load_checkpoint(checkpoint.checkpoint_path(f, STEPS)) for f in (a, b)
    )
    for name, state in ours["optimizer"].items():
        for key, value in state.items():
            assert torch.equal(value, theirs["optimizer"][name][key]), (name, key)


class WorkerRegression(Regression):
    """The same batches, made by a worker process."""

    def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
        return stream(make_batch, seed=7, start=start, rank=rank, world=world, workers=1)

    def describe(self) -> dict[str, Any]:
        return {"kind": "Regression"}


def stop_by_signal(number: signal.Signals, folder: str) -> None:
    """Train until this process sends itself a signal; print how training ends."""
    # A shell starts what is to run in the background with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(number)
    try:
        train(Regression(at={6: lambda: os.kill(os.getpid(), number)}), settings(), folder)
    except TrainingStopped as error:
        restored = signal.getsignal(number) is before
        sys.stdout.write(f"{error}\nhandler restored: {restored}\n")


def child() -> None:
    torch.set_num_threads(1)
    torchrun = "RANK" in os.environ
    task = Regression() if torchrun else WorkerRegression()
    if "STOP" in os.environ and os.environ["RANK"] == "1":
        # Only one rank gets the signal; all must stop.
        number = 2 * int(os.environ["STOP"]) + 1
        task.at[number] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    if "SIGNAL" in os.environ:
        stop_by_signal(signal.Signals(int(os.environ["SIGNAL"])), sys.argv[1])
        return
    loss = task.loss
    task.loss = lambda m, b: (time.sleep(0.02), loss(m, b))[1]  # type: ignore[method-assign]
    train(task, settings(), sys.argv[1])


if __name__ == "__main__":
    child()
