"""Stage 3: the whole model learns to ground, from any data with phrases, boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..nn.detector import Detector
from .collate import Collator
from .data.sample import SampleSource, TrainingSample
from .errors import DataError
from .feature_distillation import FeatureDistillation
from .grounding import GroundingBatch, GroundingLoss
from .held_out import score
from .stream import stream
from .task import Picture, Task

Draw = Callable[[int], TrainingSample]
"""Sample by number, from 0 without end: an epoch's order, or a scene's seed."""

TRIES = 8
PICTURES = 12


class Batches:
    """Makes batch n of a stream of samples; picklable, for workers."""

    def __init__(self, draw: Draw, collator: Collator, size: int) -> None:
        self.draw, self.collator, self.size = draw, collator, size

    def __call__(self, n: int, rng: np.random.Generator) -> GroundingBatch:
        samples = [self.draw(n * self.size + i) for i in range(self.size)]
        for _ in range(TRIES):  # a few images of LVIS have no phrase at all
            if any(s.queries for s in samples):
                break
            samples = [self.draw(int(rng.integers(1 << 40))) for _ in range(self.size)]
        return self.collator(samples, rng)


class GroundingTask(Task):
    """Trains a detector on prompts about images.

    Args:
        net: the detector.
        collator: what is asked of images.
        draw: training samples by number. batch: images a rank and step.
        criterion: what is asked of the answers.
        teacher: keeps image features near those of another model.
        held_out: samples for validation and pictures, with masks.
        seed: of prompts and their order. workers: processes that make batches.
    """

    def __init__(
        self,
        net: Detector,
        collator: Collator,
        draw: Draw,
        *,
        batch: int = 8,
        criterion: GroundingLoss | None = None,
        teacher: FeatureDistillation | None = None,
        held_out: SampleSource | Sequence[TrainingSample] = (),
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        if len(held_out) and held_out[0].masks is None:
            raise DataError(
                f"{held_out[0].key} has no masks, by which what is held out is judged: hold out "
                "data with masks"
            )
        self.module: Detector = net
        self.collator, self.draw, self.batch = collator, draw, batch
        self.criterion, self.teacher = criterion or GroundingLoss(), teacher
        self.held_out, self.seed, self.workers = held_out, seed, workers

    def batches(self, start: int, rank: int, world: int) -> Iterator[GroundingBatch]:
        make = Batches(self.draw, self.collator, self.batch)
        return stream(
            make, seed=self.seed, start=start, rank=rank, world=world, workers=self.workers
        )

    def start(self, device: torch.device) -> None:
        if self.teacher is not None:
            self.teacher.to(device)

    def loss(self, module: nn.Module, batch: GroundingBatch) -> Mapping[str, Tensor]:
        terms: dict[str, Tensor] = module(lambda net: self.criterion(net, batch, self.teacher))
        return terms

    def validate(self, module: nn.Module) -> dict[str, float]:
        if not len(self.held_out):
            return {}
        return score(self.module, self.collator.config, self.held_out)

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        from .pictures import contact_sheet

        samples = [self.held_out[i] for i in range(min(PICTURES, len(self.held_out)))]
        if not samples:
            return {}
        return {"held_out": contact_sheet(self.module, self.collator.config, samples)}

    def describe(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "seed": self.seed,
            "prompts": repr(self.collator.settings),
            "criterion": repr(self.criterion),
            "teacher": None if self.teacher is None else self.teacher.describe(),
        }
