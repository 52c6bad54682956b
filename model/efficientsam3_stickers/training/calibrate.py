"""Calibration of presence: the threshold of 0.5 is moved to where cgF1 is best.

Training decides how likely a concept is among the phrases of training, and users of a model give
other phrases. One number is learned from held-out samples, the bias of the presence head. It
changes which phrases are present, but not the order of their instances.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from efficientsam3.build import ModelConfig
from efficientsam3.data.sample import TrainingSample
from efficientsam3.errors import DataError
from efficientsam3.evaluate import ConceptScore
from efficientsam3.masks.overlap import mask_iou
from efficientsam3.nn.detector import Detector
from efficientsam3.train.validation import THRESHOLD, predict_samples, query_scores

SHIFTS = tuple(round(0.25 * i, 2) for i in range(-8, 9))
"""Shifts of the presence logit that are tried."""


class Calibration(NamedTuple):
    """The result of a calibration.

    Attributes:
        shift: Value that was added to the presence logits.
        before: cgF1 of the samples without it.
        after: cgF1 of the samples with it.
    """

    shift: float
    before: float
    after: float


@torch.no_grad()
def calibrate(
    net: Detector,
    config: ModelConfig,
    samples: Iterable[TrainingSample],
    shifts: Iterable[float] = SHIFTS,
) -> Calibration:
    """Shift a model's presence logits, in place, to where cgF1 is best.

    Args:
        net: The model.
        config: Its configuration.
        samples: Samples with masks for this purpose alone; figures on them are too good.
        shifts: Shifts to try. 0 is always tried, and kept where none is better.

    Raises:
        DataError: no sample has a query whose answer is known, or one has no masks.
    """
    tried = sorted({0.0, *shifts}, key=abs)
    scores_by_shift = {shift: ConceptScore(THRESHOLD) for shift in tried}
    for predictions, truths in predict_samples(net, config, samples):
        most = predictions._replace(scores=query_scores(predictions.answer, max(tried)))
        for row, truth in enumerate(truths):
            # Presence is a factor of all scores of a phrase: with a smaller shift, the instances
            # are the first ones of those with a larger shift.
            masks, scores = most.masks(net, row)
            overlap = mask_iou((masks > 0).numpy(), truth)
            presence = predictions.answer.presence[row].float().cpu()
            without_presence = scores / (presence + max(tried)).sigmoid()
            for shift, total in scores_by_shift.items():
                shifted = without_presence * (presence + shift).sigmoid()
                total.update_from_overlaps([overlap[: int((shifted >= THRESHOLD).sum())]])
    if not scores_by_shift[0.0].pairs:
        raise DataError(
            "presence cannot be calibrated: no sample has a query whose answer is known; pass "
            "samples with queries"
        )
    figures = {shift: total.compute()["cgF1"] for shift, total in scores_by_shift.items()}
    best = max(tried, key=lambda shift: figures[shift])
    net.presence_bias().add_(best)
    return Calibration(best, figures[0.0], figures[best])
