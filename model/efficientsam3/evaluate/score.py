"""Score predictions for a split of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from .ask import PROMPTS, promptable
from .concept import ConceptScore, PairScore
from .errors import PredictionError
from .overlap import box_iou, mask_iou
from .precision import average_precision
from .predictions import Prediction, Predictions
from .records import Record
from .truth import Pair, Target, Truth


@dataclass(frozen=True, eq=False)
class Report:
    """What came out.

    Attributes:
        name: of the split. figures: 0 to 100, but IL_MCC -1 to 1; NaN where not defined.
        counts: pairs, instances, ... settings: how they came about.
        failed: pictures that were left out, and why.
    """

    name: str
    figures: dict[str, float]
    counts: dict[str, int]
    settings: Record = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> Record:
        """Everything as JSON has it, figures by their names first; None where not defined."""
        figures = {k: None if math.isnan(v) else v for k, v in self.figures.items()}
        return figures | {
            "name": self.name,
            "counts": self.counts,
            "settings": self.settings,
            "failed": self.failed,
        }


class Progress(NamedTuple):
    """How far a run is, in pictures, or clips and phrases.

    before: what an earlier run did. seconds: since this one began.
    """

    done: int
    total: int
    before: int
    failed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Done a second by this run; 0 before the first."""
        new = self.done - self.before
        return new / self.seconds if new and self.seconds > 0 else 0.0

    @property
    def left(self) -> float:
        """Seconds that are left; infinite before the first is done."""
        return (self.total - self.done) / self.rate if self.rate else math.inf


def score_images(
    truth: Truth,
    predictions: Predictions,
    *,
    prompt: str = "text",
    iou: str = "mask",
    threshold: float = 0.5,
    precision: bool = True,
    settings: Record | None = None,
) -> Report:
    """Score predictions for a split.

    Args:
        prompt: "box" compares each prediction with the instance that was pointed at: mIoU.
        iou: what overlaps, "mask" or "box".
        threshold: predictions count that score at least this; not for average precision.
        precision: whether to work out COCO's average precision too.
    """
    check_options(prompt, iou, threshold)
    if predictions.prompt not in (None, prompt):
        raise PredictionError(
            f"{predictions.path} holds answers to the prompt {predictions.prompt!r}, not to "
            f"{prompt!r}: score it with --prompt {predictions.prompt}"
        )
    pairs = [pair for pair in truth.pairs if pair.file not in predictions.failed]
    if not pairs:
        raise PredictionError("no picture of this split could be read; see failed")
    told = {
        "annotations": [str(path) for path in truth.paths],
        "predictions": str(predictions.path or ""),
        "annotators": len(pairs[0].truths),
        "prompt": prompt,
        "iou": iou,
        "threshold": threshold,
        **(settings or {}),
    }
    if prompt == "box":
        figures, counts = _score_boxes(pairs, predictions)
    else:
        if prompt == "exemplar":
            pairs = [p for p in pairs if any(promptable(t, p) for t in p.targets)]
        figures, counts = _score_concepts(pairs, predictions, iou, threshold)
        if precision:
            asked = replace(truth, pairs=tuple(pairs))
            figures |= average_precision(asked, predictions.by_pair, iou)
    pictures = len({pair.file for pair in pairs})
    return Report(
        truth.name, figures, {"pictures": pictures, **counts}, told, dict(predictions.failed)
    )


def _score_concepts(
    pairs: list[Pair], predictions: Predictions, iou: str, threshold: float
) -> tuple[dict[str, float], dict[str, int]]:
    score, left_out = ConceptScore(threshold), 0
    for pair in pairs:
        if not (pair.exhaustive and pair.countable):
            left_out += 1
            continue
        score_pair(score, pair, predictions.by_pair.get(pair.key, ()), iou)
    return score.figures(), {**score.counts(), "pairs_left_out": left_out}


def score_pair(
    score: ConceptScore, pair: Pair, predictions: Sequence[Prediction], iou: str = "mask"
) -> PairScore:
    """Add the predictions for one pair; gives the pair's own score."""
    kept = [p for p in predictions if p.score >= score.threshold]
    truths = [[t for t in targets if not t.crowd] for targets in pair.truths]
    if iou == "box":
        boxes = np.array([p.corners for p in kept]).reshape(-1, 4)
        return score.add_overlaps(
            box_iou(boxes, np.array([t.box for t in targets]).reshape(-1, 4)) for targets in truths
        )
    masks = [_mask(p, pair, "prediction") for p in kept]
    return score.add_overlaps(
        mask_iou(masks, [_mask(t, pair, "instance") for t in targets]) for targets in truths
    )


def _mask(shape: Prediction | Target, pair: Pair, kind: str) -> Record:
    if shape.mask is None:
        raise PredictionError(
            f"a {kind} of {pair.phrase!r} in {pair.file} (image id {pair.key[0]!r}) has a box and "
            "no mask; compare boxes instead (--iou box, iou='box')"
        )
    return shape.mask


def _score_boxes(
    pairs: list[Pair], predictions: Predictions
) -> tuple[dict[str, float], dict[str, int]]:
    """Mean IoU of the masks of instances whose boxes were shown, as upstream's COCO mIoU."""
    overlaps = []
    for pair in pairs:
        found = {p.target: p for p in predictions.by_pair.get(pair.key, ())}
        for i, target in enumerate(pair.targets):
            if target.crowd:
                continue
            mask = _mask(target, pair, "instance")
            guess = found.get(i)
            overlaps.append(
                float(mask_iou([_mask(guess, pair, "prediction")], [mask])[0, 0]) if guess else 0.0
            )
    mean = 100 * float(np.mean(overlaps)) if overlaps else math.nan
    return {"mIoU": mean}, {"instances": len(overlaps)}


def check_options(prompt: str, iou: str, threshold: float, floor: float = 0) -> None:
    """Refuse settings that mean nothing."""
    if prompt not in PROMPTS:
        raise PredictionError(f"prompt is {' or '.join(map(repr, PROMPTS))}; got {prompt!r}")
    if iou not in ("mask", "box"):
        raise PredictionError(f"iou is 'mask' or 'box'; got {iou!r}")
    if not 0 <= floor <= threshold <= 1:
        raise PredictionError(
            f"0 <= floor <= threshold <= 1; got floor {floor} and threshold {threshold}"
        )
