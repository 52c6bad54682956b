"""Score predictions for a split of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..data.types import Record
from ..masks.overlap import box_iou, mask_iou
from ..values import is_share
from .errors import PredictionError
from .ground_truth import GroundTruth, Pair
from .metrics.ap import average_precision
from .metrics.cgf1 import ConceptScore, PairMatch
from .predict import PROMPTS, is_promptable
from .predictions import Prediction, Predictions, require_mask
from .report import Report


def score_images(
    truth: GroundTruth,
    predictions: Predictions,
    *,
    prompt: str = "text",
    iou: str = "mask",
    threshold: float = 0.5,
    ap: bool = True,
    settings: Record | None = None,
) -> Report:
    """Score predictions for a split.

    Args:
        truth: The split.
        predictions: From ``read_predictions``.
        prompt: How the model was prompted. "box" compares each prediction with the instance whose
            box was shown: mIoU, as upstream's EfficientSAM3 evaluates on COCO.
        iou: What is compared, "mask" or "box".
        threshold: Predictions count that score at least this; not for average precision.
        ap: Whether to compute COCO's average precision.
        settings: More values for the report's settings.

    Raises:
        PredictionError: a setting is wrong, or predictions were made by another prompt or lack
            masks.
    """
    check_settings(prompt, iou, threshold)
    if predictions.prompt not in (None, prompt):
        raise PredictionError(
            f"{predictions.path} holds predictions by the prompt {predictions.prompt!r}, not by "
            f"{prompt!r}: score it with --prompt {predictions.prompt}"
        )
    pairs = [pair for pair in truth.pairs if pair.file not in predictions.failed]
    if not pairs:
        raise PredictionError("no image of this split could be read; see failed")
    used = {
        "annotations": [str(path) for path in truth.paths],
        "predictions": str(predictions.path or ""),
        "annotators": len(pairs[0].annotators),
        "prompt": prompt,
        "iou": iou,
        "threshold": threshold,
        **(settings or {}),
    }
    if prompt == "box":
        metrics, counts = _score_boxes(pairs, predictions)
    else:
        if prompt == "exemplar":
            pairs = [p for p in pairs if any(is_promptable(t, p) for t in p.targets)]
        metrics, counts = _score_concepts(pairs, predictions, iou, threshold)
        if ap:
            scored = replace(truth, pairs=tuple(pairs))
            metrics |= average_precision(scored, predictions.by_pair, iou)
    counts = {"images": len({pair.file for pair in pairs}), **counts}
    return Report(truth.name, metrics, counts, used, dict(predictions.failed))


def _score_concepts(
    pairs: list[Pair], predictions: Predictions, iou: str, threshold: float
) -> tuple[dict[str, float], dict[str, int]]:
    score, left_out = ConceptScore(threshold), 0
    for pair in pairs:
        if not (pair.exhaustive and pair.countable):
            left_out += 1
            continue
        score_pair(score, pair, predictions.by_pair.get(pair.key, ()), iou)
    return score.compute(), {**score.counts(), "pairs_left_out": left_out}


def score_pair(
    score: ConceptScore, pair: Pair, predictions: Sequence[Prediction], iou: str = "mask"
) -> PairMatch:
    """Add the predictions for one pair to a score.

    Args:
        score: The score to add to; its threshold selects predictions.
        pair: The pair.
        predictions: Predictions for this pair.
        iou: What is compared, "mask" or "box".

    Returns:
        The match of this pair.

    Raises:
        PredictionError: a prediction or an instance has no mask.
    """
    kept = [p for p in predictions if p.score >= score.threshold]
    annotators = [[t for t in targets if not t.crowd] for targets in pair.annotators]
    if iou == "box":
        boxes = np.array([p.corners for p in kept]).reshape(-1, 4)
        return score.update_from_overlaps(
            box_iou(boxes, np.array([t.box for t in targets]).reshape(-1, 4))
            for targets in annotators
        )
    masks = [require_mask(p, pair) for p in kept]
    return score.update_from_overlaps(
        mask_iou(masks, [require_mask(t, pair) for t in targets]) for targets in annotators
    )


def _score_boxes(
    pairs: list[Pair], predictions: Predictions
) -> tuple[dict[str, float], dict[str, int]]:
    """Mean IoU of the masks of instances whose boxes were shown; a missing mask counts 0.

    EfficientSAM3's COCO mIoU (upstream's ``eval/eval_coco.py``).
    """
    ious = []
    for pair in pairs:
        found = {p.target: p for p in predictions.by_pair.get(pair.key, ())}
        for i, target in enumerate(pair.targets):
            if target.crowd:
                continue
            mask = require_mask(target, pair)
            guess = found.get(i)
            ious.append(
                float(mask_iou([require_mask(guess, pair)], [mask])[0, 0]) if guess else 0.0
            )
    mean = 100 * float(np.mean(ious)) if ious else math.nan
    return {"mIoU": mean}, {"instances": len(ious)}


def check_settings(prompt: str, iou: str, threshold: float, min_score: float = 0) -> None:
    """Check settings of an evaluation.

    Args:
        prompt: A key of ``PROMPTS``.
        iou: "mask" or "box".
        threshold: In [0, 1].
        min_score: In [0, ``threshold``].

    Raises:
        PredictionError: a setting has another value.
    """
    if prompt not in PROMPTS:
        raise PredictionError(f"prompt is {' or '.join(map(repr, PROMPTS))}; got {prompt!r}")
    if iou not in ("mask", "box"):
        raise PredictionError(f"iou is 'mask' or 'box'; got {iou!r}")
    if not (is_share(min_score) and is_share(threshold) and min_score <= threshold):
        raise PredictionError(
            f"0 <= min_score <= threshold <= 1; got min_score {min_score} and threshold {threshold}"
        )
