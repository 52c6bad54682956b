"""Stage 3: the whole model learns to ground, from any data with phrases, boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..evaluate import ConceptScore
from ..nn.detector import Detector
from .collate import Collator
from .data.sample import TrainingSample
from .grounding import GroundingBatch, GroundingLoss
from .stream import stream
from .task import Picture, Task

Draw = Callable[[int], TrainingSample]
"""Sample by number, from 0 without end: an epoch's order, or a scene's seed."""


class Batches:
    """Makes batch n of a stream of samples; picklable, for workers."""

    def __init__(self, draw: Draw, collator: Collator, size: int) -> None:
        self.draw, self.collator, self.size = draw, collator, size

    def __call__(self, n: int, rng: np.random.Generator) -> GroundingBatch:
        samples = [self.draw(n * self.size + i) for i in range(self.size)]
        return self.collator(samples, rng)


class GroundingTask(Task):
    """Args:
    net: the detector. config: its numbers.
    draw: training samples by number. batch: images of a batch.
    prompts: what is asked of them. criterion: what is asked of the answers.
    held_out: samples for validation. teacher: a further loss of (net, batch), as feature
        distillation is.
    """

    def __init__(
        self,
        net: Detector,
        collator: Collator,
        draw: Draw,
        *,
        batch: int = 8,
        criterion: GroundingLoss | None = None,
        held_out: tuple[TrainingSample, ...] = (),
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        self.module: Detector = net
        self.collator, self.draw, self.batch = collator, draw, batch
        self.criterion = criterion or GroundingLoss()
        self.held_out, self.seed, self.workers = held_out, seed, workers

    def batches(self, start: int, rank: int, world: int) -> Iterator[GroundingBatch]:
        make = Batches(self.draw, self.collator, self.batch)
        return stream(
            make, seed=self.seed, start=start, rank=rank, world=world, workers=self.workers
        )

    def loss(self, module: nn.Module, batch: GroundingBatch) -> Mapping[str, Tensor]:
        terms: dict[str, Tensor] = module(lambda net: self.criterion(net, batch))
        return terms

    def validate(self, module: nn.Module) -> dict[str, float]:
        return score(self.module, self.held_out, self.collator)

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        from .pictures import contact_sheet

        return {"held_out": contact_sheet(self.module, self.held_out[:12], self.collator)}

    def describe(self) -> dict[str, Any]:
        return {"batch": self.batch, "seed": self.seed, "criterion": repr(self.criterion)}


@torch.no_grad()
def score(
    net: Detector, samples: tuple[TrainingSample, ...], collator: Collator
) -> dict[str, float]:
    """cgF1 and its parts over all queries of the samples, at the mask head's resolution.

    A quick look while training: masks are compared on the grid of the mask head.
    """
    from ..nn.tokenizer import tokenize

    c = collator.config
    total = ConceptScore()
    for sample in samples:
        if not sample.queries:
            continue
        image = net.read_image(sample.pixels(c.resolution, c.mean, c.std))
        truth = sample.masks_at(4 * c.grid).numpy() > 0.5
        tokens = tokenize([q.phrase for q in sample.queries], c.context)
        prompt, mask = net.read_prompt(image, net.read_text(tokens))
        answer = net.answer(image, prompt, mask)
        scores = answer.logits.sigmoid() * answer.presence.sigmoid()[:, None]
        for row, query in enumerate(sample.queries):
            kept = (scores[row] > 0.5).nonzero()[:, 0]
            found = np.zeros((0, *truth.shape[1:]), bool)
            if len(kept):
                found = (net.masks_of(image, answer, row, kept) > 0).numpy()
            total.add(found, scores[row, kept].float().numpy(), truth[list(query.objects)])
    return {k: v for k, v in total.figures().items() if k in SHOWN}


SHOWN = ("cgF1", "pmF1", "IL_MCC", "cgF1@50", "IL_precision", "IL_recall", "recall", "precision")
