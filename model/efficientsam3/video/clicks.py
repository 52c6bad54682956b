"""Points and boxes of a person, as the interactive head reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import PromptError, shorten
from ..prompts import read_boxes, read_labels, read_points
from ..types import BOTTOM_RIGHT, TOP_LEFT, Array


def read_clicks(
    size: tuple[int, int], points: Any = None, point_labels: Any = None, box: Any = None
) -> tuple[Array, Array]:
    """Read points and a box around one object.

    Args:
        size: (height, width) of the image in pixels.
        points: (K, 2) xy pixels.
        point_labels: (K,) 1 on the object, 0 off it; all 1 if omitted.
        box: (4,) xyxy pixels.

    Returns:
        (N, 2) float32 xy in [0, 1], the corners of the box first; (N,) labels of
        ``nn.interactive``.

    Raises:
        PromptError: There is neither a point nor a box, or one has a wrong shape or value.
    """
    scale = np.array([size[1], size[0]], np.float32)
    xy: list[Array] = []
    labels: list[Array] = []
    if box is not None:
        try:
            row = np.asarray(box, np.float32).reshape(-1, 4)
        except (TypeError, ValueError) as error:
            raise PromptError(
                f"a box is (4,) xyxy pixels around one object; got {shorten(box)}"
            ) from error
        corners = read_boxes(row, size)
        if len(corners) != 1:
            raise PromptError(f"a box is (4,) xyxy pixels around one object; got {len(corners)}")
        xy.append(corners.reshape(2, 2) / scale)
        labels.append(np.array([TOP_LEFT, BOTTOM_RIGHT]))
    if points is not None:
        clicks = read_points(points, size)
        xy.append(clicks / scale)
        labels.append(read_labels(point_labels, (len(clicks),), "point_labels"))
    if not xy:
        raise PromptError("nothing is pointed at: pass points, a box or a mask")
    return np.concatenate(xy), np.concatenate(labels)
