"""Conversion between the core's instances and `supervision.Detections`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from efficientsam3.masks.extent import Extent, describe_left_out, extent
from efficientsam3.types import Array, BitPatch, Box, Instances, Patch

from .errors import AdapterError, require

logger = logging.getLogger(__name__)

MaskFormat = Literal["compact", "dense"]
BoxSource = Literal["mask", "model"]

CLASS_NAME = "class_name"
"""Supervision's key of class names in ``Detections.data``; annotators draw them."""

PRESENCE = "presence"
"""Key in ``Detections.data``: probability that the detection's concept is in the image."""

PHRASE = "phrase"
"""Key in ``Detections.data``: the phrase that found the detection."""


def to_detections(
    instances: Instances,
    *,
    class_names: Sequence[str] | None = None,
    mask_format: MaskFormat | None = "compact",
    box_source: BoxSource = "mask",
    keep_empty: bool = False,
) -> Any:
    """Convert the instances of one image to ``sv.Detections``, in the same order.

    Instances whose mask has no pixel are left out, as in every format, and a warning counts them.

    Args:
        instances: Instances of one image.
        class_names: Names that ``class_id`` numbers from 0; by default the concepts of
            ``instances``. Pass the same names for all images of a run.
        mask_format: "compact" gives ``sv.CompactMask``, which keeps every pixel in little
            memory; "dense" gives (N, H, W) bool; None gives no masks.
        box_source: "mask" takes the extent of each mask as its box, so both agree; "model" takes
            the box that the model predicted.
        keep_empty: Whether an instance whose mask has no pixel keeps its row, with the predicted
            box, so that rows are those of ``instances``.

    Returns:
        Detections with ``xyxy`` (N, 4) float32 in pixels, where the right and lower edges are
        exclusive; ``confidence`` float32; ``class_id`` int; ``data["class_name"]``;
        ``data["presence"]`` float32; ``data["phrase"]``; and ``tracker_id`` int where
        the instances have track ids. Without instances the arrays are empty.

    Raises:
        AdapterError: ``class_names`` lacks a label of the instances, or a format is unknown.
    """
    sv = require("supervision", "supervision")
    check_formats(mask_format, box_source)
    crops = None
    if instances.patches is not None:
        shapes = [extent(instances, i) for i in range(len(instances))]
        if not keep_empty and any(shape is None for shape in shapes):
            logger.warning("%s", describe_left_out(sum(shape is None for shape in shapes)))
            instances = instances[[i for i, shape in enumerate(shapes) if shape is not None]]
            shapes = [shape for shape in shapes if shape is not None]
        crops = [_crop(shape) for shape in shapes]
    count = len(instances)
    names = list(class_names or dict.fromkeys((*instances.concepts, *instances.labels)))
    class_ids = _class_ids(instances.labels, names)
    boxes = instances.boxes.astype(np.float32)
    mask = None
    if crops is not None:
        if box_source == "mask":
            for row, (pixels, box) in enumerate(crops):
                if pixels.size:
                    boxes[row] = box
        if mask_format == "compact":
            mask = compact_masks(crops, instances.size)
        elif mask_format == "dense":
            mask = np.zeros((count, *instances.size), bool)
            for row, (pixels, (x0, y0, x1, y1)) in enumerate(crops):
                mask[row, y0:y1, x0:x1] = pixels
    ids = instances.track_ids
    return sv.Detections(
        xyxy=boxes.reshape(count, 4),
        mask=mask,
        confidence=instances.scores.astype(np.float32),
        class_id=np.array(class_ids, int),
        tracker_id=None if ids is None else ids.astype(int),
        data={
            CLASS_NAME: np.array(instances.labels, dtype=str),
            PRESENCE: instances.presence.astype(np.float32),
            PHRASE: np.array(instances.phrases, dtype=str),
        },
    )


def _crop(shape: Extent | None) -> tuple[Array, Box]:
    """The pixels of a mask and their place; nothing for an empty mask."""
    if shape is None or shape.pixels is None:
        return np.zeros((0, 0), bool), (0, 0, 0, 0)
    x0, y0, x1, y1 = map(int, shape.box)
    return shape.pixels, (x0, y0, x1, y1)


