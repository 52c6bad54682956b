"""The core's instances as `supervision.Detections`, and back. Arrays in, arrays out: no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from efficientsam3.types import Array, BitPatch, Instances, Patch

from .errors import AdapterError, require

MaskFormat = Literal["compact", "dense"]
BoxSource = Literal["mask", "model"]

CLASS_NAME = "class_name"
"""Supervision's key of class names; annotators write them."""

PRESENCE = "presence"
"""Our key: the probability that the detection's concept is in the image at all."""


def to_detections(
    instances: Instances,
    *,
    class_names: Sequence[str] | None = None,
    mask_format: MaskFormat | None = "compact",
    box_source: BoxSource = "mask",
) -> Any:
    """Instances of one image -> ``sv.Detections``, in the same order.

    Args:
        class_names: what ``class_id`` counts; the concepts that were asked if omitted. Give
            the same for all images of a run.
        mask_format: "compact": ``sv.CompactMask``, every pixel kept, small and fast; "dense":
            (N, H, W) bool; None: no masks.
        box_source: "mask": boxes are the masks' extents, so that both always agree; "model":
            as the model said them. An instance without a pixel has the model's box.

    Returns:
        Detections with ``xyxy`` (N, 4) float32 pixels, right and lower edge outside as COCO has
        them; ``confidence`` float32, ``class_id`` int, ``data["class_name"]``, and
        ``data["presence"]`` float32; ``tracker_id`` int where the instances have identities.
        Without instances the arrays are there, and empty.
    """
    sv = require("supervision", "supervision")
    check_formats(mask_format, box_source)
    count = len(instances)
    names = list(class_names or dict.fromkeys((*instances.concepts, *instances.labels)))
    numbers = {name: i for i, name in reversed(list(enumerate(names)))}
    strangers = sorted(set(instances.labels) - set(numbers))
    if strangers:
        raise AdapterError(
            f"class_names has no {', '.join(map(repr, strangers))}; it has {', '.join(names)}. "
            "Name every label of the instances."
        )
    boxes = instances.boxes.astype(np.float32)
    mask = None
    if instances.patches is not None and (mask_format or box_source == "mask"):
        crops = [instances.crop(i) for i in range(count)]
        if box_source == "mask":
            for row, (pixels, box) in enumerate(crops):
                if pixels.size:
                    boxes[row] = box
        if mask_format == "compact":
            mask = compact(crops, instances.size)
        elif mask_format == "dense":
            mask = np.zeros((count, *instances.size), bool)
            for row, (pixels, (x0, y0, x1, y1)) in enumerate(crops):
                mask[row, y0:y1, x0:x1] = pixels
    ids = instances.track_ids
    return sv.Detections(
        xyxy=boxes.reshape(count, 4),
        mask=mask,
        confidence=instances.scores.astype(np.float32),
        class_id=np.array([numbers[label] for label in instances.labels], int),
        tracker_id=None if ids is None else ids.astype(int),
        data={
            CLASS_NAME: np.array(instances.labels, dtype=str),
            PRESENCE: instances.presence.astype(np.float32),
        },
    )


def from_detections(
    detections: Any,
    size: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Instances:
    """``sv.Detections`` of one image, of any detector -> instances, in the same order.

    Args:
        size: (height, width) of the image; masks know it.
        class_names: by ``class_id``, for detections without ``data["class_name"]``.

    Returns:
        Instances with masks where the detections have them. Scores and presence are 1 where
        nothing is known of them.
    """
    count, mask = len(detections), detections.mask
    if mask is not None:
        here = (int(mask.shape[1]), int(mask.shape[2]))
        if size is not None and tuple(size) != here:
            raise AdapterError(
                f"the masks are of {here[1]} x {here[0]} pixels and the image has {size[1]} x "
                f"{size[0]}: pass detections of this image"
            )
        size = here
    if size is None:
        raise AdapterError("detections without masks do not know their image: pass size=(H, W)")

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
        patches=None if mask is None else patches(mask),
        concepts=tuple(class_names or dict.fromkeys(labels)),
        track_ids=None if ids is None else np.asarray(ids, np.int64),
    )


def read_names(detections: Any, class_names: Sequence[str] | None = None) -> list[str]:
    """The class name of each detection: as written in it, else by ``class_id``."""
    written = detections.data.get(CLASS_NAME)
    if written is not None:
        return [str(name) for name in written]
    if detections.class_id is None:
        return ["object"] * len(detections)
    numbers = [int(i) for i in detections.class_id]
    if class_names is None:
        return [f"class {i}" for i in numbers]
    beyond = [i for i in numbers if not 0 <= i < len(class_names)]
    if beyond:
        raise AdapterError(
            f"class_id {beyond[0]} is not one of the {len(class_names)} class_names: "
            f"{', '.join(class_names)}"
        )
    return [class_names[i] for i in numbers]


def compact(crops: Sequence[tuple[Array, Sequence[int]]], size: tuple[int, int]) -> Any:
    """Masks cut to their own extents -> ``sv.CompactMask`` that holds every pixel of them.

    Args:
        crops: (h, w) bool and (x0, y0, x1, y1) of it in the image, for each mask.
        size: (height, width) of the image.
    """
    cls = require("supervision", "supervision").CompactMask
    if not crops:
        return cls.from_dense(np.zeros((0, *size), bool), np.zeros((0, 4)), size)
    parts = []
    for pixels, (x0, y0, _, _) in crops:
        # An empty mask keeps its row, as one pixel that is off.
        cut = pixels if pixels.size else np.zeros((1, 1), bool)
        height, width = cut.shape
        # Cut by its own extents: by a model's box, pixels outside of the box would be lost.
        part = cls.from_dense(cut[None], np.array([[0, 0, width - 1, height - 1]]), cut.shape)
        parts.append(part.with_offset(int(x0), int(y0), new_image_shape=size))
    return cls.merge(parts)


def patches(mask: Any) -> list[Patch]:
    """Dense or compact masks -> the core's, each cut to its own extents."""
    if isinstance(mask, np.ndarray):
        return [BitPatch.cut(row) for row in mask]
    out: list[Patch] = []
    for row, (left, top) in enumerate(mask.offsets.tolist()):
        cut = BitPatch.cut(mask.crop(row))
        out.append(BitPatch(cut.pixels, cut.top + top, cut.left + left))
    return out


def check_formats(mask_format: object, box_source: object) -> None:
    """Raises AdapterError for a word that is none of the choices."""
    if mask_format not in ("compact", "dense", None):
        raise AdapterError(f"mask_format is 'compact', 'dense' or None; got {mask_format!r}")
    if box_source not in ("mask", "model"):
        raise AdapterError(f"box_source is 'mask' or 'model'; got {box_source!r}")
