"""Pictures of a model as it learns: predicted masks over true ones, and feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..config import ModelConfig
from ..data.sample import TrainingSample
from ..nn.detector import Detector
from ..viz.contact_sheet import Caption, Cell, draw_grid
from ..viz.mask_comparison import paint_mask_errors
from .task import Picture
from .validation import predict

SIDE = 252
"""Pixels a side of a cell with a caption."""
SMALL = 160
"""Pixels a side of a cell without a caption."""


@torch.no_grad()
def concept_sheet(
    net: Detector, config: ModelConfig, samples: Sequence[TrainingSample], columns: int = 6
) -> Picture:
    """Draw what the model finds of one present and one absent phrase of each sample.

    Colors are those of ``viz.mask_comparison``. The caption has the phrase, with an x before it if
    it is absent, the presence and the best score.

    Args:
        net: the model, on its device.
        config: of the model.
        samples: with masks.
        columns: cells of a row.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    cells: list[Cell | Picture] = []
    for number, sample in enumerate(samples):
        present = [q for q in sample.queries if q.objects]
        absent = [q for q in sample.queries if not q.objects]
        queries = [pool[number % len(pool)] for pool in (present, absent) if pool]
        if not queries:
            continue
        predictions = predict(net, config, sample, queries)
        image = np.asarray(Image.fromarray(sample.image).resize((SIDE, SIDE)))
        for row, query in enumerate(queries):
            masks, _ = predictions.masks(net, row)
            true = sample.masks_at(4 * config.grid, query.objects)
            painted = paint_mask_errors(image, _union(masks, 0.0, SIDE), _union(true, 0.5, SIDE))
            presence = float(predictions.answer.presence[row].sigmoid())
            sign = "" if query.objects else "x "
            best = float(predictions.scores[row].max())
            caption = Caption(f"{sign}{query.phrase}", f"{presence:.2f} {best:.2f}")
            cells.append(Cell(painted, [caption]))
    return grid(cells, columns)


def mask_cells(pixels: Tensor, found: Tensor, truth: Tensor) -> list[Picture]:
    """Draw masks over images.

    Args:
        pixels: (N, 3, R, R) of any range.
        found: (N, h, w) bool, predicted masks.
        truth: (N, h, w) bool, the masks that are wanted.

    Returns:
        N pictures (160, 160, 3) uint8 RGB.
    """
    low, high = pixels.aminmax()
    images = _resized((pixels.float() - low) / (high - low).clamp(min=1e-6), "bilinear")
    areas = ([_union(m[None].float(), 0.5, SMALL) for m in masks] for masks in (found, truth))
    return [paint_mask_errors(*cell) for cell in zip(images, *areas, strict=True)]


def feature_cells(pixels: Tensor, teacher: Tensor, student: Tensor) -> list[Picture]:
    """Draw images beside the features of teacher and student.

    Both maps are shown by the first three principal components of the teacher's.

    Args:
        pixels: (N, 3, R, R) of any range.
        teacher: (N, C, h, w).
        student: (N, C, h, w).

    Returns:
        3 N pictures (160, 160, 3) uint8 RGB: image, teacher, student of each.
    """
    flat = teacher.float().movedim(1, -1).flatten(0, -2)
    mean = flat.mean(0)
    _, _, axes = torch.pca_lowrank(flat - mean, min(3, *flat.shape), center=False)
    shown = (flat - mean) @ axes
    low, high = shown.quantile(0.02, 0), shown.quantile(0.98, 0)

    def components(maps: Tensor) -> npt.NDArray[np.uint8]:
        parts = (maps.float().movedim(1, -1) - mean) @ axes
        parts = ((parts - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        return _resized(parts.movedim(-1, 1), "nearest")

    darkest, brightest = pixels.aminmax()
    scaled = (pixels.float() - darkest) / (brightest - darkest).clamp(min=1e-6)
    columns = [_resized(scaled, "bilinear"), components(teacher), components(student)]
    return [cell for row in zip(*columns, strict=True) for cell in row]


def grid(cells: Sequence[Cell | Picture], columns: int) -> Picture:
    """Put pictures of one size in rows.

    Args:
        cells: (h, w, 3) uint8 RGB, or cells with captions.
        columns: pictures of a row.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    captioned = [cell if isinstance(cell, Cell) else Cell(cell) for cell in cells]
    return np.asarray(draw_grid(captioned, columns=columns))


def _resized(maps: Tensor, mode: str) -> npt.NDArray[np.uint8]:
    """(N, up to 3, h, w) in [0, 1] -> (N, SMALL, SMALL, 3) uint8."""
    maps = F.interpolate(maps, (SMALL, SMALL), mode=mode)
    maps = F.pad(maps, (0, 0, 0, 0, 0, 3 - maps.shape[1]))
    return (maps.movedim(1, -1) * 255).round().to(torch.uint8).cpu().numpy()


def _union(masks: Tensor, level: float, side: int) -> npt.NDArray[np.bool_]:
    """Where any of (N, h, w) masks is above a level: (side, side) bool."""
    if not len(masks):
        return np.zeros((side, side), bool)
    large = F.interpolate(masks[None], (side, side), mode="bilinear")[0]
    return np.asarray((large.amax(0) > level).cpu())
