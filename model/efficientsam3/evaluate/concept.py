"""Concept scores of SA-Co: cgF1 = 100 * pmF1 * IL_MCC, and what belongs to it.

The unit is a pair of an image (or clip) and a noun phrase. Two questions are kept apart: does the
model know whether the concept is there at all (IL_MCC, over all pairs), and how well does it find
the instances where there are some (pmF1, over the positive pairs).

>>> score = ConceptScore()
>>> score.add(pred_masks, scores, gt_masks)   # (N, H, W) bool, (N,), (M, H, W) bool
>>> score.figures()["cgF1"]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import PredictionError
from .overlap import Masks, mask_iou

Array = npt.NDArray[Any]

IOU_LEVELS = np.linspace(0.5, 0.95, 10)
"""Overlaps from which a match counts; made as COCO makes them, so that ties fall alike."""

LEVELS = {"": slice(None), "@50": slice(0, 1), "@75": slice(5, 6)}

NO_HITS = np.zeros(len(IOU_LEVELS), np.int64)

COUNT_EPSILON = 1e-4
"""Keeps precision, recall and F1 of instances finite."""

IMAGE_EPSILON = 1e-6
"""The same for figures of whole images."""


@dataclass(frozen=True, eq=False, slots=True)
class PairScore:
    """How the predictions for one pair match one annotator's instances.

    hits: (10,) matches at each of ``IOU_LEVELS``. found: predictions. truth: true instances.
    """

    hits: Array
    found: int
    truth: int

    @property
    def f1(self) -> float:
        """Mean of the pair's F1 over levels; nothing found where nothing is counts as perfect."""
        if not self.found or not self.truth:
            return float(self.found == self.truth)
        return float(f1_levels(self.hits, self.found, self.truth).mean())


def f1_levels(hits: Array, found: Array | int, truth: Array | int) -> Array:
    """F1 at each level from counts of matches, predictions and true instances."""
    return _harmonic(hits / (found + COUNT_EPSILON), hits / (truth + COUNT_EPSILON), COUNT_EPSILON)


def _harmonic(precision: Any, recall: Any, epsilon: float) -> Any:
    return 2 * precision * recall / (precision + recall + epsilon)


def match(overlap: Array) -> PairScore:
    """Pair predictions with instances one to one so that the sum of overlaps is largest.

    Args:
        overlap: (N, M) IoU of N predictions with M true instances.
    """
    from scipy.optimize import linear_sum_assignment

    found, truth = overlap.shape
    if not found or not truth:  # most pairs, so no time is spent on them
        return PairScore(NO_HITS, found, truth)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return PairScore((overlap[rows, columns][:, None] >= IOU_LEVELS).sum(0), found, truth)


def best(scores: Iterable[PairScore]) -> PairScore:
    """The score by the annotator who agrees most (SA-Co/Gold's oracle); the first of equals.

    An annotator who sees nothing where nothing was found agrees fully: no F1 of instances, which
    an epsilon holds below 1, is as good.
    """
    first, *others = scores
    return max((first, *others), key=lambda score: score.f1) if others else first


