"""What the distillation tasks share: a student, a frozen teacher or its saved features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ...data.augment import Augment
from ...data.sample import SampleSource
from ...errors import DataError
from ..batches import Batches, to_device
from ..errors import FeatureFileError
from ..features import FeatureSource
from ..settings import to_plain
from ..task import Task, describe_data


class FeatureBatch(Protocol):
    """A batch of a distillation task."""

    @property
    def size(self) -> int:
        """Number of samples."""
        ...

    @property
    def target(self) -> Tensor | None:
        """Saved features of the teacher, or None."""
        ...


B = TypeVar("B", bound=FeatureBatch)


def feature_shape(teacher: Any, features: FeatureSource | None) -> tuple[int, ...]:
    """The shape of the features of one sample.

    Args:
        teacher: computes them, an ``ImageTeacher`` or ``TextTeacher``; or
        features: holds them.

    Raises:
        DataError: neither is given.
    """
    if features is not None:
        return features.shape
    if teacher is None:
        raise DataError("pass a teacher, or features that one saved")
    shape: tuple[int, ...] = teacher.shape
    return shape


def keys_of(source: SampleSource) -> Iterator[str]:
    """The keys of all samples.

    Args:
        source: a data set.
    """
    return (source.key(i) for i in range(len(source)))


class FeatureTask(Task, Generic[B]):
    """A student learns what its teacher computes at every step, or computed before.

    Args:
        module: the student.
        source: training samples or phrases, by index.
        keys: of all training samples, by which saved features are found.
        held_out: samples or phrases for validation; without a teacher they are not used.
        collate: makes what collates a batch, with saved features or, for None, without.
        settings: a dataclass with ``batch``, ``seed``, ``workers`` and ``validation`` (held-out
            samples).
        teacher: an ``ImageTeacher`` or ``TextTeacher``, or None if features are saved.
        features: the saved features of the training samples, or None.
        augment: changes the training samples; None: they stay as they are.

    Raises:
        DataError: there are no training samples, or samples with saved features are augmented.
        FeatureFileError: saved features are missing.
    """

    training: Batches[B]

    def __init__(
        self,
        module: nn.Module,
        source: Any,
        keys: Iterable[str],
        held_out: Any,
        collate: Callable[[FeatureSource | None], Any],
        settings: Any,
        teacher: Any,
        features: FeatureSource | None,
        augment: Augment | None = None,
    ) -> None:
        if features is not None and augment is not None:
            raise DataError(
                "saved features are of the images as they are: train without augmentation "
                "(augment=None), or let the teacher compute features at every step"
            )
        self.module, self.settings = module, settings
        self.teacher, self.features = teacher, features
        self.seed, self.workers = settings.seed, settings.workers
        if features is not None:
            features.require(keys)
        self.training = Batches(
            source, collate(features), settings.batch, settings.seed, augment=augment
        )
        self.held_out: Batches[B] | None = None
        if held_out is not None and teacher is not None:  # features of these are never saved
            self.held_out = Batches(held_out, collate(None), settings.batch, settings.seed)

    def start(self, device: torch.device) -> None:
        """Move the teacher to the device.

        Args:
            device: where the module is trained.
        """
        if self.teacher is not None:
            self.teacher.to(device)

    @abstractmethod
    def _compute_target(self, batch: B) -> Tensor:
        """The teacher's features of a batch."""

    def _target(self, batch: B) -> Tensor:
        """Saved features of a batch, or what the teacher computes.

        Raises:
            FeatureFileError: there is neither.
        """
        if batch.target is not None:
            return batch.target
        if self.teacher is None:
            raise FeatureFileError("there are no saved features and no teacher for this batch")
        return self._compute_target(batch)

    @abstractmethod
    def _figures(self, module: nn.Module, batch: B) -> Mapping[str, Tensor]:
        """Scalars of a held-out batch, means over its samples."""

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Means of ``_figures`` over the held-out samples; nothing without them.

        Args:
            module: the module that is trained.
        """
        if self.held_out is None:
            return {}
        sums: dict[str, float] = {}
        count = 0
        for batch in self.held_out.once(self.settings.validation):
            count += batch.size
            for name, value in self._figures(module, self._on_device(batch)).items():
                sums[name] = sums.get(name, 0.0) + batch.size * float(value)
        return {name: value / count for name, value in sums.items()}

    def _on_device(self, batch: B) -> B:
        """A batch on the device of the student."""
        return to_device(batch, next(self.module.parameters()).device)

    def describe(self) -> dict[str, Any]:
        """Number of samples, teacher, and the settings that decide the numbers."""
        kept = {
            k: v for k, v in to_plain(self.settings).items() if k not in ("workers", "validation")
        }
        saved = self.teacher is None or self.features is not None
        described = {
            "samples": len(self.training.source),
            "teacher": "saved" if saved else self.teacher.name,
            "augment": repr(self.training.augment),
        }
        return {**described, **kept, **describe_data(self.training.source)}
