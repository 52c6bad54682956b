"""Random changes of how a sticker is drawn, so that a model does not rely on one style."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from .compositor import OPAQUE, Pixels

RINGS = (3, 5, 7)
"""Widths of the filters that draw an outline around a sticker, in pixels."""


def restyle(rng: np.random.Generator, sticker: Pixels) -> Pixels:
    """Draw a sticker in another style: flat colors, dark lines along edges, a dark outline.

    Its hues stay, so that words for its color stay true.

    Args:
        rng: Source of random numbers.
        sticker: (S, S, 4) RGBA, straight alpha, with a margin.

    Returns:
        (S, S, 4) RGBA, straight alpha.
    """
    image = Image.fromarray(sticker)
    alpha = image.getchannel("A")
    opaque = sticker[sticker[..., 3] > OPAQUE][:, :3]
    mean = tuple(int(v) for v in opaque.mean(0)) if len(opaque) else (0, 0, 0)
    # Transparent pixels are black, and would otherwise be one of the flat colors.
    color = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, mean), alpha)
    flat, lines, ring = rng.random(3) < (0.6, 0.5, 0.5)
    if lines:
        edges = _widen(color.filter(ImageFilter.FIND_EDGES).convert("L"), 3)
        strength = float(rng.uniform(0.8, 2.5))
        light = edges.point([max(0, round(255 - strength * v)) for v in range(256)])
    if flat:
        soft = color.filter(ImageFilter.BoxBlur(float(rng.uniform(0.5, 2.5))))
        color = soft.quantize(int(rng.integers(3, 9)), Image.Quantize.FASTOCTREE).convert("RGB")
    if rng.random() < 0.3:
        gray = color.convert("L").convert("RGB")
        color = Image.blend(color, gray, float(rng.uniform(0.2, 0.6)))
    if lines:
        color = ImageChops.multiply(color, Image.merge("RGB", (light, light, light)))
    if ring:
        wider = _widen(alpha, RINGS[int(rng.integers(len(RINGS)))])
        shade = int(rng.integers(0, 60))
        under = Image.new("RGB", color.size, (shade, shade, shade))
        color, alpha = Image.composite(color, under, alpha), wider
    return np.dstack([np.asarray(color), np.asarray(alpha)])


def _widen(image: Image.Image, side: int) -> Image.Image:
    """The maximum of the square around each pixel, several times faster than Pillow's."""
    from scipy.ndimage import maximum_filter

    return Image.fromarray(maximum_filter(np.asarray(image), side, mode="nearest"))