@dataclass(eq=False)
class ConceptScore:
    """Sums over pairs, from which all figures follow. Small, however many pairs are added.

    Args:
        threshold: predictions count that score at least this.
    """

    threshold: float = 0.5
    hits: Array = field(default_factory=lambda: np.zeros(len(IOU_LEVELS), np.int64))
    found: int = 0
    found_in_positive: int = 0
    truth: int = 0
    local_f1: Array = field(default_factory=lambda: np.zeros(len(IOU_LEVELS)))
    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0
    true_negative: int = 0

    def add(
        self,
        found: Masks,
        scores: Sequence[float] | Array,
        truth: Masks,
        crowd: Sequence[bool] | None = None,
    ) -> PairScore:
        """Add one pair.

        Args:
            found: N predicted masks, (N, H, W) bool or N run lengths.
            scores: (N,) in [0, 1]. truth: M true masks, none for a negative pair.
            crowd: M flags; crowds have no instances to be found and are left out.

        Returns:
            The pair's own score, for a look at hits and misses.
        """
        return self.add_best(found, scores, [truth], [crowd])

    def add_best(
        self,
        found: Masks,
        scores: Sequence[float] | Array,
        truths: Sequence[Masks],
        crowds: Sequence[Sequence[bool] | None] | None = None,
    ) -> PairScore:
        """Add one pair that several annotators have drawn: the one who agrees most counts."""
        kept = np.asarray(self.keep(scores, len(found)))
        some = pick(found, kept)
        return self.add_overlaps(
            mask_iou(some, pick(truth, _no_crowd(truth, crowd)))
            for truth, crowd in zip(truths, crowds or [None] * len(truths), strict=True)
        )

    def add_overlaps(self, overlaps: Iterable[Array]) -> PairScore:
        """Add one pair by overlaps (N, M) of what scores enough, one array an annotator."""
        return self.add_match(best(match(overlap) for overlap in overlaps))

    def add_match(self, pair: PairScore) -> PairScore:
        """Add one pair that was matched before."""
        if pair.hits is not NO_HITS:
            self.hits = self.hits + pair.hits
            self.local_f1 = self.local_f1 + f1_levels(pair.hits, pair.found, pair.truth)
        self.found += pair.found
        self.truth += pair.truth
        if pair.truth:
            self.found_in_positive += pair.found
            self.true_positive += bool(pair.found)
            self.false_negative += not pair.found
        else:
            self.false_positive += bool(pair.found)
            self.true_negative += not pair.found
        return pair

    def keep(self, scores: Sequence[float] | Array, count: int) -> list[int]:
        """Indices of the predictions that score enough."""
        values = np.asarray(scores, np.float64)
        if values.shape != (count,):
            raise PredictionError(f"{count} masks need ({count},) scores; got {values.shape}")
        if not np.isfinite(values).all():
            raise PredictionError("scores are probabilities; got NaN or infinite ones")
        kept: list[int] = np.flatnonzero(values >= self.threshold).tolist()
        return kept

    def merge(self, other: ConceptScore) -> ConceptScore:
        """Both together, as if all pairs had been added to one."""
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
        """All pairs that were added."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    def figures(self) -> dict[str, float]:
        """All figures in the paper's scale: 0 to 100, IL_MCC -1 to 1.

        Names as upstream's, but pmF1 for its positive_micro_F1. Without ending: mean over IoU
        0.50, 0.55, ... 0.95; @50 and @75: at that IoU. NaN where a figure is not defined.

            cgF1            100 * pmF1 * IL_MCC
            pmF1            F1 of instances, all positive pairs together
            precision, recall, F1   the same with the false positives of negative pairs too
            positive_macro_F1       mean F1 of the positive pairs for which something was found
            IL_*            of "is the concept in the image": Matthews correlation, ...
        """
        precision = self.hits / (self.found + COUNT_EPSILON)
        recall = self.hits / (self.truth + COUNT_EPSILON)
        positive = self.hits / (self.found_in_positive + COUNT_EPSILON)
        pmf1 = _harmonic(positive, recall, COUNT_EPSILON)
        answered = self.true_positive
        mcc = self.il_mcc
        levels = {
            "cgF1": pmf1 * mcc,
            "pmF1": pmf1,
            "precision": precision,
            "recall": recall,
            "F1": _harmonic(precision, recall, COUNT_EPSILON),
            "positive_micro_precision": positive,
            "positive_macro_F1": self.local_f1 / answered if answered else pmf1 * math.nan,
        }
        tp, fp = self.true_positive, self.false_positive
        fn, tn = self.false_negative, self.true_negative
        il_precision, il_recall = tp / (tp + fp + IMAGE_EPSILON), tp / (tp + fn + IMAGE_EPSILON)
        images = {
            "IL_precision": il_precision,
            "IL_recall": il_recall,
            "IL_F1": _harmonic(il_precision, il_recall, IMAGE_EPSILON),
            "IL_FPR": fp / (fp + tn + IMAGE_EPSILON),
        }
        main, *others = (
            {name + end: 100 * float(v[part].mean()) for name, v in levels.items()}
            for end, part in LEVELS.items()
        )
        out = {"cgF1": main["cgF1"], "pmF1": main["pmF1"], "IL_MCC": mcc} | main
        out |= {name: 100 * value for name, value in images.items()}
        for other in others:
            out |= other
        return out

    def counts(self) -> dict[str, int]:
        """What was counted: pairs of each kind, instances, predictions."""
        return {
            "pairs": self.pairs,
            "positive_pairs": self.true_positive + self.false_negative,
            "negative_pairs": self.false_positive + self.true_negative,
            "instances": self.truth,
            "predictions": self.found,
            "IL_TP": self.true_positive,
            "IL_FP": self.false_positive,
            "IL_FN": self.false_negative,
            "IL_TN": self.true_negative,
        }

    @property
    def il_mcc(self) -> float:
        """Matthews correlation of "found something" and "is there", -1 to 1."""
        tp, fp = self.true_positive, self.false_positive
        fn, tn = self.false_negative, self.true_negative
        spread = math.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        return (tp * tn - fp * fn) / (spread + IMAGE_EPSILON)

    @property
    def cgf1(self) -> float:
        """Classification-gated F1, 0 to 100."""
        return self.figures()["cgF1"]

    @property
    def pmf1(self) -> float:
        """Positive micro F1, 0 to 100."""
        return self.figures()["pmF1"]


def pick(masks: Masks, rows: Sequence[int] | Array) -> Masks:
    """Some of the masks."""
    if isinstance(masks, np.ndarray):
        return masks[np.asarray(rows, np.int64)]
    return [masks[int(row)] for row in rows]


def _no_crowd(truth: Masks, crowd: Sequence[bool] | None) -> Array:
    if crowd is None:
        return np.arange(len(truth))
    if len(crowd) != len(truth):
        raise PredictionError(f"{len(truth)} true masks need {len(truth)} flags; got {len(crowd)}")
    return np.flatnonzero(~np.asarray(crowd, bool))
