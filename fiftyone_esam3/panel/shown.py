"""What the component in the browser gets: image, labels that exist, instances, and prompts."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from efficientsam3.types import Instances

from .accepted import find_accepted
from .picture import Shapes, Size
from .state import PanelState, Prompts, Recent

OVERLAP = 0.5
"""The IoU from which an instance counts as a label that is already there."""

_shapes: WeakKeyDictionary[Instances, Shapes] = WeakKeyDictionary()
_existing: Recent[Shapes] = Recent(8)


def show(state: PanelState, sample: Any, field: str, has: Mapping[str, str]) -> dict[str, Any]:
    """The work on a sample as the browser gets it, without the parts that it has.

    Args:
        state: the work.
        sample: the sample.
        field: the field whose labels are drawn.
        has: the keys of the parts that the browser has: ``picture``, ``existing`` and ``found``.

    Raises:
        ImageError: the image cannot be read.
    """
    result, picture = state.result, state.picture
    height, width = picture.size
    out: dict[str, Any] = {}
    if has.get("picture") != picture.key:
        out["picture"] = {"key": picture.key, "source": picture.source}
        out["picture"] |= {"width": width, "height": height}
    existing = _labels_of(sample, field, picture.size)
    if has.get("existing") != existing.key:
        out["existing"] = existing.to_json()
    found = None if result.found is None else _shapes_of(result.found)
    if found is None or has.get("found") != found.key:
        out["found"] = None if found is None else found.to_json()
    made = state.objects
    objects = None if made is None else Shapes.of_instances(f"objects of {sample.id}", made)
    out["result"] = {
        "objects": None if objects is None else objects.to_json(),
        "taken": _taken(found, existing),
        "taken_objects": _taken(objects, existing),
        "concepts": [] if result.found is None else list(result.found.concepts),
        "presence": {} if result.found is None else dict(result.found.concept_presence),
        "growing": result.current is not None,
        "undo": len(state.history) or int(find_accepted(sample, field) is not None),
        **_prompts(result.prompts, picture.size),
    }
    return out


def _shapes_of(found: Instances) -> Shapes:
    if found not in _shapes:
        _shapes[found] = Shapes.of_instances(uuid.uuid4().hex, found)
    return _shapes[found]


def _labels_of(sample: Any, field: str, size: Size) -> Shapes:
    """The shapes of the labels in a field, made anew when the sample was changed."""
    key = f"{sample.id}:{field}:{sample.last_modified_at}"
    held = sample[field] if sample.has_field(field) else None
    return _existing.get(key, lambda: Shapes.of_labels(key, held, size))


def _taken(shapes: Shapes | None, existing: Shapes) -> list[int]:
    """The positions of the shapes that are labels already."""
    if shapes is None:
        return []
    return [i for i, share in enumerate(shapes.overlap(existing)) if share >= OVERLAP]


def _prompts(prompts: Prompts, size: Size) -> dict[str, Any]:
    """The prompts, with places in [0, 1]."""
    height, width = size
    boxes = [(*prompts.box, 1)] if prompts.box is not None else []
    return {
        "points": [(x / width, y / height, sign) for x, y, sign in prompts.points],
        "boxes": [
            (x0 / width, y0 / height, x1 / width, y1 / height, sign)
            for x0, y0, x1, y1, sign in (*boxes, *prompts.examples)
        ],
    }
