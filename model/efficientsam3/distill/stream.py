"""Batches made ahead of time by processes or threads, the same ones in any case."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from .settings import SettingsError

T = TypeVar("T")
Make = Callable[[int, np.random.Generator], T]
"""Makes batch number n; all that is random about it comes from the generator."""

KINDS = ("process", "thread")


def stream(
    make: Make[T],
    *,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    ahead: int = 2,
    kind: str = "process",
) -> Iterator[T]:
    """Batches without end, in order, whoever makes them: what ``Task.batches`` returns.

    Batch k of this rank is ``make(n, rng)`` with n = (start + k) * world + rank and a generator
    seeded by (seed, n). So the stream does not depend on ``workers``, ``ahead`` and ``kind``,
    and a run on several ranks shares out the batches of one.

    Args:
        make: for processes: picklable, as a function at file level, a bound method or a
            ``partial``; its errors are raised where the batch is taken.
        workers: processes or threads; 0: made when taken.
        ahead: batches that each of them prepares.
        kind: "process", for work in Python; "thread", for work that releases the interpreter's
            lock (reading and decoding of files).
    """
    if kind not in KINDS:
        raise SettingsError(f"kind is {kind!r}; known: {', '.join(KINDS)}")
    if min(start, rank, workers) < 0 or ahead < 1 or rank >= world:
        raise SettingsError(
            f"start {start}, rank {rank} of {world}, workers {workers}, ahead {ahead}: they "
            "must be 0 or more, rank below world, ahead at least 1"
        )
    made = _Made(make, seed)
    numbers = itertools.count(start * world + rank, world)
    if workers == 0:
        return map(made.__getitem__, numbers)
    return _ahead(_pool(made, workers, kind), made, numbers, workers * ahead)


@dataclass(frozen=True)
class _Made(Generic[T]):
    """The batches as a mapping from number to batch."""

    make: Make[T]
    seed: int

    def __getitem__(self, number: int) -> T:
        return self.make(number, np.random.default_rng((self.seed, number)))


def _ahead(pool: Executor, made: _Made[T], numbers: Iterator[int], count: int) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()
    inside = isinstance(pool, ProcessPoolExecutor)
    try:
        while True:
            while len(waiting) < count:
                number = next(numbers)
                waiting.append(
                    pool.submit(_make, number) if inside else pool.submit(made.__getitem__, number)
                )
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(made: _Made[Any], workers: int, kind: str) -> Executor:
    if kind == "thread":
        return ThreadPoolExecutor(workers, thread_name_prefix="batches")
    # A fork of a process whose threads hold locks can wait for them for ever.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_start, initargs=(made,))


# In a worker process ------------------------------------------------------------------------

_here: list[_Made[Any]] = []  # sent once, not with each number


def _start(made: _Made[Any]) -> None:
    import torch
    import torch.multiprocessing  # tensors return through shared memory

    torch.set_num_threads(1)
    # Ctrl-C is for the training process, which then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _here[:] = [made]


def _make(number: int) -> Any:
    return _here[0][number]


def _end_with_parent() -> None:
    """A training process that was killed cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
