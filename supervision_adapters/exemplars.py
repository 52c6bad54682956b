"""Exemplars of any form, by concept: what ``ConceptDetector`` is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from efficientsam3.outputs import EncodedExemplars
from efficientsam3.prompts import read_array
from efficientsam3.segmenter import VISUAL
from efficientsam3.types import Array

from .detections import mask_patches, read_names
from .errors import AdapterError


class Exemplars(NamedTuple):
    """Examples of one concept: boxes in the image that is searched, or those of other images."""

    boxes: Array | None = None
    """(K, 4) xyxy in pixels."""
    labels: Array | None = None
    """(K,) 1 for "like this", 0 for "not like this"."""
    others: Sequence[EncodedExemplars] = ()
    """Exemplars of other images."""

    def drawn(self) -> dict[str, Any]:
        """Return the arguments of ``ImageModel.exemplar``.

        Raises:
            AdapterError: There are no boxes.
        """
        if self.boxes is None:
            raise AdapterError(
                "these exemplars are encoded already: pass them to predict(image, exemplars=...)"
            )
        return {"boxes": self.boxes, "box_labels": self.labels}

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``ImageModel.segment``."""
        return self.drawn() if self.boxes is not None else {"exemplars": list(self.others)}


def group_exemplars(exemplars: Any, labels: Any, names: Sequence[str]) -> dict[str, Exemplars]:
    """Bring exemplars of any form into one form by concept, in order.

    Args:
        exemplars: As ``ConceptDetector.predict`` takes them, or None.
        labels: As ``ConceptDetector.predict`` takes them, or None.
        names: The concepts that are searched for.

    Raises:
        AdapterError: They do not fit the concepts, or labels do not fit them.
    """
    if exemplars is None:
        if labels is not None:
            raise AdapterError("exemplar_labels are given without exemplars; pass both, or neither")
        return {}
    if isinstance(exemplars, Mapping):
        by_name = labels if labels is not None else {}
        if not isinstance(by_name, Mapping) or set(by_name) - set(exemplars):
            raise AdapterError(
                "exemplars are given by concept, so exemplar_labels must have the same concepts: "
                "exemplars={'dog': boxes}, exemplar_labels={'dog': [1, 0]}"
            )
        return {name: _exemplars(given, by_name.get(name)) for name, given in exemplars.items()}
    if hasattr(exemplars, "xyxy"):
        boxes, signs = _read_boxes(_extents(exemplars), labels)
        classes = np.array(read_names(exemplars, names or None))
        return {
            str(name): Exemplars(boxes[classes == name], signs[classes == name])
            for name in dict.fromkeys(classes)
        }
    if len(names) > 1:
        raise AdapterError(
            f"exemplars show one concept, and there are {len(names)}: {', '.join(names)}. "
            f"Pass a mapping: exemplars={{{names[0]!r}: boxes}}"
        )
    return {names[0] if names else VISUAL: _exemplars(exemplars, labels)}


def are_encoded(exemplars: Any) -> bool:
    """Whether exemplars are of other images, and not boxes in the image that is searched.

    Args:
        exemplars: As ``ConceptDetector.predict`` takes them.
    """
    if isinstance(exemplars, Mapping):
        return all(map(are_encoded, exemplars.values()))
    if isinstance(exemplars, (list, tuple)):
        return bool(exemplars) and all(isinstance(one, EncodedExemplars) for one in exemplars)
    return isinstance(exemplars, EncodedExemplars)


def _exemplars(given: Any, labels: Any) -> Exemplars:
    if are_encoded(given):
        if labels is not None:
            raise AdapterError(
                "exemplars of another image have their labels already: pass exemplar_labels to "
                "detector.exemplars(image, boxes, exemplar_labels)"
            )
        return Exemplars(others=[given] if isinstance(given, EncodedExemplars) else list(given))
    return Exemplars(*_read_boxes(given, labels))


def _read_boxes(boxes: Any, labels: Any) -> tuple[Array, Array]:
    array = read_array(boxes, 4, "exemplars")
    signs = np.ones(len(array), np.int64) if labels is None else np.asarray(labels)
    if signs.shape != (len(array),):
        raise AdapterError(f"{len(array)} exemplars have labels of shape {signs.shape}")
    return array, signs


def _extents(detections: Any) -> Array:
    """(K, 4) boxes: those of the masks where there are pixels, else those of the detections."""
    boxes = np.array(detections.xyxy, np.float32).reshape(-1, 4)
    patches = [] if detections.mask is None else mask_patches(detections.mask)
    for row, patch in enumerate(patches):
        pixels, box = patch.crop((0, 0))
        if pixels.size:
            boxes[row] = box
    return boxes
