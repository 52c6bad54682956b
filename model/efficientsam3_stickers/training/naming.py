"""The task before stage 3 of training from scratch: image tokens learn the names of concepts.

Presence and boxes are learned from features that tell concepts apart; from others, the heads learn
nothing for a long time. Released models need no such stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from efficientsam3.config import ModelConfig
from efficientsam3.data.sample import TrainingSample
from efficientsam3.nn.detector import Detector
from efficientsam3.train.batches import to_device
from efficientsam3.train.task import Task

from .token_classification import (
    TokenLabeler,
    TokenLabels,
    name_accuracies,
    name_logits,
    name_losses,
)


class NamingBatch(NamedTuple):
    """Images with names.

    Attributes:
        pixels: (B, 3, R, R) float32, normalized.
        labels: Names of what the images show.
    """

    pixels: Tensor
    labels: TokenLabels


class NamingBatches:
    """Makes batches by number.

    Args:
        config: Configuration of the model.
        draw: Gives the sample of a number, from 0 without end.
        size: Images of a batch.
        names: All phrases that images are about.
        max_names: Names of a batch; those that its images show are always among them.

    Raises:
        DataError: there are no names.
    """

    def __init__(
        self,
        config: ModelConfig,
        draw: Callable[[int], TrainingSample],
        size: int,
        names: Sequence[str],
        max_names: int = 192,
    ) -> None:
        self.config, self.draw, self.size = config, draw, size
        self.labeler = TokenLabeler(config, names, max_names)

    def __call__(self, number: int, rng: np.random.Generator) -> NamingBatch:
        """A batch.

        Args:
            number: Its number, from 0.
            rng: Source of random numbers.
        """
        c = self.config
        samples = [self.draw(number * self.size + i) for i in range(self.size)]
        pixels = torch.cat([s.pixels(c.resolution, c.mean, c.std) for s in samples])
        return NamingBatch(pixels, self.labeler(samples, rng))


class NamingTask(Task):
    """Trains the image encoder, the coarse level of the pyramid, the text encoder and the scoring.

    Args:
        net: The model.
        training: Makes batches.
        held_out: Batches for validation.
        seed: Seed of the batches.
        workers: Processes that make batches.
    """

    def __init__(
        self,
        net: Detector,
        training: NamingBatches,
        *,
        held_out: Sequence[NamingBatch] = (),
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        self.module: Detector = net
        self.training: NamingBatches = training
        self.held_out, self.seed, self.workers = held_out, seed, workers

    def loss(self, module: nn.Module, batch: NamingBatch) -> dict[str, Tensor]:
        """The loss of a batch, its parts, and the accuracies.

        Args:
            module: The model.
            batch: The batch.
        """
        logits = self._logits(batch)
        losses = name_losses(logits, batch.labels)
        accuracies = name_accuracies(logits.detach(), batch.labels)
        return {**{k: v.detach() for k, v in losses.items()}, **accuracies, "loss": losses["loss"]}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Mean accuracies over the held-out batches; nothing without any.

        Args:
            module: The model.
        """
        device = next(self.module.parameters()).device
        accuracies = []
        for batch in self.held_out:
            batch = to_device(batch, device)
            accuracies.append(name_accuracies(self._logits(batch), batch.labels))
        names = accuracies[0] if accuracies else ()
        return {k: float(torch.stack([a[k] for a in accuracies]).mean()) for k in names}

    def describe(self) -> dict[str, Any]:
        """Plain values on which the training depends."""
        return {
            "batch": self.training.size,
            "seed": self.seed,
            "names": len(self.training.labeler.names),
        }

    def _logits(self, batch: NamingBatch) -> Tensor:
        """(B, N, 1 + K): logits of no name (always 0) and of each name."""
        level = self.module.coarse_level(self.module.part("trunk")(batch.pixels))
        return name_logits(self.module, level.flatten(2).transpose(1, 2), batch.labels.tokens)
