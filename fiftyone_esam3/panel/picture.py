"""What the panel draws: the image, the shapes of instances and labels, and which of them overlap.

The browser draws. It gets the image once, and each shape as run lengths on a coarse grid, so that
the threshold, the pointer and the choice of instances need no request.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiftyone.core.labels as fol
import numpy as np
import numpy.typing as npt
from PIL import Image

from efficientsam3.io.images import read_rgb
from efficientsam3.io.rle import encode_cut
from efficientsam3.masks.overlap import box_iou, mask_iou
from efficientsam3.types import Instances, LogitPatch
from efficientsam3.viz.overlay import instance_colors

LONGEST_SIDE = 1600
"""Pixels of the longer side of the image in the browser. Smaller images keep their size."""

GRID_SIDE = 768
"""Cells of the longer side of the grid of masks."""

Size = tuple[int, int]
Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Picture:
    """An image as the browser gets it.

    Attributes:
        key: the file and its version.
        size: (height, width) of the image.
        source: a JPEG as the address of an ``<img>``.
    """

    key: str
    size: Size
    source: str

    @classmethod
    def read(cls, path: str) -> Picture:
        """Read the file of an image.

        Args:
            path: the path.

        Raises:
            ImageError: it cannot be read.
        """
        key = file_key(path)
        pixels = read_rgb(path).permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels)
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BILINEAR)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=88)
        code = base64.b64encode(file.getvalue()).decode("ascii")
        return cls(key, (pixels.shape[0], pixels.shape[1]), f"data:image/jpeg;base64,{code}")


def file_key(path: str) -> str:
    """The path of a file and the time of its last change.

    Args:
        path: the path.
    """
    try:
        return f"{path}:{Path(path).stat().st_mtime_ns}"
    except OSError:
        return path


@dataclass(frozen=True)
class Shape:
    """A mask or a box on the grid.

    Attributes:
        label: the class.
        box: (x0, y0, x1, y1) in cells of the grid.
        pixels: (h, w) bool, the mask in its box; None for a box.
        score: in [0, 1], or None.
        color: RGB, or None.
    """

    label: str
    box: tuple[float, float, float, float]
    pixels: Bits | None = None
    score: float | None = None
    color: tuple[int, int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """The shape as the browser reads it: the runs begin with cells that are not set."""
        out: dict[str, Any] = {
            "label": self.label,
            "box": self.box,
            "score": self.score,
            "color": self.color,
        }
        if self.pixels is not None:
            flat = self.pixels.ravel()
            edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
            runs = np.diff(np.r_[0, edges, flat.size])
            first = [0] if flat[:1].any() else []
            out["runs"] = " ".join(map(str, [*first, *runs.tolist()]))
        return out


class Shapes:
    """The shapes of one set of instances or labels, made once.

    Args:
        key: tells this set from others.
        shapes: the shapes.
        size: (height, width) of the image.
    """

    def __init__(self, key: str, shapes: Sequence[Shape], size: Size) -> None:
        self.key, self.shapes, self.grid = key, list(shapes), grid_size(size)

    @classmethod
    def of_instances(cls, key: str, found: Instances) -> Shapes:
        """The shapes of instances.

        Args:
            key: tells these instances from others.
            found: the instances.
        """
        grid = grid_size(found.size)
        shapes = []
        for i, color in enumerate(instance_colors(found)):
            label, score = found.labels[i], float(found.scores[i])
            if found.patches is None:
                at = _scaled(found.boxes[i].tolist(), found.size, grid)
                shapes.append(Shape(label, at, None, score, color))
                continue
            patch = found.patches[i]
            pixels, box = patch.crop(grid)  # a LogitPatch can be cropped at any size
            if not isinstance(patch, LogitPatch):
                pixels, box = _fit(pixels, _scaled(box, found.size, grid), grid)
            shapes.append(Shape(label, box, pixels, score, color))
        return cls(key, shapes, found.size)

    @classmethod
    def of_labels(cls, key: str, labels: Any, size: Size) -> Shapes:
        """The shapes of the labels that a field of a sample holds.

        Args:
            key: tells these labels from others.
            labels: ``Detections``, or another value, which has no shapes.
            size: (height, width) of the image.
        """
        grid = grid_size(size)
        shapes = []
        for one in labels.detections if isinstance(labels, fol.Detections) else ():
            x, y, w, h = one.bounding_box
            box = (x * grid[1], y * grid[0], (x + w) * grid[1], (y + h) * grid[0])
            mask = one.get_mask() if one.has_mask else None
            if mask is None or not mask.size:
                shapes.append(Shape(one.label or "", box))
            else:
                pixels, at = _fit(np.asarray(mask) > 0, box, grid)
                shapes.append(Shape(one.label or "", at, pixels))
        return cls(key, shapes, size)

    def overlap(self, others: Shapes) -> list[float]:
        """The largest IoU of each shape with another set, of masks where both have one.

        Args:
            others: the other shapes, on the same grid.
        """
        if not self.shapes or not others.shapes:
            return [0.0] * len(self.shapes)
        ours, theirs = (np.array([shape.box for shape in of.shapes]) for of in (self, others))
        out = box_iou(ours, theirs)
        rows, columns = self._masks(out.any(1)), others._masks(out.any(0))
        if rows and columns:
            pairs = np.ix_(list(rows), list(columns))
            out[pairs] = mask_iou(list(rows.values()), list(columns.values()))
        return [float(v) for v in out.max(1)]

    def _masks(self, wanted: Any) -> dict[int, dict[str, Any]]:
        """The run lengths of the wanted shapes that have a mask, by position."""
        out = {}
        for i, shape in enumerate(self.shapes):
            if wanted[i] and shape.pixels is not None:
                x0, y0, x1, y1 = (round(v) for v in shape.box)
                out[i] = encode_cut(shape.pixels, (x0, y0, x1, y1), self.grid)
        return out

    def to_json(self) -> dict[str, Any]:
        """The shapes as the browser reads them."""
        shapes = [shape.to_json() for shape in self.shapes]
        return {"key": self.key, "grid": self.grid, "shapes": shapes}


def grid_size(size: Size) -> Size:
    """(rows, columns) of the grid of masks.

    Args:
        size: (height, width) of the image.
    """
    scale = GRID_SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _scaled(box: Sequence[float], size: Size, grid: Size) -> tuple[float, float, float, float]:
    x, y = grid[1] / size[1], grid[0] / size[0]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def _fit(pixels: Bits, box: Sequence[float], grid: Size) -> tuple[Bits, tuple[int, int, int, int]]:
    """Resize a mask to the cells of the grid that its box covers."""
    x0, y0 = (min(max(round(v), 0), n - 1) for v, n in ((box[0], grid[1]), (box[1], grid[0])))
    x1 = min(max(round(box[2]), x0 + 1), grid[1])
    y1 = min(max(round(box[3]), y0 + 1), grid[0])
    if not pixels.size:
        return np.zeros((y1 - y0, x1 - x0), bool), (x0, y0, x1, y1)
    fitted = Image.fromarray(pixels).resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST)
    return np.asarray(fitted, bool), (x0, y0, x1, y1)
