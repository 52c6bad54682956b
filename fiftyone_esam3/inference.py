"""Run the core on one image with its prompts, and give FiftyOne labels.

The zoo models and the operators both use these functions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import fiftyone.core.labels as fol
import numpy as np
from numpy.typing import NDArray

import efficientsam3 as es3
from efficientsam3.concepts import plain_concepts
from efficientsam3.outputs import Suppression
from efficientsam3.segmenter import VISUAL
from efficientsam3.types import join

from .labels import to_detections, to_labels
from .prompts import Box, Clicks, Prompts


def segment_concepts(
    core: es3.ImageModel,
    image: Any,
    prompts: Prompts,
    concepts: Sequence[str] = (),
    *,
    classes: Collection[str] | None = None,
    threshold: float = 0.5,
    presence: str = "multiply",
    max_instances: int | None = None,
    nms: float | None = None,
    class_agnostic: bool = False,
    overlap_metric: str = "iou",
    phrases: Mapping[str, Sequence[str]] | None = None,
    tile: Any = None,
) -> fol.Detections:
    """Segment all instances of each concept in an image.

    A concept with examples (boxes or points of its class) is searched for with its examples.

    Args:
        core: the model.
        image: any image that ``ImageModel.encode`` accepts.
        prompts: the sample's prompts. Its own concepts take the place of ``concepts``.
        concepts: the concepts of samples that have none of their own.
        classes: only concepts in this collection are searched for. None: all.
        threshold: the lowest score that is kept, in [0, 1].
        presence: see ``ImageModel.segment``.
        max_instances: the largest number of instances in the image, over all concepts.
        nms: suppress an instance whose mask has a greater IoU than this with a better one of its
            concept. None: no suppression.
        class_agnostic: see ``ImageModel.segment``.
        overlap_metric: see ``ImageModel.segment``.
        phrases: the phrases of concepts that are not their own phrase, by concept. A sample can
            have others for its own concepts.
        tile: see ``ImageModel.segment``. Concepts with examples are searched for in the whole
            picture alone.

    Returns:
        labels with ``concept_presence``: the probability that each concept is in the image.
    """
    wanted = concepts if prompts.concepts is None else prompts.concepts
    examples = prompts.by_label()
    if classes is not None:
        wanted = [c for c in wanted if c in classes]
        examples = {c: shown for c, shown in examples.items() if c in classes}
    if not wanted and not examples:
        return fol.Detections()

    limits: dict[str, Any] = {"threshold": threshold, "max_instances": max_instances, "nms": nms}
    if presence != "multiply":
        limits["presence"] = presence
    if class_agnostic or overlap_metric != "iou":
        limits.update(class_agnostic=class_agnostic, overlap_metric=overlap_metric)
    encoded = core.encode(image) if tile is None or examples else None
    known = {**(phrases or {}), **prompts.phrases}
    words_alone = [c for c in wanted if c not in examples]
    is_one_call = len(examples) + bool(words_alone) == 1
    if class_agnostic and not is_one_call:
        limits["max_instances"] = None  # all are needed until those of all calls are compared
    parts = []
    if words_alone:
        asked = plain_concepts({name: known.get(name, [name]) for name in words_alone})
        if tile is None:
            parts.append(core.segment(encoded, asked, **limits))
        else:
            parts.append(core.segment(image, asked, tile=tile, **limits))
    for label, shown in examples.items():
        word = label if label is not None and label in wanted else VISUAL
        asked = plain_concepts({word: known.get(word, [word])})
        found = core.segment(encoded, asked, **_as_examples(shown), **limits)
        name = label or VISUAL
        probability = {name: found.concept_presence[word]}
        parts.append(replace(found, labels=[name] * len(found), concept_presence=probability))
    if is_one_call:
        return to_labels(parts[0])
    found = join(parts)
    if class_agnostic:
        limit = core.config.nms if nms is None else nms
        found = Suppression(limit, class_agnostic, overlap_metric).apply(found)
    if max_instances is not None:  # the limit holds for the sum of all calls
        found = found[np.sort(np.argsort(-found.scores, kind="stable")[:max_instances])]
    return to_labels(found)


def segment_objects(
    core: es3.ImageModel,
    image: Any,
    prompts: Prompts,
    *,
    classes: Collection[str] | None = None,
    min_confidence: float | None = None,
    points_mask_index: int | None = None,
) -> fol.Detections:
    """Segment one object for each box, each set of points, or each pair of them.

    Args:
        core: the model.
        image: any image that ``ImageModel.encode`` accepts.
        prompts: the boxes and points. If there are both, the first box goes with the first set of
            points, and so on.
        classes: only prompts with a class name in this collection are used. None: all.
        min_confidence: the lowest score that is kept, in [0, 1]. None: all are kept.
        points_mask_index: see :func:`segment_prompted`.

    Returns:
        labels in the order of the prompts.

    Raises:
        PromptError: the numbers of boxes and sets of points differ.
    """
    boxes, clicks = prompts.boxes, prompts.clicks
    if boxes and clicks and len(boxes) != len(clicks):
        raise es3.PromptError(
            f"{len(boxes)} boxes and {len(clicks)} keypoints; in 'visual' mode the first box "
            "goes with the first keypoint and so on, so there must be as many"
        )
    names = [b.label or (clicks[i].label if clicks else None) for i, b in enumerate(boxes)]
    names = names or [c.label for c in clicks]
    used = [i for i, name in enumerate(names) if classes is None or name in classes]
    if not used:
        return fol.Detections()
    found = segment_prompted(
        core,
        core.encode(image),
        np.stack([boxes[i].corners for i in used]) if boxes else None,
        [clicks[i] for i in used] if clicks else None,
        points_mask_index,
    )
    if min_confidence is not None:
        kept = np.flatnonzero(found.scores >= min_confidence)
        found, used = found[kept], [used[k] for k in kept]
    return fol.Detections(detections=to_detections(found, [names[i] for i in used]))


def segment_each(core: es3.ImageModel, image: Any, prompts: Prompts) -> dict[str, fol.Detection]:
    """Segment one object for each box, or for the points of each keypoint.

    Args:
        core: the model.
        image: any image that ``ImageModel.encode`` accepts.
        prompts: boxes, or points.

    Returns:
        labels by the id of the prompt's label. Prompts for which nothing is found are left out.
    """
    given: Sequence[Box | Clicks] = prompts.boxes or prompts.clicks
    if not given:
        return {}
    found = segment_prompted(
        core,
        core.encode(image),
        np.stack([box.corners for box in prompts.boxes]) if prompts.boxes else None,
        None if prompts.boxes else prompts.clicks,
    )
    out = {}
    for i, prompt in enumerate(given):
        for label in to_detections(found[[i]], [prompt.label]):
            out[prompt.id] = label
    return out


def segment_prompted(
    core: es3.ImageModel,
    image: es3.EncodedImage,
    boxes: NDArray[np.float32] | None,
    clicks: Sequence[Clicks] | None,
    points_mask_index: int | None = None,
) -> es3.Instances:
    """Segment one instance for each box, each set of points, or each pair of them.

    Args:
        core: the model.
        image: the encoded image.
        boxes: (N, 4) float32, xyxy in pixels, or None.
        clicks: N sets of points, or None.
        points_mask_index: which of the three masks to take for points without a box, by area:
            0 is the smallest, 2 the largest. None: the mask with the best score.

    Returns:
        N instances, in the order of the prompts.
    """
    if clicks is None:
        return core.segment_objects(image, boxes=boxes)
    points, signs = _padded(clicks)
    # Points alone can mean a part, an object or a group, so the model gives three candidates.
    multimask = boxes is None
    found = core.segment_objects(
        image, boxes=boxes, points=points, point_labels=signs, multimask=multimask
    )
    if not multimask:
        return found
    chosen = 3 * np.arange(len(clicks))  # the three candidates are sorted by score
    if points_mask_index is not None:
        area = np.array([int(found.crop(i)[0].sum()) for i in range(len(found))])
        chosen += area.reshape(-1, 3).argsort(axis=1, kind="stable")[:, points_mask_index]
    return found[chosen]


def _as_examples(shown: Prompts) -> dict[str, Any]:
    """The boxes and clicks of one class as arguments of ``ImageModel.segment``."""
    examples: dict[str, Any] = {}
    if shown.boxes:
        examples["boxes"] = np.stack([b.corners for b in shown.boxes])
        examples["box_labels"] = np.array([b.sign for b in shown.boxes])
    if shown.clicks:
        examples["points"] = np.concatenate([c.points for c in shown.clicks])
        examples["point_labels"] = np.concatenate([c.signs for c in shown.clicks])
    return examples


def _padded(clicks: Sequence[Clicks]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Points of N objects as (N, K, 2) xy pixels and (N, K) labels, where -1 is padding."""
    most = max(len(c.points) for c in clicks)
    points = np.zeros((len(clicks), most, 2), np.float32)
    signs = np.full((len(clicks), most), -1, np.int64)
    for row, one in enumerate(clicks):
        points[row, : len(one.points)] = one.points
        signs[row, : len(one.points)] = one.signs
    return points, signs
