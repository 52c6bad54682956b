"""cgF1 and its parts, by cases worked out by hand."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco

from efficientsam3.evaluate import ConceptScore, PredictionError
from efficientsam3.evaluate.concept import IOU_LEVELS, match

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
        score.add(found, np.ones(len(found)), truth)
    return score


def f1(precision: float, recall: float, epsilon: float = 1e-4) -> float:
    return 2 * precision * recall / (precision + recall + epsilon)


def test_perfect_is_a_hair_below_100_by_the_epsilons() -> None:
    score = score_of((boxes(LEFT), boxes(LEFT)), (NOTHING, NOTHING))
    figures = score.figures()
    one = 1 / (1 + 1e-4)  # TP / (TP + FP + eps)
    assert figures["pmF1"] == pytest.approx(100 * f1(one, one), abs=1e-9)
    assert figures["IL_MCC"] == pytest.approx(1 / (1 + 1e-6), abs=1e-12)
    assert figures["cgF1"] == pytest.approx(100 * f1(one, one) / (1 + 1e-6), abs=1e-9)
    il = 1 / (1 + 1e-6)
    assert figures["IL_F1"] == pytest.approx(100 * f1(il, il, 1e-6), abs=1e-9)
    assert figures["IL_FPR"] == 0
    assert score.cgf1 == figures["cgF1"] and score.pmf1 == figures["pmF1"]
    assert 99.97 < figures["cgF1"] < 100


def test_iou_decides_at_each_level() -> None:
    # 30 of 40 pixels, nothing beside it: IoU 0.75 exactly, which counts at 0.50 ... 0.75.
    figures = score_of((boxes((0, 0, 3, 10)), boxes(LEFT)), (NOTHING, NOTHING)).figures()
    one = 1 / (1 + 1e-4)
    assert figures["pmF1@50"] == figures["pmF1@75"] == pytest.approx(100 * f1(one, one))
    assert figures["pmF1"] == pytest.approx(0.6 * 100 * f1(one, one))  # 6 of 10 levels
    assert figures["cgF1@75"] == pytest.approx(figures["pmF1@75"] * figures["IL_MCC"])


def test_levels_are_cocos() -> None:
    np.testing.assert_allclose(IOU_LEVELS, np.arange(50, 100, 5) / 100)
    overlap = np.array([[0.6]])  # a tie with linspace's 0.6000000000000001: no match, as in COCO
    assert match(overlap).hits.sum() == (IOU_LEVELS <= 0.6).sum()


def test_false_positives_of_negative_pairs_count_for_precision_not_for_pmf1() -> None:
    figures = score_of(
        (boxes(LEFT), boxes(LEFT)),  # one hit
        (boxes(LEFT, RIGHT), NOTHING),  # two false positives where nothing is
        (NOTHING, NOTHING),
    ).figures()
    one = 1 / (1 + 1e-4)
    assert figures["pmF1"] == pytest.approx(100 * f1(one, one))
    assert figures["positive_micro_precision"] == pytest.approx(100 * one)
    assert figures["precision"] == pytest.approx(100 / (3 + 1e-4))
    assert figures["F1"] == pytest.approx(100 * f1(1 / (3 + 1e-4), one))
    # IL: TP 1, FP 1, TN 1, FN 0 -> (1 - 0) / sqrt(2 * 1 * 2 * 1) = 0.5
    assert figures["IL_MCC"] == pytest.approx(0.5, abs=1e-6)
    assert figures["IL_precision"] == pytest.approx(50, abs=1e-3)
    assert figures["IL_FPR"] == pytest.approx(50, abs=1e-3)


def test_micro_weighs_instances_macro_weighs_pairs() -> None:
    score = score_of(
        (boxes(LEFT, RIGHT), boxes(LEFT, RIGHT)),  # 2 TP
        (boxes(LEFT), boxes(RIGHT)),  # 1 FP, 1 FN
        (NOTHING, boxes(LEFT)),  # 1 FN; not in the macro mean, since nothing was found
    )
    figures = score.figures()
    precision, recall = 2 / (3 + 1e-4), 2 / (4 + 1e-4)
    assert figures["pmF1"] == pytest.approx(100 * f1(precision, recall))
    two = 2 / (2 + 1e-4)
    assert figures["positive_macro_F1"] == pytest.approx(100 * (f1(two, two) + 0) / 2)
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


def test_matching_takes_the_largest_sum_not_the_best_first() -> None:
    # The best pair, 0.9, would leave 0 for the other: 0.8 + 0.85 is more.
    pair = match(np.array([[0.9, 0.8], [0.85, 0.0]]))
    assert pair.hits.tolist() == [2, 2, 2, 2, 2, 2, 2, 1, 0, 0]


def test_threshold_is_met_by_equal_scores() -> None:
    score = ConceptScore()
    pair = score.add(boxes(LEFT, RIGHT), [0.5, 0.49999], boxes(LEFT, RIGHT))
    assert (pair.found, pair.truth, pair.hits.tolist()) == (1, 2, [1] * 10)


def test_crowds_are_no_instances() -> None:
    score = ConceptScore()
    score.add(boxes(LEFT), [1.0], boxes(LEFT, RIGHT), crowd=[False, True])
    assert (score.truth, score.found, score.hits[0]) == (1, 1, 1)
    score.add(NOTHING, [], boxes(RIGHT), crowd=[True])  # nothing but a crowd: a negative pair
    assert score.true_negative == 1


def test_oracle_takes_the_annotator_who_agrees_most() -> None:
    score = ConceptScore()
    pair = score.add_best(
        boxes(LEFT), [0.9], [boxes(RIGHT), boxes(LEFT, RIGHT), boxes(LEFT), boxes(LEFT)[:0]]
    )
    assert (pair.truth, pair.hits[0]) == (1, 1)
    # Nothing found: the annotator who sees nothing is agreed with, whoever comes first.
    pair = score.add_best(NOTHING, [], [boxes(LEFT), NOTHING])
    assert (pair.truth, pair.f1) == (0, 1.0)
    # All disagree alike: the first counts.
    assert score.add_best(NOTHING, [], [boxes(LEFT), boxes(LEFT, RIGHT)]).truth == 1
    assert (score.true_positive, score.true_negative, score.false_negative) == (1, 1, 1)


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
    figures = score_of(*pairs).figures()
    assert figures["pmF1"] == pytest.approx(pmf1, abs=0.02)
    assert figures["IL_MCC"] == pytest.approx(mcc, abs=1e-9)
    assert figures["cgF1"] == pytest.approx(0, abs=1e-9)
    assert math.isnan(figures["positive_macro_F1"]) == (not pmf1)


def test_always_wrong_is_minus_one() -> None:
    figures = score_of((boxes(LEFT), NOTHING), (NOTHING, boxes(LEFT))).figures()
    assert figures["IL_MCC"] == pytest.approx(-1, abs=1e-5)


def random_pairs() -> list[tuple[Array, Array, Array]]:
    rng = np.random.default_rng(3)
    out = []
    for _ in range(40):
        truth = rng.random((rng.integers(0, 4), 10, 10)) < 0.5
        found = np.concatenate([truth ^ (rng.random(truth.shape) < 0.1), truth[:0]])
        out.append((found, rng.random(len(found)), truth))
    return out


def test_merged_parts_are_the_whole_and_survive_a_process_border() -> None:
    pairs = random_pairs()
    parts = [ConceptScore(), ConceptScore(), ConceptScore()]
    for i, pair in enumerate(pairs):
        parts[i % 2].add(*pair)
        parts[2].add(*pair)
    both = parts[0] + pickle.loads(pickle.dumps(parts[1]))
    assert both.counts() == parts[2].counts() and both.pairs == 40
    assert both.figures() == pytest.approx(parts[2].figures())
    with pytest.raises(PredictionError, match=r"thresholds 0\.5 and 0\.3"):
        both.merge(ConceptScore(0.3))


def test_run_lengths_score_as_masks_do() -> None:
    dense, packed = ConceptScore(), ConceptScore()
    for found, scores, truth in random_pairs():
        dense.add(found, scores, truth)
        packed.add(
            *([coco.encode(np.asfortranarray(m, np.uint8)) for m in found], scores),
            [coco.encode(np.asfortranarray(m, np.uint8)) for m in truth],
        )
    assert packed.figures() == dense.figures() and dense.hits.sum() > 0


def test_mistakes_are_said() -> None:
    score = ConceptScore()
    with pytest.raises(PredictionError, match=r"1 masks need \(1,\) scores; got \(2,\)"):
        score.add(boxes(LEFT), [0.1, 0.2], NOTHING)
    with pytest.raises(PredictionError, match="NaN"):
        score.add(boxes(LEFT), [math.nan], NOTHING)
    with pytest.raises(PredictionError, match="one size; got 8 x 10 and 10 x 10"):
        score.add(boxes(LEFT), [0.9], boxes(LEFT)[:, :8])
    with pytest.raises(PredictionError, match="2 true masks need 2 flags; got 1"):
        score.add(boxes(LEFT), [0.9], boxes(LEFT, RIGHT), crowd=[True])
    assert score.pairs == 0
