"""The machine to train on: Lightning Fabric, and signals that ask to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import EfficientSam3Error
from .settings import LoopSettings, SettingsError
from .task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class TrainingError(EfficientSam3Error, RuntimeError):
    """Training cannot go on: a loss that is not finite, batches that end."""


class Objective(nn.Module):
    """The loss as a forward pass: what a distributed wrapper needs to see."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module
        self._loss = task.loss

    def forward(self, batch: Carried) -> dict[str, Tensor]:
        return dict(self._loss(self.module, batch.value))


class Carried:
    """A batch that passes Fabric unseen: it would round its float32 targets to bfloat16."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other runs out of it; the system forgets a lock with its process.

    Raises:
        TrainingError: a run is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.name != "posix" or os.environ.get("RANK", "0") != "0":
        yield
        return
    import fcntl

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"another process trains in {folder}: wait for it, stop it, or choose another "
                "folder"
            ) from error
        yield


def make_fabric(settings: LoopSettings) -> Fabric:
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise EfficientSam3Error(
            'training needs Lightning Fabric: pip install "efficientsam3[train]"'
        ) from error
    started = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("WORLD_SIZE", 1))
    devices = settings.devices or started[0]
    if devices != started[0]:
        raise SettingsError(
            f"devices is {devices}, but this is one of {started[0]} processes here: start it with "
            f"torchrun --nproc-per-node {devices}"
        )
    if settings.strategy != "auto" and not settings.strategy.startswith("ddp"):
        raise SettingsError(
            f"strategy is {settings.strategy!r}; it must be auto or one of Fabric's ddp ones, in "
            "which every process has the whole module"
        )
    chatter = logging.getLogger("lightning_fabric")
    level = chatter.level
    chatter.setLevel(logging.WARNING)
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=devices,
            num_nodes=max(1, started[1] // started[0]),
            strategy=settings.strategy,
            precision=settings.precision,  # type: ignore[arg-type]
        )
        fabric.launch()
    finally:
        chatter.setLevel(level)
    return fabric


class Signals:
    """Ctrl-C and SIGTERM wait for the end of the step; a second one does not."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
