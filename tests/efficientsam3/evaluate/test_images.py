"""Predicting a split with a model, and scoring files of predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from efficientsam3 import ImageModel, MissingAbilityError
from efficientsam3.evaluate import (
    GroundTruth,
    ObjectAnnotation,
    Pair,
    Prediction,
    PredictionError,
    Predictions,
    evaluate_images,
    read_ground_truth,
    read_predictions,
    score_images,
)

Write = Callable[[str, Any], Path]

# The untrained model's scores are between 0.3 and 0.45.
LOW = {"threshold": 0.42, "min_score": 0.35}


# Files of predictions -------------------------------------------------------------------------


def test_perfect_predictions(toy: SimpleNamespace, write: Write, truth: GroundTruth) -> None:
    rows = [
        toy.result(number, box, 0.9)
        for number, (_, _, boxes) in enumerate(toy.PAIRS, 10)
        for box in boxes
    ]
    found = read_predictions(write("p.json", rows), truth)
    for iou in ("mask", "box"):
        report = score_images(truth, found, iou=iou)
        assert report.metrics["cgF1"] == pytest.approx(100, abs=0.02)
        assert report.metrics["AP"] == pytest.approx(100)
    assert report.counts == {
        "images": 3,
        "pairs": 5,
        "positive_pairs": 3,
        "negative_pairs": 2,
        "instances": 4,
        "predictions": 4,
        "IL_TP": 3,
        "IL_FP": 0,
        "IL_FN": 0,
        "IL_TN": 2,
        "pairs_left_out": 0,
    }
    nothing = score_images(truth, read_predictions(write("none.json", []), truth))
    assert (nothing.metrics["cgF1"], nothing.metrics["AP"]) == (0, 0)
    plain = nothing.to_dict()
    assert plain["positive_macro_F1"] is None and json.loads(json.dumps(plain)) == plain


def test_metrics_computed_by_hand(toy: SimpleNamespace, write: Write, truth: GroundTruth) -> None:
    rows = [
        toy.result(10, toy.LEFT, 0.9),  # hit; RIGHT is missed
        toy.result(11, toy.LEFT, 0.8),  # there is no dog
        toy.result(12, toy.LEFT, 0.49),  # right, but scores too little
        toy.result(14, toy.TOP, 0.5),  # hit: at least 0.5
    ]
    figures = score_images(truth, read_predictions(write("p.json", rows), truth)).metrics
    # TP 2 of 2 predictions in positive pairs, of 4 instances: F1 = 2 * 1 * .5 / 1.5
    assert figures["pmF1"] == pytest.approx(100 * 2 / 3, abs=0.02)
    # TP 2, FP 1, FN 1, TN 1: (2 - 1) / sqrt(3 * 3 * 2 * 2) = 1 / 6
    assert figures["IL_MCC"] == pytest.approx(1 / 6, abs=1e-6)
    assert figures["cgF1"] == pytest.approx(100 / 9, abs=0.02)
    assert figures["precision"] == pytest.approx(100 * 2 / 3, abs=0.02)
    # AP, red square: 0.9 hit, 0.49 hit of 3 instances: 67 of 101 recalls. Blue thing: 1.
    assert figures["AP"] == pytest.approx(100 * (67 / 101 + 1) / 2)


def test_ground_truth_and_predictions_made_in_memory(toy: SimpleNamespace) -> None:
    one, two = np.zeros((2, 20, 30), bool)
    one[2:12, 3:13], two[2:12, 3:10] = True, True  # IoU 0.7
    pairs = (
        Pair((0, 0), "scene 0", (20, 30), "apple", "apple", ((ObjectAnnotation.from_mask(one),),)),
        Pair((0, 1), "scene 0", (20, 30), "pear", "pear", ((),)),
    )
    truth = GroundTruth("scenes", "saco", (), pairs)
    found = Predictions({(0, 0): [Prediction.from_mask(two, 0.7)]})
    report = score_images(truth, found)
    assert pairs[0].targets[0].box == (3, 2, 13, 12)
    assert (report.metrics["AP50"], report.metrics["AP75"]) == (pytest.approx(100), 0)
    assert report.metrics["pmF1@50"] == pytest.approx(100, abs=0.02)
    assert report.metrics["IL_MCC"] == pytest.approx(1, abs=1e-5)


def test_pairs_that_are_not_exhaustive_have_no_cgf1(toy: SimpleNamespace, write: Write) -> None:
    content = toy.saco()
    content["images"][1]["is_instance_exhaustive"] = 0
    truth = read_ground_truth(write("g.json", content))
    rows = [toy.result(11, toy.LEFT, 0.9), toy.result(12, toy.LEFT, 0.9)]
    report = score_images(truth, read_predictions(write("p.json", rows), truth))
    assert (report.counts["IL_FP"], report.counts["pairs_left_out"]) == (0, 1)


def test_boxes_alone_are_enough_for_box_overlap(
    toy: SimpleNamespace, write: Write, truth: GroundTruth
) -> None:
    row = toy.result(12, toy.LEFT, 0.9)
    del row["segmentation"]
    x, y, w, h = row["bbox"]
    height, width = toy.SIZE
    row["bbox"] = [x / width, y / height, w / width, h / height]  # as SA-Co's own files have them
    found = read_predictions(write("p.json", [row]), truth)
    assert score_images(truth, found, iou="box").counts["IL_TP"] == 1
    with pytest.raises(PredictionError, match=r"'red square' in b\.png .* has a box and no mask"):
        score_images(truth, found)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"predictions": []}, "is not a list of predictions"),
        ([{"image_id": 10}], r"predictions\[0\] has no 'score'"),
        ([5], r"predictions\[0\] is a int"),
        ([{"image_id": 99, "score": 1}], r"predictions\[0\] has image_id 99, which .*gold\.json"),
        ([{"image_id": [1], "score": 1}], r"predictions\[0\] has an image_id .* no id"),
        ([{"image_id": 10, "score": 1}], "neither 'segmentation' nor 'bbox'"),
        ([{"image_id": 10, "score": None, "bbox": [0, 0, 5, 5]}], "has score None"),
        (
            [{"image_id": 10, "score": 1, "segmentation": {"size": [4, 4], "counts": [16]}}],
            "has a segmentation that is wrong: it has 4 x 4 .* has 40 x 60",
        ),
        ('[{"image_id": 1', "is not JSON, or is cut short"),
    ],
)
def test_wrong_predictions_are_named(
    truth: GroundTruth, write: Write, rows: Any, sentence: str
) -> None:
    with pytest.raises(PredictionError, match=sentence):
        read_predictions(write("p.json", rows), truth)


def lvis(toy: SimpleNamespace) -> dict[str, Any]:
    """Two images and three categories; dogs are not annotated in the first, and cars nowhere."""
    height, width = toy.SIZE
    size = {"width": width, "height": height}
    box = {"bbox": toy.xywh(toy.LEFT), "segmentation": toy.rle_of(toy.LEFT), "area": 400}
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "neg_category_ids": [], **size},
            {"id": 2, "file_name": "b.png", "neg_category_ids": [2], **size},
        ],
        "categories": [
            {"id": number, "name": name, "frequency": "f"}
            for number, name in ((1, "red_square"), (2, "dog"), (3, "car"))
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, **box},
            {"id": 2, "image_id": 2, "category_id": 1, **box},
        ],
    }


def test_categories_that_are_not_annotated_are_not_scored(
    toy: SimpleNamespace, write: Write
) -> None:
    truth = read_ground_truth(write("lvis.json", lvis(toy)))
    rows = [
        toy.result(1, toy.LEFT, 0.9, category=1),
        toy.result(1, toy.LEFT, 0.9, category=2),  # not annotated
        toy.result(1, toy.LEFT, 0.9, category=3),
        toy.result(2, toy.LEFT, 0.9, category=2),  # someone did
    ]
    report = score_images(truth, read_predictions(write("p.json", rows), truth))
    counts = [report.counts[f"IL_{n}"] for n in ("TP", "FP", "FN", "TN")]
    assert counts == [1, 1, 1, 0] and report.counts["predictions"] == 2
    assert report.metrics["AP"] == report.metrics["APf"] == pytest.approx(100 * 51 / 101)
    with pytest.raises(PredictionError, match=r"predictions\[0\] has category_id 7, which"):
        read_predictions(write("p.json", [toy.result(1, toy.LEFT, 0.9, category=7)]), truth)
    with pytest.raises(PredictionError, match=r"predictions\[0\] has no 'category_id'"):
        read_predictions(write("p.json", [{"image_id": 1, "score": 1}]), truth)


def test_categories_are_prompts(
    tiny: ImageModel, toy: SimpleNamespace, write: Write, images: Path, tmp_path: Path
) -> None:
    truth = read_ground_truth(write("lvis.json", lvis(toy)))
    run_file = tmp_path / "p.jsonl"
    assert evaluate_images(tiny, truth, images, run_file, min_score=0.1).counts["pairs"] == 3
    lines = run_file.read_text().splitlines()[1:]
    rows = [row for line in lines for row in json.loads(line)["result"]]
    assert {(r["image_id"], r["category_id"]) for r in rows} == {(1, 1), (2, 1), (2, 2)}
    direct = tiny.segment(images / "b.png", ["red square", "dog"], threshold=0.1)
    dogs = [r["score"] for r in rows if (r["image_id"], r["category_id"]) == (2, 2)]
    assert dogs == direct.scores[np.array(direct.labels) == "dog"].tolist()


# Other prompts --------------------------------------------------------------------------------


def test_boxes_give_miou(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path, toy: SimpleNamespace
) -> None:
    run_file = tmp_path / "p.jsonl"
    report = evaluate_images(tiny, truth, images, run_file, prompt="box")
    assert report.counts == {"images": 3, "instances": 4}
    direct: list[float] = []
    for image, _, boxes in toy.PAIRS:
        for x0, y0, x1, y1 in boxes:
            true = np.zeros(toy.SIZE, bool)
            true[y0:y1, x0:x1] = True
            found: npt.NDArray[Any] = tiny.segment_objects(
                images / image, boxes=[[x0, y0, x1, y1]]
            ).masks[0]
            direct.append((found & true).sum() / (found | true).sum())
    assert report.metrics["mIoU"] == pytest.approx(100 * np.mean(direct), rel=0.02)
    assert report.metrics["mIoU"] > 5
    with pytest.raises(PredictionError, match=r"predictions by the prompt 'box', not by 'text'"):
        score_images(truth, read_predictions(run_file, truth))


def test_exemplars_are_prompts_of_positive_pairs(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path, toy: SimpleNamespace
) -> None:
    run_file = tmp_path / "p.jsonl"
    report = evaluate_images(tiny, truth, images, run_file, prompt="exemplar", **LOW)
    assert (report.counts["positive_pairs"], report.counts["negative_pairs"]) == (3, 0)
    first = json.loads(run_file.read_text().splitlines()[1])["result"]
    direct = tiny.segment(images / "a.png", boxes=[toy.RIGHT], threshold=0.35)
    assert [r["score"] for r in first] == pytest.approx(direct.scores.tolist())
    assert {r["image_id"] for r in first} == {10}


def test_missing_abilities_are_reported_at_once(
    tiny: ImageModel, truth: GroundTruth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "abilities", frozenset({"concepts"}))
    out = tmp_path / "p.jsonl"
    with pytest.raises(PredictionError, match="has no mask head; compare boxes instead"):
        evaluate_images(tiny, truth, tmp_path, out)
    with pytest.raises(MissingAbilityError):
        evaluate_images(tiny, truth, tmp_path, out, prompt="box")
    with pytest.raises(PredictionError, match="'text' or 'exemplar' or 'box'; got 'click'"):
        evaluate_images(tiny, truth, tmp_path, out, prompt="click")
    with pytest.raises(PredictionError, match=r"min_score 0\.9 and threshold 0\.5"):
        evaluate_images(tiny, truth, tmp_path, out, min_score=0.9)
    with pytest.raises(PredictionError, match="'mask' or 'box'; got 'dice'"):
        score_images(truth, read_predictions(_empty(tmp_path), truth), iou="dice")


def _empty(folder: Path) -> Path:
    path = folder / "empty.json"
    path.write_text("[]")
    return path


# Classes --------------------------------------------------------------------------------------


def test_other_phrases_are_asked_for_a_category(
    tiny: ImageModel, toy: SimpleNamespace, write: Write, images: Path, tmp_path: Path
) -> None:
    truth = read_ground_truth(write("lvis.json", lvis(toy)))
    run_file, classes = tmp_path / "p.jsonl", {"dog": ["cat", "Red Square"]}
    evaluate_images(tiny, truth, images, run_file, min_score=0.1, concepts=classes)
    lines = run_file.read_text().splitlines()[1:]
    rows = [row for line in lines for row in json.loads(line)["result"]]
    direct = tiny.segment(images / "b.png", classes, threshold=0.1)
    dogs = [r["score"] for r in rows if (r["image_id"], r["category_id"]) == (2, 2)]
    assert dogs == pytest.approx(direct.scores.tolist(), abs=1e-6) and len(dogs)
    squares = [r["score"] for r in rows if (r["image_id"], r["category_id"]) == (2, 1)]
    plain = tiny.segment(images / "b.png", "red square", threshold=0.1)
    assert squares == pytest.approx(plain.scores.tolist(), abs=1e-6), "it is of two categories"
    with pytest.raises(PredictionError, match=r"does not ask for cow; it asks for dog, red square"):
        evaluate_images(tiny, truth, images, run_file, concepts={"cow": ["dog"]})
    with pytest.raises(PredictionError, match="prompt 'text'"):
        evaluate_images(tiny, truth, images, run_file, concepts=classes, prompt="exemplar")


def test_two_phrases_that_differ_in_case_have_predictions_each(
    tiny: ImageModel, toy: SimpleNamespace, write: Write, images: Path, tmp_path: Path
) -> None:
    pairs = [("a.png", "dog", []), ("a.png", "Dog", [toy.LEFT]), ("a.png", "cat, dog", [])]
    truth = read_ground_truth(write("saco.json", toy.saco(pairs)))
    evaluate_images(tiny, truth, images, tmp_path / "p.jsonl", min_score=0.1)
    found = read_predictions(tmp_path / "p.jsonl", truth).by_pair
    lower, upper = ([p.score for p in found[number, 1]] for number in (10, 11))
    assert lower == upper and len(lower)
