"""Distillation of an image encoder (Stage 1): the student's map becomes like its teacher's."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import ModelConfig
from ...data.augment import Augment
from ...data.sample import SampleSource, TrainingSample
from ...nn.neck import enlarge
from ..errors import FeatureFileError
from ..features import FeatureSource
from ..pictures import feature_cells, grid
from ..settings import check
from ..task import Picture
from ..teachers import SAM, ImageTeacher
from .feature_task import FeatureTask, feature_shape, keys_of

MSE_FORMS = ("mean", "sum")


def feature_losses(
    student: Tensor, teacher: Tensor, valid: Tensor | None = None, mse: str = "mean"
) -> tuple[Tensor, Tensor]:
    """How far a student's map is from its teacher's.

    Args:
        student: (B, C, h, w).
        teacher: (B, C, h, w).
        valid: (B, h, w) bool, the cells that count; None: all.
        mse: "mean" over cells and channels; or "sum" over channels and mean over cells, as upstream
            has it. With a thousand channels the sum leaves the cosine no weight.

    Returns:
        Two scalars: the squared error, and 1 - cosine similarity.
    """
    student, teacher = student.float(), teacher.float()
    squared = (student - teacher).square()
    error = squared.mean(1) if mse == "mean" else squared.sum(1)
    distance = 1 - F.cosine_similarity(student, teacher, dim=1)
    if valid is None:
        return error.mean(), distance.mean()
    weight = valid.float()
    count = weight.sum().clamp(min=1)
    return (error * weight).sum() / count, (distance * weight).sum() / count


class MapStudent(nn.Module):
    """An image encoder whose map is brought to the grid and width of its teacher's.

    Args:
        trunk: the image encoder; its map may be smaller than the teacher's.
        grid: cells a side of the teacher's map.
        width: channels of the encoder's map.
        teacher_width: channels of the teacher's map. If it differs, a linear map between the two is
            learned, which is no part of the resulting model.
    """

    def __init__(self, trunk: nn.Module, grid: int, width: int, teacher_width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.grid = grid
        self.projection: nn.Conv2d | None = None
        if width != teacher_width:
            self.projection = nn.Conv2d(width, teacher_width, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the map.

        Args:
            pixels: (B, 3, R, R) float32, normalized.

        Returns:
            (B, teacher_width, grid, grid).
        """
        x = self.trunk(pixels)
        if self.projection is not None:
            x = self.projection(x)  # before enlarging it costs less and gives the same
        return enlarge(x, self.grid)


@dataclass(frozen=True)
class ImageSettings:
    """Numbers of this task, beside the loop's.

    Attributes:
        batch: Images of a process and step.
        workers: Processes that read images.
        seed: Of the order of images.
        mse: Form of the squared error, "mean" or "sum", see ``feature_losses``.
        mse_weight: Weight of the squared error.
        cosine_weight: Weight of 1 - cosine similarity.
        validation: Held-out images that are compared.

    Raises:
        SettingsError: a value is outside its range.
    """

    batch: int = 16
    workers: int = 0
    seed: int = 0
    mse: str = "mean"
    mse_weight: float = 1.0
    cosine_weight: float = 1.0
    validation: int = 64

    def __post_init__(self) -> None:
        check(self, "mse", self.mse in MSE_FORMS, f"one of {', '.join(MSE_FORMS)}")
        check(self, "batch", self.batch >= 1, "at least 1")


class ImageBatch(NamedTuple):
    """B images as the student reads them.

    Attributes:
        keys: of the samples.
        pixels: (B, 3, R, R) float32, normalized.
        sizes: height and width of the original images.
        target: (B, C, grid, grid) float16 saved features, or None.
        valid: (B, grid, grid) bool, the cells that count, or None if all do.
    """

    keys: list[str]
    pixels: Tensor
    sizes: list[tuple[int, int]]
    target: Tensor | None = None
    valid: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.keys)


@dataclass(frozen=True)
class ImageCollator:
    """Make an ``ImageBatch`` of samples.

    Attributes:
        config: Of the student; resolution, grid and normalization are used.
        features: The teacher's saved maps, by the keys of samples.
        padded: Prepare images as upstream did when it saved features: the longest side is the
            resolution, zeros right and below, ImageNet's mean and deviation. Else images are
            squashed, as SAM3 does.
    """

    config: ModelConfig
    features: FeatureSource | None = None
    padded: bool = False

    def __call__(self, samples: Iterable[TrainingSample], rng: np.random.Generator) -> ImageBatch:
        """Nothing is random here; samples are read one after the other."""
        keys, sizes, pixels, valid = [], [], [], []
        c = self.config
        for sample in samples:
            keys.append(sample.key)
            sizes.append(sample.size)
            if self.padded:
                padded, cells = pad_as_upstream(sample, c.resolution, c.grid)
                pixels.append(padded)
                valid.append(cells)
            else:
                pixels.append(sample.pixels(c.resolution, c.mean, c.std))
        target = None
        if self.features is not None:
            target = torch.stack([torch.from_numpy(np.array(self.features[k])) for k in keys])
        return ImageBatch(
            keys, torch.cat(pixels), sizes, target, torch.stack(valid) if valid else None
        )


