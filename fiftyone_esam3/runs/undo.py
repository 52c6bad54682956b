"""Undo a run: remove its labels, and restore what it replaced."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fiftyone.core.collections import SaveContext

from ..ownership.record import RECORD_ATTRIBUTE, machine_attributes
from ..ownership.replaced import ReplacedLabels
from ..ownership.take_back import take_back
from .checks import refresh
from .field_lock import DatasetWatch, FieldLock
from .label_writer import key_of
from .run import ACCEPTED
from .steps import RunError, Step, Steps

CHUNK = 200


def list_runs(dataset: Any) -> dict[str, str]:
    """The runs of this package that wrote labels to a dataset, the latest first.

    Args:
        dataset: the dataset.

    Returns:
        one sentence for each run, by its key: when it ran, the field, and what it was asked.
    """
    refresh(dataset)
    known = [key for key in dataset.list_runs() if key.startswith("esam3_")]
    infos = [dataset.get_run_info(key) for key in known]
    out = {}
    for info in sorted(infos, key=lambda info: info.timestamp, reverse=True):
        request = json.loads(info.config.request)
        words = request.get("concepts") or []
        asked = ", ".join(words) or request.get("prompt_field") or request.get("name") or ""
        if ACCEPTED in request:
            asked = "accepted in the panel"
        when = f"{info.timestamp:%Y-%m-%d %H:%M}"
        out[info.key] = f"{when} · {info.config.field} · {asked}".rstrip(" ·")
    return out


def undo_run(samples: Any, run_key: str) -> Steps:
    """Undo a run on the whole dataset.

    Labels of the run that nobody changed are removed. Labels of the run that a person edited or
    tagged stay, and so do all labels of people and of other runs. Labels that the run replaced are
    restored, unless a later run replaced labels in the same field: one earlier state of each field
    is kept. The run's entry in the dataset is removed.

    Args:
        samples: the dataset, or a view of it.
        run_key: the key of the run, from its summary or from :func:`list_runs`.

    Returns:
        ``samples`` (samples or frames that had labels of the run), ``removed``, ``spared``,
        ``restored``, ``field`` and ``run_key``.

    Raises:
        RunError: there is no such run, or another run is writing to the field.
    """
    dataset = samples._root_dataset
    known = list_runs(dataset)
    if run_key not in known:
        raise RunError(f"there is no run {run_key!r}; there are {', '.join(known) or 'none'}")
    path = dataset.get_run_info(run_key).config.field
    lock = FieldLock(dataset, path, f"undo {run_key}")
    try:
        field = path.removeprefix("frames.")
        is_video = dataset._frame_collection is not None
        # A field that was deleted since has no labels: the run's entry alone is removed.
        frames = is_video and (path != field or not dataset.has_sample_field(field))
        replaced = ReplacedLabels(dataset, path, run_key)
        counts: Counter[str] = Counter(removed=0, spared=0, restored=0)
        ignored = machine_attributes(dataset)
        documents = list(_find(dataset, field, run_key, frames))
        watch = DatasetWatch(dataset)
        for start in range(0, len(documents), CHUNK):
            lock.renew()
            part = documents[start : start + CHUNK]
            with watch.watching(start, len(documents)):
                for document in _open(dataset, part, frames, field):
                    held = document[field]
                    if held is None:
                        continue
                    taken = take_back(held, run_key, replaced.get(document.id), field, ignored)
                    document[field] = taken.labels
                    counts.update(
                        removed=taken.removed, spared=taken.spared, restored=taken.restored
                    )
            yield Step(start + len(part), len(documents), "taking labels back")
        _forget_finished(dataset, f"{field}_run", run_key)
        replaced.drop()
        dataset.delete_run(run_key)
    finally:
        lock.release()
    return {"samples": len(documents), **counts, "field": path, "run_key": run_key}


def _find(dataset: Any, field: str, run_key: str, frames: bool) -> Iterator[tuple[str, int]]:
    """The samples, or the frames of samples, that a run wrote to."""
    query = {f"{field}.{RECORD_ATTRIBUTE}": {"$regex": run_key}}
    if not frames:
        for found in dataset._sample_collection.find(query, {"_id": True}):
            yield str(found["_id"]), 0
        return
    projection = {"_sample_id": True, "frame_number": True}
    found = dataset._frame_collection.find(query, projection)
    for document in found.sort([("_sample_id", 1), ("frame_number", 1)]):
        yield str(document["_sample_id"]), document["frame_number"]


def _open(dataset: Any, part: list[tuple[str, int]], frames: bool, field: str) -> Iterator[Any]:
    """Samples or frames, which are saved after the caller changed them."""
    if not frames:
        view = dataset.select([id for id, _ in part]).select_fields(field)
        with SaveContext(view) as context:
            for sample in view:
                yield sample
                context.save(sample)
        return
    numbers: dict[str, list[int]] = {}
    for id, number in part:
        numbers.setdefault(id, []).append(number)
    for id, listed in numbers.items():
        video = dataset[id]
        for number in listed:
            yield video.frames[number]
        video.save()


def _forget_finished(dataset: Any, field: str, run_key: str) -> None:
    """Remove a run from the fields that name the runs which finished a clip."""
    if not dataset.has_sample_field(field):
        return
    view = dataset.exists(field)
    ids, listed = view.values(["id", field])
    changed = {
        id: " ".join(k for k in text.split() if key_of(k) != run_key) or None
        for id, text in zip(ids, listed, strict=True)
        if run_key in map(key_of, text.split())
    }
    if changed:
        dataset.set_values(field, changed, key_field="id")
