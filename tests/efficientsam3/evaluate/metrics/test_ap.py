"""Average precision: equal to pycocotools, and LVIS' rule for categories not fully annotated."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efficientsam3.data.types import ObjectAnnotation
from efficientsam3.evaluate import average_precision
from efficientsam3.evaluate.ground_truth import GroundTruth, Pair
from efficientsam3.evaluate.predictions import Prediction

Array = npt.NDArray[Any]
SIZE = (150, 200)
CATEGORIES = ("cat", "dog", "bus")


def target(mask: Array, crowd: bool = False) -> ObjectAnnotation:
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    x, y, w, h = coco.toBbox(rle)
    return ObjectAnnotation((x, y, x + w, y + h), rle, crowd, float(coco.area(rle)))


def rectangle(rng: np.random.Generator) -> Array:
    mask = np.zeros(SIZE, bool)
    h, w = rng.integers(8, 120, 2)
    y, x = rng.integers(0, SIZE[0] - h), rng.integers(0, SIZE[1] - w)
    mask[y : y + h, x : x + w] = True
    return mask


def moved(mask: Array, rng: np.random.Generator) -> Array:
    return np.roll(mask, rng.integers(-6, 7, 2), (0, 1))


@pytest.fixture(scope="module")
def split() -> tuple[GroundTruth, dict[Any, list[Prediction]]]:
    """20 images and three categories; some instances missed, some crowds, some false."""
    rng = np.random.default_rng(0)
    pairs, found = [], {}
    for image in range(20):
        for category, name in enumerate(CATEGORIES, 1):
            masks = [rectangle(rng) for _ in range(rng.integers(0, 4))]
            targets = tuple(target(m, rng.random() < 0.1) for m in masks)
            key = (image, category)
            pairs.append(Pair(key, f"{image}.png", SIZE, name, name, (targets,)))
            guesses = [moved(m, rng) for m in masks if rng.random() < 0.8]
            guesses += [rectangle(rng) for _ in range(rng.integers(0, 2))]
            shapes = [target(m) for m in guesses]
            found[key] = [Prediction(s.box, s.mask, float(rng.random())) for s in shapes]
    return GroundTruth("split", "coco", (), tuple(pairs)), found


@pytest.mark.parametrize("iou", ["mask", "box"])
def test_average_precision_is_cocos(
    split: tuple[GroundTruth, dict[Any, list[Prediction]]], iou: str
) -> None:
    truth, found = split

    def row(key: Any, box: Any, mask: Any, number: int) -> dict[str, Any]:
        x0, y0, x1, y1 = box
        shape = {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": mask}
        return {"id": number, "image_id": key[0], "category_id": key[1], **shape}

    annotations, results = [], []
    for pair in truth.pairs:
        for t in pair.targets:
            extra = {"area": t.area, "iscrowd": int(t.crowd)}
            annotations.append(row(pair.key, t.box, t.mask, len(annotations) + 1) | extra)
        for p in found[pair.key]:
            results.append(row(pair.key, p.box, p.mask, len(results) + 1) | {"score": p.score})
    reference_coco = COCO()
    reference_coco.dataset = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(20)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, 1)],
        "annotations": annotations,
    }
    if iou == "mask":  # else pycocotools takes the box's area for the mask's
        results = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        reference_coco.createIndex()
        reference = COCOeval(
            reference_coco, reference_coco.loadRes(results), "segm" if iou == "mask" else "bbox"
        )
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    figures = average_precision(truth, found, iou)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    expected = [*reference.stats[:6], reference.stats[8]]
    assert [figures[n] for n in (*names, "AR")] == pytest.approx([100 * v for v in expected])
    assert 10 < figures["AP"] < 90


def test_predictions_without_match_are_ignored_where_annotations_are_not_exhaustive() -> None:
    rng = np.random.default_rng(1)
    one, two = rectangle(rng), np.zeros(SIZE, bool)
    two[:9, :9] = True
    guesses = [Prediction(None, target(m).mask, s) for m, s in ((two, 0.9), (one, 0.8))]

    def ap(exhaustive: bool) -> float:
        pair = Pair((1, 1), "a", SIZE, "cat", "cat", ((target(one),),), exhaustive)
        truth = GroundTruth("x", "lvis", (), (pair,), frequencies={"cat": "r", "dog": "c"})
        figures = average_precision(truth, {(1, 1): guesses})
        assert figures["APr"] == figures["AP"] and math.isnan(figures["APc"])
        return figures["AP"]

    assert ap(True) == pytest.approx(50)  # the false one ranks first: precision 1 / 2
    assert ap(False) == pytest.approx(100)


def test_without_an_instance_there_is_no_precision() -> None:
    pair = Pair((1, 1), "a", SIZE, "cat", "cat", ((),))
    truth = GroundTruth("x", "saco", (), (pair,))
    assert all(math.isnan(v) for v in average_precision(truth, {}).values())
