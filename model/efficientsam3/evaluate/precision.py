"""COCO's average precision, by pycocotools, over pairs of pictures and phrases."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .predictions import Prediction
from .records import Box, Record
from .truth import Key, Pair, Truth

Array = npt.NDArray[Any]

AREAS = {"": 0, "s": 1, "m": 2, "l": 3}
FREQUENCIES = {"r": "APr", "c": "APc", "f": "APf"}


def average_precision(
    truth: Truth, predictions: Mapping[Key, Sequence[Prediction]], iou: str = "mask"
) -> dict[str, float]:
    """AP, AP50, AP75, APs, APm, APl and AR, 0 to 100; for LVIS APr, APc and APf too.

    The mean over categories, which are phrases in SA-Co. The first annotator's truth counts. At
    most 100 predictions of a pair count, with LVIS 300. NaN where there is no instance.

    Args:
        iou: "mask" or "box".
    """
    groups: dict[str, list[Pair]] = {}
    for pair in truth.pairs:
        if pair.targets or predictions.get(pair.key):
            groups.setdefault(pair.category, []).append(pair)
    most = 300 if truth.layout == "lvis" else 100
    precisions, recalls = {}, {}
    for category, pairs in groups.items():
        if any(not target.crowd for pair in pairs for target in pair.targets):
            evaluated = _evaluate(pairs, predictions, iou, most)
            precisions[category] = evaluated["precision"][:, :, 0, :, 0]  # (IoU, recall, area)
            recalls[category] = evaluated["recall"][:, 0, 0, 0]
    every = list(precisions.values())
    out = {"AP": _mean(p[..., 0] for p in every)}
    out["AP50"] = _mean(p[0, :, 0] for p in every)
    out["AP75"] = _mean(p[5, :, 0] for p in every)
    out |= {f"AP{name}": _mean(p[..., area] for p in every) for name, area in AREAS.items() if name}
    out["AR"] = _mean(recalls.values())
    if truth.frequencies:
        for letter, name in FREQUENCIES.items():
            out[name] = _mean(
                p[..., 0] for c, p in precisions.items() if truth.frequencies.get(c) == letter
            )
    return out


def _mean(parts: Any) -> float:
    """Mean of what is defined, 0 to 100; pycocotools marks the rest by -1."""
    values = np.concatenate([np.ravel(part) for part in parts] or [np.zeros(0)])
    values = values[values > -1]
    return 100 * float(values.mean()) if len(values) else math.nan


def _evaluate(
    pairs: list[Pair], predictions: Mapping[Key, Sequence[Prediction]], iou: str, most: int
) -> dict[str, Array]:
    """pycocotools' arrays for the pairs of one category, each an image of its own."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    partial = {number for number, pair in enumerate(pairs, 1) if not pair.exhaustive}

    class Evaluation(COCOeval):  # type: ignore[misc]
        def evaluateImg(self, imgId: int, catId: int, aRng: Any, maxDet: int) -> Any:
            out = super().evaluateImg(imgId, catId, aRng, maxDet)
            if out is not None and imgId in partial:
                # Not all instances are marked: what matches none may be right (LVIS' rule).
                out["dtIgnore"] = np.logical_or(out["dtIgnore"], out["dtMatches"] == 0)
            return out

    images: list[Record] = []
    true: list[Record] = []
    found: list[Record] = []
    for number, pair in enumerate(pairs, 1):
        images.append({"id": number, "height": pair.size[0], "width": pair.size[1]})
        for target in pair.targets:
            record = {"id": len(true) + 1, "image_id": number, "area": target.area}
            true.append(record | _shape(target.box, target.mask, target.crowd))
        for prediction in predictions.get(pair.key, ()):
            box = prediction.corners
            shape = _shape(box, prediction.mask, False)
            record = {"id": len(found) + 1, "image_id": number, "score": prediction.score}
            found.append(record | shape | {"area": _area(prediction, box, iou)})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells what it does
        sides = []
        for annotations in (true, found):
            side = COCO()
            side.dataset = {
                "images": images,
                "annotations": annotations,
                "categories": [{"id": 1, "name": "concept"}],
            }
            side.createIndex()
            sides.append(side)
        evaluation = Evaluation(*sides, "segm" if iou == "mask" else "bbox")
        evaluation.params.maxDets = [most]
        evaluation.evaluate()
        evaluation.accumulate()
    arrays: dict[str, Array] = evaluation.eval
    return arrays


def _shape(box: Box, mask: Any, crowd: bool) -> dict[str, Any]:
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
