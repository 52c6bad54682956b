"""COCO's average precision (AP), by pycocotools, over pairs of images and phrases.

Lin et al., "Microsoft COCO: Common Objects in Context" (ECCV 2014); for LVIS the rules of Gupta et
al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation" (CVPR 2019), section 3.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...data.types import Box, QueryKey, Record
from ...types import Array
from ..ground_truth import GroundTruth, Pair
from ..predictions import Prediction, require_mask

AREA_SUFFIXES = {"s": 1, "m": 2, "l": 3}
"""Endings of AP by size of instances, and pycocotools' numbers of the areas; 0 is all areas."""

FREQUENCIES = {"r": "APr", "c": "APc", "f": "APf"}
"""Names of AP by LVIS' frequency of categories: rare, common, frequent."""


def average_precision(
    truth: GroundTruth, predictions: Mapping[QueryKey, Sequence[Prediction]], iou: str = "mask"
) -> dict[str, float]:
    """Average precision over categories, which are phrases in SA-Co.

    The first annotator's instances count. At most 100 predictions of a pair count, with LVIS 300.

    Args:
        truth: The split.
        predictions: Predictions by (image_id, category_id).
        iou: What is compared, "mask" or "box".

    Returns:
        AP, AP50, AP75, APs, APm, APl and AR, for LVIS APr, APc and APf too; 0 to 100, NaN where
        there is no instance.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in truth.pairs:
        if pair.targets or predictions.get(pair.key):
            groups.setdefault(pair.category, []).append(pair)
    max_predictions = 300 if truth.layout == "lvis" else 100
    precision, recall = {}, {}
    for category, pairs in groups.items():
        if any(not target.crowd for pair in pairs for target in pair.targets):
            evaluated = _evaluate(pairs, predictions, iou, max_predictions)
            precision[category] = evaluated["precision"][:, :, 0, :, 0]  # (IoU, recall, area)
            recall[category] = evaluated["recall"][:, 0, 0, 0]
    every = list(precision.values())
    out = {"AP": _mean(p[..., 0] for p in every)}
    out["AP50"] = _mean(p[0, :, 0] for p in every)
    out["AP75"] = _mean(p[5, :, 0] for p in every)
    out |= {f"AP{s}": _mean(p[..., area] for p in every) for s, area in AREA_SUFFIXES.items()}
    out["AR"] = _mean(recall.values())
    if truth.frequencies:
        for letter, name in FREQUENCIES.items():
            out[name] = _mean(
                p[..., 0] for c, p in precision.items() if truth.frequencies.get(c) == letter
            )
    return out


def _mean(parts: Iterable[Array]) -> float:
    """Mean of all defined values, 0 to 100; pycocotools marks undefined ones by -1."""
    values = np.concatenate([np.ravel(part) for part in parts] or [np.zeros(0)])
    values = values[values > -1]
    return 100 * float(values.mean()) if len(values) else math.nan


def _evaluate(
    pairs: list[Pair],
    predictions: Mapping[QueryKey, Sequence[Prediction]],
    iou: str,
    max_predictions: int,
) -> dict[str, Array]:
    """Return the arrays of pycocotools for the pairs of one category, each pair as an image."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    not_exhaustive = {number for number, pair in enumerate(pairs, 1) if not pair.exhaustive}

    class Evaluation(COCOeval):  # type: ignore[misc]
        def evaluateImg(self, imgId: int, catId: int, aRng: Any, maxDet: int) -> Any:
            out = super().evaluateImg(imgId, catId, aRng, maxDet)
            if out is not None and imgId in not_exhaustive:
                # LVIS: a prediction that matches no marked instance may be right, and is ignored.
                out["dtIgnore"] = np.logical_or(out["dtIgnore"], out["dtMatches"] == 0)
            return out

    images: list[Record] = []
    targets: list[Record] = []
    predicted: list[Record] = []
    for number, pair in enumerate(pairs, 1):
        images.append({"id": number, "height": pair.size[0], "width": pair.size[1]})
        for target in pair.targets:
            record = {"id": len(targets) + 1, "image_id": number, "area": target.area}
            mask = require_mask(target, pair) if iou == "mask" else target.mask
            targets.append(record | _shape(target.box, mask, target.crowd))
        for prediction in predictions.get(pair.key, ()):
            box = prediction.corners
            record = {"id": len(predicted) + 1, "image_id": number, "score": prediction.score}
            mask = require_mask(prediction, pair) if iou == "mask" else prediction.mask
            shape = _shape(box, mask, False)
            predicted.append(record | shape | {"area": _area(prediction, box, iou)})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        sides = []
        for annotations in (targets, predicted):
            side = COCO()
            side.dataset = {
                "images": images,
                "annotations": annotations,
                "categories": [{"id": 1, "name": "concept"}],
            }
            side.createIndex()
            sides.append(side)
        evaluation = Evaluation(*sides, "segm" if iou == "mask" else "bbox")
        evaluation.params.maxDets = [max_predictions]
        evaluation.evaluate()
        evaluation.accumulate()
    arrays: dict[str, Array] = evaluation.eval
    return arrays


def _shape(box: Box, mask: Any, crowd: bool) -> Record:
    x0, y0, x1, y1 = box
    return {
        "category_id": 1,
        "iscrowd": int(crowd),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": mask,
    }


def _area(prediction: Prediction, box: Box, iou: str) -> float:
    from pycocotools import mask as coco

    if iou == "mask" and prediction.mask is not None:
        return float(coco.area(prediction.mask))
    return (box[2] - box[0]) * (box[3] - box[1])
