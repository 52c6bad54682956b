"""Stage 1, images: a student's map becomes like its teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..build import ModelConfig
from ..nn.neck import enlarge
from ..types import Array
from .data.batches import Batches
from .data.sample import SampleSource, TrainingSample
from .errors import DataError, FeatureFileError
from .feature_source import FeatureSource
from .stage1 import FeatureTask, shape_of
from .task import Picture
from .teachers import ImageTeacher

MSE_FORMS = ("mean", "sum")


def feature_losses(
    student: Tensor, teacher: Tensor, valid: Tensor | None = None, mse: str = "mean"
) -> tuple[Tensor, Tensor]:
    """How far a student's map is from its teacher's: (squared error, 1 - cosine).

    Args:
        student, teacher: (B, C, h, w). valid: (B, h, w) bool, the cells that count.
        mse: "mean" over cells and channels, or "sum" over channels, mean over cells. With the
            sum, as upstream has it, a thousand channels leave the cosine no weight.
    """
    student, teacher = student.float(), teacher.float()
    squared = (student - teacher).square()
    error = squared.mean(1) if mse == "mean" else squared.sum(1)
    apart = 1 - F.cosine_similarity(student, teacher, dim=1)
    if valid is None:
        return error.mean(), apart.mean()
    weight = valid.float()
    count = weight.sum().clamp(min=1)
    return (error * weight).sum() / count, (apart * weight).sum() / count


class MapStudent(nn.Module):
    """(B, 3, R, R) pixels -> (B, C, grid, grid), on the teacher's grid and in its width.

    Args:
        trunk: the student's image encoder; its map may be smaller. grid: cells a side.
        width, teacher_width: channels of the two; where they differ, a linear map that is
            learned along and not kept lies between them.
    """

    def __init__(self, trunk: nn.Module, grid: int, width: int, teacher_width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.grid = grid
        self.projection: nn.Conv2d | None = None
        if width != teacher_width:
            self.projection = nn.Conv2d(width, teacher_width, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.trunk(pixels)
        if self.projection is not None:
            x = self.projection(x)  # commutes with enlarging, and costs less before
        return enlarge(x, self.grid)


@dataclass(frozen=True)
class ImageSettings:
    """Numbers of this stage, beside the loop's.

    Args:
        batch: images a rank and step. workers: processes that read images ahead.
        seed: of the order of samples.
        mse: form of the squared error, see ``feature_losses``.
        mse_weight, cosine_weight: of the two terms.
        validation: images of the held-out set that are looked at.
    """

    batch: int = 16
    workers: int = 0
    seed: int = 0
    mse: str = "mean"
    mse_weight: float = 1.0
    cosine_weight: float = 1.0
    validation: int = 64

    def __post_init__(self) -> None:
        if self.mse not in MSE_FORMS:
            raise DataError(f"mse is {self.mse!r}; known: {', '.join(MSE_FORMS)}")


class Shown(NamedTuple):
    """One image as the model reads it. pixels: (1, 3, R, R). size: of the original."""

    key: str
    pixels: Tensor
    size: tuple[int, int]
    target: Tensor | None
    valid: Tensor | None


class ImageBatch(NamedTuple):
    """pixels: (B, 3, R, R). target: (B, C, grid, grid) float16 saved features, or None.

    valid: (B, grid, grid) bool, or None where the whole image counts. sizes: of the originals.
    """

    keys: list[str]
    pixels: Tensor
    sizes: list[tuple[int, int]]
    target: Tensor | None
    valid: Tensor | None


@dataclass(frozen=True)
class ShowImage:
    """Makes a sample what the model reads, with its saved target.

    Args:
        padded: prepare it as upstream did: longest side R, zeros right and below, ImageNet's
            mean and deviation. Only for features that upstream saved; SAM3 squashes.
    """

    resolution: int
    mean: float
    std: float
    grid: int
    features: FeatureSource | None = None
    padded: bool = False

    def __call__(self, sample: TrainingSample, random: np.random.Generator) -> Shown:
        target = None
        if self.features is not None:
            target = torch.from_numpy(np.array(self.features[sample.key]))
        if self.padded:
            pixels, valid = pad_as_upstream(sample, self.resolution, self.grid)
            return Shown(sample.key, pixels, sample.size, target, valid)
        pixels = sample.pixels(self.resolution, self.mean, self.std)
        return Shown(sample.key, pixels, sample.size, target, None)


def collate_images(items: list[Shown]) -> ImageBatch:
    """Items -> a batch."""

    def stacked(values: list[Tensor | None]) -> Tensor | None:
        there = [v for v in values if v is not None]
        return torch.stack(there) if there else None

    return ImageBatch(
        [i.key for i in items],
        torch.cat([i.pixels for i in items]),
        [i.size for i in items],
        stacked([i.target for i in items]),
        stacked([i.valid for i in items]),
    )


def pad_as_upstream(sample: TrainingSample, resolution: int, grid: int) -> tuple[Tensor, Tensor]:
    """The pixels that upstream's saved features were computed from, and the cells they fill.

    Returns: (1, 3, R, R) float32; (grid, grid) bool.
    """
    from .teachers import SAM

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


class ImageDistillation(FeatureTask[Shown, ImageBatch, ImageTeacher]):
    """Train a student's image encoder to give its teacher's maps.

    Args:
        trunk: the student's image encoder. config: of the student's whole model.
        source: images. teacher: computes targets at every step; or
        features: holds them. One of the two.
        held_out: images for validation.
        padded: see ``ShowImage``.

    Raises:
        DataError, FeatureFileError: no images, missing features, another grid.
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
    ) -> None:
        s = self.settings = settings or ImageSettings()
        self.features = features
        shape = shape_of(teacher, features)
        if len(shape) != 3 or shape[1:] != (config.grid, config.grid):
            raise FeatureFileError(
                f"the teacher's maps are {shape}, but this student's level of scale 1 has "
                f"{config.grid} x {config.grid} cells: save them for a grid of {config.grid}"
            )
        if features is not None:
            features.require(source.key(i) for i in range(len(source)))
        numbers = config.resolution, config.mean, config.std, config.grid
        shown = ShowImage(*numbers, features, padded)
        made = Batches(source, shown, collate_images, s.batch, s.seed)
        # Nobody saves features of held-out images: there the teacher answers, if it can.
        asked: Batches[Shown, ImageBatch] | None = None
        if held_out is not None and teacher is not None:
            shown = ShowImage(*numbers, None, padded)
            asked = Batches(held_out, shown, collate_images, s.batch, s.seed)
        student = MapStudent(trunk, config.grid, config.trunk_width, shape[0])
        super().__init__(student, teacher, made, asked, s)

    def _ask(self, teacher: ImageTeacher, batch: ImageBatch) -> Tensor:
        target: Tensor = teacher(batch.pixels, batch.sizes)
        return target

    def loss(self, module: nn.Module, batch: ImageBatch) -> Mapping[str, Tensor]:
        """See ``Task``: "loss", "mse", "cosine" (1 - similarity)."""
        s = self.settings
        student = module(batch.pixels)
        error, apart = feature_losses(student, self._target(batch), batch.valid, s.mse)
        total = s.mse_weight * error + s.cosine_weight * apart
        return {"loss": total, "mse": error.detach(), "cosine": apart.detach()}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Mean squared error and 1 - cosine on held-out images."""
        if self._held_out is None:
            return {}
        sums, count = np.zeros(2), 0
        device = next(module.parameters()).device
        for batch in self._held_out.once(self.settings.validation):
            student = module(batch.pixels.to(device))
            losses = feature_losses(student, self._target(batch).to(device))
            sums += len(batch.keys) * np.array([float(v) for v in losses])
            count += len(batch.keys)
        return {"mse": float(sums[0] / count), "cosine": float(sums[1] / count)}

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        """Held-out images beside the first three principal components of both maps."""
        if self._held_out is None:
            return {}
        device = next(module.parameters()).device
        batch = next(self._held_out.once(4))
        pixels = batch.pixels.to(device)
        teacher = self._target(batch).to(device)
        return {"features": compare_maps(batch.pixels, teacher, module(pixels))}

    def describe(self) -> dict[str, Any]:
        """See ``Task``."""
        teacher = self.teacher.name if self.features is None and self.teacher else "saved"
        s = self.settings
        return {
            "samples": len(self._made.source),
            "batch": s.batch,
            "seed": s.seed,
            "teacher": teacher,
            "mse": s.mse,
            "weights": [s.mse_weight, s.cosine_weight],
        }


def compare_maps(pixels: Tensor, teacher: Tensor, student: Tensor, side: int = 160) -> Picture:
    """Rows of image, teacher's map, student's map -> (rows * side, 3 * side, 3) uint8.

    Both maps are shown by the teacher's first three principal components.
    """
    flat = teacher.float().movedim(1, -1).flatten(0, -2)
    mean = flat.mean(0)
    _, _, axes = torch.pca_lowrank(flat - mean, min(3, *flat.shape), center=False)
    shown = (flat - mean) @ axes
    low, high = shown.quantile(0.02, 0), shown.quantile(0.98, 0)

    def colours(maps: Tensor) -> Array:
        parts = (maps.float().movedim(1, -1) - mean) @ axes
        parts = ((parts - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        return _large(parts.movedim(-1, 1), side, "nearest")

    flattest, brightest = pixels.aminmax()
    image = (pixels.float() - flattest) / (brightest - flattest).clamp(min=1e-6)
    columns = [_large(image, side, "bilinear"), colours(teacher), colours(student)]
    rows: Picture = np.concatenate(np.concatenate(columns, 2), 0)
    return rows


def _large(maps: Tensor, side: int, mode: str) -> Array:
    """(B, up to 3, h, w) in [0, 1] -> (B, side, side, 3) uint8."""
    maps = F.interpolate(maps, (side, side), mode=mode)
    maps = F.pad(maps, (0, 0, 0, 0, 0, 3 - maps.shape[1]))
    return (maps.movedim(1, -1) * 255).round().to(torch.uint8).cpu().numpy()
