"""Predict the pairs of one image with a model; predictions are records of COCO's result format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..data.types import ObjectAnnotation, Record
from .ground_truth import Pair

if TYPE_CHECKING:
    from ..outputs import EncodedImage
    from ..predictor import ImageModel
    from ..types import Instances

PROMPTS = {
    "text": "the phrase",
    "exemplar": "the box of the largest instance, without the phrase; positive pairs only",
    "box": "the box of each instance, one after another, to the interactive head",
}
"""How a model can be prompted for a pair."""


def predict_pairs(
    model: ImageModel,
    image: EncodedImage,
    pairs: list[Pair],
    prompt: str,
    min_score: float,
    concepts: Mapping[str, Sequence[str]] | None = None,
) -> list[Record]:
    """Predict all pairs of one image.

    Args:
        model: The model.
        image: The image.
        pairs: Pairs of this image.
        prompt: A key of ``PROMPTS``.
        min_score: Predictions are kept that score more than this.
        concepts: Phrases that are asked instead of a pair's own, by its phrase.

    Returns:
        ``{"image_id", "category_id", "score", "bbox", "segmentation"}`` of each prediction; with
        the prompt "box" also "target", the index of the instance whose box was shown.
    """
    if prompt == "text":
        return _predict_phrases(model, image, pairs, min_score, concepts or {})
    predict = _predict_exemplar if prompt == "exemplar" else _predict_boxes
    return [record for pair in pairs for record in predict(model, image, pair, min_score)]


def _predict_phrases(
    model: ImageModel,
    image: EncodedImage,
    pairs: list[Pair],
    min_score: float,
    concepts: Mapping[str, Sequence[str]],
) -> list[Record]:
    # Classes are numbered, because two pairs can have phrases that differ in case alone.
    classes = {str(i): concepts.get(p.phrase, [p.phrase]) for i, p in enumerate(pairs)}
    found = model.segment(image, classes, threshold=min_score)
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(found.labels):
        rows.setdefault(label, []).append(row)
    return [
        record
        for name, pair in zip(classes, pairs, strict=True)
        for record in _records(pair, found[rows.get(name, [])])
    ]


def _predict_exemplar(
    model: ImageModel, image: EncodedImage, pair: Pair, min_score: float
) -> list[Record]:
    targets = [(t.area, t.box) for t in pair.targets if is_promptable(t, pair)]
    if not targets:
        return []
    _, box = max(targets)
    return _records(pair, model.segment(image, boxes=[box], threshold=min_score))


def _predict_boxes(
    model: ImageModel, image: EncodedImage, pair: Pair, min_score: float
) -> list[Record]:
    chosen = [i for i, t in enumerate(pair.targets) if is_promptable(t, pair)]
    if not chosen:
        return []
    found = model.segment_objects(image, boxes=[pair.targets[i].box for i in chosen])
    return [
        record | {"target": target}
        for record, target in zip(_records(pair, found), chosen, strict=True)
    ]


def is_promptable(target: ObjectAnnotation, pair: Pair) -> bool:
    """Whether the box of an instance can be a prompt: it is no crowd, and has area in the image.

    Args:
        target: An instance of the pair.
        pair: The pair.
    """
    (x0, y0, x1, y1), (height, width) = target.box, pair.size
    inside = x0 < width and y0 < height and x1 > 0 and y1 > 0
    return not target.crowd and x0 < x1 and y0 < y1 and inside


def _records(pair: Pair, found: Instances) -> list[Record]:
    image, category = pair.key
    out = []
    for (x0, y0, x1, y1), score in zip(found.boxes.tolist(), found.scores.tolist(), strict=True):
        box = [x0, y0, x1 - x0, y1 - y0]
        out.append({"image_id": image, "category_id": category, "score": score, "bbox": box})
    if found.patches is not None:
        for record, mask in zip(out, found.rles, strict=True):
            record["segmentation"] = mask
    return out
