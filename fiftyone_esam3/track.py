"""Identities through videos and ordered images, written while the video is still read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fiftyone.core.labels as fol
import fiftyone.core.media as fomm
from fiftyone import ViewField

from .labels import ERROR_FIELD, presence_keys, to_detections
from .prompts import unique
from .runs import (
    OF_ONE_SAMPLE,
    Claim,
    RunError,
    Step,
    Steps,
    Watch,
    check_field,
    check_samples,
    digest,
)
from .shared import COMPUTING, keep, load_core, stamp

if TYPE_CHECKING:
    from efficientsam3.video.concepts import TrackedFrame

CHUNK = 50
"""Frames that are in memory before they are written."""


@dataclass(frozen=True)
class Clip:
    """Frames in order. source: what they are read from. name: for people.

    samples: ids; one, of a video, or one for each image.
    """

    source: Any
    name: str
    samples: list[str]


def track_video(
    samples: Any,
    concepts: Sequence[str],
    *,
    label_field: str = "esam3_tracks",
    model: str,
    tracker: str = "auto",
    threshold: float = 0.5,
    every: int = 1,
    order_field: str | None = None,
    sequence_field: str | None = None,
    again: bool = False,
    **options: Any,
) -> Steps:
    """Follows every instance of some concepts through videos, or through images in order.

    Labels have ``index``, the identity within their video, and an ``fo.Instance``, by which the
    App links them over frames. A video that was stopped begins again, one that was finished with
    this question is left alone: ``<label_field>_asked`` of its sample tells.

    Args:
        samples: videos, or images of which each sequence is one clip.
        label_field: of the frames of videos; of the samples where those are images.
        tracker, threshold, every: see ``efficientsam3.track``.
        order_field: what images are sorted by, needed for images; "filepath" will often do.
        sequence_field: whose values tell which clip an image is of; None: all are one clip.
        model, again, options: as in ``segment_concepts``.

    Raises:
        RunError, PromptError, MissingAbilityError: before any work.
    """
    from efficientsam3.video.settings import MaskSettings, TrackSettings
    from efficientsam3.video.track import ConceptTracker

    is_video = samples.media_type == fomm.VIDEO
    check_samples(samples, "video" if is_video else "image")
    if label_field.startswith("frames."):
        label_field = label_field.removeprefix("frames.")
    words = unique(concepts)
    if not words:
        raise RunError("nothing to follow: name a concept")
    if not label_field.isidentifier():
        raise RunError(f"{label_field!r} cannot be a field's name; use letters, digits and _")
    if not is_video:
        check_field(samples, label_field, kinds=(fol.Detections,), new=True)
    question = {
        "track": words,
        "model": model,
        "stamp": stamp(model),
        "tracker": tracker,
        "threshold": threshold,
        "every": every,
        **options,
    }
    asked, marker = digest(question), f"{label_field}_asked"
    clips = list(_clips(samples, is_video, order_field, sequence_field))
    is_done = ViewField(marker) == asked
    finished = set() if again else set(samples.match(is_done).values("id"))
    dataset = samples._root_dataset
    claim, watch = Claim(dataset, label_field, asked), Watch(dataset)
    started, frames = time.monotonic(), 0
    identities = 0
    wrong: Counter[str] = Counter()
    before = sum(finished.issuperset(clip.samples) for clip in clips)
    yield Step(0, len(clips), f"loading {model}")
    # Whoever lowers the threshold wants to see what scores less followed too.
    settings = TrackSettings(detection=threshold, masks=MaskSettings(start=threshold))
    with COMPUTING:
        core = load_core(model, **options)
    keep(core)
    try:
        for number, clip in enumerate(clips):
            if finished.issuperset(clip.samples):
                continue
            follower = ConceptTracker(
                core,
                list(words),
                tracker=tracker,
                every=every,
                settings=settings,
            )
            write = _to_frames if is_video else _to_samples
            with watch.over(number, len(clips)):
                try:
                    _forget(dataset, clip, marker, label_field, is_video)
                    people: dict[int, fol.Instance] = {}
                    for part in _parts(follower, clip):
                        claim.renew()
                        write(dataset, clip, label_field, part, people)
                        frames += len(part)
                        pace = f"{frames / (time.monotonic() - started):.1f} frames a second"
                        note = f"{clip.name}, frame {part[-1].index + 1}; {pace}"
                        yield Step(number, len(clips), note)
                    identities += len(people)
                    _mark(dataset, clip, marker, asked)
                except OF_ONE_SAMPLE as error:
                    trouble = f"{type(error).__name__}: {error}"
                    wrong[type(error).__name__] += 1
                    _record(dataset, clip, trouble)
            yield Step(number + 1, len(clips))
    finally:
        if watch.is_there():
            claim.release()
    path = f"frames.{label_field}" if is_video else label_field
    return {
        "samples": len(clips),
        "done": len(clips) - before - sum(wrong.values()),
        "before": before,
        "failed": sum(wrong.values()),
        "reasons": dict(wrong),
        "frames": frames,
        "identities": identities,
        "seconds": round(time.monotonic() - started, 3),
        "field": path,
        "model": model,
    }


def _clips(
    samples: Any, is_video: bool, order_field: str | None, sequence_field: str | None
) -> Iterator[Clip]:
    if is_video:
        for one, path in zip(*samples.values(["id", "filepath"]), strict=True):
            yield Clip(path, path, [one])
        return
    if order_field is None:
        raise RunError(
            "these are images, which have no order of their own; name the field to sort them by "
            "(order_field), such as filepath"
        )
    for name in (order_field, sequence_field):
        if name is not None:
            check_field(samples, name)
    ordered = samples.sort_by(order_field)
    groups: dict[Any, tuple[list[str], list[str]]] = {}
    names = ordered.values(sequence_field) if sequence_field else [None] * len(ordered)
    for name, one, path in zip(names, *ordered.values(["id", "filepath"]), strict=True):
        ids, paths = groups.setdefault(name, ([], []))
        ids.append(one)
        paths.append(path)
    for name, (ids, paths) in groups.items():
        yield Clip(paths, "images" if name is None else str(name), ids)


def _parts(follower: Any, clip: Clip) -> Iterator[list[TrackedFrame]]:
    """Results of a clip, some frames at a time."""
    from efficientsam3.video.frames import read_frames

    waiting: list[TrackedFrame] = []
    with read_frames(clip.source) as reader:
        frames = iter(reader)
        while True:
            with COMPUTING:
                frame = next(frames, None)
                waiting += follower.flush() if frame is None else follower.step(frame)
            if waiting and (frame is None or len(waiting) >= CHUNK):
                yield waiting
                waiting = []
            if frame is None:
                return


def labels_of(frame: TrackedFrame, people: dict[int, fol.Instance]) -> fol.Detections:
    """A frame's labels; ``people``: the instance of each identity of the clip, added to."""
    found = frame.instances
    detections = to_detections(found, people=people)
    return fol.Detections(
        detections=detections, concept_presence=presence_keys(found.concept_presence)
    )


