"""Protect a run from other processes that write to the same field or delete the dataset."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import fiftyone.core.odm as foo
from fiftyone.operators.store import ExecutionStore

from .steps import RunError

logger = logging.getLogger(__name__)

STORE = "efficientsam3"
LOCK_SECONDS = 120.0
LOCK = "lock "


class FieldLock:
    """A lock on a field, stored in the database, for runs with one request.

    Runs with the same request can share a field. Other runs have to wait, because each run would
    overwrite the labels of the other one. A lock that is not renewed expires by itself.

    Args:
        dataset: the dataset.
        field: the name of the field.
        run_key: the key of the run.

    Raises:
        RunError: a run with another request holds the field.
    """

    def __init__(self, dataset: Any, field: str, run_key: str) -> None:
        self.store = ExecutionStore.create(STORE, dataset_id=dataset._doc.id)
        self.key, self.run_key, self.owner = f"{LOCK}{field}", run_key, uuid4().hex
        held = self.store.get(self.key) or {}
        left = float(held.get("until", 0)) - time.time()
        if left > 0 and held.get("run_key") != run_key:
            raise RunError(
                f"another run with other settings is writing to {field!r}; wait for it, or write "
                f"to another field. If that run has died, try again in {left:.0f} s"
            )
        self.shared = left > 0
        """Whether another run with the same request holds the field."""
        if not self.shared:
            self.store.delete(f"cancel {self.key}")  # of an earlier run
        self.renew()

    def is_cancelled(self) -> bool:
        """Whether the runs that hold the field are to end."""
        return self.store.get(f"cancel {self.key}") == self.run_key

    def renew(self) -> None:
        """Hold the field for another ``LOCK_SECONDS``."""
        until = time.time() + LOCK_SECONDS
        held = {"run_key": self.run_key, "owner": self.owner, "until": until}
        self.store.set(self.key, held, ttl=round(LOCK_SECONDS))

    def release(self) -> None:
        """Free the field, unless another run with the same request holds it too."""
        if (self.store.get(self.key) or {}).get("owner") == self.owner:
            self.store.delete(self.key)


def running_fields(dataset: Any) -> dict[str, str]:
    """The fields that runs are writing to, in any process.

    Args:
        dataset: the dataset.

    Returns:
        the key of the run by the name of its field.
    """
    store = ExecutionStore.create(STORE, dataset_id=dataset._doc.id)
    found = {key: store.get(key) for key in store.list_keys() if key.startswith(LOCK)}
    now = time.time()
    return {
        key.removeprefix(LOCK): held["run_key"]
        for key, held in found.items()
        if held is not None and held["until"] >= now
    }


def cancel_runs(dataset: Any, field: str | None = None) -> list[str]:
    """End the runs that are writing to a dataset, in any process.

    A run ends after the images that it is working on, or before it writes a clip. What it has
    done stays; the same request continues it.

    Args:
        dataset: the dataset.
        field: the field that a run writes to, as its summary names it. None: all runs.

    Returns:
        the fields of the runs.
    """
    store = ExecutionStore.create(STORE, dataset_id=dataset._doc.id)
    running = running_fields(dataset)
    chosen = [name for name in running if field in (None, name)]
    for name in chosen:
        store.set(f"cancel {LOCK}{name}", running[name], ttl=round(LOCK_SECONDS))
    return chosen


class DatasetWatch:
    """Notice that a dataset was deleted; another process can do that at any time.

    Args:
        dataset: the dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.name, self.id = dataset.name, dataset._doc.id

    def exists(self) -> bool:
        """Whether the database still has the dataset."""
        one = foo.get_db_conn().datasets.find_one({"_id": self.id}, {"_id": True})
        return one is not None

    @contextmanager
    def watching(self, done: int, total: int) -> Iterator[None]:
        """Turn an error that comes from the deletion into a RunError that says so.

        Args:
            done: the number of samples that were done before.
            total: the number of all samples.

        Raises:
            RunError: the dataset was deleted, before this part of the work or during it.
        """
        if not self.exists():
            raise self._deleted(done, total)
        try:
            yield
        except Exception as error:
            if self.exists():
                raise
            raise self._deleted(done, total) from error
        if not self.exists():
            raise self._deleted(done, total)

    def _deleted(self, done: int, total: int) -> RunError:
        error = RunError(
            f"the dataset {self.name!r} was deleted while this run worked on it; {done} of {total} "
            "samples had been done, and their labels were deleted with it"
        )
        logger.error("%s", error)  # a delegated operation is deleted with its dataset
        return error
