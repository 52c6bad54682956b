"""Check the prompts that users pass and turn them into arrays."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import numpy as np

from .concepts import Concepts, read_classes
from .errors import PromptError, PromptWarning, format_numbers, join_names, shorten
from .masks.nms import check_overlap
from .masks.tiles import check_tile
from .types import BOTTOM_RIGHT, TOP_LEFT, Array
from .values import is_share, is_whole

PRESENCE = ("multiply", "separate")
"""Whether scores contain the presence of their concept as a factor."""

# Arguments of ``segment`` ---------------------------------------------------------------------


def check_segment_arguments(
    concepts: Concepts | None = None,
    *,
    boxes: Any = None,
    box_labels: Any = None,
    points: Any = None,
    point_labels: Any = None,
    masks: Any = None,
    mask_labels: Any = None,
    exemplars: Any = None,
    threshold: float = 0.5,
    presence: str = "multiply",
    max_instances: int | None = None,
    nms: float | None = None,
    class_agnostic: bool = False,
    overlap_metric: str = "iou",
    tile: Any = None,
) -> dict[str, list[str]] | None:
    """Check the arguments of ``ImageModel.segment`` as far as they do not depend on the image.

    Args:
        concepts: As in ``ImageModel.segment``, like all others.
        boxes: (K, 4) xyxy pixels.
        box_labels: (K,) of 1 and 0.
        points: (K, 2) xy pixels.
        point_labels: (K,) of 1 and 0.
        masks: K masks or polygons.
        mask_labels: (K,) of 1 and 0.
        exemplars: Exemplars of other images, which are not looked into.
        threshold: In [0, 1].
        presence: "multiply" or "separate".
        max_instances: 0 or more.
        nms: Overlap in [0, 1].
        class_agnostic: True or False.
        overlap_metric: "iou" or "iom".
        tile: As ``masks.tiles.check_tile`` takes it.

    Returns:
        The phrases of each class by its name, as ``read_classes`` gives them; None if no concepts
        are given.

    Raises:
        PromptError: An argument is wrong, or arguments do not go together.
    """
    classes = read_classes(concepts)
    check_labeled(box_labels, boxes, "box_labels", "boxes")
    check_labeled(point_labels, points, "point_labels", "points")
    check_labeled(mask_labels, masks, "mask_labels", "masks")
    drawn = any(value is not None for value in (boxes, points, masks))
    if classes is None and not drawn and exemplars is None:
        raise PromptError(
            "nothing to find: name concepts (concepts=['person']), or pass boxes or masks of "
            "examples, exemplars of another image, or points"
        )
    if classes is not None and len(classes) > 1 and (drawn or exemplars is not None):
        raise PromptError(
            f"exemplars show one concept; got {len(classes)}: {join_names(classes)}. Call segment "
            "once for each; the encoded image is shared."
        )
    if boxes is not None:
        read_boxes(boxes)
    check_limits(threshold, max_instances, nms)
    check_presence(presence)
    check_overlap(class_agnostic, overlap_metric)
    if check_tile(tile) is not None and drawn:
        raise PromptError(
            "tile goes with concepts and with exemplars of other images: boxes, points and masks "
            "are in one place of the picture, and each tile is read by itself. Name a concept, or "
            "leave tile out"
        )
    return classes


def check_limits(
    threshold: float, max_instances: int | None = None, nms: float | None = None
) -> None:
    """Check the limits that ``segment`` takes.

    Args:
        threshold: The lowest score, in [0, 1].
        max_instances: The largest number of instances, 0 or more. None: no limit.
        nms: An overlap in [0, 1]. None: no suppression.

    Raises:
        PromptError: A value is not a number, or out of its range.
    """
    if not is_share(threshold):
        raise PromptError(f"threshold is between 0 and 1; got {shorten(threshold)}")
    if nms is not None and not is_share(nms):
        raise PromptError(f"nms is an IoU between 0 and 1; got {shorten(nms)}")
    if max_instances is not None and not is_whole(max_instances):
        raise PromptError(
            f"max_instances is a whole number, 0 or more; got {shorten(max_instances)}"
        )


def check_presence(presence: str) -> None:
    """Check how scores contain the presence.

    Args:
        presence: One of ``PRESENCE``.

    Raises:
        PromptError: It is none of these.
    """
    if not isinstance(presence, str) or presence not in PRESENCE:
        raise PromptError(
            "presence is 'multiply' (scores contain the presence as a factor) or 'separate' "
            f"(they do not); got {shorten(presence)}"
        )


def read_batch_size(batch_size: int | None, device: Any) -> int:
    """The number of images that go through a model together in a run that can be continued.

    Args:
        batch_size: The number. None: 1 on a CPU, where a continued run then finds the same to the
            bit, and for exported models, which read one image at a time; 16 on a GPU.
        device: The model's device.
    """
    if batch_size is not None:
        return batch_size
    return 16 if getattr(device, "type", None) in ("cuda", "mps") else 1


def check_batch_size(batch_size: Any) -> int:
    """Check a number of images that are encoded together.

    Args:
        batch_size: The number.

    Raises:
        PromptError: It is not a whole number from 1.
    """
    if not is_whole(batch_size, 1):
        raise PromptError(f"batch_size is a whole number from 1; got {shorten(batch_size)}")
    return operator.index(batch_size)


# Boxes, points, labels ------------------------------------------------------------------------


def as_array(value: Any) -> Any:
    """Copy a tensor to an array; any other value is returned as it is.

    Args:
        value: Anything. Torch is not imported to tell a tensor.
    """
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def read_array(value: Any, width: int, name: str, dims: int = 2) -> Array:
    """Convert numbers that a user passed.

    Args:
        value: Nested sequences, an array or a tensor.
        width: Length of the last axis.
        name: What messages call the value.
        dims: Number of axes, 2 or 3.

    Returns:
        (K, width) or (N, K, width) float32.

    Raises:
        PromptError: The shape is another, or values are not finite numbers.
    """
    value = as_array(value)
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"{name} are numbers, not {shorten(value)}") from error
    shape = "(N, K, " if dims == 3 else "(K, "
    if array.ndim != dims or array.shape[-1] != width:
        raise PromptError(f"{name} have shape {shape}{width}); got {array.shape}")
    if not np.isfinite(array).all():
        raise PromptError(f"{name} hold NaN or infinite values: {format_numbers(array)}")
    return array


def read_boxes(boxes: Any, size: tuple[int, int] | None = None) -> Array:
    """Convert boxes that a user passed.

    Args:
        boxes: (K, 4) xyxy pixels.
        size: (height, width) of the image, into which each box must reach. None: not checked.

    Returns:
        (K, 4) float32, each box with an area.

    Raises:
        PromptError: A box is empty, inverted or outside the image, or the boxes are fractions.

    Warns:
        PromptWarning: A box lies within one pixel.
    """
    array = read_array(boxes, 4, "boxes")
    for box in array:
        x0, y0, x1, y1 = box.tolist()
        if x1 <= x0 or y1 <= y0:
            raise PromptError(
                f"box {format_numbers(box)} is empty or inverted: boxes are x0, y0, x1, y1 pixels "
                "with x0 < x1 and y0 < y1 (a width and height instead of a corner?)"
            )
        if size is not None and (x0 >= size[1] or y0 >= size[0] or x1 <= 0 or y1 <= 0):
            raise PromptError(
                f"box {format_numbers(box)} lies outside the image of {size[1]} x {size[0]} pixels"
            )
    _check_pixels(array, "box", "x0, y0, x1, y1", size)
    return array


def read_points(points: Any, size: tuple[int, int], labels: Any = None) -> Array:
    """Convert points that a user passed.

    Args:
        points: (K, 2) xy pixels.
        size: (height, width) of the image, in which each point must lie.
        labels: (K,); points with the label -1 are padding and may lie anywhere.

    Returns:
        (K, 2) float32.

    Raises:
        PromptError: There is no point, or one lies outside the image.
    """
    array = read_array(points, 2, "points")
    if not len(array):
        raise PromptError("points hold no point; a click is [[x, y]]")
    used = array
    signs = None if labels is None else _label_array(labels, "labels of points")
    if signs is not None and signs.size == len(array) and signs.dtype.kind in "biuf":
        used = array[signs.reshape(-1) >= 0]
    height, width = size
    outside = (used < 0).any(1) | (used > [width, height]).any(1)
    if outside.any():
        raise PromptError(
            f"point {format_numbers(used[outside][0])} lies outside the image of {width} x "
            f"{height} pixels"
        )
    _check_pixels(used, "point", "x, y", size)
    return array


def _check_pixels(array: Array, kind: str, form: str, size: tuple[int, int] | None) -> None:
    """Refuse coordinates that are fractions of the image, and warn of what looks like them.

    Args:
        array: (K, 4) boxes or (K, 2) points.
        kind: What messages call one of them.
        form: What messages call its numbers.
        size: (height, width) of the image, or None.

    Raises:
        PromptError: All boxes, or several points, lie between 0 and 1 and are no whole numbers.

    Warns:
        PromptWarning: A box lies within one pixel, or the only point within the first one.
    """
    if not len(array) or (size is not None and max(size) <= 1):
        return
    are_fractions = ((array >= 0) & (array <= 1)).all(1)
    is_whole = (array == np.round(array)).all()
    several = kind == "box" or len(np.unique(array, axis=0)) > 1
    rule = f"{form} are pixels of the image, not fractions of it; got {format_numbers(array[0])}"
    way_out = "multiply them by the image's width and height" + (
        "" if size is None else f", {size[1]} and {size[0]}"
    )
    if are_fractions.all() and several and not is_whole:
        raise PromptError(f"{rule}: {way_out}")
    small = (
        (array[:, 2:] - array[:, :2] < 1).all(1) | are_fractions
        if kind == "box"
        else are_fractions & ((array > 0) & (array < 1)).all(1)
    )
    if small.any() and (kind == "box" or len(array) == 1):
        warnings.warn(
            f"{kind} {format_numbers(array[small][0])} lies within one pixel: {form} are pixels. "
            f"If these are fractions, {way_out}",
            PromptWarning,
            stacklevel=2,
        )


def check_labeled(labels: Any, prompts: Any, name: str, meaning: str) -> None:
    """Check that labels come with the prompts that they are for.

    Args:
        labels: The labels, or None.
        prompts: The boxes or points, or None.
        name: What messages call the labels.
        meaning: What messages call the prompts.

    Raises:
        PromptError: There are labels and no prompts.
    """
    if labels is not None and prompts is None:
        raise PromptError(f"{name} are given without {meaning}; pass both, or neither")


def _label_array(labels: Any, name: str) -> Array:
    """Labels as an array of any shape, if their rows are of one length."""
    try:
        return np.asarray(labels)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"{name} are one number for each; got {shorten(labels)}") from error


def read_labels(labels: Any, shape: tuple[int, ...], name: str, padding: bool = False) -> Array:
    """Convert labels that a user passed.

    Args:
        labels: An array of ``shape``: 1 positive, 0 negative. None: all positive.
        shape: Shape of the prompts that the labels are for.
        name: What messages call the labels.
        padding: Whether -1, for a prompt that is padding, is allowed.

    Returns:
        Labels of ``shape``, int64.

    Raises:
        PromptError: The shape or a value is another.
    """
    if labels is None:
        return np.ones(shape, np.int64)
    labels = as_array(labels)
    array = _label_array(labels, name)
    if array.shape != shape:
        raise PromptError(f"{name} have shape {array.shape}; one for each needs {shape}")
    allowed = (-1, 0, 1) if padding else (0, 1)
    if not np.isin(array, allowed).all():
        extra = ", -1 is padding" if padding else ""
        raise PromptError(
            f"{name} are 1 (like this) or 0 (not like this){extra}; got {format_numbers(array)}"
        )
    return array.astype(np.int64)


# Arrays for the model ------------------------------------------------------------------------


def read_object_prompts(
    size: tuple[int, int], side: int, boxes: Any, points: Any, point_labels: Any, masks: Any
) -> tuple[Array, Array, Array | None]:
    """Convert the prompts of ``ImageModel.segment_objects``.

    Args:
        size: (height, width) of the image.
        side: Rows and columns of low-resolution masks.
        boxes: (N, 4) xyxy pixels, or None.
        points: (N, K, 2) xy pixels, or None.
        point_labels: (N, K), or None.
        masks: (N, 1, side, side) logits, or None.

    Returns:
        Coordinates (N, P, 2) float32 in [0, 1], the corners of a box as its first two points;
        their labels (N, P) int64; and the masks (N, 1, side, side) float32, or None.

    Raises:
        PromptError: A prompt is wrong, there is none, or they are of different objects.
    """
    scale = np.array([size[1], size[0]], np.float32)
    coordinates, labels = [], []
    if boxes is not None:
        corners = read_boxes(boxes, size).reshape(-1, 2, 2)
        coordinates.append(corners / scale)
        labels.append(np.tile([TOP_LEFT, BOTTOM_RIGHT], (len(corners), 1)))
    if points is not None:
        clicks = read_array(points, 2, "points", dims=3)
        if not clicks.shape[1]:
            raise PromptError("points hold no point; a click is [[x, y]]")
        flat = read_points(clicks.reshape(-1, 2), size, point_labels)
        coordinates.append(flat.reshape(clicks.shape) / scale)
        labels.append(read_labels(point_labels, clicks.shape[:2], "point_labels", padding=True))
    earlier = None if masks is None else _read_masks(masks, side)
    counts = {len(c) for c in coordinates} | ({len(earlier)} if earlier is not None else set())
    if not counts:
        raise PromptError("nothing to segment: pass boxes, points or masks")
    if len(counts) > 1:
        raise PromptError(
            f"boxes, points and masks are of one object each, but there are {sorted(counts)}"
        )
    count = counts.pop()
    if not coordinates:
        return np.zeros((count, 0, 2), np.float32), np.zeros((count, 0), np.int64), earlier
    return np.concatenate(coordinates, 1), np.concatenate(labels, 1), earlier


def _read_masks(masks: Any, side: int) -> Array:
    """(N, 1, side, side) float32 from masks with or without the axes of 1 and N."""
    masks = as_array(masks)
    try:
        array = np.asarray(masks, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(
            f"masks are (N, 1, {side}, {side}) logits, such as low_res of an earlier result; got "
            f"{shorten(masks)}"
        ) from error
    shape = array.shape
    if array.ndim > 2 and 0 not in shape[-3:]:
        array = array.reshape(-1, *shape[-3:])
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[1:] != (1, side, side):
        raise PromptError(
            f"masks are (N, 1, {side}, {side}) logits, such as low_res of an earlier "
            f"result; got {shape}"
        )
    if not np.isfinite(array).all():
        raise PromptError("masks hold NaN or infinite values; pass low_res unchanged")
    return array
