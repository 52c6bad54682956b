"""Bring results of `efficientsam3 annotate` into a field, under the policy for labels of people."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import fiftyone.core.labels as fol
import fiftyone.core.media as fomm
from fiftyone.core.collections import SaveContext

from efficientsam3.concepts import read_classes
from efficientsam3.distributed.folder import read_asked, shard_places
from efficientsam3.distributed.settings import digest
from efficientsam3.distributed.shards import read_shard
from efficientsam3.io import rle

from ..labels import ERROR_FIELD, presence_keys
from ..ownership.merge import (
    OVERLAP,
    REFUSE,
    ExistingLabelsError,
    Found,
    count_at_stake,
    describe_refusal,
    group_by_class,
    list_unanswered,
)
from ..ownership.schema import declare_presence
from .checks import check_field, check_samples
from .file_marks import is_replaced, mark_files
from .import_tracks import import_tracks, move_path
from .label_writer import LabelWriter
from .run import Run, class_settings, count_instances
from .sample_reader import SampleReader
from .steps import RunError, Steps

Record = dict[str, Any]


def import_annotations(
    samples: Any,
    target: str | os.PathLike[str],
    *,
    label_field: str = "esam3",
    moved: tuple[str, str] | None = None,
    existing: str = REFUSE,
    overlap: float = OVERLAP,
    restart: bool = False,
) -> Steps:
    """Write what `efficientsam3 annotate` found to the samples of the same files.

    A class counts as a question that was asked of the sample, so that what is imported twice is
    written once, and labels that people changed or deleted stay so.

    Args:
        samples: images or videos, or a view of them. Those without results stay as they are.
        target: the folder or the URI of the results.
        label_field: the field for ``Detections``, of videos of their frames. It is made if it does
            not exist.
        moved: the beginning of the paths in the results, and what it is here; for images that are
            at another place on the machines that annotated them.
        existing: what happens to labels that the field holds. "refuse" refuses where people's
            labels are at stake, and replaces others of these questions; "add" keeps all and
            appends what overlaps none; "replace" replaces unchanged labels of earlier runs, and
            keeps those of people; "overwrite" replaces all.
        overlap: the IoU from which a new label counts as one that is there, in [0, 1].
        restart: also write what was imported before.

    Yields:
        a step for each shard; of videos for each part of one.

    Returns:
        see ``Run.summary``; and ``instances``, the numbers by class in the field; of videos see
        ``run_over_clips``.

    Raises:
        RunError: the samples or the field cannot be used, or no sample has results.
        RunFileError: there are no results at ``target``.
        ExistingLabelsError: the field holds labels of people, and ``existing`` is "refuse".
    """
    is_video = samples.media_type == fomm.VIDEO
    check_samples(samples, "video" if is_video else "image")
    asked = read_asked(str(target))
    places = shard_places(str(target))
    if is_video != ("tracking" in asked):
        has, needs = ("videos", "images") if is_video else ("images", "videos")
        raise RunError(f"{target} has results of {needs}, and these samples are {has}")
    if is_video:
        policy: dict[str, Any] = {"existing": existing, "overlap": overlap, "restart": restart}
        return (
            yield from import_tracks(
                samples, asked, places, label_field=label_field, moved=moved, **policy
            )
        )
    check_field(samples, label_field, kinds=(fol.Detections,), new=True)
    paths, ids = samples.values(["filepath", "id"])
    by_path: dict[str, list[str]] = {}
    for path, id in zip(paths, ids, strict=True):
        by_path.setdefault(path, []).append(id)
    request = {"model": asked["model"], "annotations": digest(asked)}
    run = Run(samples._root_dataset, label_field, request, len(ids))
    images = SampleReader(samples, {})
    with run:
        writer = LabelWriter(run.dataset, label_field, run.key, existing=existing, overlap=overlap)
        job = _Import(images, writer, asked, by_path, moved, restart)
        matched, todo = job.plan(places)
        if not matched:
            example = read_shard(places[0])[0]
            raise RunError(
                f"no sample has one of the files of {target}, such as "
                f"{example['path'] or example['key']}; the first sample has {paths[0]}. For files "
                'at another place pass moved=("/start/there", "/start/here")'
            )
        run.begin(todo)
        yield run.step(run.first_note())
        for place in places:
            if run.is_cancelled():
                break
            for chosen in _parts(job.choose(place)):
                run.do_part(partial(job.write, chosen, run))
                run.done += len(chosen)
                yield run.step(run.pace())
        declare_presence(run.dataset, label_field)
    summary = run.summary(**writer.counts, without_results=len(ids) - matched)
    return {**summary, "instances": count_instances(samples, label_field)}


PART = 256


def _parts(chosen: Sequence[tuple[str, Record]]) -> Iterator[Sequence[tuple[str, Record]]]:
    for start in range(0, len(chosen), PART):
        yield chosen[start : start + PART]


class _Import:
    """Which rows of shards belong to which samples, and writing them.

    Args:
        images: the samples.
        writer: writes labels.
        asked: what was asked.
        by_path: the ids of the samples of each file.
        moved: see ``import_annotations``.
        restart: all rows are written.
    """

    def __init__(
        self,
        images: SampleReader,
        writer: LabelWriter,
        asked: Mapping[str, Any],
        by_path: Mapping[str, list[str]],
        moved: tuple[str, str] | None,
        restart: bool,
    ) -> None:
        self._images, self._writer, self._by_path = images, writer, by_path
        self._moved, self._restart = moved, restart
        self._settings = digest(asked)
        concepts = asked.get("concepts")
        self._classes = None if concepts is None else read_classes(concepts)

    def plan(self, places: Sequence[str]) -> tuple[int, int]:
        """The numbers of samples that have results, and of those that get new ones.

        Args:
            places: the shards.

        Raises:
            ExistingLabelsError: labels of people are there, and the policy is to refuse.
        """
        matched: set[str] = set()
        todo = labels = samples = 0
        for place in places:
            for part in _parts(self._matching(place)):
                held = self._held(part)
                matched.update(id for id, _ in part)
                for id, record in part:
                    open_questions = self._open(record, *held.get(id, ("", None)))
                    if not open_questions:
                        continue
                    todo += 1
                    at_stake = count_at_stake(
                        held.get(id, ("", None))[1], open_questions, self._writer.how
                    )
                    labels, samples = labels + at_stake, samples + bool(at_stake)
        if labels:
            raise ExistingLabelsError(describe_refusal(self._writer.field, labels, samples))
        return len(matched), todo

    def choose(self, place: str) -> list[tuple[str, Record]]:
        """The rows of a shard that are to be written, each with the id of its sample.

        Args:
            place: the shard.
        """
        chosen = []
        for part in _parts(self._matching(place)):
            held = self._held(part)
            chosen += [
                (id, record) for id, record in part if self._open(record, *held.get(id, ("", None)))
            ]
        return chosen

    def write(self, chosen: Sequence[tuple[str, Record]], run: Run) -> None:
        """Write rows to their samples.

        Args:
            chosen: the ids of samples, with rows.
            run: the run, which counts errors.
        """
        records = dict(chosen)
        held = self._held(chosen)
        view = self._images.writable(list(records), [self._writer.field, ERROR_FIELD, "filepath"])
        with SaveContext(view, async_writes=True) as context:
            for sample in view:
                record = records[sample.id]
                if record["error"] is not None:
                    self._writer.fail(sample, record["error"])
                    run.reasons[record["error"].split(":")[0]] += 1
                else:
                    path, labels = held.get(sample.id, (sample.filepath, None))
                    missing = self._open(record, path, labels)
                    found = to_found(record, missing)
                    settings = {name: self._questions(record)[name] for name in missing}
                    if missing:
                        self._writer.answer(sample, found, settings, mark_files([path]))
                context.save(sample)

    def _matching(self, place: str) -> list[tuple[str, Record]]:
        pairs = []
        for record in read_shard(place):
            path = move_path(record["path"] or record["key"], self._moved)
            pairs += [(id, record) for id in self._by_path.get(path, ())]
        return pairs

    def _held(self, pairs: Sequence[tuple[str, Record]]) -> dict[str, tuple[str, Any]]:
        return self._images.stored([id for id, _ in pairs], self._writer.field)

    def _questions(self, record: Record) -> dict[str, str]:
        if self._classes is not None:
            return class_settings(self._classes, self._settings)
        classes: dict[str, list[str]] = {one["label"]: [] for one in record["presence"]}
        for one in record["instances"]:
            classes.setdefault(one["label"], []).append(one["phrase"])
        named = {name: sorted(set(phrases)) or [name] for name, phrases in classes.items()}
        return class_settings(named, self._settings)

    def _open(self, record: Record, path: str, labels: Any) -> list[str]:
        """The classes of a row that are not written yet; of a row that failed, its error."""
        if record["error"] is not None:
            return ["error"] if labels is None else []
        questions = self._questions(record)
        replaced = partial(_is_replaced, path)
        return list_unanswered(labels, questions, self._writer.how, self._restart, replaced)


def _is_replaced(path: str, mark: str) -> bool:
    return is_replaced(mark, [path])


def to_found(record: Mapping[str, Any], classes: Sequence[str]) -> Found:
    """Convert a row of a shard to labels.

    Args:
        record: the row, without an error.
        classes: the classes that are converted.
    """
    width, height = record["width"], record["height"]
    detections = []
    for one in record["instances"]:
        if one["label"] not in classes:
            continue
        x0, y0, x1, y1 = one["box"]
        attributes = {}
        if one["mask"] is not None:
            cut = rle.crop(one["mask"], (int(x0), int(y0), int(x1), int(y1)))
            attributes["mask"] = rle.decode(cut)
        detections.append(
            fol.Detection(
                label=one["label"],
                bounding_box=[x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
                confidence=one["score"],
                presence=one["presence"],
                **attributes,
            )
        )
    presence = {p["label"]: p["presence"] for p in record["presence"] if p["label"] in classes}
    labels = fol.Detections(detections=detections, concept_presence=presence_keys(presence))
    return group_by_class(labels, classes)