def pad_as_upstream(sample: TrainingSample, resolution: int, grid: int) -> tuple[Tensor, Tensor]:
    """Prepare an image as upstream's stage 1 does (``ResizeLongestSide`` and padding).

    Args:
        sample: the image.
        resolution: pixels of the longest side.
        grid: cells a side of the teacher's map.

    Returns:
        (1, 3, resolution, resolution) float32 pixels; and (grid, grid) bool, the cells that show
        the image.
    """
    height, width = sample.size
    scale = resolution / max(height, width)
    rows, columns = int(height * scale + 0.5), int(width * scale + 0.5)
    rgb = torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1)[None].float()
    sized = F.interpolate(rgb, (rows, columns), mode="bilinear", antialias=True)
    mean, std = torch.tensor(SAM.mean).view(3, 1, 1), torch.tensor(SAM.std).view(3, 1, 1)
    pad = (0, resolution - columns, 0, resolution - rows)
    pixels = F.pad((sized / 255 - mean) / std, pad)
    filled = F.pad(torch.ones(1, 1, rows, columns), pad)
    cells = F.interpolate(filled, (grid, grid), mode="bilinear", align_corners=False)
    return pixels, cells[0, 0] > 0.5


class ImageDistillation(FeatureTask[ImageBatch]):
    """Train a student's image encoder to compute its teacher's maps.

    Args:
        trunk: the student's image encoder.
        config: of the student's whole model.
        source: images.
        teacher: computes targets at every step, and those of held-out images.
        features: the teacher's saved maps of the images; None: ``teacher`` computes them.
        settings: numbers of the task.
        held_out: images for validation; without a teacher they are not used.
        padded: see ``ImageCollator``.
        augment: changes photographs for training; None: not at all.

    Raises:
        DataError: there are no images, or neither teacher nor features.
        FeatureFileError: features are missing, or of another grid.
    """

    def __init__(
        self,
        trunk: nn.Module,
        config: ModelConfig,
        source: SampleSource,
        teacher: ImageTeacher | None = None,
        features: FeatureSource | None = None,
        settings: ImageSettings | None = None,
        held_out: SampleSource | None = None,
        *,
        padded: bool = False,
        augment: Augment | None = None,
    ) -> None:
        s = settings or ImageSettings()
        shape = feature_shape(teacher, features)
        if len(shape) != 3 or shape[1:] != (config.grid, config.grid):
            raise FeatureFileError(
                f"the teacher's maps are {shape}, but this student's level of scale 1 has "
                f"{config.grid} x {config.grid} cells: save them for a grid of {config.grid}"
            )
        student = MapStudent(trunk, config.grid, config.trunk_width, shape[0])
        collate = functools.partial(ImageCollator, config, padded=padded)
        common = held_out, collate, s, teacher, features, augment
        super().__init__(student, source, keys_of(source), *common)

    def _compute_target(self, batch: ImageBatch) -> Tensor:
        """The teacher's maps: (B, C, grid, grid)."""
        target: Tensor = self.teacher(batch.pixels, batch.sizes)
        return target

    def loss(self, module: nn.Module, batch: ImageBatch) -> Mapping[str, Tensor]:
        """Scalar "loss", and its parts "mse" and "cosine" (1 - similarity).

        Args:
            module: the module that is trained.
            batch: on the module's device.
        """
        s = self.settings
        figures = self._figures(module, batch)
        total = s.mse_weight * figures["mse"] + s.cosine_weight * figures["cosine"]
        return {"loss": total, **{k: v.detach() for k, v in figures.items()}}

    def _figures(self, module: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
        """Scalars "mse" and "cosine" (1 - similarity)."""
        student = module(batch.pixels)
        target = self._target(batch).to(student.device)
        error, distance = feature_losses(student, target, batch.valid, self.settings.mse)
        return {"mse": error, "cosine": distance}

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        """Held-out images beside the maps of teacher and student.

        Args:
            module: the module that is trained.
        """
        if self.held_out is None:
            return {}
        batch = self._on_device(next(self.held_out.once(4)))
        cells = feature_cells(batch.pixels, self._target(batch), module(batch.pixels))
        return {"features": grid(cells, 3)}
