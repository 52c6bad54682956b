"""The grounding task (Stage 3): the whole model learns to find what phrases and exemplars name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...data.augment import Augment
from ...data.sample import SampleSource, TrainingSample
from ...errors import DataError
from ...nn.detector import Detector
from ..batches import Batches
from ..losses.grounding import GroundingBatch, GroundingLoss
from ..pictures import concept_sheet
from ..task import Picture, Task, describe_data
from ..validation import score
from .grounding_batches import GroundingCollator

PICTURES = 12
"""Held-out samples that are drawn."""


class GroundingTask(Task):
    """Train a detector on prompts about images.

    Args:
        net: the detector.
        collator: chooses the prompts of images.
        source: training samples with phrases; those without are replaced by others.
        batch: images of a process and step.
        augment: changes photographs for training; None: not at all.
        criterion: the loss; None: SAM3's.
        held_out: samples with masks, for validation and pictures.
        seed: of prompts and of the order of samples.
        workers: processes that make batches.

    Raises:
        DataError: there are no samples, or the held-out ones have no masks.
    """

    def __init__(
        self,
        net: Detector,
        collator: GroundingCollator,
        source: SampleSource,
        *,
        batch: int = 8,
        augment: Augment | None = None,
        criterion: GroundingLoss | None = None,
        held_out: SampleSource | Sequence[TrainingSample] = (),
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        if len(held_out) and held_out[0].masks is None:
            raise DataError(
                f"{held_out[0].key} has no masks; held-out samples are scored by masks: hold out "
                "data with masks, or none with held_out=0 (--held-out 0)"
            )
        self.module: Detector = net
        self.collator, self.criterion = collator, criterion or GroundingLoss()
        self.held_out, self.seed, self.workers = held_out, seed, workers
        self.training: Batches[GroundingBatch] = Batches(
            source, collator, batch, seed, _has_phrases, augment
        )

    def start(self, device: torch.device) -> None:
        """Move the extra losses to the device.

        Args:
            device: where the module is trained.
        """
        for loss in self.criterion.extra:
            loss.to(device)

    def loss(self, module: nn.Module, batch: GroundingBatch) -> Mapping[str, Tensor]:
        """The terms of ``GroundingLoss``.

        Args:
            module: the module that is trained.
            batch: on the module's device.
        """
        return self.criterion(self.module, batch)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """cgF1 and its parts on the held-out samples; nothing without them.

        Args:
            module: the module that is trained.
        """
        if not len(self.held_out):
            return {}
        return score(self.module, self.collator.config, self.held_out)

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        """Predictions on held-out samples over the truth.

        Args:
            module: the module that is trained.
        """
        samples = [self.held_out[i] for i in range(min(PICTURES, len(self.held_out)))]
        if not samples:
            return {}
        return {"held_out": concept_sheet(self.module, self.collator.config, samples)}

    def describe(self) -> dict[str, Any]:
        """Batch size, seed, prompts, loss, and the identity of the data's files."""
        return {
            "batch": self.training.size,
            "seed": self.seed,
            "augment": repr(self.training.augment),
            "prompts": repr(self.collator.settings),
            "criterion": repr(self.criterion),
            "extra": [loss.describe() for loss in self.criterion.extra],
            **describe_data(self.training.source),
        }


def _has_phrases(sample: TrainingSample) -> bool:
    return bool(sample.queries)
