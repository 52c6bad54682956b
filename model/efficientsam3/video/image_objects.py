"""Tracked objects take the masks of objects that the image encoder finds on the frame.

Models with late fusion find the objects of an image before any prompt is read. Where such an object
is in the place in which the memory expects a tracked one, its mask follows the image better.
"""

from __future__ import annotations

from ..masks.overlap import mask_iou
from .association import assign
from .tracker_parts import TrackerParts
from .types import TrackerFeatures, TrackerOutput

LEAST_SCORE = 0.1
"""Probability below which what the image encoder finds is not taken for an object."""


def adopt_masks(
    parts: TrackerParts, features: TrackerFeatures, output: TrackerOutput
) -> TrackerOutput:
    """Replace masks of tracked objects by those of the objects that a frame shows.

    A mask is replaced where the two have at least the IoU ``MemoryConfig.adopt_object_iou``; each
    object of the frame goes to one tracked object.

    Args:
        parts: The parts of the model.
        features: The frame, which keeps the objects that are found on it.
        output: N tracked objects on the frame.

    Returns:
        The output with these masks; as it is for models that adopt none.
    """
    if features.encoded is None:
        return output
    if features.found is None:
        features.found = parts.find_objects(features.encoded)
    found, least = features.found, parts.config.memory.adopt_object_iou
    masks = found.logits[found.scores > LEAST_SCORE]
    tracked, shown = ((logits > 0).numpy(force=True) for logits in (output.logits, masks))
    overlap = mask_iou(tracked, shown)
    pairs = assign(overlap * (overlap >= least))
    if not pairs:
        return output
    rows, objects = (list(side) for side in zip(*pairs, strict=True))
    logits = output.logits.clone()
    logits[rows] = masks[objects].to(logits)
    return output._replace(logits=logits)
