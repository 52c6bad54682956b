"""Long work on many samples: in chunks, with progress, so that it can stop and go on again.

Every label that a run writes carries ``asked``, a short digest of the question that it answers.
What is done is read from the samples themselves: a run that was stopped continues, and two runs
that ask the same question share the work.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import uuid4

import fiftyone.core.media as fomm
import fiftyone.core.odm as foo
from fiftyone import ViewField
from fiftyone.operators.store import ExecutionStore

from efficientsam3 import EfficientSam3Error

from .labels import ERROR_FIELD

logger = logging.getLogger(__name__)

ASKED = "asked"
"""The attribute of labels that tells which question they answer."""

STORE = "efficientsam3"
CLAIM_SECONDS = 120.0
CHUNK_SECONDS = 2.0
MOST = 256

OF_ONE_SAMPLE = (EfficientSam3Error, RuntimeError, MemoryError, OSError)
"""What can go wrong with one sample and need not with the next."""


class RunError(EfficientSam3Error, ValueError):
    """A run that cannot start or go on as it was asked for."""


class Step(NamedTuple):
    """How far a run is: samples, and what is going on."""

    done: int
    total: int
    note: str = ""


Summary = dict[str, Any]
Steps = Generator[Step, None, Summary]


def finish(steps: Steps, tell: Callable[[Step], Any] | None = None) -> Summary:
    """Does the work of ``steps`` to its end; ``tell`` hears of each step."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return dict(end.value)
        if tell is not None:
            tell(step)


