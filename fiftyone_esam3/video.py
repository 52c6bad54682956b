"""The model on whole videos: concepts or prompted objects, with identities.

Arguments have the names of FiftyOne's own SAM 3 video model, so switching is a change of the
model's name. It runs on CPUs too.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fiftyone.core.labels as fol
import fiftyone.core.models as fom
import fiftyone.utils.torch as fout
import fiftyone.zoo.models as fozm

import efficientsam3 as es3
from efficientsam3.video.concepts import ConceptTracker, TrackedFrame
from efficientsam3.video.frames import Frame, read_frames
from efficientsam3.video.interactive import InteractiveTracker
from efficientsam3.video.settings import MaskSettings, TrackSettings
from efficientsam3.video.shelf import Shelf

from .prompts import Box, Clicks, Prompts, read_prompts, unique
from .shared import load_core
from .track import labels_of

logger = logging.getLogger(__name__)

DIRECTIONS = ("both", "forward", "backward")


class EfficientSam3VideoConfig(fout.TorchImageModelConfig, fozm.HasZooModel):
    """How an :class:`EfficientSam3Video` is loaded and what it is asked.

    Args:
        variant: a model of the table, or a folder of a saved model.
        classes (None): the concepts to look for.
        operation_mode ("concept"): ``"concept"`` follows all instances of the concepts, with boxes
            as examples; ``"visual"`` follows one object for each box or keypoint.
        prompt_field (None): a field of the frames with boxes or keypoints; ``apply_model`` takes
            it too.
        prompt_frame_indices (None): frames whose prompts count, from 1; by default all.
        text_frame_idx (1): the frame, from 1, from which concepts are looked for.
        propagation_direction ("both"): ``"forward"``, ``"backward"`` or ``"both"`` from there, or
            from the prompts.
        propagation_precedence ("forward"): taken for the built-in model's sake; both directions
            of an object share one memory here, so there are no two answers to choose from.
        threshold (0.5): the least score of a detection.
        tracker ("auto"): ``"memory"``, ``"masks"``; see ``efficientsam3.track``.
        every (1): the detector runs on every n-th frame.
        checkpoint, base, text, context, device, dtype, speed: see ``efficientsam3.load``.
    """

    def __init__(self, d: dict[str, Any]) -> None:
        d = dict(self.init(d))
        if isinstance(d.get("classes"), str):
            d["classes"] = [d["classes"]]
        super().__init__(d)
        self.variant = self.parse_string(d, "variant")
        self.operation_mode = self.parse_string(d, "operation_mode", default="concept")
        self.prompt_field = self.parse_string(d, "prompt_field", default=None)
        self.prompt_frame_indices = self.parse_array(d, "prompt_frame_indices", default=None)
        self.text_frame_idx = self.parse_int(d, "text_frame_idx", default=1)
        self.propagation_direction = self.parse_string(d, "propagation_direction", default="both")
        self.propagation_precedence = self.parse_string(
            d, "propagation_precedence", default="forward"
        )
        self.threshold = self.parse_number(d, "threshold", default=0.5)
        self.tracker = self.parse_string(d, "tracker", default="auto")
        self.every = self.parse_int(d, "every", default=1)
        self.checkpoint = self.parse_raw(d, "checkpoint", default=None)
        self.base = self.parse_raw(d, "base", default=None)
        self.text = self.parse_string(d, "text", default=None)
        self.context = self.parse_int(d, "context", default=None)
        self.dtype = self.parse_raw(d, "dtype", default=None)
        self.speed = self.parse_string(d, "speed", default="exact")
        self._check(d)

    def _check(self, d: dict[str, Any]) -> None:
        unknown = sorted(set(d) - set(vars(self)))
        if unknown:
            inherited = vars(fout.TorchImageModelConfig({}))
            own = ["classes", "confidence_thresh", *(k for k in vars(self) if k not in inherited)]
            raise ValueError(f"unknown arguments {unknown}; known are {', '.join(own)}")
        for name, value, choices in (
            ("operation_mode", self.operation_mode, ("concept", "visual")),
            ("propagation_direction", self.propagation_direction, DIRECTIONS),
            ("propagation_precedence", self.propagation_precedence, DIRECTIONS[1:]),
        ):
            if value not in choices:
                raise ValueError(
                    f"{name} is {value!r}; it can be {' or '.join(map(repr, choices))}"
                )
        if self.text_frame_idx < 1:
            raise ValueError(f"text_frame_idx is {self.text_frame_idx}; frames count from 1")


class EfficientSam3Video(fom.SamplesMixin, fom.Model):
    """EfficientSAM3 on videos, for ``apply_model``.

    Args:
        config: an :class:`EfficientSam3VideoConfig`.
    """

    def __init__(self, config: EfficientSam3VideoConfig) -> None:
        self.config = config
        self._loaded_fields = {"prompt_field": config.prompt_field} if config.prompt_field else {}
        self._fields = self._loaded_fields
        self.core = load_core(
            config.variant,
            checkpoint=config.checkpoint,
            text=config.text,
            context=config.context,
            base=config.base,
            device=config.device,
            dtype=config.dtype,
            speed=config.speed,
        )
        self.core.require("concepts" if config.operation_mode == "concept" else "video")

    @property
    def media_type(self) -> str:
        """Videos."""
        return "video"

    @property
    def operation_mode(self) -> str:
        """``"concept"`` or ``"visual"``; can be set."""
        return str(self.config.operation_mode)

    @operation_mode.setter
    def operation_mode(self, mode: str) -> None:
        if mode not in ("concept", "visual"):
            raise ValueError(f"operation_mode is {mode!r}; it can be 'concept' or 'visual'")
        self.config.operation_mode = mode

    @property
    def needs_fields(self) -> dict[str, str]:
        """The field of the frames that holds prompts, as ``prompt_field``."""
        return self._fields

    @needs_fields.setter
    def needs_fields(self, fields: dict[str, str]) -> None:
        unknown = sorted(set(fields) - {"prompt_field"})
        if unknown:
            raise ValueError(f"unknown arguments {unknown}; apply_model takes prompt_field")
        self._fields = {**self._loaded_fields, **fields}

    def predict(self, arg: Any, sample: Any = None) -> dict[int, fol.Detections]:
        """The labels of a video.

        Args:
            arg: FiftyOne's video reader; the file is read by its path.
            sample: of the dataset, or of a view of clips.

        Returns:
            detections by frame number, from 1.

        Raises:
            PromptError: nothing to look for.
        """
        start, stop = 0, None
        support = sample.support if sample.has_field("support") else None
        if support:
            start, stop = support[0] - 1, support[1]
        prompts = self._prompts(sample)
        if self.operation_mode == "visual":
            frames = self._objects(sample.filepath, prompts, start, stop)
        else:
            frames = self._instances(sample.filepath, prompts, start, stop)
        people: dict[int, fol.Instance] = {}
        out: dict[int, fol.Detections] = {}
        for frame in frames:  # one can come twice, with the objects of either direction
            labels = labels_of(frame, people)
            known = out.setdefault(frame.index + 1, labels)
            if known is not labels:
                known.detections = [*known.detections, *labels.detections]
        return out

    def predict_all(self, args: Any, samples: Any = None) -> list[dict[int, fol.Detections]]:
        """The labels of videos, one after another."""
        return [self.predict(arg, sample) for arg, sample in zip(args, samples, strict=True)]

    # What is asked ---------------------------------------------------------------------

    def _concepts(self) -> list[str]:
        """As in the image model: what ``apply_model(classes=...)`` names is asked for."""
        loaded = unique(self.config.classes or ())
        chosen = self.config.filter_classes
        if chosen is None:
            return list(loaded)
        return [*(c for c in loaded if c in chosen), *sorted(set(unique(chosen)) - set(loaded))]

    def _prompts(self, sample: Any) -> dict[int, Any]:
        """Labels that prompt, by frame, from 0."""
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

    def _threshold(self) -> float:
        chosen = self.config.confidence_thresh
        return float(self.config.threshold if chosen is None else chosen)

    def _instances(
        self, path: str, prompts: dict[int, Any], start: int, stop: int | None
    ) -> Iterator[TrackedFrame]:
        """All instances of the concepts, with the examples of the frames that have some."""
        concepts = self._concepts()
        if not concepts and not prompts:
            raise es3.PromptError(
                "nothing to look for; pass classes=['person', ...] to load_zoo_model or "
                "apply_model, or prompt_field='frames.<field>' with boxes"
            )
        level = self._threshold()
        follower = ConceptTracker(
            self.core,
            concepts or None,
            tracker=self.config.tracker,
            every=self.config.every,
            settings=TrackSettings(detection=level, masks=MaskSettings(start=level)),
        )
        first = self.config.text_frame_idx - 1 if concepts else min(prompts, default=0)
        direction = self.config.propagation_direction
        if direction == "forward":
            start = max(start, first)
        frames: Iterator[Frame]
        if direction == "backward":
            last = first if stop is None else min(stop - 1, first)
            back = Shelf(path).backwards(last)
            frames = itertools.takewhile(lambda frame: frame.index >= start, back)
        else:
            frames = read_frames(path, start=start, stop=stop)
        for frame in frames:
            if frame.index in prompts:
                shown = read_prompts({"prompt_field": prompts[frame.index]}, frame.image.shape[:2])
                self._show(follower, shown)
            yield from follower.step(frame)
        yield from follower.flush()

    def _show(self, follower: ConceptTracker, shown: Prompts) -> None:
        for label, one in shown.by_label().items():
            boxes = [b.corners for b in one.boxes]
            if boxes:
                follower.add_exemplars(boxes, [b.sign for b in one.boxes], concept=label)

    def _objects(
        self, path: str, prompts: dict[int, Any], start: int, stop: int | None
    ) -> Iterator[TrackedFrame]:
        """One object for each box or keypoint; those with the same ``index`` are the same."""
        if not prompts:
            raise es3.PromptError(
                "operation_mode is 'visual' and no frame has boxes or keypoints; pass "
                "prompt_field='frames.<field>'"
            )
        tracker = InteractiveTracker(self.core, path)
        names: dict[int, str] = {}
        for index, value in sorted(prompts.items()):
            size = tracker.frame(index).image.shape[:2]
            shown = read_prompts({"prompt_field": value}, size)
            given: list[Box | Clicks] = [*shown.boxes, *shown.clicks]
            for one, known in zip(given, _known(value, len(given)), strict=True):
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


def _known(value: Any, count: int) -> list[int | None]:
    """Identities that ``count`` prompts of a frame have; none where some were left out."""
    many = isinstance(value, fol._HasLabelList)
    labels = getattr(value, value._LABEL_LIST_FIELD) if many else [value]
    if len(labels) != count:
        return [None] * count
    return [getattr(label, "index", None) for label in labels]
