"""cgF1 of SA-Co, the metric of concept segmentation: cgF1 = 100 * pmF1 * IL_MCC.

SAM 3's paper (Carion et al., 2025, section on metrics) defines it; upstream's evaluator is
``sam3/eval/cgf1_eval.py``. The unit is a pair of an image (or clip) and a noun phrase. IL_MCC says
how well a model knows whether the phrase names anything in the image, over all pairs; pmF1 says how
well it finds the instances, over the positive pairs.

>>> score = ConceptScore()
>>> score.update(predicted_masks, scores, true_masks)   # (N, H, W) bool, (N,), (M, H, W) bool
>>> score.compute()["cgF1"]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ...masks.overlap import Masks, mask_iou
from ...types import Array
from ..errors import PredictionError

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoUs from which a match counts, computed as pycocotools does, so that ties are decided alike."""

SUFFIXES = {"": slice(None), "@50": slice(0, 1), "@75": slice(5, 6)}
"""Endings of metric names, and the IoU thresholds that each averages over."""

COUNT_EPSILON = 1e-4
"""Upstream's epsilon in precision, recall and F1 of instances."""

IMAGE_EPSILON = 1e-6
"""Upstream's epsilon in metrics of whole images."""


def _zero_counts() -> Array:
    return np.zeros(len(IOU_THRESHOLDS), np.int64)


_NO_MATCHES = _zero_counts()


@dataclass(frozen=True, eq=False, slots=True)
class PairMatch:
    """How the predictions of one pair match the instances that one annotator marked.

    Attributes:
        matches: (10,) int, number of matches at each of ``IOU_THRESHOLDS``.
        predictions: Number of predictions.
        targets: Number of true instances.
    """

    matches: Array
    predictions: int
    targets: int

    @property
    def f1(self) -> float:
        """Mean F1 over IoU thresholds; 1 if there is neither prediction nor instance."""
        if not self.predictions or not self.targets:
            return float(self.predictions == self.targets)
        return float(_instance_f1(self).mean())


def _instance_f1(pair: PairMatch) -> Array:
    precision = pair.matches / (pair.predictions + COUNT_EPSILON)
    recall = pair.matches / (pair.targets + COUNT_EPSILON)
    return np.asarray(_harmonic_mean(precision, recall, COUNT_EPSILON))


def _harmonic_mean(precision: Any, recall: Any, epsilon: float) -> Any:
    return 2 * precision * recall / (precision + recall + epsilon)


def match_pair(iou: Array) -> PairMatch:
    """Match predictions with instances one to one so that the sum of IoUs is largest (Hungarian).

    Args:
        iou: (N, M) IoU of N predictions with M true instances.
    """
    from scipy.optimize import linear_sum_assignment

    predictions, targets = iou.shape
    if not predictions or not targets:  # most pairs are such: they skip the assignment
        return PairMatch(_NO_MATCHES, predictions, targets)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    matches = (iou[rows, columns][:, None] >= IOU_THRESHOLDS).sum(0)
    return PairMatch(matches, predictions, targets)


def best_match(matches: Iterable[PairMatch]) -> PairMatch:
    """The match with the annotator who agrees most, the first of equals (SA-Co/Gold's oracle).

    Args:
        matches: The match with each annotator.
    """
    first, *others = matches
    return max((first, *others), key=lambda pair: pair.f1) if others else first


