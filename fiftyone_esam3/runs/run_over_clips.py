"""Track through clips, one after another, so that a run can stop and continue."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import fiftyone.core.labels as fol

from ..labels import describe_error, to_labels
from ..ownership.merge import OVERWRITE, ExistingLabelsError, describe_refusal
from ..ownership.schema import declare_presence
from .clips import FRAMES_AT_ONCE, Clip, ClipLabels, inspect_clip, write_clip
from .file_marks import is_replaced, mark_files
from .image_task import SAMPLE_ERRORS
from .label_writer import LabelWriter, key_of
from .retry import retry
from .run import Run
from .steps import Steps

if TYPE_CHECKING:
    from efficientsam3.video.types import TrackedFrame

STEP_SECONDS = 2.0

Track = Callable[[Clip, Sequence[str]], Iterator["TrackedFrame"]]
"""Tracks some of the sources through a clip."""


def run_over_clips(
    dataset: Any,
    clips: Sequence[Clip],
    field: str,
    track: Track,
    questions: Mapping[str, str],
    *,
    request: Mapping[str, Any],
    existing: str,
    overlap: float,
    restart: bool = False,
    source: str | None = None,
) -> Steps:
    """Track through clips, and write the labels of each when it is done.

    Args:
        dataset: the dataset.
        clips: the clips.
        field: the field, without ``frames.``.
        track: tracks through a clip.
        questions: the settings of each source that is tracked.
        request: the arguments that the results depend on, with ``model``, and ``track``: the
            questions.
        existing: see ``merge_labels``.
        overlap: see ``merge_labels``.
        restart: track everything again.
        source: the question of all labels. None: their class.

    Yields:
        a step for each part of a clip, which counts frames.

    Returns:
        see :meth:`Run.summary`, with ``frames``, ``identities`` and ``cuts``: the number of frames
        at which another scene begins.

    Raises:
        ExistingLabelsError: labels of people are there, and the policy is to refuse.
    """
    is_video = bool(clips) and clips[0].is_video
    path = f"frames.{field}" if is_video else field
    run = Run(dataset, path, request, len(clips))
    writer = LabelWriter(
        dataset, field, run.key, frames=is_video, existing=existing, overlap=overlap
    )
    frames, identities, cuts = 0, 0, 0
    with run:
        known: dict[int, dict[str, str]] = {}
        if not restart:
            known, run.replaced_files = _finished(dataset, writer.finished_field, clips)
        todo: list[tuple[Clip, dict[str, str], int]] = []
        at_stake, refused = 0, 0
        for number, clip in enumerate(clips):
            answered = known.get(number, {})
            if existing == OVERWRITE and answered != questions:
                answered = {}
            asked = {s: v for s, v in questions.items() if answered.get(s) != v}
            if asked:
                held = inspect_clip(dataset, clip, asked, writer.how)
                at_stake, refused = at_stake + held.at_stake, refused + bool(held.at_stake)
                todo.append((clip, asked, held.next_index))
        if at_stake:
            raise ExistingLabelsError(describe_refusal(path, at_stake, refused, "clips"))
        run.begin(len(todo))
        total = sum(clip.frames for clip, _, _ in todo)
        yield run.step(run.first_note(), (0, total))
        for clip, asked, offset in todo:
            if run.is_cancelled():
                break
            tracked: dict[int, fol.Instance] = {}
            scenes: set[int] = set()
            mark = mark_files(clip.files)
            with run.part(), ClipLabels() as labels:
                try:
                    for part in _parts(track(clip, list(asked))):
                        scenes |= {frame.index for frame in part if frame.cut}
                        for frame in part:
                            labels.add(
                                frame.index, _shifted(to_labels(frame.instances, tracked), offset)
                            )
                        note = f"{clip.name}, frame {part[-1].index + 1}"
                        rate = f"{(frames + len(labels)) / run.seconds():.1f} frames a second"
                        seen = min(len(labels), clip.frames or len(labels))
                        yield run.step(
                            f"{note}; {rate}", (frames + seen, max(total, frames + seen))
                        )
                        if run.is_cancelled():
                            break
                    if run.cancelled:
                        break
                    before = Counter(writer.counts)
                    retry(partial(_save, writer, before, clip, labels, asked, source, mark))
                    identities += len(tracked)
                    frames += len(labels)
                    cuts += len(scenes)
                except SAMPLE_ERRORS as error:
                    run.reasons[type(error).__name__] += 1
                    sample = dataset[clip.samples[0]]
                    writer.fail(sample, describe_error(error))
                    sample.save()
            run.done += 1
            yield run.step(clip.name, (frames, max(total, frames)))
    declare_presence(dataset, field, is_video)
    return run.summary(frames=frames, identities=identities, cuts=cuts, **writer.counts)


def _save(
    writer: LabelWriter,
    before: Counter[str],
    clip: Clip,
    labels: ClipLabels,
    asked: Mapping[str, str],
    source: str | None,
    mark: str,
) -> None:
    """Write the labels of a clip; doing it again gives the same labels and counts."""
    writer.counts = Counter(before)
    write_clip(writer.dataset, writer, clip, labels, asked, source)
    writer.mark_finished(clip.samples, clip.files, mark)


def _finished(
    dataset: Any, field: str, clips: Sequence[Clip]
) -> tuple[dict[int, dict[str, str]], int]:
    """What earlier runs answered about the files that the clips have now.

    Returns:
        the settings, by the position of the clip and by source; and the number of clips whose files
        were replaced.
    """
    if not dataset.has_sample_field(field):
        return {}, 0
    ids = {id for clip in clips for id in clip.samples}
    view = dataset.select(list(ids)).exists(field)
    runs = dict(zip(*view.values(["id", field]), strict=True))
    requests: dict[str, dict[str, str]] = {}
    out, replaced = {}, 0
    for number, clip in enumerate(clips):
        finished = {runs.get(id) for id in clip.samples}
        if len(finished) != 1 or None in finished:
            continue
        answers: dict[str, str] = {}
        entries = str(finished.pop()).split()
        same = [e for e in entries if not is_replaced(e.partition("@")[2], clip.files)]
        replaced += len(same) < len(entries)
        for key in map(key_of, same):
            if key not in requests:
                requests[key] = _answers(dataset, key)
            answers.update(requests[key])
        out[number] = answers
    return out, replaced


def _answers(dataset: Any, key: str) -> dict[str, str]:
    """The settings of what a run answered, by source."""
    if not dataset.has_run(key):
        return {}
    track = json.loads(dataset.get_run_info(key).config.request).get("track")
    return dict(track) if isinstance(track, dict) else {}


def _parts(frames: Iterable[TrackedFrame]) -> Iterator[list[TrackedFrame]]:
    """Frames, some at a time, at least every ``STEP_SECONDS``."""
    waiting: list[TrackedFrame] = []
    began = time.monotonic()
    for frame in frames:
        waiting.append(frame)
        if len(waiting) >= FRAMES_AT_ONCE or time.monotonic() - began > STEP_SECONDS:
            yield waiting
            waiting, began = [], time.monotonic()
    if waiting:
        yield waiting


def _shifted(labels: fol.Detections, offset: int) -> fol.Detections:
    """Labels with identities that no label has that was there before."""
    for label in labels.detections:
        label.index += offset
    return labels
