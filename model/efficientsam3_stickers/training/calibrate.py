"""Calibration: the threshold of 0.5 is moved to where cgF1 is best.

Training decides how likely a concept is among the phrases of training, and users of a model give
other phrases. One number is learned from held-out samples, the bias of the presence head, and with
late fusion another one, the bias of the objects' scores. They change which phrases are present and
how many instances are kept, but not the order of a phrase's instances.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from efficientsam3.config import ModelConfig
from efficientsam3.data.sample import TrainingSample
from efficientsam3.errors import DataError
from efficientsam3.evaluate import ConceptScore
from efficientsam3.masks.overlap import mask_iou
from efficientsam3.nn.detector import Detector
from efficientsam3.train.validation import THRESHOLD, predict_samples, query_scores

SHIFTS = tuple(round(0.25 * i, 2) for i in range(-8, 17))
"""Shifts of the logits that are tried."""


class Calibration(NamedTuple):
    """The result of a calibration.

    Attributes:
        shift: Value that was added to the presence logits.
        object_shift: Value that was added to the logits of the objects.
        before: cgF1 of the samples without them.
        after: cgF1 of the samples with them.
    """

    shift: float
    object_shift: float
    before: float
    after: float


@torch.no_grad()
def calibrate(
    net: Detector,
    config: ModelConfig,
    samples: Iterable[TrainingSample],
    shifts: Iterable[float] = SHIFTS,
) -> Calibration:
    """Shift a model's logits, in place, to where cgF1 is best.

    Args:
        net: The model.
        config: Its configuration.
        samples: Samples with masks for this purpose alone; figures on them are too good.
        shifts: Shifts to try. 0 is always tried, and kept where none is better.

    Raises:
        DataError: no sample has a query whose answer is known, or one has no masks.
    """
    alone = sorted({0.0, *shifts}, key=abs)
    of_objects = net.object_bias()
    tried = [(shift, by) for by in ([0.0] if of_objects is None else alone) for shift in alone]
    tried.sort(key=lambda pair: abs(pair[0]) + abs(pair[1]))
    scores_by_shift = {pair: ConceptScore(THRESHOLD) for pair in tried}
    most, most_by = max(alone), 0.0 if of_objects is None else max(alone)
    for predictions, truths in predict_samples(net, config, samples):
        answer = predictions.answer
        found = predictions._replace(scores=query_scores(answer, most, most_by))
        for row, truth in enumerate(truths):
            # With smaller shifts, the instances are the first ones of those with larger shifts.
            masks, scores = found.masks(net, row)
            overlap = mask_iou((masks > 0).numpy(), truth)
            presence = answer.presence[row].double().cpu()
            logits = (scores.double() / (presence + most).sigmoid()).logit(1e-9) - most_by
            for (shift, by), total in scores_by_shift.items():
                shifted = (logits + by).sigmoid() * (presence + shift).sigmoid()
                total.update_from_overlaps([overlap[: int((shifted >= THRESHOLD).sum())]])
    if not scores_by_shift[0.0, 0.0].pairs:
        raise DataError(
            "presence cannot be calibrated: no sample has a query whose answer is known; pass "
            "samples with queries"
        )
    figures = {pair: total.compute()["cgF1"] for pair, total in scores_by_shift.items()}
    best = max(tried, key=lambda pair: figures[pair])
    net.presence_bias().add_(best[0])
    if of_objects is not None:
        of_objects.add_(best[1])
    return Calibration(*best, figures[0.0, 0.0], figures[best])
