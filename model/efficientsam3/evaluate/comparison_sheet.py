"""Pictures that compare predicted with true masks: what is found, missed and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..masks.overlap import mask_iou
from ..types import Array
from ..viz.contact_sheet import TEXT_COLOR, Caption, Cell, draw_grid
from ..viz.mask_comparison import EXTRA, HIT, MISSED
from ..viz.overlay import draw_masks
from .metrics.cgf1 import IOU_THRESHOLDS

DARKENED = 0.6
"""Brightness of the image below the masks."""

ABSENT_COLOR = (150, 150, 155)
"""Color of phrases that name nothing in the image."""


@dataclass(frozen=True, eq=False)
class PhraseResult:
    """A phrase, what a model predicted for it, and what is annotated.

    Attributes:
        phrase: The phrase.
        predicted: N masks (H, W) bool, of predictions above the threshold.
        target: M true masks; none if the phrase names nothing in the image.
    """

    phrase: str
    predicted: Sequence[Array]
    target: Sequence[Array]

    def match(self) -> tuple[list[Array], list[Array], list[Array]]:
        """Match predictions with instances one to one, at IoU 0.5 or more.

        Returns:
            Predictions that match an instance, instances without prediction, and predictions
            without instance.
        """
        if not len(self.predicted) or not len(self.target):
            return [], list(self.target), list(self.predicted)
        from scipy.optimize import linear_sum_assignment

        iou = mask_iou(np.stack(list(self.predicted)), np.stack(list(self.target)))
        rows, columns = linear_sum_assignment(iou, maximize=True)
        pairs = [
            (r, c) for r, c in zip(rows, columns, strict=True) if iou[r, c] >= IOU_THRESHOLDS[0]
        ]
        hits, found = {r for r, _ in pairs}, {c for _, c in pairs}
        return (
            [self.predicted[r] for r in sorted(hits)],
            [m for i, m in enumerate(self.target) if i not in found],
            [m for i, m in enumerate(self.predicted) if i not in hits],
        )


def draw_comparison(
    image: Array, results: Sequence[PhraseResult], *, columns: int = 4, side: int = 300
) -> Image.Image:
    """Draw a cell for each phrase: green what is found, orange what is missed, red what is wrong.

    Args:
        image: (H, W, 3) uint8 RGB.
        results: Phrases of this image.
        columns: Cells in a row.
        side: Pixels of a cell's longer side.

    Returns:
        A new RGB picture.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(np.asarray(Image.fromarray(image).resize(size)) * DARKENED, np.uint8)
    cells = []
    for result in results:
        hits, missed, extra = result.match()
        layers = [(m, MISSED) for m in missed] + [(m, EXTRA) for m in extra]
        layers += [(m, HIT) for m in hits]
        masks = [
            np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
            for mask, _ in layers
        ]
        drawn = draw_masks(small, masks, [color for _, color in layers])
        cells.append(Cell(drawn, [_caption(result, len(hits), len(missed), len(extra))]))
    return draw_grid(cells, columns=columns, side=side)


def _caption(result: PhraseResult, hits: int, missed: int, extra: int) -> Caption:
    if result.target:
        note = f"{hits} of {hits + missed}" + (f", {extra} wrong" if extra else "")
        color = EXTRA if extra else MISSED if missed else HIT
        return Caption(result.phrase, note, TEXT_COLOR, color)
    note = f"absent, {extra} found" if extra else "absent, none found"
    return Caption(result.phrase, note, ABSENT_COLOR, EXTRA if extra else HIT)