def _to_frames(
    dataset: Any, clip: Clip, field: str, part: Sequence[TrackedFrame], people: Any
) -> None:
    """Writes some frames of a video. The sample is read anew: it would keep every frame it had."""
    sample = dataset[clip.samples[0]]
    for frame in part:
        sample.frames[frame.index + 1][field] = labels_of(frame, people)
    sample.save()


def _to_samples(
    dataset: Any, clip: Clip, field: str, part: Sequence[TrackedFrame], people: Any
) -> None:
    for frame in part:
        sample = dataset[clip.samples[frame.index]]
        sample[field] = labels_of(frame, people)
        sample.save()


def _forget(dataset: Any, clip: Clip, marker: str, field: str, is_video: bool) -> None:
    """What an earlier run wrote is not finished any more, and may be longer than this one."""
    view = dataset.select(clip.samples)
    if dataset.has_sample_field(marker):
        view.clear_sample_field(marker)
    if is_video and dataset.has_frame_field(field):
        view.clear_frame_field(field)
    elif not is_video and dataset.has_sample_field(field):
        view.clear_sample_field(field)


def _mark(dataset: Any, clip: Clip, marker: str, asked: str) -> None:
    view = dataset.select(clip.samples)
    view.set_values(marker, [asked] * len(clip.samples))
    if dataset.has_sample_field(ERROR_FIELD):
        view.clear_sample_field(ERROR_FIELD)


def _record(dataset: Any, clip: Clip, trouble: str) -> None:
    sample = dataset[clip.samples[0]]
    sample[ERROR_FIELD] = trouble
    sample.save()
