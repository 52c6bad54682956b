"""What is written of an instance, in every format: the extent of its mask, and its area."""

from __future__ import annotations

from typing import NamedTuple

from ..types import Array, Instances


class Extent(NamedTuple):
    """The box, the area and the pixels of an instance, as all formats write them.

    Attributes:
        box: (x0, y0, x1, y1) in pixels, right and lower edges exclusive.
        area: In pixels; that of the box where there is no mask.
        pixels: (h, w) bool, the mask inside ``box``; None where there is no mask.
    """

    box: tuple[float, float, float, float]
    area: float
    pixels: Array | None

    @property
    def xywh(self) -> list[float]:
        """The box as COCO and MOT write it: [x, y, width, height]."""
        x0, y0, x1, y1 = self.box
        return [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]


def extent(found: Instances, index: int) -> Extent | None:
    """The extent of one instance, which is the one rule for boxes in all formats.

    With a mask, the box is the extent of the mask, whatever box the model predicted: readers cut
    masks by their boxes. Without masks it is the predicted box, rounded to a hundredth of a pixel.

    Args:
        found: Instances of one image.
        index: Which instance.

    Returns:
        The extent; None for a mask without a pixel or a box without area, which no format holds
        and all leave out.
    """
    if found.patches is not None:
        pixels, box = found.crop(index)
        area = int(pixels.sum())
        return Extent(box, area, pixels) if area else None
    x0, y0, x1, y1 = (round(v, 2) for v in found.boxes[index].tolist())
    area = round((x1 - x0) * (y1 - y0), 2)
    return Extent((x0, y0, x1, y1), area, None) if x1 > x0 and y1 > y0 else None


def describe_left_out(count: int) -> str:
    """One sentence about instances that are left out because their mask has no pixel.

    Args:
        count: How many, at least 1.
    """
    if count == 1:
        return "1 instance without a pixel is left out"
    return f"{count} instances without a pixel are left out"
