"""What the loop trains: a module, its batches and its loss. Each stage is one such task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .optimiser import Group, freeze, parameter_groups
from .settings import LoopSettings

Picture = npt.NDArray[np.uint8]


class Task(ABC):
    """A stage's work, as the loop sees it.

    ``module`` is all that is trained and saved; a frozen teacher lives beside it, in the task.
    The loop moves the module to its device, and knows nothing else of what is in it.
    """

    module: nn.Module

    @abstractmethod
    def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
        """Batches without end, from number ``start`` of this rank on.

        Batch n is a function of the task's seed, n, rank and world alone, so that a resumed
        run sees what it would have seen. ``stream.stream`` makes such batches ahead of time.
        """

    @abstractmethod
    def loss(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """The scalar "loss", which is minimised, and others to log, by any names.

        Runs under the precision of the settings. A part that a batch lacks is left out.
        """

    def parameter_groups(self, settings: LoopSettings) -> list[Group]:
        """What the optimiser gets: with decay, learning-rate factors and layer decay applied.

        The loop sets each group's "lr" to the schedule's times the group's "scale".
        """
        return parameter_groups(self.module, settings)

    def freeze(self, settings: LoopSettings) -> None:
        """Leave only ``settings.parts`` to train; called once, before all else."""
        freeze(self.module, settings.parts)

    def start(self, device: torch.device) -> None:
        """Called once the module is on its device: bring teachers there."""
        return

    def train_mode(self) -> None:
        """Training mode for what trains; norms and dropout of frozen parts stay as in use."""
        self.module.train()
        for part in self.module.modules():
            weights = list(part.parameters())
            if weights and not any(w.requires_grad for w in weights):
                part.eval()

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Figures on held-out data; runs without gradients, in evaluation mode, on rank 0."""
        return {}

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        """Name -> (H, W, 3) uint8 RGB: something to look at while it learns."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Plain values that decide the numbers (data, batch size): checked at resume."""
        return {}
