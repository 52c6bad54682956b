"""Which worker gets which partition, and what happens when workers die; Ray is replaced."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from efficientsam3.distributed import cluster
from efficientsam3.distributed.cluster import ClusterError, Finished, Pool, connected
from efficientsam3.distributed.settings import Work
from efficientsam3.distributed.shards import Counts
from efficientsam3.distributed.worker import TargetError
from efficientsam3.errors import ArgumentError, DataError, WeightsNotFoundError


class RayError(Exception):
    """As Ray's."""


class RayActorError(RayError):
    """As Ray's."""


class RayTaskError(RayError):
    """As Ray's."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class FakeRay:
    """Tasks end in a random order, with what ``outcome`` returns or raises."""

    exceptions = SimpleNamespace(
        RayError=RayError, RayActorError=RayActorError, RayTaskError=RayTaskError
    )

    def __init__(self, outcome: Callable[[Any, int], Any], workers: int = 3) -> None:
        self.outcome, self.workers = outcome, workers
        self.made = self.most_waiting = 0
        self.killed: list[Any] = []
        self.random = random.Random(0)
        self.tasks: dict[Any, Callable[[], Any]] = {}

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.workers)}

    available_resources = cluster_resources

    def remote(self, **options: Any) -> Any:
        def make(*_: Any) -> Any:
            self.made += 1
            actor = SimpleNamespace(number=self.made)

            def call(action: Callable[..., Any]) -> Any:
                def start(*arguments: Any) -> object:
                    task = object()
                    self.tasks[task] = lambda: action(*arguments)
                    return task

                return SimpleNamespace(remote=start)

            actor.prepare = call(lambda: self.outcome(actor.number, -1))
            actor.annotate = call(lambda number, _: self.outcome(actor.number, number))
            return actor

        return lambda cls: SimpleNamespace(remote=make)

    def wait(
        self, tasks: list[Any], num_returns: int, timeout: float
    ) -> tuple[list[Any], list[Any]]:
        self.most_waiting = max(self.most_waiting, len(tasks))
        return [self.random.choice(tasks)], []

    def get(self, task: Any) -> Any:
        return self.tasks.pop(task)()

    def kill(self, actor: Any) -> None:
        self.killed.append(actor.number)


FOLDER = SimpleNamespace(begin=lambda model: None, places=lambda number: None)
PLAN: Any = range(1000)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)


def run(outcome: Callable[[Any, int], Any], count: int = 50) -> tuple[list[Finished], FakeRay]:
    ray = FakeRay(outcome)
    return [
        f for f in Pool(ray, Work("tiny")).run(PLAN, range(count), FOLDER) if not isinstance(f, str)
    ], ray


def good(worker: int, number: int) -> Any:
    return {} if number < 0 else Counts(images=1)


def test_each_partition_once_and_few_in_flight() -> None:
    done, ray = run(good, 1000)
    assert sorted(f.number for f in done) == list(range(1000))
    assert ray.made == 3 and ray.most_waiting <= 3, "what is in flight is bounded by the workers"


def test_partitions_of_dead_workers_go_to_others() -> None:
    asked: list[int] = []

    def dying(worker: int, number: int) -> Any:
        asked.append(number)
        if number % 10 == 3 and asked.count(number) == 1:
            raise RayActorError
        return good(worker, number)

    done, ray = run(dying)
    assert sorted(f.number for f in done if f.counts is not None) == list(range(50))
    assert ray.made == 3 + 5 and ray.most_waiting <= 3


def test_a_partition_that_kills_workers_fails_alone() -> None:
    def poisoned(worker: int, number: int) -> Any:
        if number == 7:
            raise RayActorError
        return good(worker, number)

    done, ray = run(poisoned)
    (failed,) = [f for f in done if f.counts is None]
    assert failed.number == 7 and failed.error == "its worker died (RayActorError), 3 times"
    assert len(done) == 50 and ray.made <= 3 + 3


def test_an_error_of_the_runtime_ends_its_process() -> None:
    seen: list[int] = []

    def broken(worker: int, number: int) -> Any:
        if number == 7:
            seen.append(worker)
            raise RayTaskError(RuntimeError("CUDA error"))
        return good(worker, number)

    done, ray = run(broken)
    (failed,) = [f for f in done if f.counts is None]
    assert failed.error == "RuntimeError: CUDA error, 3 times"
    assert len(set(seen)) == 3 and set(seen) <= set(ray.killed)


def test_a_partition_that_cannot_be_read_is_not_tried_again() -> None:
    asked: list[int] = []

    def unreadable(worker: int, number: int) -> Any:
        asked.append(number)
        if number == 7:
            raise RayTaskError(DataError("a.parquet is damaged"))
        return good(worker, number)

    done, ray = run(unreadable)
    (failed,) = [f for f in done if f.counts is None]
    assert failed.error == "a.parquet is damaged" and asked.count(7) == 1 and ray.made == 3


def test_a_target_that_is_full_ends_the_run() -> None:
    def full(worker: int, number: int) -> Any:
        if number == 7:
            raise RayTaskError(TargetError("No space left"))
        return good(worker, number)

    with pytest.raises(TargetError, match="No space left"):
        run(full)


def test_a_model_that_cannot_be_loaded_ends_the_run() -> None:
    def lost(worker: int, number: int) -> Any:
        raise RayTaskError(WeightsNotFoundError("there are no weights"))

    with pytest.raises(WeightsNotFoundError, match="there are no weights"):
        run(lost)


def test_workers_that_die_at_once_end_the_run() -> None:
    def lost(worker: int, number: int) -> Any:
        raise RayActorError

    with pytest.raises(ClusterError, match="workers died before they had loaded the model"):
        run(lost)


def test_a_cluster_without_room_is_said() -> None:
    with pytest.raises(ArgumentError, match="asks for 4 CPU and 0 GPU, and the cluster has 3"):
        Pool(FakeRay(good), Work("tiny", cpus=4))


@pytest.mark.parametrize(
    ("address", "error", "sentence"),
    [
        (None, ClusterError, "Ray did not start on this machine: timed out."),
        ("auto", ArgumentError, "there is no Ray cluster at 'auto': timed out"),
    ],
)
def test_a_cluster_that_does_not_start_is_said(
    monkeypatch: pytest.MonkeyPatch, address: str | None, error: type[Exception], sentence: str
) -> None:
    def init(**_: Any) -> None:
        raise Exception("timed out.")  # as Ray does

    ray = SimpleNamespace(init=init, is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setattr(cluster, "import_ray", lambda: ray)
    with pytest.raises(error, match=sentence), connected(address):
        pass
