"""Colors and pictures that compare found masks with true ones."""

from __future__ import annotations

from ..types import Array
from .overlay import Color, draw_masks

HIT: Color = (60, 220, 90)
"""What is found and true."""
MISSED: Color = (255, 160, 0)
"""What is true and was not found."""
EXTRA: Color = (255, 40, 60)
"""What is found and not true."""

_BRIGHTNESS, _OPACITY = 0.55, 0.5


def paint_mask_errors(image: Array, found: Array, truth: Array) -> Array:
    """Darken an image and tint the pixels of two masks by whether the masks agree.

    Args:
        image: (H, W, 3) uint8 RGB.
        found: (H, W) bool, the predicted area.
        truth: (H, W) bool, the true area.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    areas = [found & truth, truth & ~found, found & ~truth]
    colors = [HIT, MISSED, EXTRA]
    return draw_masks(image * _BRIGHTNESS, areas, colors, fill=_OPACITY, outline=False)
