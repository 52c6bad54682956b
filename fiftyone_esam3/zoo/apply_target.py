"""The field that FiftyOne's ``apply_model`` writes to, and how new labels join those in it.

FiftyOne sets the field of a sample to what the model returns, and does not tell the model which
field that is. The model finds it in the frame of ``apply_model`` that enters the model. So it can
refuse before anything is computed, and can return the labels that are there together with the new
ones.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import fiftyone.core.labels as fol
import fiftyone.core.media as fomm
from bson import ObjectId

from efficientsam3.errors import ArgumentError

from ..ownership.merge import (
    ExistingLabelsError,
    Found,
    Writing,
    check_existing,
    count_at_stake,
    describe_refusal,
    list_staying,
    merge_labels,
)
from ..ownership.record import RECORD_ATTRIBUTE, machine_attributes
from ..ownership.replaced import ReplacedLabels
from ..ownership.schema import declare_presence
from ..runs.checks import check_field
from ..runs.run import Run, class_settings


@dataclass(frozen=True)
class Target:
    """What ``apply_model`` writes to.

    Attributes:
        samples: the dataset or view.
        field: the name of the field, without ``frames.``.
        frames: whether it is a field of the frames of videos.
    """

    samples: Any
    field: str
    frames: bool


def find_target(model: Any) -> Target | None:
    """The target of the ``apply_model`` that is entering a model; None if there is none.

    Args:
        model: the model.

    Raises:
        ArgumentError: FiftyOne calls the model in an unknown way, so that nothing protects the
            labels in the field; the field of a video model has a prefix; or ``classes`` is a
            mapping.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code.co_name, frame.f_globals.get("__name__")
        if code == ("apply_model", "fiftyone.core.models"):
            known = frame.f_locals
            is_known = known.get("model") is model
            if not is_known or not {"samples", "label_field"} <= set(known):
                raise ArgumentError(
                    "this version of FiftyOne applies models in another way, and labels in the "
                    "field would not be safe; use segment_concepts or track_video instead"
                )
            caller = frame.f_back
            named = None if caller is None else caller.f_locals.get("classes")
            if isinstance(named, Mapping):  # FiftyOne keeps the names of the classes alone
                raise ArgumentError(
                    f"the phrases of classes belong to load_zoo_model(classes={dict(named)!r}); "
                    "apply_model(classes=[...]) chooses among classes"
                )
            samples: Any = known["samples"]
            field = str(known["label_field"])
            name = field.removeprefix("frames.")
            if model.media_type == "video" and name != field:
                raise ArgumentError(
                    f"label_field is {field!r}; a video model writes to frames, so name it {name!r}"
                )
            return Target(samples, name, samples.media_type == fomm.VIDEO)
        frame = frame.f_back
    return None


