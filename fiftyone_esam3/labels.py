"""Convert the core's instances to FiftyOne labels, and record errors on samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import fiftyone.core.labels as fol

from efficientsam3.masks.extent import describe_left_out, extent

if TYPE_CHECKING:
    from efficientsam3 import Instances

logger = logging.getLogger(__name__)

ERROR_FIELD = "efficientsam3_error"
"""The field of a sample, or of a frame, that says why it could not be processed."""


def to_detections(
    instances: Instances,
    labels: Sequence[str | None] | None = None,
    identities: MutableMapping[int, fol.Instance] | None = None,
) -> list[fol.Detection]:
    """Convert instances to detections with masks.

    Args:
        instances: the instances of one image.
        labels: one class name for each instance. By default the concept of each instance.
        identities: for a video, the ``fo.Instance`` of each track identity so far. New
            identities are added to it.

    Returns:
        one detection for each instance, in the same order, with the extent of the mask as its
        box. Instances with an empty mask are left out, which a warning counts; instances of a
        video without an identity yet (-1) are left out too.
    """
    names = instances.labels if labels is None else labels
    height, width = instances.size
    detections, left_out = [], 0
    for i, name in enumerate(names):
        attributes: dict[str, Any] = {}
        index = None if instances.track_ids is None else int(instances.track_ids[i])
        if index is not None and index < 0:
            continue
        shape = extent(instances, i)
        if shape is None:
            left_out += 1
            continue
        x0, y0, x1, y1 = shape.box
        if shape.pixels is not None:
            attributes["mask"] = shape.pixels
        if index is not None:
            attributes["index"] = index
            if identities is not None:
                attributes["instance"] = identities.setdefault(index, fol.Instance())
        detections.append(
            fol.Detection(
                label=name,
                bounding_box=[x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
                confidence=float(instances.scores[i]),
                presence=float(instances.presence[i]),
                **attributes,
            )
        )
    if left_out:
        logger.warning("%s", describe_left_out(left_out))
    return detections


def to_labels(
    instances: Instances, identities: MutableMapping[int, fol.Instance] | None = None
) -> fol.Detections:
    """Convert instances to the labels of one image or frame.

    Args:
        instances: the instances of one image.
        identities: see :func:`to_detections`.

    Returns:
        detections, with ``concept_presence``: the probability that each concept is in the image.
    """
    return fol.Detections(
        detections=to_detections(instances, identities=identities),
        concept_presence=presence_keys(instances.concept_presence),
    )


ESCAPED = {"%": "%25", ".": "%2E", "$": "%24", "\0": "%00"}
"""Characters that the keys of a database document cannot have, or that mark an escape."""


def presence_key(concept: str) -> str:
    """The key of a concept in ``concept_presence``, as percent-encoding writes it.

    Args:
        concept: the concept.

    Returns:
        the concept with ``.`` as ``%2E``, ``$`` as ``%24`` and ``%`` as ``%25``.
        ``urllib.parse.unquote`` gives the concept back.
    """
    return "".join(ESCAPED.get(character, character) for character in concept)


def presence_keys(presence: Mapping[str, float]) -> dict[str, float]:
    """Write concepts in a way that a database query can address.

    Args:
        presence: the probability that a concept is in the image, by concept.

    Returns:
        the same probabilities by :func:`presence_key`.
    """
    return {presence_key(concept): float(p) for concept, p in presence.items()}


def describe_error(error: Exception) -> str:
    """The type and the message of an error, as they are written to ``ERROR_FIELD``.

    Args:
        error: the error.
    """
    return f"{type(error).__name__}: {error}"
