"""Compare the masks of a field with the true masks in another field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import fiftyone.core.labels as fol

from efficientsam3.evaluate import ConceptScore

from ..labels import presence_key
from ..ownership.merge import REFUSE
from ..ownership.overlap import encode_masks
from .checks import check_field, check_key, check_name, check_samples
from .steps import RunError, Step, Steps

CHUNK = 50


def evaluate(
    samples: Any,
    field: str,
    truth: str,
    *,
    eval_key: str | None = "esam3_eval",
    threshold: float = 0.5,
    existing: str = REFUSE,
) -> Steps:
    """Compare masks with true masks: FiftyOne's mask mAP, and SA-Co's cgF1.

    cgF1 is computed over pairs of a sample and a concept: each concept that the sample was
    searched for (``concept_presence`` of its labels), and each concept in either field. Where the
    concept is absent, nothing should be found.

    Args:
        samples: images, or a view of them.
        field: the field with the predictions, ``Detections`` with masks.
        truth: the field with the true ``Detections``, with masks.
        eval_key: the key under which FiftyOne keeps the matches. None: they are not kept.
        threshold: for cgF1, the lowest score of a prediction, in [0, 1].
        existing: "refuse" refuses a key that the dataset has; "overwrite" replaces its evaluation.

    Returns:
        ``mAP``, ``precision``, ``recall`` (of masks at IoU 0.5, 0 to 100), ``cgF1``, ``pmF1``,
        ``IL_MCC``, and counts.

    Raises:
        RunError: a field does not exist or has labels without masks, both fields are the same, or
            the dataset has the key.
    """
    check_samples(samples)
    dataset = samples._root_dataset
    for name in (field, truth):
        check_field(samples, name, kinds=(fol.Detections,))
    if field == truth:
        raise RunError(f"{field!r} is compared with itself; choose two fields")
    if eval_key is not None:
        check_name(eval_key, "an evaluation key")
        check_key(dataset.list_evaluations(), eval_key, "an evaluation", existing)
    both = samples.exists(truth)
    total = len(both)
    if not total:
        raise RunError(f"no sample of this view has {truth!r}; there is nothing to compare with")
    for name in (field, truth):
        labels = both.count(f"{name}.detections")
        masks = both.count(f"{name}.detections.mask") + both.count(f"{name}.detections.mask_path")
        if masks < labels:
            raise RunError(
                f"{labels - masks} of {labels} labels in {name!r} have no mask; segment_prompts "
                "makes masks of boxes"
            )
    score = ConceptScore(threshold)
    yield Step(0, total, "cgF1")
    for done, sample in enumerate(both.select_fields([field, truth]), 1):
        for found, scores, true in _pairs(sample, field, truth):
            score.update(found, scores, true)
        if done % CHUNK == 0 or done == total:
            yield Step(done, total, "cgF1")
    yield Step(total, total, "mean average precision of masks")
    if eval_key is not None and dataset.has_evaluation(eval_key):
        dataset.delete_evaluation(eval_key)
    results = both.evaluate_detections(
        field,
        gt_field=truth,
        eval_key=eval_key,
        use_masks=True,
        compute_mAP=True,
        progress=False,
    )
    metrics, figures = results.metrics(), score.compute()
    out = {
        "mAP": 100 * results.mAP(),
        "precision": 100 * metrics["precision"],
        "recall": 100 * metrics["recall"],
        **{name: figures[name] for name in ("cgF1", "pmF1", "IL_MCC")},
    }
    plain = {k: None if math.isnan(v) else round(float(v), 3) for k, v in out.items()}
    return {"samples": total, **plain, "counts": score.counts(), "eval_key": eval_key}


def _pairs(
    sample: Any, field: str, truth: str
) -> Iterator[tuple[list[Any], list[float], list[Any]]]:
    """For each concept of a sample: the masks found, their scores, and the true masks."""
    found = sample[field] or fol.Detections()
    true = sample[truth] or fol.Detections()
    masks = encode_masks([*found.detections, *true.detections])
    by_key: dict[str, tuple[list[Any], list[float], list[Any]]] = {}
    for key in getattr(found, "concept_presence", None) or {}:
        by_key[key] = ([], [], [])
    for i, label in enumerate([*found.detections, *true.detections]):
        key = presence_key(label.label or "")
        pair = by_key.setdefault(key, ([], [], []))
        if i < len(found.detections):
            pair[0].append(masks[i])
            pair[1].append(1.0 if label.confidence is None else label.confidence)
        else:
            pair[2].append(masks[i])
    yield from by_key.values()
