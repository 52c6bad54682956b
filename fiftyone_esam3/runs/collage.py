"""Show examples from other images to the model, in a strip beside the image that is searched.

The model takes boxes in the image that it reads. So the image is read together with a strip of
cutouts, with boxes around the examples in them, and what is found in the strip is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from efficientsam3.types import BitPatch, Instances, Patch

Pixels = npt.NDArray[np.uint8]

STRIP_SHARE = 0.25
"""The strip's part of the whole width."""

MARGIN = 0.25
"""The surroundings that are cut out with an example, as a part of its sides."""

GREY = 127


@dataclass(frozen=True)
class Cutout:
    """An example with its surroundings.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        box: (4,) xyxy of the example, in pixels of the cutout.
        positive: whether it is a positive example.
    """

    pixels: Pixels
    box: npt.NDArray[np.float32]
    positive: bool = True


@dataclass(frozen=True)
class Collage:
    """An image with a strip of cutouts at its right.

    Attributes:
        pixels: (H, W + strip, 3) uint8 RGB.
        boxes: (K, 4) xyxy of the examples.
        signs: (K,) 1 for positive examples, 0 for negative ones.
        size: (height, width) of the image alone.
    """

    pixels: Pixels
    boxes: npt.NDArray[np.float32]
    signs: npt.NDArray[np.int64]
    size: tuple[int, int]


def cut_out(image: Pixels, box: Sequence[float], positive: bool = True) -> Cutout:
    """Cut an example out of its image.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: xyxy in pixels.
        positive: whether it is a positive example.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    dx, dy = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
    left, top = max(0, int(x0 - dx)), max(0, int(y0 - dy))
    right, bottom = min(width, int(np.ceil(x1 + dx))), min(height, int(np.ceil(y1 + dy)))
    inner = np.array([x0 - left, y0 - top, x1 - left, y1 - top], np.float32)
    return Cutout(image[top:bottom, left:right].copy(), inner, positive)


def make_collage(image: Pixels, cutouts: Sequence[Cutout]) -> Collage:
    """Put cutouts at the right of an image, one below the other.

    Args:
        image: (H, W, 3) uint8 RGB.
        cutouts: at least one.
    """
    height, width = image.shape[:2]
    strip = max(1, round(width * STRIP_SHARE / (1 - STRIP_SHARE)))
    canvas = np.full((height, width + strip, 3), GREY, np.uint8)
    canvas[:, :width] = image
    boxes = []
    for row, cutout in enumerate(cutouts):
        top, bottom = (height * r // len(cutouts) for r in (row, row + 1))
        h, w = cutout.pixels.shape[:2]
        scale = min(strip / w, (bottom - top) / h)
        tall, wide = max(1, int(h * scale)), max(1, int(w * scale))
        small = Image.fromarray(cutout.pixels).resize((wide, tall), Image.Resampling.BILINEAR)
        canvas[top : top + tall, width : width + wide] = np.asarray(small)
        x0, y0, x1, y1 = cutout.box * np.array([wide / w, tall / h] * 2, np.float32)
        boxes.append([width + x0, top + y0, width + x1, top + y1])
    signs = np.array([int(c.positive) for c in cutouts], np.int64)
    return Collage(canvas, np.array(boxes, np.float32), signs, (height, width))


def without_strip(found: Instances, size: tuple[int, int]) -> Instances:
    """Keep the instances that lie mostly in the image, and cut them at its right edge.

    Args:
        found: the instances of a collage.
        size: (height, width) of the image alone.
    """
    height, width = size
    kept = [i for i, (x0, _, x1, _) in enumerate(found.boxes.tolist()) if (x0 + x1) / 2 < width]
    found = found[kept]
    limits = np.array([width, height, width, height], np.float32)
    patches: list[Patch] | None = None
    if found.patches is not None:
        patches = []
        for i in range(len(found)):
            pixels, (x0, y0, _, _) = found.crop(i)
            inside = BitPatch.cut(pixels[:, : max(0, width - x0)])
            patches.append(replace(inside, top=inside.top + y0, left=inside.left + x0))
    return replace(found, boxes=found.boxes.clip(0, limits), size=size, patches=patches)
