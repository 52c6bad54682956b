"""cgF1 and its parts, in cases computed by hand."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco

from efficientsam3.errors import MaskError
from efficientsam3.evaluate import ConceptScore, PredictionError
from efficientsam3.evaluate.metrics.cgf1 import IOU_THRESHOLDS, match_pair

Array = npt.NDArray[Any]
NOTHING = np.zeros((0, 10, 10), bool)


def boxes(*corners: tuple[int, int, int, int]) -> Array:
    """Masks of 10 x 10 pixels, each a rectangle x0, y0, x1, y1."""
    out = np.zeros((len(corners), 10, 10), bool)
    for mask, (x0, y0, x1, y1) in zip(out, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return out


LEFT, RIGHT = (0, 0, 4, 10), (6, 0, 10, 10)  # 40 pixels each


def score_of(*pairs: tuple[Array, Array]) -> ConceptScore:
    score = ConceptScore()
    for found, truth in pairs:
        score.update(found, np.ones(len(found)), truth)
    return score


def f1(precision: float, recall: float, epsilon: float = 1e-4) -> float:
    return 2 * precision * recall / (precision + recall + epsilon)


def test_perfect_predictions_score_100_less_the_epsilons() -> None:
    score = score_of((boxes(LEFT), boxes(LEFT)), (NOTHING, NOTHING))
    metrics = score.compute()
    one = 1 / (1 + 1e-4)  # TP / (TP + FP + eps)
    assert metrics["pmF1"] == pytest.approx(100 * f1(one, one), abs=1e-9)
    assert metrics["IL_MCC"] == pytest.approx(1 / (1 + 1e-6), abs=1e-12)
    assert metrics["cgF1"] == pytest.approx(100 * f1(one, one) / (1 + 1e-6), abs=1e-9)
    il = 1 / (1 + 1e-6)
    assert metrics["IL_F1"] == pytest.approx(100 * f1(il, il, 1e-6), abs=1e-9)
    assert metrics["IL_FPR"] == 0
    assert 99.97 < metrics["cgF1"] < 100


def test_iou_decides_at_each_threshold() -> None:
    # 30 of 40 pixels, nothing beside it: IoU 0.75 exactly, which counts at 0.50 ... 0.75.
    metrics = score_of((boxes((0, 0, 3, 10)), boxes(LEFT)), (NOTHING, NOTHING)).compute()
    one = 1 / (1 + 1e-4)
    assert metrics["pmF1@50"] == metrics["pmF1@75"] == pytest.approx(100 * f1(one, one))
    assert metrics["pmF1"] == pytest.approx(0.6 * 100 * f1(one, one))  # 6 of 10 levels
    assert metrics["cgF1@75"] == pytest.approx(metrics["pmF1@75"] * metrics["IL_MCC"])


def test_iou_thresholds_are_cocos() -> None:
    np.testing.assert_allclose(IOU_THRESHOLDS, np.arange(50, 100, 5) / 100)
    overlap = np.array([[0.6]])  # a tie with linspace's 0.6000000000000001: no match, as in COCO
    assert match_pair(overlap).matches.sum() == (IOU_THRESHOLDS <= 0.6).sum()


def test_false_positives_of_negative_pairs_count_for_precision_not_for_pmf1() -> None:
    metrics = score_of(
        (boxes(LEFT), boxes(LEFT)),  # one hit
        (boxes(LEFT, RIGHT), NOTHING),  # two false positives where nothing is
        (NOTHING, NOTHING),
    ).compute()
    one = 1 / (1 + 1e-4)
    assert metrics["pmF1"] == pytest.approx(100 * f1(one, one))
    assert metrics["positive_micro_precision"] == pytest.approx(100 * one)
    assert metrics["precision"] == pytest.approx(100 / (3 + 1e-4))
    assert metrics["F1"] == pytest.approx(100 * f1(1 / (3 + 1e-4), one))
    # IL: TP 1, FP 1, TN 1, FN 0 -> (1 - 0) / sqrt(2 * 1 * 2 * 1) = 0.5
    assert metrics["IL_MCC"] == pytest.approx(0.5, abs=1e-6)
    assert metrics["IL_precision"] == pytest.approx(50, abs=1e-3)
    assert metrics["IL_FPR"] == pytest.approx(50, abs=1e-3)


def test_micro_averages_instances_and_macro_averages_pairs() -> None:
    score = score_of(
        (boxes(LEFT, RIGHT), boxes(LEFT, RIGHT)),  # 2 TP
        (boxes(LEFT), boxes(RIGHT)),  # 1 FP, 1 FN
        (NOTHING, boxes(LEFT)),  # 1 FN; not in the macro mean, since nothing was found
    )
    metrics = score.compute()
    precision, recall = 2 / (3 + 1e-4), 2 / (4 + 1e-4)
    assert metrics["pmF1"] == pytest.approx(100 * f1(precision, recall))
    two = 2 / (2 + 1e-4)
    assert metrics["positive_macro_F1"] == pytest.approx(100 * (f1(two, two) + 0) / 2)
    assert score.counts() == {
        "pairs": 3,
        "positive_pairs": 3,
        "negative_pairs": 0,
        "instances": 4,
        "predictions": 3,
        "IL_TP": 2,
        "IL_FP": 0,
        "IL_FN": 1,
        "IL_TN": 0,
    }


def test_matching_maximizes_the_sum_of_iou() -> None:
    # The best pair, 0.9, would leave 0 for the other: 0.8 + 0.85 is more.
    pair = match_pair(np.array([[0.9, 0.8], [0.85, 0.0]]))
    assert pair.matches.tolist() == [2, 2, 2, 2, 2, 2, 2, 1, 0, 0]


def test_scores_equal_to_the_threshold_count() -> None:
    score = ConceptScore()
    pair = score.update(boxes(LEFT, RIGHT), [0.5, 0.49999], boxes(LEFT, RIGHT))
    assert (pair.predictions, pair.targets, pair.matches.tolist()) == (1, 2, [1] * 10)


def test_crowds_do_not_count() -> None:
    score = ConceptScore()
    score.update(boxes(LEFT), [1.0], boxes(LEFT, RIGHT), crowd=[False, True])
    assert (score.targets, score.predictions, score.matches[0]) == (1, 1, 1)
    score.update(NOTHING, [], boxes(RIGHT), crowd=[True])  # nothing but a crowd: a negative pair
    assert score.il_tn == 1


def test_the_annotator_who_agrees_most_counts() -> None:
    score = ConceptScore()
    pair = score.update_annotators(
        boxes(LEFT), [0.9], [boxes(RIGHT), boxes(LEFT, RIGHT), boxes(LEFT), boxes(LEFT)[:0]]
    )
    assert (pair.targets, pair.matches[0]) == (1, 1)
    # Nothing found: the annotator who sees nothing is agreed with, whoever comes first.
    pair = score.update_annotators(NOTHING, [], [boxes(LEFT), NOTHING])
    assert (pair.targets, pair.f1) == (0, 1.0)
    # All disagree alike: the first counts.
    assert score.update_annotators(NOTHING, [], [boxes(LEFT), boxes(LEFT, RIGHT)]).targets == 1
    assert (score.il_tp, score.il_tn, score.il_fn) == (1, 1, 1)


@pytest.mark.parametrize(
    ("pairs", "pmf1", "mcc"),
    [
        pytest.param([(boxes(LEFT), boxes(LEFT))] * 3, 100, 0, id="positive only"),
        pytest.param([(NOTHING, NOTHING)] * 3, 0, 0, id="negative only"),
        pytest.param([], 0, 0, id="empty"),
    ],
)
def test_one_sided_sets_have_no_cgf1(
    pairs: list[tuple[Array, Array]], pmf1: float, mcc: float
) -> None:
    metrics = score_of(*pairs).compute()
    assert metrics["pmF1"] == pytest.approx(pmf1, abs=0.02)
    assert metrics["IL_MCC"] == pytest.approx(mcc, abs=1e-9)
    assert metrics["cgF1"] == pytest.approx(0, abs=1e-9)
    assert math.isnan(metrics["positive_macro_F1"]) == (not pmf1)


def test_il_mcc_is_minus_one_where_all_pairs_are_wrong() -> None:
    metrics = score_of((boxes(LEFT), NOTHING), (NOTHING, boxes(LEFT))).compute()
    assert metrics["IL_MCC"] == pytest.approx(-1, abs=1e-5)


def random_pairs() -> list[tuple[Array, Array, Array]]:
    rng = np.random.default_rng(3)
    out = []
    for _ in range(40):
        truth = rng.random((rng.integers(0, 4), 10, 10)) < 0.5
        found = np.concatenate([truth ^ (rng.random(truth.shape) < 0.1), truth[:0]])
        out.append((found, rng.random(len(found)), truth))
    return out


def test_merged_and_pickled_scores_equal_one_score() -> None:
    pairs = random_pairs()
    parts = [ConceptScore(), ConceptScore(), ConceptScore()]
    for i, pair in enumerate(pairs):
        parts[i % 2].update(*pair)
        parts[2].update(*pair)
    both = parts[0] + pickle.loads(pickle.dumps(parts[1]))
    assert both.counts() == parts[2].counts() and both.pairs == 40
    assert both.compute() == pytest.approx(parts[2].compute())
    with pytest.raises(PredictionError, match=r"thresholds 0\.5 and 0\.3"):
        both.merge(ConceptScore(0.3))


def test_run_lengths_and_masks_score_alike() -> None:
    dense, packed = ConceptScore(), ConceptScore()
    for found, scores, truth in random_pairs():
        dense.update(found, scores, truth)
        packed.update(
            *([coco.encode(np.asfortranarray(m, np.uint8)) for m in found], scores),
            [coco.encode(np.asfortranarray(m, np.uint8)) for m in truth],
        )
    assert packed.compute() == dense.compute() and dense.matches.sum() > 0


def test_wrong_arguments_are_named() -> None:
    score = ConceptScore()
    with pytest.raises(PredictionError, match=r"1 masks need \(1,\) scores; got \(2,\)"):
        score.update(boxes(LEFT), [0.1, 0.2], NOTHING)
    with pytest.raises(PredictionError, match="NaN"):
        score.update(boxes(LEFT), [math.nan], NOTHING)
    with pytest.raises(MaskError, match="one size; got 8 x 10 and 10 x 10"):
        score.update(boxes(LEFT), [0.9], boxes(LEFT)[:, :8])
    with pytest.raises(PredictionError, match="2 true masks need 2 flags; got 1"):
        score.update(boxes(LEFT), [0.9], boxes(LEFT, RIGHT), crowd=[True])
    assert score.pairs == 0
