"""What the loop trains: a module, its batches and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..data.clip import ClipSource
from ..data.sample import SampleSource, source_identity
from .loader import MakeBatch, stream
from .optim import ParameterGroup, freeze_except, parameter_groups
from .settings import LoopSettings

Picture = npt.NDArray[np.uint8]


def describe_data(source: SampleSource | ClipSource) -> dict[str, Any]:
    """The identity of a data set's files, for ``Task.describe``.

    Args:
        source: The data set.

    Returns:
        ``{"data": ...}``, see ``io.identity``; empty for a data set that is not made of files.
    """
    found = source_identity(source)
    return {} if found is None else {"data": found}


class Task(ABC):
    """What a stage trains, as the loop sees it.

    The loop moves the module to its device, and knows nothing else of what is in it. A frozen
    teacher belongs to the task, not to the module.

    Attributes:
        module: Everything that is trained and saved.
        training: Makes the batch of a number. All randomness in it comes from the generator that it
            gets. Picklable if there are workers.
        seed: Seed of the batches.
        workers: Processes that make batches ahead; 0: none.
    """

    module: nn.Module
    training: MakeBatch[Any]
    seed: int = 0
    workers: int = 0

    def batches(self, start: int, rank: int, world: int) -> Iterator[Any]:
        """Batches without end.

        Each is a function of the task's seed, its number, rank and world alone, so that a resumed
        run sees the batches that it would have seen.

        Args:
            start: Batches of this rank to skip.
            rank: Number of this process, from 0.
            world: Number of processes.
        """
        return stream(
            self.training,
            seed=self.seed,
            start=start,
            rank=rank,
            world=world,
            workers=self.workers,
        )

    @abstractmethod
    def loss(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """The loss of a batch; it runs in the precision of the settings.

        Args:
            module: The task's module.
            batch: What ``batches`` yields.

        Returns:
            The scalar "loss", which is minimised, and other scalars to log. One that a batch has
            no value of is left out.
        """

    def parameter_groups(self, settings: LoopSettings) -> list[ParameterGroup]:
        """The parameter groups of the optimizer.

        Args:
            settings: Settings of the loop.

        Returns:
            Groups with weight decay and "scale". The loop sets each group's "lr" to the schedule's
            learning rate times its "scale".
        """
        return parameter_groups(self.module, settings)

    def freeze(self, settings: LoopSettings) -> None:
        """Stop the gradients of everything but ``settings.parts``; the first call of the loop.

        Args:
            settings: Settings of the loop.
        """
        freeze_except(self.module, settings.parts)

    def start(self, device: torch.device) -> None:
        """Called once the module is on its device, to move teachers there.

        Args:
            device: Device of the module.
        """
        return

    def train_mode(self) -> None:
        """Put what trains into training mode; norms and dropout of frozen parts stay as in use."""
        self.module.train()
        for part in self.module.modules():
            weights = list(part.parameters())
            if weights and not any(w.requires_grad for w in weights):
                part.eval()

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Metrics on held-out data; without gradients, in evaluation mode, on the first rank.

        Args:
            module: The task's module, with averaged weights if the run averages them.
        """
        return {}

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        """Pictures that show what the module has learned, run as ``validate``.

        Args:
            module: The task's module.

        Returns:
            (H, W, 3) uint8 RGB by name.
        """
        return {}

    def result(self) -> Mapping[str, Tensor]:
        """What the loop writes to ``weights.safetensors`` at the end: the module's whole state."""
        return self.module.state_dict()

    def describe(self) -> dict[str, Any]:
        """Plain values that decide the numbers (data, batch size), compared when a run resumes."""
        return {}
