"""What the fields of one sample ask of the model, in pixels of its image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import fiftyone.core.labels as fol
import numpy as np
from numpy.typing import NDArray

from efficientsam3 import PromptError

SHAPE_KEYS = ("prompt_field", "box_prompt_field", "point_prompt_field")
PROMPT_KEYS = (*SHAPE_KEYS, "text_prompt_field")
"""What a user may map to a field of a dataset; the names are those of FiftyOne's SAM models."""


@dataclass(frozen=True)
class Box:
    """A box. corners: (4,) float32, xyxy. sign: 1 for "like this", 0 for "not this"."""

    label: str | None
    corners: NDArray[np.float32]
    sign: int = 1


@dataclass(frozen=True)
class Clicks:
    """Points on or off one object. points: (K, 2) float32, xy. signs: (K,) int64, 1 or 0."""

    label: str | None
    points: NDArray[np.float32]
    signs: NDArray[np.int64]


@dataclass(frozen=True)
class Prompts:
    """One sample's prompts.

    concepts: None if no field was named for them. notes: what was left out, as sentences.
    """

    concepts: tuple[str, ...] | None = None
    boxes: tuple[Box, ...] = ()
    clicks: tuple[Clicks, ...] = ()
    notes: tuple[str, ...] = ()

    def by_label(self) -> dict[str | None, Prompts]:
        """The boxes and clicks of each class, in the order in which classes first appear."""
        labels = dict.fromkeys([*(b.label for b in self.boxes), *(c.label for c in self.clicks)])
        return {
            label: Prompts(
                boxes=tuple(b for b in self.boxes if b.label == label),
                clicks=tuple(c for c in self.clicks if c.label == label),
            )
            for label in labels
        }


def read_prompts(values: Mapping[str, Any], size: tuple[int, int]) -> Prompts:
    """Prompts from the values of a sample's fields.

    A box or point with no part in the image is left out, with a note: it should not cost the
    others.

    Args:
        values: field values by the keys in ``PROMPT_KEYS``; other keys are not looked at.
        size: (height, width) of the image in pixels.

    Raises:
        PromptError: a field of another type, or labels that do not fit their points.
    """
    either = values.get("prompt_field")
    boxes = values.get("box_prompt_field")
    points = values.get("point_prompt_field")
    if isinstance(either, (fol.Keypoints, fol.Keypoint)):
        points = either if points is None else points
    else:
        boxes = either if boxes is None else boxes
    notes: list[str] = []
    detections = _listed(boxes, fol.Detections, fol.Detection)
    keypoints = _listed(points, fol.Keypoints, fol.Keypoint)
    return Prompts(
        concepts=_concepts(values["text_prompt_field"]) if "text_prompt_field" in values else None,
        boxes=tuple(b for d in detections if (b := _box(d, size, notes)) is not None),
        clicks=tuple(c for k in keypoints if (c := _clicks(k, size, notes)) is not None),
        notes=tuple(notes),
    )


def unique(words: Iterable[str]) -> tuple[str, ...]:
    """The words without blanks around them, each once, in the order given."""
    return tuple(dict.fromkeys(stripped for word in words if (stripped := word.strip())))


def _concepts(value: Any) -> tuple[str, ...]:
    """Words from a string, a list of strings, or labels (their class names)."""
    if value is None:
        return ()
    if isinstance(value, fol._HasLabelList):
        value = getattr(value, value._LABEL_LIST_FIELD)
    elif isinstance(value, (str, fol.Label)):
        value = [value]
    values = value if isinstance(value, Iterable) else [value]
    words: list[Any] = [getattr(v, "label", v) for v in values]
    for word in words:
        if not isinstance(word, str):
            raise PromptError(
                f"text_prompt_field holds {word!r}; it needs a string, a list of strings, "
                "or labels with a class name"
            )
    return unique(words)


def _listed(value: Any, many: type, one: type) -> list[Any]:
    """The labels in a field that holds a list of them, one of them, or nothing."""
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
    """The first of these attributes that the label has; labels carry them only if set."""
    return next((v for n in names if (v := getattr(label, n, None)) is not None), None)


def _box(detection: fol.Detection, size: tuple[int, int], notes: list[str]) -> Box | None:
    height, width = size
    x, y, w, h = detection.bounding_box  # relative to the image's size
    box = np.array([x * width, y * height, (x + w) * width, (y + h) * height], dtype=np.float32)
    inside = box.clip(0, [width, height, width, height])
    if not (inside[2] > inside[0] and inside[3] > inside[1]):  # also for NaN
        notes.append(f"the box {list(detection.bounding_box)} has no area in the image")
        return None
    positive = _attribute(detection, "sam_label", "sam3_label")
    return Box(detection.label, box, 1 if positive is None or positive else 0)


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
    seen = ~np.isnan(points).any(axis=1)  # NaN is FiftyOne's mark of a point that is not there
    inside = seen & ((points > -1e-3) & (points < 1 + 1e-3)).all(axis=1)
    for point in points[seen & ~inside]:
        notes.append(f"the point {point.tolist()} is outside the image")
    if not inside.any():
        notes.append("a keypoint has no point in the image")
        return None
    pixels = points[inside].clip(0, 1) * np.array([width, height], dtype=np.float32)
    return Clicks(keypoint.label, pixels, signs[inside])
