"""Before Stage 3 from scratch: each image token learns the name of what it lies on.

Presence and boxes are learned from features that already tell concepts apart; without that
the heads learn nothing for a long time. No part of a released checkpoint needs this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..build import ModelConfig
from ..nn.detector import Detector
from .naming import Naming, Vocabulary, compare, naming_losses, naming_rates
from .stage3 import Draw
from .stream import stream
from .task import Task


class AlignBatch(NamedTuple):
    """pixels: (B, 3, R, R). naming: what they show."""

    pixels: Tensor
    naming: Naming


class AlignBatches:
    """Args:
    names, most: see ``Vocabulary``.
    """

    def __init__(
        self, config: ModelConfig, draw: Draw, size: int, names: Sequence[str], most: int = 192
    ) -> None:
        self.config, self.draw, self.size = config, draw, size
        self.vocabulary = Vocabulary(config, names, most)

    def __call__(self, n: int, rng: np.random.Generator) -> AlignBatch:
        c = self.config
        samples = [self.draw(n * self.size + i) for i in range(self.size)]
        pixels = torch.cat([s.pixels(c.resolution, c.mean, c.std) for s in samples])
        return AlignBatch(pixels, self.vocabulary(samples, rng))


class AlignTask(Task):
    """Trains trunk, coarse pyramid level, text encoder and scoring; the rest stays as it is."""

    def __init__(
        self,
        net: Detector,
        make: AlignBatches,
        *,
        held_out: Sequence[AlignBatch] = (),
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        self.module: Detector = net
        self.make, self.held_out = make, held_out
        self.seed, self.workers = seed, workers

    def batches(self, start: int, rank: int, world: int) -> Iterator[AlignBatch]:
        return stream(
            self.make, seed=self.seed, start=start, rank=rank, world=world, workers=self.workers
        )

    def loss(self, module: nn.Module, batch: AlignBatch) -> dict[str, Tensor]:
        logits: Tensor = module(lambda net: self.logits(net, batch))
        losses = naming_losses(logits, batch.naming)
        rates = naming_rates(logits.detach(), batch.naming)
        return {**{k: v.detach() for k, v in losses.items()}, **rates, "loss": losses["loss"]}

    @staticmethod
    def logits(net: Detector, batch: AlignBatch) -> Tensor:
        """(B, N, 1 + K): of nothing (always 0), then of each name."""
        level = net.coarse_level(net.part("trunk")(batch.pixels))
        return compare(net, level.flatten(2).transpose(1, 2), batch.naming.tokens)

    def validate(self, module: nn.Module) -> dict[str, float]:
        if not self.held_out:
            return {}
        device = next(self.module.parameters()).device
        rates = []
        for batch in self.held_out:
            naming = Naming(*(t.to(device) for t in batch.naming))
            here = AlignBatch(batch.pixels.to(device), naming)
            rates.append(naming_rates(self.logits(self.module, here), naming))
        return {k: float(torch.stack([r[k] for r in rates]).mean()) for k in rates[0]}

    def describe(self) -> dict[str, Any]:
        return {
            "batch": self.make.size,
            "seed": self.seed,
            "names": len(self.make.vocabulary.names),
        }
