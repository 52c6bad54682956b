"""Random flips, crops and colors of photographs, for training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ..errors import ArgumentError
from ..io.rle import Mask, area_of, box_of, crop, decode
from ..types import Array
from ..values import is_share
from .sample import TrainingSample
from .types import PhraseQuery

SIDES = re.compile(
    r"\b(left|right|leftmost|rightmost|lefthand|righthand|clockwise|anticlockwise"
    r"|counterclockwise|east|west|eastern|western|eastbound|westbound)\b"
)
"""Words whose meaning a horizontal flip changes."""
PLACES = re.compile(
    r"\b(top|bottom|upper|lower|topmost|bottommost|middle|center|centre|central|corner|edge"
    r"|first|second|third|last|nearest|closest|farthest|furthest|foreground|background"
    r"|largest|biggest|smallest|tallest|shortest|longest|only)\b"
)
"""Words that compare an object with the rest of the image, whose meaning a crop changes."""


@dataclass(frozen=True)
class AugmentSettings:
    """How much photographs are changed.

    Attributes:
        flip: Probability of a horizontal flip, in [0, 1].
        crop: Probability of a crop, in [0, 1]. The image encoder enlarges what is left, so that a
            crop also changes the scale of objects.
        min_side: Smallest part of the height and of the width that a crop keeps, in (0, 1].
        min_visible: Objects of which a crop leaves a smaller part, in [0, 1], disappear.
        brightness: Largest relative change of the brightness, in [0, 1).
        contrast: Largest relative change of the contrast, in [0, 1).
        saturation: Largest relative change of the saturation, in [0, 1). The hue is kept, since
            phrases name colors.
    """

    flip: float = 0.5
    crop: float = 0.5
    min_side: float = 0.5
    min_visible: float = 0.25
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not is_share(value) or (field.name == "min_side" and value == 0):
                raise ArgumentError(
                    f"{field.name} is {value!r}; it must be from 0 to 1"
                    + (", without 0" if field.name == "min_side" else "")
                )


@dataclass(frozen=True)
class Augment:
    """Changes samples at random; the same seed gives the same result in every process.

    Samples that are not photographs stay as they are. A sample is not flipped if one of its phrases
    names a side ("left hand"), and not cropped if one names a place or compares ("largest dog").

    Attributes:
        settings: How much is changed.
    """

    settings: AugmentSettings = AugmentSettings()

    def __call__(self, sample: TrainingSample, *seed: int) -> TrainingSample:
        """Change a sample.

        Args:
            sample: What is changed.
            *seed: Numbers from 0 that decide, such as the seed of a run and the sample's position.

        Returns:
            A sample with the same key.
        """
        if not sample.photograph:
            return sample
        random, s = np.random.default_rng(seed), self.settings
        phrases = " ".join(query.phrase.lower() for query in sample.queries)
        sided = SIDES.search(phrases) is not None
        placed = sided or PLACES.search(phrases) is not None
        # All numbers are drawn, so that one decision does not change another.
        flip, cut = random.random() < s.flip, random.random() < s.crop
        box = _draw_box(sample.size, s.min_side, random)
        factors = 1 + random.uniform(-1, 1, 3) * [s.brightness, s.contrast, s.saturation]
        if not cut or placed:
            box = (0, 0, sample.size[1], sample.size[0])
        sample = transform(sample, box, flip and not sided, s.min_visible)
        return replace(sample, image=_recolor(sample.image, factors.tolist()))


def _draw_box(
    size: tuple[int, int], min_side: float, random: np.random.Generator
) -> tuple[int, int, int, int]:
    height, width = size
    shares, places = random.uniform(min_side, 1, 2), random.random(2)
    rows, columns = max(1, round(height * shares[0])), max(1, round(width * shares[1]))
    top, left = int(places[0] * (height - rows + 1)), int(places[1] * (width - columns + 1))
    return left, top, left + columns, top + rows


def _recolor(image: Array, factors: Sequence[float]) -> Array:
    """Change brightness, contrast and saturation of (H, W, 3) uint8."""
    rgb = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    adjust = (
        transforms.adjust_brightness,
        transforms.adjust_contrast,
        transforms.adjust_saturation,
    )
    for function, factor in zip(adjust, factors, strict=True):
        if factor != 1:
            rgb = function(rgb, factor)
    out: Tensor = rgb.permute(1, 2, 0)
    return np.ascontiguousarray(out.numpy())


def transform(
    sample: TrainingSample,
    box: tuple[int, int, int, int],
    flip: bool = False,
    min_visible: float = 0.0,
) -> TrainingSample:
    """Crop a sample, then flip it.

    Objects without a pixel in the crop, or with too small a part of theirs, disappear. A phrase all
    of whose objects are outside becomes absent if all instances were annotated; if some may still
    be visible, it is left out. A phrase that loses an object of which a part stays visible is no
    longer exhaustive.

    Args:
        sample: What is changed.
        box: (x0, y0, x1, y1) of the crop, in pixels within the image.
        flip: Whether left and right are exchanged.
        min_visible: Objects of which a smaller part, in [0, 1], is inside disappear.

    Returns:
        A sample of the size of the crop, with the same key.
    """
    x0, y0, x1, y1 = box
    full = box == (0, 0, sample.size[1], sample.size[0])
    if full and not flip:
        return sample
    image = sample.image[y0:y1, x0:x1]
    boxes = sample.boxes - np.array([x0, y0, x0, y0], np.float32)
    points = None if sample.points is None else sample.points - np.array([x0, y0], np.float32)
    if flip:
        image = image[:, ::-1]
        boxes = np.stack(
            [x1 - x0 - boxes[:, 2], boxes[:, 1], x1 - x0 - boxes[:, 0], boxes[:, 3]], 1
        )
        points = None if points is None else points * [-1, 1] + [x1 - x0, 0]
    inside = boxes.clip(0, [x1 - x0, y1 - y0, x1 - x0, y1 - y0])
    masks = None if sample.masks is None else [crop(mask, box, flip) for mask in sample.masks]
    visible = np.ones(len(sample))
    for index in range(len(sample)):
        if masks is None or sample.masks is None:
            visible[index] = _box_area(inside[index]) / max(_box_area(boxes[index]), 1e-6)
        elif not np.array_equal(inside[index], boxes[index]):
            visible[index] = area_of(masks[index]) / max(area_of(sample.masks[index]), 1)
            inside[index] = box_of(masks[index])
    kept = np.flatnonzero((visible > 0) & (visible >= min_visible))
    if points is not None:
        points = points.astype(np.float32)
        for index in kept.tolist():
            if not (0 <= points[index, 0] < x1 - x0 and 0 <= points[index, 1] < y1 - y0):
                points[index] = _inner_point(inside[index], None if masks is None else masks[index])
    return TrainingSample(
        sample.key,
        np.ascontiguousarray(image),
        inside[kept].astype(np.float32),
        None if masks is None else tuple(masks[index] for index in kept),
        _queries(sample.queries, visible, kept),
        None if sample.crowd is None else sample.crowd[kept],
        None if points is None else points[kept],
        sample.photograph,
    )


def _box_area(box: Array) -> float:
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


def _inner_point(box: Array, mask: Mask | None) -> tuple[float, float]:
    """A point on an object whose own point is outside the crop."""
    if mask is None:
        return float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2
    rows, columns = np.nonzero(decode(mask))
    return columns[len(columns) // 2] + 0.5, rows[len(rows) // 2] + 0.5


def _queries(
    queries: Sequence[PhraseQuery], visible: Array, kept: Array
) -> tuple[PhraseQuery, ...]:
    places = {int(old): new for new, old in enumerate(kept)}
    out = []
    for query in queries:
        left = tuple(places[i] for i in query.objects if i in places)
        cut_off = any(visible[i] > 0 and i not in places for i in query.objects)
        exhaustive = query.exhaustive and not cut_off
        if query.objects and not left:
            if exhaustive:
                out.append(PhraseQuery(query.phrase, (), True, "negative", query.key))
            continue
        out.append(replace(query, objects=left, exhaustive=exhaustive, other_annotators=()))
    return tuple(out)
