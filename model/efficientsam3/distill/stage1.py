"""What distillation of images and of text share: targets that a teacher gives, now or before."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from .data.batches import Batches
from .errors import DataError, FeatureFileError
from .feature_source import FeatureSource
from .stream import stream
from .task import Task


class Teacher(Protocol):
    """An encoder that is only asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def to(self, device: torch.device) -> Any: ...


class Targeted(Protocol):
    """A batch with what was saved of it, or None."""

    @property
    def target(self) -> Tensor | None: ...


class Numbers(Protocol):
    """Settings of a stage 1 task: how many to a step, by how many processes, in which order."""

    @property
    def workers(self) -> int: ...

    @property
    def seed(self) -> int: ...


Item = TypeVar("Item")
Batch = TypeVar("Batch", bound=Targeted)
Asked = TypeVar("Asked", bound=Teacher)


def shape_of(teacher: Teacher | None, features: FeatureSource | None) -> tuple[int, ...]:
    """Of one target.

    Raises:
        DataError: neither is given.
    """
    if features is not None:
        return features.shape
    if teacher is None:
        raise DataError("pass a teacher, or features that one saved")
    return teacher.shape


class FeatureTask(Task, Generic[Item, Batch, Asked]):
    """A student learns what its teacher computes at every step, or computed once."""

    def __init__(
        self,
        module: nn.Module,
        teacher: Asked | None,
        made: Batches[Item, Batch],
        held_out: Batches[Item, Batch] | None,
        numbers: Numbers,
    ) -> None:
        self.module = module
        self.teacher, self._numbers = teacher, numbers
        self._made, self._held_out = made, held_out

    def batches(self, start: int, rank: int, world: int) -> Iterator[Batch]:
        """See ``Task``."""
        n = self._numbers
        return stream(
            self._made, seed=n.seed, start=start, rank=rank, world=world, workers=n.workers
        )

    def start(self, device: torch.device) -> None:
        """See ``Task``."""
        if self.teacher is not None:
            self.teacher.to(device)

    @abstractmethod
    def _ask(self, teacher: Asked, batch: Batch) -> Tensor:
        """What the teacher says of a batch."""

    def _target(self, batch: Batch) -> Tensor:
        if batch.target is not None:
            return batch.target
        if self.teacher is None:
            raise FeatureFileError("there are no saved features and no teacher for this batch")
        return self._ask(self.teacher, batch)
