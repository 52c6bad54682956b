"""Read the prompts in a sample's fields as pixels of its image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fiftyone.core.labels as fol
import numpy as np
from numpy.typing import NDArray

from efficientsam3 import PromptError
from efficientsam3.concepts import read_classes
from efficientsam3.errors import format_numbers

SHAPE_KEYS = ("prompt_field", "box_prompt_field", "point_prompt_field")
PROMPT_KEYS = (*SHAPE_KEYS, "text_prompt_field")
"""The arguments that name a prompt field. FiftyOne's own SAM models have the same names."""


@dataclass(frozen=True)
class Box:
    """A box prompt.

    Attributes:
        label: the class name, or None.
        corners: (4,) float32, xyxy in pixels.
        sign: 1 for a positive example, 0 for a negative one.
        id: the id of the label that it was read from.
    """

    label: str | None
    corners: NDArray[np.float32]
    sign: int = 1
    id: str = ""


@dataclass(frozen=True)
class Clicks:
    """Points on or off one object.

    Attributes:
        label: the class name, or None.
        points: (K, 2) float32, xy in pixels.
        signs: (K,) int64, 1 for a point on the object, 0 for a point off it.
        id: the id of the label that it was read from.
    """

    label: str | None
    points: NDArray[np.float32]
    signs: NDArray[np.int64]
    id: str = ""


@dataclass(frozen=True)
class Prompts:
    """The prompts of one sample.

    Attributes:
        concepts: the sample's own concepts; None if no field is named for them.
        phrases: the phrases of these concepts, by concept, where they are named.
        boxes: the box prompts.
        clicks: the point prompts, one entry for each keypoint.
        notes: one sentence for each prompt that was left out.
    """

    concepts: tuple[str, ...] | None = None
    phrases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    clicks: tuple[Clicks, ...] = ()
    notes: tuple[str, ...] = ()

    def by_label(self) -> dict[str | None, Prompts]:
        """Group boxes and clicks by class, in the order in which the classes first appear."""
        labels = dict.fromkeys([*(b.label for b in self.boxes), *(c.label for c in self.clicks)])
        return {
            label: Prompts(
                boxes=tuple(b for b in self.boxes if b.label == label),
                clicks=tuple(c for c in self.clicks if c.label == label),
            )
            for label in labels
        }


def read_prompts(values: Mapping[str, Any], size: tuple[int, int]) -> Prompts:
    """Read prompts from the values of a sample's fields.

    A box or point outside the image is left out with a note, so that the other prompts are used.

    Args:
        values: field values by the keys in ``PROMPT_KEYS``. Other keys are ignored.
        size: (height, width) of the image in pixels.

    Returns:
        the prompts in pixels.

    Raises:
        PromptError: a field has another type, or a keypoint's labels do not match its points.
    """
    either = values.get("prompt_field")
    boxes = values.get("box_prompt_field")
    points = values.get("point_prompt_field")
    if isinstance(either, (fol.Keypoints, fol.Keypoint)):
        points = either if points is None else points
    else:
        boxes = either if boxes is None else boxes
    notes: list[str] = []
    own = None
    if "text_prompt_field" in values:
        own = read_sample_concepts(values["text_prompt_field"])
    detections = _listed(boxes, fol.Detections, fol.Detection)
    keypoints = _listed(points, fol.Keypoints, fol.Keypoint)
    return Prompts(
        concepts=None if own is None else tuple(own),
        phrases=own or {},
        boxes=tuple(b for d in detections if (b := _box(d, size, notes)) is not None),
        clicks=tuple(c for k in keypoints if (c := _clicks(k, size, notes)) is not None),
        notes=tuple(notes),
    )