class AppliedLabels:
    """Join the labels of a model with those that a field holds; a context of one ``apply_model``.

    Args:
        target: what is written to.
        request: the arguments that the results depend on, and ``model``.
        settings: a digest of them, without concepts and fields.
        asked: the questions for every image; None if each image has its own.
        phrases: the phrases of classes, by class; others are their own phrase.
        existing: see ``merge_labels``.
        overlap: see ``merge_labels``.

    Raises:
        ExistingLabelsError: the field holds labels of people, and the policy is to refuse.
        RunError: the field holds something else, or a run is writing to it.
    """

    def __init__(
        self,
        target: Target,
        request: Mapping[str, Any],
        settings: str,
        asked: Sequence[str] | None,
        phrases: Mapping[str, Sequence[str]],
        existing: str,
        overlap: float,
    ) -> None:
        check_existing(existing, overlap)
        samples, field, frames = target.samples, target.field, target.frames
        check_field(samples, field, kinds=(fol.Detections,), new=True, frames=frames)
        dataset = samples._root_dataset
        path = f"frames.{field}" if frames else field
        self._target, self._settings, self._phrases = target, settings, phrases
        self._run = Run(dataset, path, request, len(samples))
        ignored = machine_attributes(dataset)
        self._how = Writing(field, self._run.key, existing, overlap, ignored)
        self._replaced = ReplacedLabels(dataset, path, self._run.key)
        with self._run:
            self._check(asked)
            self._run.begin(len(samples))
        self._run.__enter__()

    def _check(self, asked: Sequence[str] | None) -> None:
        """Refuse where labels of people are at stake."""
        labels, documents = 0, set()
        ids = self._target.samples.values("sample_id" if self._is_clips else "id")
        for start in range(0, len(ids), 200):
            for document in self._find([ObjectId(id) for id in ids[start : start + 200]]):
                held = document.get(self._how.field)
                at_stake = count_at_stake(held, asked, self._how)
                if at_stake:
                    labels += at_stake
                    documents.add(document.get("_sample_id", document["_id"]))
        if labels:
            raise ExistingLabelsError(describe_refusal(self._run.field, labels, len(documents)))

    @property
    def field(self) -> str:
        """The name of the field, without ``frames.``."""
        return self._how.field

    @property
    def _is_clips(self) -> bool:
        return bool(self._target.samples._is_clips)

    def _find(self, ids: Sequence[ObjectId], **more: Any) -> Any:
        """The documents of samples, or of all their frames, with the field."""
        dataset = self._target.samples._dataset
        if self._target.frames:
            collection, key = dataset._frame_collection, "_sample_id"
        else:
            collection, key = dataset._sample_collection, "_id"
        projection = {self._how.field: True, "_sample_id": True, "frame_number": True}
        return collection.find({key: {"$in": list(ids)}, **more}, projection)

    def close(self) -> None:
        """End the run."""
        declare_presence(self._run.dataset, self._how.field, self._target.frames)
        self._run.__exit__()

    def join(self, document: Any, found: Found) -> fol.Detections:
        """The labels of a sample or a frame, with those that it has.

        Args:
            document: the sample or the frame.
            found: the new labels.
        """
        if self._target.frames:
            number = document.frame_number
            labels = self.join_frames(document.sample_id, {number: found})[number]
            document[self._how.field] = labels  # see join_frames
            return labels
        self._run.step()
        held: Mapping[str, Any] = next(iter(self._find([ObjectId(document.id)])), {})
        return self._merge(held, found)

    def join_frames(self, sample: str, found: Mapping[int, Found]) -> dict[int, fol.Detections]:
        """The labels of frames of a video, with those that they have.

        FiftyOne adds labels to those that a frame has instead of replacing them, and drops the
        record. So the caller sets the field of the frame too; adding the same labels then changes
        nothing.

        Args:
            sample: the id of the sample.
            found: the new labels, by frame number.
        """
        self._run.step()
        query = {"frame_number": {"$in": list(found)}}
        known = {d["frame_number"]: d for d in self._find([ObjectId(sample)], **query)}
        return {number: self._merge(known.get(number, {}), new) for number, new in found.items()}

    def join_tracks(self, sample: str, found: Mapping[int, Found]) -> dict[int, fol.Detections]:
        """The same, with new identities where the video has labels that stay.

        Args:
            sample: the id of the sample.
            found: the new labels, by frame number.
        """
        sources = {source for one in found.values() for source in one.labels}
        indices = [-1]
        for document in self._find([ObjectId(sample)]):
            staying = list_staying(document.get(self._how.field), sources, self._how)
            indices += [d["index"] for d in staying if d.get("index") is not None]
        for one in found.values():
            for label in (label for listed in one.labels.values() for label in listed):
                label.index += max(indices) + 1
        return self.join_frames(sample, found)

    def _merge(self, document: Mapping[str, Any], found: Found) -> fol.Detections:
        stored = document.get(self._how.field)
        held = None if stored is None else fol.Detections.from_dict(stored)
        asked = {source: self._phrases.get(source, [source]) for source in found.labels}
        settings = class_settings(asked, self._settings)
        merged = merge_labels(held, found, settings, self._how)
        if merged.restorable:
            record = getattr(held, RECORD_ATTRIBUTE, None)
            self._replaced.keep(str(document["_id"]), record, merged.restorable)
        return merged.labels
