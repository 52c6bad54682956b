"""Track objects through videos from boxes, points, masks or labels on some of their frames."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import fiftyone.core.labels as fol
import numpy as np

from efficientsam3 import ImageModel
from efficientsam3.outputs import OBJECT

from ..model_cache import MODEL_LOCK, load_for_run
from ..ownership.merge import OVERLAP, REFUSE, check_existing
from ..prompts import Box, Clicks, prompt_digests, read_prompts
from .checks import SHAPE_LABELS, check_field, check_samples
from .clips import Clip, read_clips
from .run import digest_settings
from .run_over_clips import run_over_clips
from .steps import RunError, Step, Steps

if TYPE_CHECKING:
    from efficientsam3.video.settings import CutSettings
    from efficientsam3.video.types import TrackedFrame

DIRECTIONS = ("both", "forward", "backward")


def track_objects(
    samples: Any,
    prompt_field: str,
    *,
    label_field: str = "esam3_objects",
    frame_numbers: Sequence[int] | None = None,
    selected: Sequence[Mapping[str, Any]] = (),
    direction: str = "both",
    cuts: bool = True,
    model: str,
    existing: str = REFUSE,
    overlap: float = OVERLAP,
    restart: bool = False,
    **options: Any,
) -> Steps:
    """Track the objects that boxes, masks or keypoints on some frames show.

    A label with a mask shows its object by the mask, a label without one by its box. Labels with
    one ``index`` in a video show one object; each label without an ``index`` shows its own.

    Args:
        samples: videos.
        prompt_field: a field of the frames with ``Detections`` or ``Keypoints``. It is not changed.
        label_field: a field of the frames for the tracks, not the same one.
        frame_numbers: the numbers of the frames whose labels are used, from 1. None: all.
        selected: only these labels are used, as the App selects labels; see ``find_similar``.
        direction: "forward", "backward" or "both", from the frames with prompts.
        cuts: whether objects are lost where another scene begins, until a label shows them there.
        model: a model name, or the folder of a saved model.
        existing: what happens to labels that the field holds; see ``segment_concepts``.
        overlap: see ``segment_concepts``.
        restart: also track clips that were tracked with these prompts and settings.
        **options: further arguments of ``efficientsam3.load``.

    Returns:
        the summary of the run, with ``frames``, ``identities`` and ``cuts``.

    Raises:
        RunError: the samples or fields cannot be used, or no frame has a prompt.
        ExistingLabelsError: the field holds labels of people, and ``existing`` is "refuse".
        MissingAbilityError: the weights cannot track objects.
    """
    from ..tracking import cut_settings

    check_samples(samples, "video")
    check_existing(existing, overlap)
    shown, target = (name.removeprefix("frames.") for name in (prompt_field, label_field))
    check_field(samples, shown, kinds=SHAPE_LABELS, frames=True)
    if shown == target:
        raise RunError(f"{shown!r} holds the prompts; name another field for the tracks")
    check_field(samples, target, kinds=(fol.Detections,), new=True, frames=True)
    if direction not in DIRECTIONS:
        raise RunError(f"direction is {direction!r}; it can be {', '.join(map(repr, DIRECTIONS))}")
    ends = cut_settings(cuts)
    chosen = {"direction": direction, **options, **({} if cuts else {"cuts": False})}
    ids = {one["label_id"] for one in selected}
    dataset = samples._root_dataset
    prompts = {
        id: found
        for id in samples.values("id")
        if (found := _read_prompts(dataset[id], shown, frame_numbers, ids))
    }
    if not prompts:
        raise RunError(f"no frame has boxes, masks or keypoints in {shown!r} that are to be used")
    clips = [clip for clip in read_clips(samples, True) if clip.samples[0] in prompts]
    yield Step(0, len(clips), f"loading {model}")
    core = load_for_run(model, **options)
    core.require("video")
    given = hashlib.sha256(
        repr([(i, n, prompt_digests(v)) for i, f in prompts.items() for n, v in f.items()]).encode()
    ).hexdigest()[:12]
    settings = digest_settings(model, {"prompts": given, **chosen})
    request = {
        "track": {OBJECT: settings},
        "prompt_field": f"frames.{shown}",
        "model": model,
        **chosen,
    }

    def track(clip: Clip, asked: Sequence[str]) -> Iterator[TrackedFrame]:
        return _track_clip(core, clip.source, prompts[clip.samples[0]], direction, ends)

    return (
        yield from run_over_clips(
            dataset,
            clips,
            target,
            track,
            {OBJECT: settings},
            request=request,
            existing=existing,
            overlap=overlap,
            restart=restart,
            source=OBJECT,
        )
    )


def _read_prompts(
    sample: Any, field: str, numbers: Sequence[int] | None, ids: Collection[str]
) -> dict[int, Any]:
    """The labels that show objects, by frame number."""
    out = {}
    for number, frame in sample.frames.items():
        value = frame[field] if numbers is None or number in numbers else None
        if value is None:
            continue
        many = isinstance(value, fol._HasLabelList)
        listed = getattr(value, value._LABEL_LIST_FIELD) if many else [value]
        kept = [label for label in listed if not ids or label.id in ids]
        if kept and many:
            out[number] = type(value)(**{value._LABEL_LIST_FIELD: kept})
        elif kept:
            out[number] = value
    return out


def _track_clip(
    core: ImageModel,
    path: str,
    prompts: Mapping[int, Any],
    direction: str,
    cuts: CutSettings | None,
) -> Iterator[TrackedFrame]:
    """Track the objects of one video."""
    from efficientsam3.video.interactive import InteractiveTracker

    tracker = InteractiveTracker(core, path, cuts=cuts)
    names: dict[int, str] = {}
    used = {_index(label) for value in prompts.values() for label in _labels(value)} - {None}
    for number, value in sorted(prompts.items()):
        with MODEL_LOCK:
            size = tracker.frame(number - 1).image.shape[:2]
        shown = read_prompts({"prompt_field": value}, size)
        by_id = {label.id: label for label in _labels(value)}
        given: list[Box | Clicks] = [*shown.boxes, *shown.clicks]
        for one in given:
            label = by_id[one.id]
            known = _index(label)
            if known is None:
                known = next(
                    i for i in range(len(names) + len(used) + 1) if i not in {*names, *used}
                )
            names.setdefault(known, one.label or OBJECT)
            with MODEL_LOCK:
                if not isinstance(one, Box):
                    tracker.add_points(number - 1, known, one.points, one.signs)
                elif label.has_mask:
                    mask = label.to_segmentation(frame_size=size[::-1]).mask
                    tracker.add_mask(number - 1, known, np.asarray(mask) > 0)
                else:
                    tracker.add_box(number - 1, known, one.corners)
    frames = tracker.propagate(direction=direction)
    while True:
        with MODEL_LOCK:
            frame = next(frames, None)
        if frame is None:
            return
        ids = frame.instances.track_ids
        labels = frame.instances.labels if ids is None else [names[int(i)] for i in ids]
        yield replace(frame, instances=replace(frame.instances, labels=labels))


def _labels(value: Any) -> list[Any]:
    many = isinstance(value, fol._HasLabelList)
    return list(getattr(value, value._LABEL_LIST_FIELD)) if many else [value]


def _index(label: Any) -> int | None:
    return getattr(label, "index", None)
