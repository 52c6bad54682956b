"""An endless, reproducible stream of batches from torch's ``DataLoader``."""

from __future__ import annotations

import itertools
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .errors import SettingsError

T = TypeVar("T")
# Makes the batch of a number; all randomness in it comes from the generator.
MakeBatch = Callable[[int, np.random.Generator], T]

# Batches that each worker prepares ahead.
PREFETCH = 2


def stream(
    make: MakeBatch[T],
    *,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[T]:
    """Batches without end, in order, the same for any number of workers.

    Batch k of this rank is ``make(n, rng)`` with n = (start + k) * world + rank, and rng seeded by
    (seed, n). A resumed run therefore sees the batches that it would have seen, and a run on
    several ranks shares out the batches of a run on one.

    Args:
        make: Makes one batch. With workers it must be picklable: a function at file level, a bound
            method or a ``functools.partial``. Its errors are raised where the batch is taken.
        seed: Seed of all batches.
        start: Batches of this rank to skip, 0 or more.
        rank: Number of this process among ``world``, from 0.
        world: Number of processes that share the batches.
        workers: Processes that make batches ahead; 0: this process makes each when it is taken.

    Returns:
        An iterator. Its ``close()`` ends the workers.

    Raises:
        SettingsError: ``start``, ``rank`` or ``workers`` is out of range.
    """
    if min(start, rank, workers) < 0 or rank >= world:
        raise SettingsError(
            f"start is {start}, rank {rank} of {world}, workers {workers}; each must be 0 or more, "
            "and rank less than the number of processes"
        )
    loader = DataLoader(
        _NumberedBatches(make, seed),
        batch_size=None,
        sampler=_Numbers(start * world + rank, world),
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_ignore_interrupts,
        # A forked process can wait for ever on a lock that another thread of its parent held.
        multiprocessing_context="spawn" if workers else None,
        # The loader draws a seed for its workers. From torch's global generator that draw would
        # change the random numbers of the training that follows.
        generator=torch.Generator(),
    )
    return _raise_failures(loader)


def _raise_failures(loader: DataLoader[Any]) -> Iterator[Any]:
    for batch in loader:
        if isinstance(batch, _Failure):
            raise batch.error from _WorkerTraceback(batch.trace)
        yield batch


class _Numbers:
    """The numbers of this rank's batches, without end: a sampler."""

    def __init__(self, first: int, step: int) -> None:
        self.first, self.step = first, step

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first, self.step)


class _NumberedBatches(Dataset[Any], Generic[T]):
    """Batches by number. A worker returns an error: the loader would raise a reworded copy."""

    def __init__(self, make: MakeBatch[T], seed: int) -> None:
        self.make, self.seed = make, seed

    def __getitem__(self, number: int) -> T | _Failure:
        try:
            return self.make(number, np.random.default_rng((self.seed, number)))
        except Exception as error:  # noqa: BLE001 - raised again by _raise_failures
            return _Failure(_portable(error), traceback.format_exc())


@dataclass(frozen=True)
class _Failure:
    """An error in place of a batch, and its traceback in the worker."""

    error: Exception
    trace: str


def _portable(error: Exception) -> Exception:
    """The error, or its text where a queue between processes would lose it."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made a moment ago, by this process
    except Exception:  # noqa: BLE001 - any error of a foreign class's own pickling
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _WorkerTraceback(Exception):
    """The cause of an error that a worker raised: its traceback as text."""


def _unchanged(batch: T) -> T:
    return batch


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the training process, which then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
