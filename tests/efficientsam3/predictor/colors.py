"""A model that finds connected regions of a named color, at the resolution of its input.

It loses what is smaller than a pixel of its input and cuts what its image cuts, as real models do,
and its answers are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from efficientsam3.io.samples import read_rgb_array
from efficientsam3.model_steps import Answers, ObjectAnswers, Shown
from efficientsam3.segmenter import Segmenter

Array = npt.NDArray[Any]
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColorModel(Segmenter):
    """Finds regions of "red", "green" and "blue".

    Args:
        resolution: Rows and columns of its input, and of its masks.
    """

    def __init__(self, resolution: int = 64) -> None:
        self.name, self.device, self.key = "colors", "cpu", f"colors-{resolution}"
        self.config = SimpleNamespace(
            resolution=resolution, grid=resolution // 4, nms=None, negative_exemplars=True
        )
        self.abilities = frozenset({"concepts", "masks", "interactive"})
        self._batch_size = 2
        self.seen: list[tuple[int, int]] = []

    def require(self, ability: str) -> None:
        assert ability in self.abilities

    def _read(self, image: Any) -> tuple[Array, tuple[int, int]]:
        rgb = read_rgb_array(image)
        self.seen.append(rgb.shape[:2])
        side = self.config.resolution
        small = Image.fromarray(rgb).resize((side, side), Image.Resampling.BOX)
        return np.asarray(small).astype(int), rgb.shape[:2]

    def _regions(self, features: Array, phrase: str) -> list[Array]:
        near = np.abs(features - COLORS[phrase]).max(-1) < 128
        labels, count = ndimage.label(near)
        return [labels == i + 1 for i in range(count)]

    def _read_exemplars(self, features: Array, exemplars: Any) -> Shown:
        raise NotImplementedError

    def _answer(self, features: Array, phrases: list[str], shown: Sequence[Shown]) -> Answers:
        found = [self._regions(features, phrase) for phrase in phrases]
        most = max(1, *map(len, found))
        scores, boxes = np.zeros((len(found), most), np.float32), np.zeros((len(found), most, 4))
        for row, regions in enumerate(found):
            for i, region in enumerate(regions):
                y, x = np.nonzero(region)
                low, high = (x.min(), y.min()), (x.max() + 1, y.max() + 1)
                middle, extent = np.add(low, high) / 2, np.subtract(high, low)
                boxes[row, i] = np.r_[middle, extent] / self.config.resolution
                scores[row, i] = 0.9 - 0.3 / len(y)
        presence = np.array([float(bool(regions)) for regions in found], np.float32)
        return Answers(scores, presence, boxes.astype(np.float32), found)

    def _masks(self, features: Array, answers: Answers, row: int, queries: Array) -> Array:
        masks = [np.where(answers.raw[row][i], 4.0, -4.0) for i in queries]
        return np.array(masks, np.float32)

    def _answer_objects(
        self, features: Array, xy: Array, labels: Array, earlier: Any, multimask: bool
    ) -> ObjectAnswers:
        """The region of one color that a point is in, in three candidates of falling quality."""
        side, masks, quality = self.config.resolution, [], []
        for (point, *_), _ in zip(xy, labels, strict=True):
            x, y = np.minimum((np.asarray(point) * side).astype(int), side - 1)
            near = np.abs(features - features[y, x]).max(-1) < 64
            regions, _ = ndimage.label(near)
            mask = np.where(regions == regions[y, x], 4.0, -4.0)
            masks.append([mask, mask * 0.1, -np.abs(mask)])
            quality.append([0.95, 0.4, 0.2])
        count = 3 if multimask else 1
        logits = np.array(masks, np.float32).reshape(-1, 3, side, side)[:, :count]
        return ObjectAnswers(
            logits,
            np.array(quality, np.float32).reshape(-1, 3)[:, :count],
            np.ones(len(xy), np.float32),
        )
