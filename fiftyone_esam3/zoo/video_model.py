"""The video model of the zoo: it tracks concepts, or objects that prompts show.

Arguments have the names of FiftyOne's own SAM 3 video model. This model also runs on CPUs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import fiftyone.core.labels as fol
import fiftyone.core.models as fom

import efficientsam3 as es3
from efficientsam3.concepts import plain_concepts
from efficientsam3.errors import ArgumentError
from efficientsam3.io.frame_types import Frame
from efficientsam3.io.frames import read_frames
from efficientsam3.outputs import OBJECT
from efficientsam3.video.concept_tracker import ConceptTracker
from efficientsam3.video.frame_cache import FrameCache
from efficientsam3.video.interactive import InteractiveTracker
from efficientsam3.video.settings import TrackSettings
from efficientsam3.video.types import TrackedFrame

from ..labels import to_labels
from ..ownership.merge import Found, group_by_class
from ..prompts import Box, Clicks, Prompts, read_prompts
from ..tracking import cut_settings, make_settings
from .config import PromptedModel, ZooConfig


class EfficientSam3VideoConfig(ZooConfig):
    """The arguments of an :class:`EfficientSam3Video`.

    Args:
        d: a dictionary with these keys:

            variant: a model name, or the folder of a saved model.
            classes (None): the concepts to look for: a list of phrases, one phrase, or a mapping
                of class names to phrases; the labels get the class.
            operation_mode ("concept"): ``"concept"`` tracks all instances of the concepts, with
                boxes as examples; ``"visual"`` tracks one object for each box or keypoint.
            prompt_field (None): a field of the frames with boxes or keypoints. ``apply_model``
                takes it too.
            prompt_frame_indices (None): the numbers of the frames whose prompts are used, from 1.
                By default all.
            text_frame_idx (1): the number of the frame from which concepts are searched for.
            propagation_direction ("both"): ``"forward"``, ``"backward"`` or ``"both"``, from that
                frame or from the prompts.
            propagation_precedence ("forward"): accepted because FiftyOne's own model has it. Here
                both directions of an object share one memory, so there is one result.
            threshold (None): the lowest score of a detection, in [0, 1]. None: as the model's
                release has it, 0.5 for SAM3 and 0.4 for SAM3.1.
            presence ("multiply"): see ``efficientsam3.TrackSettings``.
            tracker ("auto"): ``"memory"``, ``"iou"`` or ``"auto"``; see ``efficientsam3.track``.
            detect_every (1): the detector runs on every n-th frame.
            nms (None), class_agnostic (False), overlap_metric ("iou"): which detections of a frame
                are dropped; see ``efficientsam3.TrackSettings``. None: its default.
            cuts (True): whether tracks end where another scene begins.
            existing ("refuse"): what happens to labels that the field holds; see
                ``segment_concepts``. ``apply_model`` takes it too.
            overlap (0.5): see ``segment_concepts``. ``apply_model`` takes it too.
            checkpoint, base, text, context, device, dtype, speed, adapter: see
                ``efficientsam3.load``.
    """

    OPTIONS: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        **ZooConfig.OPTIONS,
        "prompt_frame_indices": (None, None),
        "text_frame_idx": (1, int),
        "propagation_direction": ("both", ("both", "forward", "backward")),
        "propagation_precedence": ("forward", ("forward", "backward")),
        "tracker": ("auto", str),
        "detect_every": (1, int),
        "cuts": (True, (True, False)),
    }

    def __init__(self, d: dict[str, Any]) -> None:
        super().__init__(d)
        if self.text_frame_idx < 1:
            raise ArgumentError(f"text_frame_idx is {self.text_frame_idx}; frames count from 1")


class EfficientSam3Video(PromptedModel, fom.Model):
    """EfficientSAM3 on videos, for ``apply_model``.

    Args:
        config: the arguments.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("prompt_field",)

    def __init__(self, config: EfficientSam3VideoConfig) -> None:
        self.config = config
        self._read_fields()
        self.core = config.load()
        self.core.require("concepts" if config.operation_mode == "concept" else "video")

    @property
    def media_type(self) -> str:
        """Videos."""
        return "video"

    def predict(self, arg: Any, sample: Any = None) -> dict[int, fol.Detections]:
        """Track through a video.

        Args:
            arg: FiftyOne's video reader. The file is read by its path instead.
            sample: a sample of the dataset, or of a view of clips.

        Returns:
            detections by frame number, from 1.

        Raises:
            PromptError: there is nothing to look for.
        """
        start, stop = 0, None
        support = sample.support if sample.has_field("support") else None
        if support:
            start, stop = support[0] - 1, support[1]
        prompts = self._prompts(sample)
        track = self._objects if self.operation_mode == "visual" else self._instances
        identities: dict[int, fol.Instance] = {}
        out: dict[int, fol.Detections] = {}
        # A frame comes twice where objects are tracked to it from both directions.
        for frame in track(sample.filepath, prompts, start, stop):
            labels = to_labels(frame.instances, identities)
            known = out.setdefault(frame.index + 1, labels)
            if known is not labels:
                known.detections = [*known.detections, *labels.detections]
        if self._applied is None:
            return out
        id = sample.sample_id if sample.has_field("sample_id") else sample.id
        joined = self._applied.join_tracks(
            id, {number: self._found(labels) for number, labels in out.items()}
        )
        for number, labels in joined.items():  # see AppliedLabels.join_frames
            sample.frames[number][self._applied.field] = labels
        return joined

    def _found(self, labels: fol.Detections) -> Found:
        """The labels by their questions: the classes, or in visual mode all prompts together."""
        if self.operation_mode == "visual":
            return Found({OBJECT: list(labels.detections)})
        return group_by_class(labels, self.config.concepts())

    def __enter__(self) -> EfficientSam3Video:
        self._begin()
        return self

    def __exit__(self, *args: Any) -> None:
        self._end()

    def predict_all(self, args: Any, samples: Any = None) -> list[dict[int, fol.Detections]]:
        """Track through several videos, one after another.

        Args:
            args: FiftyOne's video readers.
            samples: their samples.
        """
        return [self.predict(arg, sample) for arg, sample in zip(args, samples, strict=True)]

    # Prompts --------------------------------------------------------------------------------

    def _prompts(self, sample: Any) -> dict[int, Any]:
        """The values of the prompt field by frame index, from 0."""
        path = self._fields.get("prompt_field")
        if path is None:
            return {}
        if not path.startswith("frames."):
            raise es3.PromptError(
                f"prompt_field is {path!r}; prompts of a video are in a field of its frames: "
                f"'frames.{path}'"
            )
        name = path.removeprefix("frames.")
        wanted = self.config.prompt_frame_indices
        out = {}
        for number, frame in sample.frames.items():
            value = frame[name] if frame.has_field(name) else None
            if value is not None and (wanted is None or number in wanted):
                out[number - 1] = value
        return out

    def _instances(
        self, path: str, prompts: dict[int, Any], start: int, stop: int | None
    ) -> Iterator[TrackedFrame]:
        """Track all instances of the concepts, with the examples that the frames hold."""
        concepts = plain_concepts(self.config.phrases())
        if not concepts and not prompts:
            raise es3.PromptError(
                "nothing to look for; pass classes=['person', ...] to load_zoo_model or "
                "apply_model, or prompt_field='frames.<field>' with boxes"
            )
        c = self.config
        tracker = ConceptTracker(
            self.core,
            concepts or None,
            tracker=c.tracker,
            detect_every=c.detect_every,
            settings=make_settings(
                c.min_score(TrackSettings.of(self.core).detection_threshold),
                c.nms,
                c.class_agnostic,
                c.overlap_metric,
                c.cuts,
                c.presence,
                self.core,
            ),
        )
        first = self.config.text_frame_idx - 1 if concepts else min(prompts, default=0)
        direction = self.config.propagation_direction
        if direction == "forward":
            start = max(start, first)
        frames: Iterator[Frame]
        if direction == "backward":
            last = first if stop is None else min(stop - 1, first)
            back = FrameCache(path).backward(last)
            frames = itertools.takewhile(lambda frame: frame.index >= start, back)
        else:
            frames = read_frames(path, start=start, stop=stop)
        for frame in frames:
            if frame.index in prompts:
                shown = read_prompts({"prompt_field": prompts[frame.index]}, frame.image.shape[:2])
                _add_examples(tracker, shown)
            yield from tracker.step(frame)
        yield from tracker.flush()

    def _objects(
        self, path: str, prompts: dict[int, Any], start: int, stop: int | None
    ) -> Iterator[TrackedFrame]:
        """Track one object for each box or keypoint; prompts with one ``index`` show one object."""
        if not prompts:
            raise es3.PromptError(
                "operation_mode is 'visual' and no frame has boxes or keypoints; pass "
                "prompt_field='frames.<field>'"
            )
        tracker = InteractiveTracker(self.core, path, cuts=cut_settings(self.config.cuts))
        names: dict[int, str] = {}
        for index, value in sorted(prompts.items()):
            size = tracker.frame(index).image.shape[:2]
            shown = read_prompts({"prompt_field": value}, size)
            given: list[Box | Clicks] = [*shown.boxes, *shown.clicks]
            for one, known in zip(given, _indices(value, len(given)), strict=True):
                id = max(names, default=-1) + 1 if known is None else known
                names.setdefault(id, one.label or "object")
                if isinstance(one, Clicks):
                    tracker.add_points(index, id, one.points, one.signs)
                else:
                    tracker.add_box(index, id, one.corners)
        for frame in tracker.propagate(direction=self.config.propagation_direction):
            if frame.index < start or (stop is not None and frame.index >= stop):
                continue
            ids = frame.instances.track_ids
            labels = [names[int(i)] for i in ids] if ids is not None else frame.instances.labels
            yield replace(frame, instances=replace(frame.instances, labels=labels))


def _add_examples(tracker: ConceptTracker, shown: Prompts) -> None:
    for label, one in shown.by_label().items():
        if one.boxes:
            boxes = [b.corners for b in one.boxes]
            tracker.add_exemplars(boxes, [b.sign for b in one.boxes], concept=label)


def _indices(value: Any, count: int) -> list[int | None]:
    """The ``index`` of each of the ``count`` prompts of a frame; None where there is none.

    If some labels were left out, the indices cannot be assigned, and all are None.
    """
    many = isinstance(value, fol._HasLabelList)
    labels = getattr(value, value._LABEL_LIST_FIELD) if many else [value]
    if len(labels) != count:
        return [None] * count
    return [getattr(label, "index", None) for label in labels]
