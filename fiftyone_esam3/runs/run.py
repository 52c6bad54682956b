"""Process many samples in chunks, with progress, so that a run can stop and continue.

The key of a run is a digest of its request. What is done is read from the samples: a run that was
stopped continues, and two runs with the same request share the work.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fiftyone.operators.store import ExecutionStore

from efficientsam3.io.jsonl import describe_changes

from ..model_cache import file_stamp, load_for_run
from .checks import check_workers
from .field_lock import DatasetWatch, FieldLock
from .retry import retry
from .sample_reader import ImageReader, SampleReader
from .steps import Step, Steps, Summary

if TYPE_CHECKING:
    from .image_task import ImageTask

CHUNK_SECONDS = 2.0
MAX_CHUNK = 256
SPEED_STORE = "efficientsam3_speed"

ACCEPTED = "accepted"
"""The key in a request that says on which day labels were accepted in the panel. Such a request
asks no model."""


class Run:
    """One run over a field of a dataset: its key, its lock and its counts.

    The dataset records the request under the key, as one of its FiftyOne runs
    (``dataset.get_run_info(key)``).

    Args:
        dataset: the dataset.
        field: the field that is written.
        request: the arguments that the results depend on, and ``model``; or ``ACCEPTED``.
        total: the number of samples or clips.
    """

    def __init__(self, dataset: Any, field: str, request: Mapping[str, Any], total: int) -> None:
        self.dataset, self.field, self.total = dataset, field, total
        self.request = dict(request)
        if ACCEPTED not in request:
            self.request["stamp"] = file_stamp(request["model"])
        self._text = json.dumps(self.request, sort_keys=True, default=str)
        digest = hashlib.sha256(f"{field} {self._text}".encode()).hexdigest()
        self.key = f"esam3_{digest[:12]}"
        self.before = self.done = 0
        self.replaced_files = 0
        """The number of samples or clips that are done again because their files were replaced."""
        self.cancelled = False
        self.reasons: Counter[str] = Counter()
        self._started = time.monotonic()
        self._watch = DatasetWatch(dataset)

    def __enter__(self) -> Run:
        self._lock = retry(partial(FieldLock, self.dataset, self.field, self.key))
        self.shared = self._lock.shared
        self.changes = ""
        """What differs from the request of the last run that wrote to the field, as a sentence."""
        return self

    def begin(self, todo: int) -> None:
        """Record the run on the dataset; its work begins now.

        Args:
            todo: the number of samples or clips that are not done.
        """
        self.before = self.total - todo
        if not self.dataset.has_run(self.key):
            self.changes = self._describe_changes()
            # As text: FiftyOne cannot store keys with dots, which a request can contain.
            config = self.dataset.init_run(field=self.field, request=self._text)
            self.dataset.register_run(self.key, config)

    def first_note(self) -> str:
        """What is different from the last run that wrote to the field; else "starting"."""
        replaced = self.replaced_files
        notes = [self.changes, f"{replaced} replaced since, done again" if replaced else ""]
        return "; ".join(filter(None, notes)) or "starting"

    def _describe_changes(self) -> str:
        known = [self.dataset.get_run_info(k) for k in self.dataset.list_runs(field=self.field)]
        requests = [
            json.loads(info.config.request)
            for info in sorted(known, key=lambda info: info.timestamp)
        ]
        asked = [request for request in requests if ACCEPTED not in request]
        if not asked or ACCEPTED in self.request:
            return ""
        return describe_changes(asked[-1], json.loads(self._text))

    def __exit__(self, *error: object) -> None:
        if self._watch.exists():
            self._lock.release()

    @contextmanager
    def part(self) -> Iterator[None]:
        """Surround a part of the work, and notice that the dataset was deleted."""
        with self._watch.watching(self.before + self.done, self.total):
            yield

    def do_part(self, action: Callable[[], None]) -> None:
        """Do a part of the work, and again where the database went away meanwhile.

        Args:
            action: reads what is done, does the rest, and saves it.

        Raises:
            RunError: the database stays away, or the dataset was deleted.
        """
        reasons = Counter(self.reasons)

        def attempt() -> None:
            self.reasons = Counter(reasons)  # errors of an attempt that is repeated count once
            with self.part():
                action()

        retry(attempt)

    def step(self, note: str = "", frames: tuple[int, int] | None = None) -> Step:
        """The progress so far. The lock is held longer from here.

        Args:
            note: what is going on, for people.
            frames: the number of frames that are done and of all. None: samples are counted.
        """
        retry(self._lock.renew)
        done, total = frames or (self.before + self.done, self.total)
        return Step(min(done, total), total, note, self.field)

    def is_cancelled(self) -> bool:
        """Whether the run is to end here; see ``cancel_runs``."""
        self.cancelled = self.cancelled or retry(self._lock.is_cancelled)
        return self.cancelled

    def seconds(self) -> float:
        """The time since the run started."""
        return time.monotonic() - self._started

    def pace(self) -> str:
        """The speed and the remaining time, as a note."""
        seconds, left = self.seconds(), self.total - self.before - self.done
        if not left or not self.done:
            return ""
        rest = left * seconds / self.done
        unit = f"{rest:.0f} s" if rest < 120 else f"{rest / 60:.0f} min"
        return f"{self.done / seconds:.1f} a second, {unit} left"

    def summary(self, **more: Any) -> Summary:
        """The counts of the run, and its speed for the forms of later runs.

        Args:
            **more: further entries.

        Returns:
            ``samples``, ``done`` (by this run), ``before`` (done by an earlier run),
            ``replaced_files`` (done again because their files were replaced), ``failed``,
            ``reasons`` (counts by kind of error), ``seconds``, ``field``, ``model``, ``run_key``,
            ``cancelled``.
        """
        failed = sum(self.reasons.values())
        return {
            "samples": self.total,
            "done": self.done - failed,
            "before": self.before,
            "replaced_files": self.replaced_files,
            "failed": failed,
            "reasons": dict(self.reasons.most_common(5)),
            "seconds": round(self.seconds(), 3),
            "field": self.field,
            "model": self.request["model"],
            "run_key": self.key,
            "cancelled": self.cancelled,
            **more,
        }


def run_over_images(
    samples: Any,
    task: ImageTask,
    *,
    model: str,
    request: Mapping[str, Any],
    ability: str | None = None,
    restart: bool = False,
    num_workers: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Steps:
    """Load a model, and do a task on the images of samples with it, some at a time.

    Args:
        samples: a dataset or a view of images.
        task: what is done with each image.
        model: a model name, or the folder of a saved model.
        request: the arguments that the results depend on.
        ability: what the model must be able to do.
        restart: also process samples that are done.
        num_workers: the number of threads that read images ahead. 0: images are read in turn.
        options: further arguments of ``efficientsam3.load``.

    Yields:
        a step for each chunk, about every two seconds.

    Returns:
        see :meth:`Run.summary`.

    Raises:
        RunError: ``num_workers`` is no number of threads.
        MissingAbilityError: the weights cannot do it.
        ExistingLabelsError: the field holds labels of people, and the policy is to refuse.
    """
    check_workers(num_workers)
    dataset, ids = samples._root_dataset, samples.values("id")
    options = dict(options or {})
    yield Step(0, len(ids), f"loading {model}")
    core = load_for_run(model, **options)
    if ability is not None:
        core.require(ability)
    run = Run(dataset, task.field, {"model": model, **request, **options}, len(ids))
    images = SampleReader(samples, task.prompt_fields)
    with run, ImageReader(num_workers) as reader:
        todo = task.plan(images, ids, run, restart)
        run.begin(len(todo))
        size = least = task.images_together(core)
        yield run.step(run.first_note())
        if run.shared:  # the two runs meet in the middle
            todo.reverse()
        while todo and not run.is_cancelled():
            chunk, todo = todo[:size], todo[size:]
            began = time.monotonic()
            run.do_part(partial(task.process, images, chunk, core, reader, run, restart))
            run.done += len(chunk)
            size = max(least, _next_size(size, time.monotonic() - began))
            yield run.step(run.pace())
    summary = run.summary(**task.finish(dataset))
    remember_speed(summary)
    return summary


def _next_size(size: int, seconds: float) -> int:
    """The number of samples in the next chunk, so that it takes about ``CHUNK_SECONDS``."""
    if seconds < CHUNK_SECONDS / 2:
        size *= 2
    elif seconds > 2 * CHUNK_SECONDS:
        size //= 2
    return max(1, min(size, MAX_CHUNK))


def digest_settings(model: str, settings: Mapping[str, Any]) -> str:
    """A digest of what an answer depends on beside the question.

    Args:
        model: a model name, or the folder of a saved model.
        settings: limits and options.
    """
    known = {k: v for k, v in settings.items() if v is not None}
    text = json.dumps([model, file_stamp(model), known], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def class_settings(classes: Mapping[str, Sequence[str]], settings: str) -> dict[str, str]:
    """The settings of the question for each class, which depend on its phrases too.

    Args:
        classes: the phrases of each class by its name.
        settings: a digest of all else.
    """
    out = {}
    for name, phrases in classes.items():
        own = "" if list(phrases) == [name] else json.dumps(list(phrases))
        out[name] = settings + (hashlib.sha256(own.encode()).hexdigest()[:8] if own else "")
    return out


def remember_speed(summary: Summary) -> None:
    """Store the seconds per sample of a run, if it was long enough to measure them.

    Args:
        summary: the summary of the run.
    """
    if summary["done"] >= 5:
        seconds = round(summary["seconds"] / summary["done"], 4)
        ExecutionStore.create(SPEED_STORE).set(summary["model"], {"seconds": seconds})


def recall_speed(model: str) -> float | None:
    """The seconds per sample that an earlier run measured on this machine, or None.

    Args:
        model: the name of the model.
    """
    held = ExecutionStore.create(SPEED_STORE).get(model)
    return None if held is None else float(held["seconds"])


def count_instances(samples: Any, field: str) -> dict[str, int]:
    """The number of instances of each class in a field, for the twenty most frequent classes.

    Args:
        samples: a dataset or a view.
        field: a field with ``Detections``.
    """
    if samples.get_field(field) is None:  # a run that was cancelled at once has not made it
        return {}
    counts = samples.count_values(f"{field}.detections.label").items()
    return {str(name): int(n) for name, n in sorted(counts, key=lambda item: -item[1])[:20]}