def from_detections(
    detections: Any,
    size: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Instances:
    """Convert ``sv.Detections`` of one image, from any detector, to instances in the same order.

    Args:
        detections: ``sv.Detections``.
        size: Height and width of the image in pixels; needed where there are no masks.
        class_names: Names by ``class_id``, for detections without ``data["class_name"]``.

    Returns:
        Instances, with masks where the detections have them. Scores and presence are 1 where the
        detections have none.

    Raises:
        AdapterError: The size is missing or is not that of the masks, or a class has no name.
    """
    count, mask = len(detections), detections.mask
    if mask is not None:
        mask_size = (int(mask.shape[1]), int(mask.shape[2]))
        if size is not None and tuple(size) != mask_size:
            raise AdapterError(
                f"the masks have {mask_size[1]} x {mask_size[0]} pixels and the image has "
                f"{size[1]} x {size[0]}: pass detections of this image"
            )
        size = mask_size
    if size is None:
        raise AdapterError("detections without masks have no image size: pass size=(H, W)")

    def column(values: Any) -> Array:
        if values is None:
            return np.ones(count, np.float32)
        return np.asarray(values, np.float32).reshape(count)

    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    ids = detections.tracker_id
    labels = read_names(detections, class_names)
    return Instances(
        boxes=np.clip(np.asarray(detections.xyxy, np.float32).reshape(count, 4), 0, limits),
        scores=column(detections.confidence),
        presence=column(detections.data.get(PRESENCE)),
        labels=labels,
        size=size,
        patches=None if mask is None else mask_patches(mask),
        concepts=tuple(class_names or dict.fromkeys(labels)),
        track_ids=None if ids is None else np.asarray(ids, np.int64),
        phrases=[str(phrase) for phrase in detections.data.get(PHRASE, labels)],
    )


# Classes ------------------------------------------------------------------------------------


def read_names(detections: Any, class_names: Sequence[str] | None = None) -> list[str]:
    """Return the class name of each detection.

    Args:
        detections: ``sv.Detections``.
        class_names: Names by ``class_id``, used where ``data["class_name"]`` is missing.

    Returns:
        N names. Without any names they are "class 0", "class 1", ..., or "object" without
        ``class_id``.

    Raises:
        AdapterError: A ``class_id`` is outside ``class_names``.
    """
    names = detections.data.get(CLASS_NAME)
    if names is not None:
        return [str(name) for name in names]
    if detections.class_id is None:
        return ["object"] * len(detections)
    numbers = [int(i) for i in detections.class_id]
    if class_names is None:
        return [f"class {i}" for i in numbers]
    outside = [i for i in numbers if not 0 <= i < len(class_names)]
    if outside:
        raise AdapterError(
            f"class_id {outside[0]} is not one of the {len(class_names)} class_names: "
            f"{', '.join(class_names)}"
        )
    return [class_names[i] for i in numbers]


def read_class_ids(detections: Any, class_names: Sequence[str]) -> list[int]:
    """Return the place of each detection's class in ``class_names``.

    Args:
        detections: ``sv.Detections``; their names count, else their ``class_id``.
        class_names: All classes of a dataset, in order.

    Returns:
        N numbers from 0.

    Raises:
        AdapterError: A class is not one of ``class_names``.
    """
    return _class_ids(read_names(detections, class_names), class_names)


def check_class_names(class_names: str | Sequence[str]) -> list[str]:
    """Return class names as a list.

    Args:
        class_names: One name or several.

    Returns:
        The names.

    Raises:
        AdapterError: There is no name, or a name occurs twice.
    """
    names = [class_names] if isinstance(class_names, str) else list(class_names)
    if not names or len(set(names)) < len(names):
        raise AdapterError(f"class_names must be at least one name, all different; got {names}")
    return names


def _class_ids(labels: Sequence[str], class_names: Sequence[str]) -> list[int]:
    numbers = {name: i for i, name in reversed(list(enumerate(class_names)))}
    unknown = sorted(set(labels) - set(numbers))
    if unknown:
        raise AdapterError(
            f"class_names has no {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(class_names)}. Name every class of the detections."
        )
    return [numbers[label] for label in labels]


# Masks --------------------------------------------------------------------------------------


def compact_masks(crops: Sequence[tuple[Array, Sequence[int]]], size: tuple[int, int]) -> Any:
    """Make a ``sv.CompactMask`` that holds every pixel of some masks.

    Supervision cuts masks by the detections' boxes, so pixels outside a predicted box would be
    lost. Here each mask is cut by its own extent.

    Args:
        crops: For each mask its pixels (h, w) bool and their place (x0, y0, x1, y1) in the image.
        size: Height and width of the image in pixels.

    Returns:
        ``sv.CompactMask`` with a row for each mask, empty masks included.
    """
    cls = require("supervision", "supervision").CompactMask
    if not crops:
        return cls.from_dense(np.zeros((0, *size), bool), np.zeros((0, 4)), size)
    rows = []
    for pixels, (x0, y0, _, _) in crops:
        # CompactMask has no row without pixels: an empty mask is one pixel that is off.
        cut = pixels if pixels.size else np.zeros((1, 1), bool)
        height, width = cut.shape
        row = cls.from_dense(cut[None], np.array([[0, 0, width - 1, height - 1]]), cut.shape)
        rows.append(row.with_offset(int(x0), int(y0), new_image_shape=size))
    return cls.merge(rows)


def mask_patches(mask: Any) -> list[Patch]:
    """Convert the masks of detections to the core's patches, each cut by its own extent.

    Args:
        mask: (N, H, W) bool, or ``sv.CompactMask``.

    Returns:
        N patches.
    """
    if isinstance(mask, np.ndarray):
        return [BitPatch.cut(row) for row in mask]
    out: list[Patch] = []
    for row, (left, top) in enumerate(mask.offsets.tolist()):
        cut = BitPatch.cut(mask.crop(row))
        out.append(BitPatch(cut.pixels, cut.top + top, cut.left + left))
    return out


def check_formats(mask_format: object, box_source: object) -> None:
    """Check the two choices of ``to_detections``.

    Args:
        mask_format: "compact", "dense" or None.
        box_source: "mask" or "model".

    Raises:
        AdapterError: A value is none of these.
    """
    if mask_format not in ("compact", "dense", None):
        raise AdapterError(f"mask_format is 'compact', 'dense' or None; got {mask_format!r}")
    if box_source not in ("mask", "model"):
        raise AdapterError(f"box_source is 'mask' or 'model'; got {box_source!r}")
