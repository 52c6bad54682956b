"""Concept scores of a model in training on held-out samples, with the metric of ``evaluate``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import ModelConfig
from ..data.sample import SampleSource, TrainingSample
from ..data.types import PhraseQuery
from ..errors import DataError
from ..evaluate.metrics.cgf1 import ConceptScore
from ..masks.overlap import suppress
from ..nn.detector import Detector
from ..nn.features import Answer, ImageFeatures
from ..nn.tokenizer import tokenize

FIGURES = ("cgF1", "pmF1", "IL_MCC", "cgF1@50", "IL_precision", "IL_recall", "recall", "precision")
"""The figures of ``ConceptScore`` that are logged."""
THRESHOLD = 0.5
"""Lowest score of a detection."""

Masks = npt.NDArray[np.bool_]


class Predictions(NamedTuple):
    """What a model predicts for Q phrases of one image.

    Attributes:
        image: features of the image.
        answer: detections of the Q phrases.
        scores: (Q, queries) in [0, 1].
        nms: mask IoU above which the weaker of two detections is dropped; None: all are kept.
    """

    image: ImageFeatures
    answer: Answer
    scores: Tensor
    nms: float | None = None

    def masks(self, net: Detector, row: int) -> tuple[Tensor, Tensor]:
        """The detections of one phrase, the best first.

        Args:
            net: the model that predicted.
            row: which of the Q phrases.

        Returns:
            (K, h, w) float32 mask logits and (K,) scores, on the CPU.
        """
        scores, order = self.scores[row].sort(descending=True, stable=True)
        kept = order[scores >= THRESHOLD]
        if not len(kept):
            side = 4 * self.image.grid[0]
            return torch.zeros(0, side, side), scores[:0].cpu()
        masks, scores = net.masks_of(self.image, self.answer, row, kept), scores[: len(kept)]
        if self.nms is not None:
            best = torch.from_numpy(suppress((masks > 0).cpu().numpy(), self.nms))
            masks, scores = masks.cpu()[best], scores.cpu()[best]
        return masks.float().cpu(), scores.cpu()


def predict(
    net: Detector, config: ModelConfig, sample: TrainingSample, queries: Sequence[PhraseQuery]
) -> Predictions:
    """Predict phrases of an image as in use, but with the learned form of the model.

    Args:
        net: the model, on its device.
        config: of the model.
        sample: the image.
        queries: the phrases.
    """
    device = next(net.parameters()).device
    pixels = sample.pixels(config.resolution, config.mean, config.std)
    image = net.read_image(pixels.to(device))
    tokens = tokenize([q.phrase for q in queries], config.context).to(device)
    answer = net.answer(image, *net.read_prompt(image, net.read_text(tokens)))
    return Predictions(image, answer, query_scores(answer), config.nms)


def query_scores(answer: Answer, presence_shift: float = 0.0, shift: float = 0.0) -> Tensor:
    """Scores of all queries, the product of their probability and that of presence.

    Args:
        answer: detections of Q phrases.
        presence_shift: added to the presence logits.
        shift: added to the logits of the queries.

    Returns:
        (Q, queries) in [0, 1].
    """
    present = (answer.presence.float() + presence_shift).sigmoid()
    return (answer.logits.float() + shift).sigmoid() * present[:, None]


def complete_queries(sample: TrainingSample) -> list[PhraseQuery]:
    """The queries that can be scored: all instances are annotated, and none is a crowd.

    Args:
        sample: with queries.
    """
    crowd = sample.crowd
    return [
        q
        for q in sample.queries
        if q.exhaustive and (crowd is None or not any(crowd[o] for o in q.objects))
    ]


def predict_samples(
    net: Detector, config: ModelConfig, samples: Iterable[TrainingSample]
) -> Iterator[tuple[Predictions, list[Masks]]]:
    """Predict the complete queries of samples.

    Args:
        net: the model, on its device.
        config: of the model.
        samples: with masks; those without a complete query are left out.

    Yields:
        The predictions of a sample, and of each of its queries the true masks (M, h, w) bool.

    Raises:
        DataError: a sample has no masks.
    """
    for sample in samples:
        queries = complete_queries(sample)
        if not queries:
            continue
        if sample.masks is None:
            raise DataError(f"{sample.key} has no masks; held-out samples are scored by masks")
        truth = sample.masks_at(4 * config.grid).numpy() > 0.5
        predictions = predict(net, config, sample, queries)
        yield predictions, [truth[list(query.objects)] for query in queries]


@torch.no_grad()
def score(
    net: Detector, config: ModelConfig, samples: SampleSource | Sequence[TrainingSample]
) -> dict[str, float]:
    """cgF1 and its parts over the complete queries of samples.

    Masks are compared at the resolution of the mask head, which is a little kinder than the
    comparison in pixels of the image.

    Args:
        net: the model, on its device.
        config: of the model.
        samples: with masks.

    Returns:
        The figures ``FIGURES`` of ``evaluate.ConceptScore``.

    Raises:
        DataError: a sample has no masks.
    """
    total = ConceptScore(THRESHOLD)
    every = (samples[i] for i in range(len(samples)))
    for predictions, truths in predict_samples(net, config, every):
        for row, truth in enumerate(truths):
            masks, scores = predictions.masks(net, row)
            total.update((masks > 0).numpy(), scores.numpy(), truth)
    return {name: value for name, value in total.compute().items() if name in FIGURES}