@dataclass(eq=False)
class ConceptScore:
    """Accumulates pairs and computes cgF1 and its parts. Its size does not grow with the pairs.

    Args:
        threshold: Predictions count that score at least this.
        matches: (10,) number of matches at each of ``IOU_THRESHOLDS``.
        predictions: Number of predictions.
        predictions_in_positive: Number of predictions in positive pairs.
        targets: Number of true instances.
        local_f1: (10,) sum of the F1 of pairs.
        il_tp: Pairs with an instance and a prediction.
        il_fp: Pairs with a prediction alone.
        il_fn: Pairs with an instance alone.
        il_tn: Pairs with neither.
    """

    threshold: float = 0.5
    matches: Array = field(default_factory=_zero_counts)
    predictions: int = 0
    predictions_in_positive: int = 0
    targets: int = 0
    local_f1: Array = field(default_factory=lambda: np.zeros(len(IOU_THRESHOLDS)))
    il_tp: int = 0
    il_fp: int = 0
    il_fn: int = 0
    il_tn: int = 0

    def update(
        self,
        predicted: Masks,
        scores: Sequence[float] | Array,
        target: Masks,
        crowd: Sequence[bool] | None = None,
    ) -> PairMatch:
        """Add one pair.

        Args:
            predicted: N masks, (N, H, W) bool or N run lengths.
            scores: (N,) in [0, 1].
            target: M true masks; none for a negative pair.
            crowd: M flags. Crowds have no single instances and are left out.

        Returns:
            The match of this pair.
        """
        return self.update_annotators(predicted, scores, [target], [crowd])

    def update_annotators(
        self,
        predicted: Masks,
        scores: Sequence[float] | Array,
        targets: Sequence[Masks],
        crowds: Sequence[Sequence[bool] | None] | None = None,
    ) -> PairMatch:
        """Add one pair that several annotators have marked; the one who agrees most counts.

        Args:
            predicted: N masks, (N, H, W) bool or N run lengths.
            scores: (N,) in [0, 1].
            targets: The true masks of each annotator.
            crowds: The flags of each annotator, or None.

        Returns:
            The match of this pair.

        Raises:
            PredictionError: numbers of masks, scores or flags differ, or a score is not finite.
        """
        kept = _select(predicted, self._above_threshold(scores, len(predicted)))
        return self.update_from_overlaps(
            mask_iou(kept, _select(target, _not_crowd(target, crowd)))
            for target, crowd in zip(targets, crowds or [None] * len(targets), strict=True)
        )

    def update_from_overlaps(self, overlaps: Iterable[Array]) -> PairMatch:
        """Add one pair by its overlaps.

        Args:
            overlaps: For each annotator (N, M) IoU of the N predictions above the threshold with M
                true instances.

        Returns:
            The match of this pair.
        """
        pair = best_match(match_pair(overlap) for overlap in overlaps)
        if pair.matches is not _NO_MATCHES:
            self.matches = self.matches + pair.matches
            self.local_f1 = self.local_f1 + _instance_f1(pair)
        self.predictions += pair.predictions
        self.targets += pair.targets
        if pair.targets:
            self.predictions_in_positive += pair.predictions
            self.il_tp += bool(pair.predictions)
            self.il_fn += not pair.predictions
        else:
            self.il_fp += bool(pair.predictions)
            self.il_tn += not pair.predictions
        return pair

    def _above_threshold(self, scores: Sequence[float] | Array, count: int) -> Array:
        values = np.asarray(scores, np.float64)
        if values.shape != (count,):
            raise PredictionError(f"{count} masks need ({count},) scores; got {values.shape}")
        if not np.isfinite(values).all():
            raise PredictionError("scores are probabilities; got NaN or infinite ones")
        return np.flatnonzero(values >= self.threshold)

    def merge(self, other: ConceptScore) -> ConceptScore:
        """Both scores together, as if all pairs had been added to one.

        Args:
            other: A score with the same threshold.

        Raises:
            PredictionError: the thresholds differ.
        """
        if other.threshold != self.threshold:
            raise PredictionError(
                f"scores of thresholds {self.threshold} and {other.threshold} cannot be merged"
            )
        sums = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in fields(self)
            if f.name != "threshold"
        }
        return ConceptScore(self.threshold, **sums)

    __add__ = merge

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.il_tp + self.il_fp + self.il_fn + self.il_tn

    def compute(self) -> dict[str, float]:
        """All metrics in the paper's scale: 0 to 100, IL_MCC -1 to 1; NaN where not defined.

        Names are upstream's, but pmF1 stands for its positive_micro_F1. Names without ending are
        means over IoU 0.50, 0.55, ... 0.95; @50 and @75 are at that IoU.

            cgF1            100 * pmF1 * IL_MCC
            pmF1            F1 of instances, all positive pairs together
            precision, recall, F1   the same with the false positives of negative pairs too
            positive_macro_F1       mean F1 of the positive pairs that have a prediction
            IL_*            of the question whether the image has the concept
        """
        precision = self.matches / (self.predictions + COUNT_EPSILON)
        recall = self.matches / (self.targets + COUNT_EPSILON)
        positive = self.matches / (self.predictions_in_positive + COUNT_EPSILON)
        pmf1 = _harmonic_mean(positive, recall, COUNT_EPSILON)
        mcc = self.il_mcc
        by_threshold = {
            "cgF1": pmf1 * mcc,
            "pmF1": pmf1,
            "precision": precision,
            "recall": recall,
            "F1": _harmonic_mean(precision, recall, COUNT_EPSILON),
            "positive_micro_precision": positive,
            "positive_macro_F1": self.local_f1 / self.il_tp if self.il_tp else pmf1 * math.nan,
        }
        il_precision = self.il_tp / (self.il_tp + self.il_fp + IMAGE_EPSILON)
        il_recall = self.il_tp / (self.il_tp + self.il_fn + IMAGE_EPSILON)
        images = {
            "IL_precision": il_precision,
            "IL_recall": il_recall,
            "IL_F1": _harmonic_mean(il_precision, il_recall, IMAGE_EPSILON),
            "IL_FPR": self.il_fp / (self.il_fp + self.il_tn + IMAGE_EPSILON),
        }
        main, *others = (
            {name + suffix: 100 * float(v[part].mean()) for name, v in by_threshold.items()}
            for suffix, part in SUFFIXES.items()
        )
        out = {"cgF1": main["cgF1"], "pmF1": main["pmF1"], "IL_MCC": mcc} | main
        out |= {name: 100 * value for name, value in images.items()}
        for other in others:
            out |= other
        return out

    def counts(self) -> dict[str, int]:
        """Numbers of pairs of each kind, instances and predictions."""
        return {
            "pairs": self.pairs,
            "positive_pairs": self.il_tp + self.il_fn,
            "negative_pairs": self.il_fp + self.il_tn,
            "instances": self.targets,
            "predictions": self.predictions,
            "IL_TP": self.il_tp,
            "IL_FP": self.il_fp,
            "IL_FN": self.il_fn,
            "IL_TN": self.il_tn,
        }

    @property
    def il_mcc(self) -> float:
        """Matthews correlation of "has a prediction" with "has an instance", -1 to 1."""
        tp, fp, fn, tn = self.il_tp, self.il_fp, self.il_fn, self.il_tn
        spread = math.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        return (tp * tn - fp * fn) / (spread + IMAGE_EPSILON)


def _select(masks: Masks, rows: Array) -> Masks:
    if isinstance(masks, np.ndarray):
        return masks[rows]
    return [masks[int(row)] for row in rows]


def _not_crowd(target: Masks, crowd: Sequence[bool] | None) -> Array:
    if crowd is None:
        return np.arange(len(target))
    if len(crowd) != len(target):
        raise PredictionError(
            f"{len(target)} true masks need {len(target)} flags; got {len(crowd)}"
        )
    return np.flatnonzero(~np.asarray(crowd, bool))
