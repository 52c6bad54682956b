"""Where presence decides: a trained model's threshold of 0.5, put where its cgF1 is best.

Training says how likely a concept is among the phrases that training asks; those who use a model
ask others. One number is learned from held-out samples: the bias of the presence head. It changes
which phrases are answered, not which instances are found first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from ..build import ModelConfig
from ..evaluate import ConceptScore
from ..evaluate.overlap import mask_iou
from ..nn.detector import Detector
from .data.sample import TrainingSample
from .errors import DataError
from .held_out import THRESHOLD, asked, scores_of

SHIFTS = tuple(round(0.25 * i, 2) for i in range(-8, 9))
"""Of the presence logit, that are tried."""


class Calibration(NamedTuple):
    """shift: what was added to the presence logits. before, after: cgF1 of the samples."""

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
        samples: with masks; they are for this alone: figures on them flatter the model.
        shifts: to choose from; 0 is always one of them, and wins where none is better.

    Raises:
        DataError: no sample has a query whose answer is known, or one has no masks.
    """
    tried = sorted({0.0, *shifts}, key=abs)
    totals = {shift: ConceptScore(THRESHOLD) for shift in tried}
    for answers, truths in asked(net, config, samples):
        most = answers._replace(scores=scores_of(answers.answer, max(tried)))
        for row, truth in enumerate(truths):
            # Presence is common to all queries of a phrase: what a lower one finds is the
            # beginning of what a higher one does.
            masks, scores = most.masks(net, row)
            overlap = mask_iou((masks > 0).numpy(), truth)
            present = answers.answer.presence[row].float().cpu()
            alone = scores / (present + max(tried)).sigmoid()
            for shift, total in totals.items():
                kept = int((alone * (present + shift).sigmoid() >= THRESHOLD).sum())
                total.add_overlaps([overlap[:kept]])
    if not totals[0.0].pairs:
        raise DataError("no sample has a query whose answer is known: presence is not calibrated")
    figures = {shift: total.figures()["cgF1"] for shift, total in totals.items()}
    best = max(tried, key=lambda shift: figures[shift])
    last = net.part("decoder").presence_token_head.layers[-1]
    last.bias += best
    return Calibration(best, figures[0.0], figures[best])
