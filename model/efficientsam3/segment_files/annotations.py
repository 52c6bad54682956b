"""Instances of one image as COCO annotations, and as a map of their numbers."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..io import rle
from ..io.jsonl import Record
from ..masks.extent import extent
from ..types import Array, Instances
from ..viz import overlay as draw


def to_annotations(found: Instances, numbered: bool = False) -> tuple[list[Record], Array | None]:
    """COCO annotations of the instances, and the number of the instance at each pixel.

    Args:
        found: Instances of one image.
        numbered: Whether the numbers are asked for.

    Returns:
        Annotations with "concept" in place of ids; an instance whose mask has no pixel has none.
        The numbers are (H, W), 0 where there is no instance; None without masks, or where they
        are not asked for.
    """
    out: list[Record] = []
    numbers = areas = None
    if found.patches is not None and numbered:
        numbers = np.zeros(found.size, np.uint8 if len(found) < 256 else np.uint16)
        areas = np.full(len(found) + 1, np.inf)  # by number; 0, the background, is the largest
    for i in range(len(found)):
        shape = extent(found, i)  # one mask at full size is in memory at a time
        if shape is None:
            continue
        mask: Record = {}
        x0, y0, x1, y1 = map(int, shape.box)
        if shape.pixels is not None:
            mask = {"segmentation": rle.encode_cut(shape.pixels, (x0, y0, x1, y1), found.size)}
        if shape.pixels is not None and numbers is not None and areas is not None:
            areas[i + 1] = shape.area
            there, larger = numbers[y0:y1, x0:x1], areas > shape.area
            # The smaller one lies on top.
            np.copyto(there, i + 1, where=shape.pixels & larger[there])
        out.append(
            {
                "concept": found.labels[i],
                "bbox": shape.xywh,
                "area": shape.area,
                "iscrowd": 0,
                "score": round(float(found.scores[i]), 5),
                "presence": round(float(found.presence[i]), 5),
                "number": i + 1,  # in the image's mask file
                **({} if found.phrases[i] == found.labels[i] else {"phrase": found.phrases[i]}),
                **mask,
            }
        )
    return out, numbers


def index_map(found: Instances, numbers: Array) -> Image.Image:
    """The mask file: 1 where the first instance is, 0 where there is none.

    Annotation tools and training code read one index map an image. It has one instance a pixel;
    the run lengths of the COCO file have overlaps too. The palette has the overlay's colors. More
    than 255 instances take 16 bits a pixel, for which PNG has no palette.

    Args:
        found: Instances of one image.
        numbers: (H, W) the number of the instance at each pixel, from ``to_annotations``.
    """
    image = Image.fromarray(numbers)
    if numbers.dtype == np.uint8:
        image.putpalette([0, 0, 0, *(v for color in draw.instance_colors(found) for v in color)])
    return image
