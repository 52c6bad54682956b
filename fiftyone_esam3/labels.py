"""The core's instances as FiftyOne labels."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import fiftyone.core.labels as fol

if TYPE_CHECKING:
    from efficientsam3 import Instances

ERROR_FIELD = "efficientsam3_error"
"""The field of a sample, or of a frame, that says what could not be done."""


def to_detections(
    found: Instances,
    labels: Sequence[str | None] | None = None,
    people: MutableMapping[int, fol.Instance] | None = None,
) -> list[fol.Detection]:
    """One detection with its mask per instance, in the same order; empty masks are left out.

    Args:
        found: instances of one image.
        labels: their classes, if not the concepts.
        people: of a video, the instance of each identity so far; new ones are added. Those
            without an identity yet, -1, are left out.
    """
    names = found.labels if labels is None else labels
    height, width = found.size
    detections = []
    for i, name in enumerate(names):
        track = None if found.track_ids is None else int(found.track_ids[i])
        if track is not None and track < 0:
            continue
        mask: Any = None
        box = found.boxes[i].tolist()
        if found.patches is not None:
            # With a mask its own box, not the model's: the App stretches a mask over its box.
            mask, box = found.crop(i)
            if not mask.any():
                continue
        x0, y0, x1, y1 = box
        identity: dict[str, Any] = {}
        if track is not None:
            identity["index"] = track
            if people is not None:
                identity["instance"] = people.setdefault(track, fol.Instance())
        detections.append(
            fol.Detection(
                label=name,
                bounding_box=[x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
                mask=mask,
                confidence=float(found.scores[i]),
                presence=float(found.presence[i]),
                **identity,
            )
        )
    return detections


def presence_keys(presence: Mapping[str, float]) -> dict[str, float]:
    """Presence by concept, under keys that the database can address in a query."""
    return {c.replace(".", "_").replace("$", "_"): float(p) for c, p in presence.items()}