def prompt_digests(value: Any) -> dict[str, str]:
    """A digest of each box or keypoint of a prompt field, by the id of its label.

    It changes when the label is moved or gets another class.

    Args:
        value: ``Detections``, ``Detection``, ``Keypoints``, ``Keypoint`` or None.

    Raises:
        PromptError: the field has another type.
    """
    if isinstance(value, (fol.Keypoints, fol.Keypoint)):
        listed = _listed(value, fol.Keypoints, fol.Keypoint)
    else:
        listed = _listed(value, fol.Detections, fol.Detection)
    out = {}
    for one in listed:
        if isinstance(one, fol.Keypoint):
            signs = _attribute(one, "sam_labels", "sam2_labels", "sam3_labels")
            shape: list[Any] = [one.points, signs]
        else:
            shape = [one.bounding_box]
        text = json.dumps([one.label, shape], default=list)
        out[one.id] = hashlib.sha256(text.encode()).hexdigest()[:12]
    return out


def read_sample_concepts(value: Any) -> dict[str, list[str]]:
    """Read the concepts of one sample; blank strings are left out.

    Args:
        value: a string, a list of strings, labels with class names, a dictionary of class names
            and their phrases, or None.

    Returns:
        the phrases of each concept.

    Raises:
        PromptError: the value is something else.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return read_classes(dict(value)) or {} if value else {}
    if isinstance(value, fol._HasLabelList):
        value = getattr(value, value._LABEL_LIST_FIELD)
    elif isinstance(value, (str, fol.Label)) or not isinstance(value, Iterable):
        value = [value]
    words: list[Any] = [getattr(v, "label", v) for v in value]
    for word in words:
        if not isinstance(word, str):
            raise PromptError(
                f"text_prompt_field holds {word!r}; it needs a string, a list of strings, "
                "labels with a class name, or classes with their phrases"
            )
    filled = [word for word in words if word.strip()]
    return read_classes(filled) or {} if filled else {}


def _listed(value: Any, many: type, one: type) -> list[Any]:
    """The labels of a field that holds a list of labels, one label, or nothing."""
    if value is None:
        return []
    if isinstance(value, many):
        return list(getattr(value, many._LABEL_LIST_FIELD))  # type: ignore[attr-defined]
    if isinstance(value, one):
        return [value]
    raise PromptError(
        f"a prompt field holds {type(value).__name__}; {many.__name__} or {one.__name__} is needed"
    )


def _attribute(label: fol.Label, *names: str) -> Any:
    """The value of the first attribute in ``names`` that the label has, or None."""
    return next((v for n in names if (v := getattr(label, n, None)) is not None), None)


def _box(detection: fol.Detection, size: tuple[int, int], notes: list[str]) -> Box | None:
    height, width = size
    x, y, w, h = detection.bounding_box  # relative to the image's size
    box = np.array([x * width, y * height, (x + w) * width, (y + h) * height], dtype=np.float32)
    inside = box.clip(0, [width, height, width, height])
    if not (inside[2] > inside[0] and inside[3] > inside[1]):  # also for NaN
        notes.append(
            f"the box {format_numbers(np.float32(detection.bounding_box))} has no area in the image"
        )
        return None
    positive = _attribute(detection, "sam_label", "sam3_label")
    sign = 1 if positive is None or positive else 0
    return Box(detection.label, box, sign, detection.id)


def _clicks(keypoint: fol.Keypoint, size: tuple[int, int], notes: list[str]) -> Clicks | None:
    height, width = size
    points = np.asarray(keypoint.points, dtype=np.float32).reshape(-1, 2)
    signs = _attribute(keypoint, "sam_labels", "sam2_labels", "sam3_labels")
    signs = np.ones(len(points), np.int64) if signs is None else np.asarray(signs, np.int64)
    if len(signs) != len(points):
        raise PromptError(
            f"a keypoint has {len(points)} points and {len(signs)} sam_labels; "
            "each point needs one label, 1 or 0"
        )
    seen = ~np.isnan(points).any(axis=1)  # FiftyOne marks a missing point with NaN
    inside = seen & ((points > -1e-3) & (points < 1 + 1e-3)).all(axis=1)
    for point in points[seen & ~inside]:
        notes.append(f"the point {format_numbers(point)} is outside the image")
    if not inside.any():
        notes.append("a keypoint has no point in the image")
        return None
    pixels = points[inside].clip(0, 1) * np.array([width, height], dtype=np.float32)
    return Clicks(keypoint.label, pixels, signs[inside], keypoint.id)