def digest(question: Mapping[str, Any]) -> str:
    """A short name of a question, the same in every process."""
    plain = json.dumps(question, sort_keys=True, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()[:12]


# What a run may work on ----------------------------------------------------------------------


def check_samples(samples: Any, media: str = "image") -> None:
    """Refuses samples that this kind of work cannot be done on.

    Raises:
        RunError: nothing there, patches or clips, videos and images mixed, or the other kind.
    """
    if samples._is_patches or samples._is_clips:
        kind = "patches" if samples._is_patches else "clips"
        raise RunError(
            f"this is a view of {kind}, and labels belong to whole samples; clear the view, or go "
            "back to the one that the patches were made of"
        )
    found = samples.media_type
    if found in (fomm.GROUP, fomm.MIXED):
        kinds = sorted(set((samples._root_dataset.group_media_types or {}).values()))
        raise RunError(
            f"this view mixes {' and '.join(kinds)}; choose one kind: "
            f"select_group_slices(media_type={media!r}), or one slice: select_group_slices('...')"
        )
    if not len(samples):
        raise RunError("there are no samples in this view; clear a filter or add samples")
    if found == media:
        return
    if media == "image":
        raise RunError(
            f"these samples are {found}; for videos use track_video, or a view of their frames: "
            "dataset.to_frames(sample_frames=True)"
        )
    raise RunError(f"these samples are {found}, and this needs {media}")


def check_field(samples: Any, name: str, *, kinds: Sequence[type] = (), new: bool = False) -> None:
    """Refuses a field that is not there, holds something else, or cannot be made.

    Args:
        kinds: classes of labels that it may hold; () for any.
        new: it is written to, so it may also not be there yet.

    Raises:
        RunError: says which fields there are.
    """
    schema = samples.get_field_schema()
    if name not in schema:
        if new and name.isidentifier() and not name.startswith("_"):
            return
        if new:
            raise RunError(f"{name!r} cannot be a field's name; use letters, digits and _")
        fits = [n for n, f in schema.items() if not kinds or _holds(f, kinds)]
        raise RunError(
            f"there is no field {name!r}; there are {', '.join(sorted(fits)) or 'none that fit'}"
        )
    if kinds and not _holds(schema[name], kinds):
        wanted = " or ".join(k.__name__ for k in kinds)
        raise RunError(f"the field {name!r} holds {_content(schema[name])}; {wanted} is needed")


def _content(field: Any) -> str:
    document = getattr(field, "document_type", None)
    return document.__name__ if document else type(field).__name__


def _holds(field: Any, kinds: Sequence[type]) -> bool:
    document = getattr(field, "document_type", None)
    return document is not None and issubclass(document, tuple(kinds))


# A dataset that others use too ---------------------------------------------------------------


class Watch:
    """Knows whether a dataset still exists: another process may delete it at any time."""

    def __init__(self, dataset: Any) -> None:
        self.name, self.id = dataset.name, dataset._doc.id

    def is_there(self) -> bool:
        """Asks the database."""
        one = foo.get_db_conn().datasets.find_one({"_id": self.id}, {"_id": True})
        return one is not None

    @contextmanager
    def over(self, done: int, total: int) -> Iterator[None]:
        """Around a part of the work: if the dataset has gone, that is what is told.

        Raises:
            RunError: it was deleted, before this part or meanwhile.
        """
        if not self.is_there():
            raise self._gone(done, total)
        try:
            yield
        except Exception as error:
            if self.is_there():
                raise
            raise self._gone(done, total) from error
        if not self.is_there():
            raise self._gone(done, total)

    def _gone(self, done: int, total: int) -> RunError:
        error = RunError(
            f"the dataset {self.name!r} was deleted while this run worked on it; {done} of {total} "
            "samples had been done, and their labels went with it"
        )
        logger.error("%s", error)  # a delegated operation is deleted with its dataset
        return error


class Claim:
    """Says to other processes which question a field's labels are just being written for.

    Runs with the same question may share a field, others have to wait: each would write over what
    the other one found. A claim that is not renewed ends by itself.
    """

    def __init__(self, dataset: Any, field: str, asked: str) -> None:
        self.store = ExecutionStore.create(STORE, dataset_id=dataset._doc.id)
        self.key, self.field, self.asked, self.owner = f"writes {field}", field, asked, uuid4().hex
        held = self.store.get(self.key) or {}
        left = float(held.get("until", 0)) - time.time()
        if left > 0 and held.get("asked") != asked:
            raise RunError(
                f"another run with other settings is writing to {field!r}; wait for it, or write "
                f"to another field. If that run has died, try again in {left:.0f} s"
            )
        self.renew()

    def renew(self) -> None:
        """Holds the field for some more time."""
        until = time.time() + CLAIM_SECONDS
        held = {"asked": self.asked, "owner": self.owner, "until": until}
        self.store.set(self.key, held, ttl=round(CLAIM_SECONDS))

    def release(self) -> None:
        """Frees the field, if no other run with the same question holds it too."""
        if (self.store.get(self.key) or {}).get("owner") == self.owner:
            self.store.delete(self.key)


# The work ------------------------------------------------------------------------------------


def by_chunks(
    samples: Any,
    field: str,
    asked: str,
    work: Callable[[Any], None],
    *,
    is_done: Any = None,
    again: bool = False,
    least: int = 1,
) -> Steps:
    """Does ``work`` on the samples, some at a time.

    Args:
        field: what is written. asked: the digest of the question.
        work: labels a view of some samples, and writes what it finds.
        is_done: what tells a sample that is done, as an expression; by default that its labels
            answer this question.
        again: do samples that are done once more.
        least: samples in a chunk, where chunks have a cost of their own.

    Yields:
        a step for each chunk, about every two seconds.

    Returns:
        ``samples``, ``done``, ``before`` (done by an earlier run), ``failed``, ``reasons``,
        ``seconds``.
    """
    started = time.monotonic()
    dataset = samples._root_dataset
    if is_done is None:
        is_done = ViewField(f"{field}.{ASKED}") == asked
    ids = samples.values("id")
    todo = ids if again else samples.match(~is_done).values("id")
    total, before = len(ids), len(ids) - len(todo)
    claim = Claim(dataset, field, asked)
    done, size, done_now = before, least, 0
    wrong: Counter[str] = Counter()
    # By their ids alone: a view's own filters would be worked out again for every chunk.
    plain = samples._dataset is dataset and dataset.media_type != fomm.GROUP
    source, watch = dataset if plain else samples, Watch(dataset)
    try:
        yield Step(done, total, "starting")
        while todo:
            chunk, todo = todo[:size], todo[size:]
            with watch.over(done, total):
                claim.renew()
                view = source.select(chunk)
                if not again:  # another run may have done some meanwhile
                    view = view.match(~is_done)
                began = time.monotonic()
                wrong.update(_attempt(view, work))
                took = time.monotonic() - began
            done += len(chunk)
            done_now += len(chunk)
            size = _next_size(size, took, least)
            yield Step(done, total, _pace(done_now, total - done, time.monotonic() - started))
    finally:
        if watch.is_there():
            claim.release()
    return {
        "samples": total,
        "done": done_now - sum(wrong.values()),
        "before": before,
        "failed": sum(wrong.values()),
        "reasons": dict(wrong.most_common(5)),
        "seconds": round(time.monotonic() - started, 3),
    }


def _attempt(view: Any, work: Callable[[Any], None]) -> Counter[str]:
    """Does the work; what fails together is done one by one. Gives the reasons of failures.

    A view of what is not done yet has only the failures left when the work is done.
    """
    try:
        work(view)
    except OF_ONE_SAMPLE as error:
        if isinstance(error, RunError):
            raise
        ids = view.values("id")
        if len(ids) > 1:
            out: Counter[str] = Counter()
            for one in ids:
                out.update(_attempt(view.select(one), work))
            return out
        trouble = f"{type(error).__name__}: {error}"
        logger.warning("sample %s: %s", ids, trouble)
        for sample in view:
            sample[ERROR_FIELD] = trouble
            sample.save()
    if not view._dataset.has_sample_field(ERROR_FIELD):
        return Counter()
    return Counter(_reason(text) for text in view.values(ERROR_FIELD) if text)


def _reason(text: str) -> str:
    """The kind of trouble: the same for samples that differ in their paths only."""
    return text.split(":")[0] if ":" in text else text


def _next_size(size: int, took: float, least: int) -> int:
    """Samples for the next chunk, so that it takes about two seconds."""
    if took < CHUNK_SECONDS / 2:
        size *= 2
    elif took > 2 * CHUNK_SECONDS:
        size //= 2
    return max(1, least, min(size, MOST))


def _pace(done: int, left: int, seconds: float) -> str:
    if not left or not done:
        return ""
    rest = left * seconds / done
    unit = f"{rest:.0f} s" if rest < 120 else f"{rest / 60:.0f} min"
    return f"{done / seconds:.1f} a second, {unit} left"
