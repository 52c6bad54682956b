"""Lightning Fabric as the loop uses it, and signals that ask the loop to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from ..errors import MissingPackageError
from .errors import SettingsError, TrainingError
from .settings import LoopSettings
from .task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


class UncastBatch:
    """A batch that Fabric does not look into: it would round float32 targets to bfloat16.

    Args:
        value: The batch.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class LossModule(nn.Module):
    """A task's loss as a forward pass, which is what a distributed wrapper synchronizes.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module
        self._loss = task.loss

    def forward(self, batch: UncastBatch) -> dict[str, Tensor]:
        """The task's loss of a batch, and the other scalars that it reports.

        Args:
            batch: What the task's ``batches`` yields.
        """
        return dict(self._loss(self.module, batch.value))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create the folder of a run, and keep other runs out of it.

    The system releases the lock when the process ends, in whatever way.

    Args:
        folder: Folder of the run.

    Raises:
        TrainingError: Another process trains in it.
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
    """Launch Fabric on the devices that the settings name.

    Args:
        settings: Settings of the loop.

    Raises:
        MissingPackageError: Lightning Fabric is not installed.
        SettingsError: The devices do not fit the processes that torchrun started; an unknown
            strategy.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingPackageError(
            'training needs Lightning Fabric: pip install "efficientsam3[train]"'
        ) from error
    local, total = (int(os.environ.get(k, 1)) for k in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    devices = settings.devices or local
    if devices != local:
        raise SettingsError(
            f"devices is {devices}, but this is one of {local} processes here: start it with "
            f"torchrun --nproc-per-node {devices}"
        )
    if settings.strategy != "auto" and not settings.strategy.startswith("ddp"):
        raise SettingsError(
            f"strategy is {settings.strategy!r}; it must be auto or one of Fabric's ddp ones, in "
            "which every process has the whole module"
        )
    strategy = settings.strategy
    if strategy == "auto" and total > 1:
        # Steps of many tasks use only parts of the module, and plain DDP then fails or waits.
        strategy = "ddp_find_unused_parameters_true"
    logger = logging.getLogger("lightning_fabric")  # it announces devices and seeds
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=devices,
            num_nodes=max(1, total // local),
            strategy=strategy,
            precision=settings.precision,  # type: ignore[arg-type]
        )
        _connect_again(fabric)
        fabric.launch()
    finally:
        logger.setLevel(level)
    return fabric


def _connect_again(fabric: Fabric) -> None:
    """Connect processes that torchrun has restarted, before Fabric does.

    Torchrun keeps its store, which has the addresses of the processes before. Processes that read
    those wait for each other without end, so that each attempt has keys of its own.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    from torch.distributed import distributed_c10d
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://"))
    distributed_c10d.init_process_group(
        "nccl" if fabric.device.type == "cuda" else "gloo",
        store=distributed_c10d.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=world,
    )


@contextmanager
def without_hints_of_ddp() -> Iterator[None]:
    """Leave out two warnings of DDP about speed, about which a user of a recipe can do nothing."""
    with warnings.catch_warnings():
        for start in ("Grad strides do not match", "find_unused_parameters=True was specified"):
            warnings.filterwarnings("ignore", message=start)
        yield


def wait_for_processes() -> None:
    """Wait until all processes that torchrun started, and that train together, are here."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def of_all_ranks(value: T) -> list[T]:
    """The values that the processes have, which all call this.

    Args:
        value: The value of this process, which can be pickled.

    Returns:
        The values by rank; this one alone where one process trains.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class StopSignals:
    """Ctrl-C and SIGTERM, noted for the end of the step. A second one has its usual effect.

    Attributes:
        received: Name of the signal that came; None before.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
