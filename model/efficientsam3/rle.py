"""Masks as COCO's run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def encode(
    pixels: npt.NDArray[Any], box: tuple[int, int, int, int], size: tuple[int, int]
) -> dict[str, Any]:
    """Run lengths of a mask from its cut, so that the whole mask is never made.

    Args:
        pixels: (h, w) bool. box: x0, y0, x1, y1 of the cut in the image. size: (H, W) of it.

    Returns:
        {"size": [H, W], "counts": str}, as pycocotools encodes the whole mask.
    """
    from pycocotools import mask as coco

    (height, width), (left, top, _, _) = size, box
    rows = np.zeros((pixels.shape[0] + 2, pixels.shape[1]), bool)
    rows[1:-1] = pixels
    row, column = np.nonzero(rows[1:] != rows[:-1])
    edges, times = np.unique((left + column) * height + top + row, return_counts=True)
    edges = edges[times == 1]  # a run to the foot of the image goes on in the next column
    counts = np.diff(np.r_[0, edges, height * width])
    if not counts[-1]:
        counts = counts[:-1]
    packed = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}
