"""Ray: a cluster, workers in it, and partitions that go to the workers that are free.

Partitions are tasks of actors. Each worker has one partition at a time, so that what is in flight
is bounded by the number of workers.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError, EfficientSam3Error, MissingPackageError
from .settings import Work
from .shards import Counts
from .sources import Plan
from .stores import INSTALL
from .worker import TargetError, Worker

OBJECT_STORE = 200 * 2**20
"""Bytes of the object store of a local cluster, through which only names and counts go."""
ATTEMPTS = 3
"""Times that a partition is tried when its worker dies."""
PATIENCE = 60.0
"""Seconds without any worker until the user is told."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray reports its use to its makers unless it is told not to
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without GPUs, variables stay as they are
    "RAY_worker_niceness": "0",  # as other commands; Ray's own is 15
}


class ClusterError(EfficientSam3Error, RuntimeError):
    """A cluster does not start, or its workers die before they work."""


@dataclass
class Finished:
    """What became of a partition.

    Attributes:
        number: The partition.
        counts: What its shard holds; None where it failed.
        error: Why it failed.
    """

    number: int
    counts: Counts | None
    error: str | None = None


def import_ray() -> Any:
    """Import Ray, which reports nothing.

    Raises:
        MissingPackageError: It is not installed.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingPackageError(f"many machines need Ray: {INSTALL}") from error


@contextmanager
def connected(address: str | None, cores: int | None = None) -> Iterator[Any]:
    """Start a cluster on this machine, or connect to one.

    Where the process is connected to a cluster already, it is used and stays connected.

    Args:
        address: "auto" or the address of a cluster; None: a cluster on this machine, which ends
            with the block.
        cores: Cores of the cluster on this machine; None: all that the process may use.

    Yields:
        The module ``ray``.

    Raises:
        ArgumentError: There is no cluster at the address.
        ClusterError: Ray does not start on this machine.
        MissingPackageError: Ray is not installed.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    folder = None
    if address is None:
        folder = tempfile.mkdtemp(prefix="esam3-ray-")
        common |= {
            "num_cpus": cores or usable_cores(),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": folder,
        }
    else:
        common["address"] = address
    try:
        try:
            ray.init(**common)
        except Exception as error:
            # Ray raises a plain Exception where its processes need more than 30 s to start.
            ray.shutdown()
            if address is None:
                raise ClusterError(
                    f"Ray did not start on this machine: {error} Run the same command again when "
                    "the machine is less busy"
                ) from error
            raise ArgumentError(
                f"there is no Ray cluster at {address!r}: {error}. Start one with `ray start "
                "--head`, or leave --ray out for this machine's cores"
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """Workers in a cluster.

    A worker that dies is replaced. Its partition goes to another one, and fails when it killed
    several. Workers for which the cluster has no room at the moment are waited for, while those
    that are there go on.

    Attributes:
        size: Number of workers.
        gpus: GPUs of a worker.
        ready_at: When the first worker had loaded the model, by ``time.monotonic``.

    Args:
        ray: The module, connected.
        work: What the workers do.
        workers: Number of workers; None: as many as the cluster has room for.
        gpus: GPUs of a worker; None: 1 where the cluster has GPUs and ``work.load`` names no other
            device.

    Raises:
        ArgumentError: The cluster has no room for one worker.
    """

    def __init__(
        self, ray: Any, work: Work, workers: int | None = None, gpus: float | None = None
    ) -> None:
        self._ray = ray
        resources = ray.cluster_resources()
        device = str(work.load.get("device") or "")
        if gpus is None:
            gpus = 1.0 if resources.get("GPU") and not device.startswith("cpu") else 0.0
        if not gpus and not device:
            work = Work(
                **{**vars(work), "load": {**work.load, "device": "cpu"}}
            )  # all alike, whatever the machines have
        room = resources.get("CPU", 0) // work.cpus
        if gpus:
            room = min(room, resources.get("GPU", 0) // gpus)
        if workers is None and room < 1:
            raise ArgumentError(
                f"a worker asks for {work.cpus} CPU and {gpus:g} GPU, and the cluster has "
                f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}: ask for less "
                "(--cpus, --gpus), or name the number of workers for a cluster that grows"
            )
        self.size = int(workers or room)
        self.gpus = gpus
        options = {"num_cpus": work.cpus, "num_gpus": gpus, "max_restarts": 0}
        self._make = ray.remote(**options)(Worker).remote
        self._work = work
        self.ready_at: float | None = None
        self._failures = 0
        self._pending: dict[Any, Any] = {}  # what a worker says when it is ready -> worker
        self._busy: dict[Any, tuple[Any, int]] = {}  # result -> worker, partition

    def run(self, plan: Plan, numbers: Iterable[int], folder: Any) -> Iterator[Finished | str]:
        """Annotate partitions.

        Args:
            plan: All partitions.
            numbers: Those that are to be done.
            folder: The ``RunFolder``.

        Yields:
            Each partition when it is done or has failed; sentences for the user in between.

        Raises:
            EfficientSam3Error: A worker cannot load the model, or results cannot be written.
        """
        queue = deque(numbers)
        attempts: dict[int, int] = {}
        alone_since = time.monotonic()
        try:
            self._fill(min(self.size, len(queue)))
            while queue or self._busy:
                waiting = [*self._busy, *self._pending]
                ready, _ = self._ray.wait(waiting, num_returns=1, timeout=5)
                if self._busy or ready:
                    alone_since = time.monotonic()
                elif time.monotonic() - alone_since > PATIENCE:
                    alone_since = time.monotonic()
                    yield self._describe_wait()
                for one in ready:
                    if one in self._pending:
                        worker = self._pending.pop(one)
                        if not self._is_ready(one, worker, folder):
                            self._fill(1)
                            continue
                    else:
                        worker, number = self._busy.pop(one)
                        finished, worker = self._finish(one, worker, number, attempts)
                        if finished is None:
                            queue.append(number)
                        else:
                            yield finished
                        if worker is None and queue:
                            self._fill(1)
                    if worker is not None and queue:
                        number = queue.popleft()
                        task = worker.annotate.remote(plan[number], folder.places(number))
                        self._busy[task] = (worker, number)
        finally:
            self._end()

    def _fill(self, count: int) -> None:
        for _ in range(count):
            worker = self._make(self._work)
            self._pending[worker.prepare.remote()] = worker

    def _is_ready(self, task: Any, worker: Any, folder: Any) -> bool:
        try:
            folder.begin(self._ray.get(task))
        except self._ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
        except self._ray.exceptions.RayActorError:  # its machine went away
            self._failures += 1
            if self._failures > ATTEMPTS * self.size:
                raise ClusterError(
                    f"{self._failures} workers died before they had loaded the model, the last on "
                    "a machine without enough memory, or without efficientsam3: look at Ray's logs"
                ) from None
            time.sleep(1)
            return False
        self._failures = 0
        self.ready_at = self.ready_at or time.monotonic()
        return True

    def _finish(
        self, task: Any, worker: Any, number: int, attempts: dict[int, int]
    ) -> tuple[Finished | None, Any]:
        """What became of a partition, None if it is to be tried again; and the worker if alive."""
        exceptions = self._ray.exceptions
        try:
            return Finished(number, self._ray.get(task)), worker
        except exceptions.RayTaskError as error:
            cause = _cause(error)
            if isinstance(cause, TargetError):
                raise cause from error
            if isinstance(cause, (EfficientSam3Error, OSError)):
                return Finished(number, None, str(cause)), worker
            # After an error of the runtime, such as that of a GPU, the process is not used again.
            self._kill(worker)
            reason = f"{type(cause).__name__}: {cause}"
        except exceptions.RayError as error:
            reason = f"its worker died ({type(error).__name__})"
        attempts[number] = attempts.get(number, 0) + 1
        if attempts[number] < ATTEMPTS:
            return None, None
        return Finished(number, None, f"{reason}, {ATTEMPTS} times"), None

    def _describe_wait(self) -> str:
        free = self._ray.available_resources()
        return (
            f"waiting for a worker: one needs {self._work.cpus} CPU and {self.gpus:g} GPU, and the "
            f"cluster has {free.get('CPU', 0):g} and {free.get('GPU', 0):g} free"
        )

    def _kill(self, worker: Any) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(worker)

    def _end(self) -> None:
        workers = [worker for worker, _ in self._busy.values()]
        for worker in [*workers, *self._pending.values()]:
            self._kill(worker)
        self._busy, self._pending = {}, {}


def _cause(error: Any) -> Exception:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
