"""How good a field's masks are, against another one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import fiftyone.core.labels as fol
import numpy as np

from efficientsam3.evaluate import ConceptScore
from efficientsam3.rle import encode_cut

from .labels import presence_keys
from .runs import RunError, Step, Steps, check_field, check_samples

CHUNK = 50


def evaluate(
    samples: Any,
    field: str,
    truth: str,
    *,
    eval_key: str | None = "esam3_eval",
    threshold: float = 0.5,
) -> Steps:
    """Compares masks with true ones: FiftyOne's mask mAP, and SA-Co's cgF1.

    cgF1 asks each sample for each concept that its labels say was asked (``concept_presence``), or
    that is in either field; the concept may be absent, and then nothing should be found.

    Args:
        field, truth: ``Detections`` with masks.
        eval_key: FiftyOne keeps the matches under it; None: they are not kept.
        threshold: for cgF1, instances count that score at least this.

    Returns:
        ``mAP``, ``precision``, ``recall`` (of masks at IoU 0.5, 0 to 100), ``cgF1``, ``pmF1``,
        ``IL_MCC``, and counts.

    Raises:
        RunError: a field that is not there, or has no masks, or one field twice.
    """
    check_samples(samples)
    for name in (field, truth):
        check_field(samples, name, kinds=(fol.Detections,))
    if field == truth:
        raise RunError(f"{field!r} is compared with itself; choose two fields")
    if eval_key is not None and not eval_key.isidentifier():
        raise RunError(f"{eval_key!r} cannot be an evaluation's key; use letters, digits and _")
    both = samples.exists(truth)
    total = len(both)
    if not total:
        raise RunError(f"no sample of this view has {truth!r}; there is nothing to compare with")
    for name in (field, truth):
        whole = both.count(f"{name}.detections")
        drawn = both.count(f"{name}.detections.mask") + both.count(f"{name}.detections.mask_path")
        if drawn < whole:
            raise RunError(
                f"{whole - drawn} of {whole} labels in {name!r} have no mask; segment_prompts "
                "makes masks of boxes"
            )
    score = ConceptScore(threshold)
    yield Step(0, total, "cgF1")
    for done, sample in enumerate(both.select_fields([field, truth]), 1):
        for found, scores, true in _pairs(sample, field, truth):
            score.add(found, scores, true)
        if done % CHUNK == 0 or done == total:
            yield Step(done, total, "cgF1")
    yield Step(total, total, "mean average precision of masks")
    dataset = samples._root_dataset
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
    metrics, figures = results.metrics(), score.figures()
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
    """For each concept that was asked of a sample: masks found, their scores, true masks."""
    found = sample[field] or fol.Detections()
    true = sample[truth] or fol.Detections()
    masks = _encoded([*found.detections, *true.detections])
    by_key: dict[str, tuple[list[Any], list[float], list[Any]]] = {}
    for key in getattr(found, "concept_presence", None) or {}:
        by_key[key] = ([], [], [])
    for i, label in enumerate([*found.detections, *true.detections]):
        (key,) = presence_keys({label.label: 0.0})
        pair = by_key.setdefault(key, ([], [], []))
        if i < len(found.detections):
            pair[0].append(masks[i])
            pair[1].append(1.0 if label.confidence is None else label.confidence)
        else:
            pair[2].append(masks[i])
    yield from by_key.values()


def _encoded(detections: list[Any]) -> list[Any]:
    """Masks as run lengths on one grid, in which each has about the pixels it is stored with."""
    if not detections:
        return []
    size = _grid(detections)
    out = []
    for detection in detections:
        mask = np.asarray(detection.get_mask(), bool)
        x, y, w, h = detection.bounding_box
        x0, y0 = (min(round(p * n), n - 1) for p, n in ((x, size[1]), (y, size[0])))
        x1 = min(max(round((x + w) * size[1]), x0 + 1), size[1])
        y1 = min(max(round((y + h) * size[0]), y0 + 1), size[0])
        rows = ((np.arange(y1 - y0) + 0.5) * mask.shape[0] / (y1 - y0)).astype(int)
        columns = ((np.arange(x1 - x0) + 0.5) * mask.shape[1] / (x1 - x0)).astype(int)
        out.append(encode_cut(mask[rows][:, columns], (x0, y0, x1, y1), size))
    return out


def _grid(detections: list[Any]) -> tuple[int, int]:
    """(height, width) of the image, as the largest mask and its box tell it."""
    sides = []
    for detection in detections:
        (rows, columns), (_, _, w, h) = detection.get_mask().shape, detection.bounding_box
        if w > 0 and h > 0:
            sides.append((rows * columns, round(rows / h), round(columns / w)))
    if not sides:
        return 1, 1
    _, height, width = max(sides)
    return max(1, height), max(1, width)
