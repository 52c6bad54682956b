"""How well a model in training does on held-out samples: a quick look, many times a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..build import ModelConfig
from ..evaluate import ConceptScore
from ..nn.detector import Answer, Detector, ImageFeatures
from ..nn.masks import suppress
from ..nn.tokenizer import tokenize
from .data.sample import PhraseQuery, SampleSource, TrainingSample
from .errors import DataError

SHOWN = ("cgF1", "pmF1", "IL_MCC", "cgF1@50", "IL_precision", "IL_recall", "recall", "precision")
THRESHOLD = 0.5

Masks = npt.NDArray[np.bool_]


class Answers(NamedTuple):
    """What a model says of Q phrases about one image.

    scores: (Q, queries) in [0, 1]. nms: mask IoU above which the weaker of two is dropped.
    """

    image: ImageFeatures
    answer: Answer
    scores: Tensor
    nms: float | None = None

    def masks(self, net: Detector, row: int) -> tuple[Tensor, Tensor]:
        """Mask logits (K, cells, cells) and scores (K,) of what one phrase finds, on the CPU.

        The best comes first.
        """
        scores, order = self.scores[row].sort(descending=True, stable=True)
        kept = order[scores >= THRESHOLD]
        if not len(kept):
            side = 4 * self.image.grid[0]
            return torch.zeros(0, side, side), scores[:0].cpu()
        masks, scores = net.masks_of(self.image, self.answer, row, kept), scores[: len(kept)]
        if self.nms is not None:
            best = suppress(masks > 0, self.nms)
            masks, scores = masks[best], scores[best]
        return masks.float().cpu(), scores.cpu()


def ask(
    net: Detector, config: ModelConfig, sample: TrainingSample, queries: Sequence[PhraseQuery]
) -> Answers:
    """Ask phrases of an image, as it is asked in use but by the learned form of the model."""
    device = next(net.parameters()).device
    pixels = sample.pixels(config.resolution, config.mean, config.std)
    image = net.read_image(pixels.to(device))
    tokens = tokenize([q.phrase for q in queries], config.context).to(device)
    prompt, mask = net.read_prompt(image, net.read_text(tokens))
    answer = net.answer(image, prompt, mask)
    return Answers(image, answer, scores_of(answer), config.nms)


def scores_of(answer: Answer, shift: float = 0.0) -> Tensor:
    """(Q, queries) in [0, 1]. shift: of the presence logits."""
    present = (answer.presence.float() + shift).sigmoid()
    return answer.logits.float().sigmoid() * present[:, None]


def sure(sample: TrainingSample) -> list[PhraseQuery]:
    """Queries whose answer is known: no instance is left out, none is a crowd."""
    crowd = sample.crowd
    return [
        q
        for q in sample.queries
        if q.exhaustive and (crowd is None or not any(crowd[o] for o in q.objects))
    ]


def asked(
    net: Detector, config: ModelConfig, samples: Iterable[TrainingSample]
) -> Iterator[tuple[Answers, list[Masks]]]:
    """Ask all that is sure: answers, and for each phrase its true masks (M, cells, cells), bool.

    Raises:
        DataError: a sample without masks.
    """
    for sample in samples:
        queries = sure(sample)
        if not queries:
            continue
        if sample.masks is None:
            raise DataError(f"{sample.key} has no masks, by which what is held out is judged")
        answers = ask(net, config, sample, queries)
        truth = sample.masks_at(4 * config.grid).numpy() > 0.5
        yield answers, [truth[list(query.objects)] for query in queries]


@torch.no_grad()
def score(
    net: Detector, config: ModelConfig, samples: SampleSource | Sequence[TrainingSample]
) -> dict[str, float]:
    """cgF1 and its parts over all queries of the samples that are sure.

    Masks are compared on the grid of the mask head: a little kinder than the real figure.

    Raises:
        DataError: a sample without masks.
    """
    total = ConceptScore(THRESHOLD)
    for answers, truths in asked(net, config, (samples[i] for i in range(len(samples)))):
        for row, truth in enumerate(truths):
            masks, scores = answers.masks(net, row)
            total.add((masks > 0).numpy(), scores.numpy(), truth)
    return {k: v for k, v in total.figures().items() if k in SHOWN}
