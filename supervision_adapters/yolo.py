"""YOLO datasets of detections, with one row for each object: a polygon or a box."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from PIL import Image

from efficientsam3.io.atomic import write_picture
from efficientsam3.io.images import read_rgb
from efficientsam3.masks.extent import Extent, describe_left_out, extent
from efficientsam3.masks.polygons import check_tolerance, outline
from efficientsam3.types import Array

from .detections import check_class_names, from_detections, read_class_ids
from .errors import AdapterError

Task = Literal["segment", "detect"]

logger = logging.getLogger(__name__)

_OFFSETS = (0.05, 0.25, 0.45)
"""Places of the first, inner and last points of a polygon in their pixels. Readers that round and
readers that truncate agree on all of them, and the box of the points is nearly that of the mask."""

_SIDEWAYS = frozenset({5, 6, 7, 8})
"""EXIF orientations that exchange width and height."""

_COPIED = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Image files that YOLO's readers know and that are copied; others are written as PNG."""

_MIN_SIDE = 10
"""Ultralytics leaves out images with a shorter side."""


def yolo_rows(
    detections: Any,
    class_names: Sequence[str],
    *,
    task: Task = "segment",
    tolerance: float = 0.0,
    size: tuple[int, int] | None = None,
) -> list[str]:
    """Write each detection as a row of YOLO's label format, relative to the image size.

    "segment" gives ``class x y x y ...``. Bridges without area join the parts of a mask and connect
    holes. Readers that also draw the polygon's line join parts by lines one pixel wide. "detect"
    gives ``class x y width height``, the center and the size of the mask's extent. Detections with
    an empty mask are left out.

    Args:
        detections: ``sv.Detections``, with masks for "segment".
        class_names: All classes of the dataset; a row starts with the place of its class.
        task: "segment" or "detect".
        tolerance: Polygons are simplified by at most this many pixels. 0 keeps every pixel.
        size: Height and width of the image in pixels; needed where there are no masks.

    Returns:
        The rows.

    Raises:
        AdapterError: The detections have no masks, a class is not one of ``class_names``, or the
            task is unknown.
        ArgumentError: The tolerance is no number of pixels.
    """
    _check_task(task)
    check_tolerance(tolerance)
    if not len(detections):
        return []
    if detections.mask is None and task == "segment":
        raise AdapterError(
            "YOLO's segmentation format needs masks, and these detections have none: "
            "ConceptDetector(model).segment_boxes(image, detections) adds them, and "
            "task='detect' writes boxes"
        )
    found = from_detections(detections, size, class_names)
    height, width = found.size
    # Whole pixels must come back, however many there are.
    digits = max(6, len(str(max(height, width))) + 2)
    rows = []
    for row, class_id in enumerate(read_class_ids(detections, class_names)):
        shape = extent(found, row)
        if shape is None:
            continue
        x0, y0, x1, y1 = shape.box
        values: Array = np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]).reshape(2, 2)
        if task == "segment":
            values = _polygon(shape, tolerance)
        values = (values / [width, height]).ravel()
        rows.append(f"{class_id} {' '.join(f'{v:.{digits}f}' for v in values)}")
    return rows


def _polygon(shape: Extent, tolerance: float) -> Array:
    """The polygon of a mask, (K, 2) xy in pixels of the image, with at least three points."""
    pixels = np.asarray(shape.pixels)
    points = outline(pixels, tolerance)
    # A row needs three points; the polygon of one pixel or of a line has fewer.
    points = points[np.arange(max(3, len(points))).clip(max=len(points) - 1)]
    first, inner, last = _OFFSETS
    place = np.full(points.shape, inner)
    for axis in (0, 1):
        end = pixels.shape[1 - axis] - 1
        if end:
            place[points[:, axis] == 0, axis] = first
            place[points[:, axis] == end, axis] = last
        else:  # one pixel wide; readers drop boxes without area
            place[:, axis] = first
            place[1 + axis :, axis] = last
    return points + place + shape.box[:2]


def _check_task(task: object) -> None:
    if task not in ("segment", "detect"):
        raise AdapterError(f"task is 'segment' or 'detect'; got {task!r}")


class YoloWriter:
    """Writes a dataset for ``yolo segment train`` or ``yolo detect train``.

    The folder gets ``images/<split>``, ``labels/<split>`` and ``data.yaml``.

    >>> with YoloWriter("dataset", detector.class_names) as out:
    ...     out.add("a.jpg", detector.predict("a.jpg"))
    ...     out.add("b.jpg", detector.predict("b.jpg"), split="val")

    Args:
        folder: A new or empty folder.
        class_names: All classes of the dataset, in order. They may have any characters.
        task: "segment" writes polygons, "detect" boxes.
        tolerance: Polygons are simplified by at most this many pixels. 0 keeps every pixel.

    Attributes:
        splits: Number of images written, by split.
        left_out: Number of detections that were not written, because their mask has no pixel.

    Raises:
        AdapterError: The folder is not empty, or class names or the task are invalid.
        ArgumentError: The tolerance is no number of pixels.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        class_names: Sequence[str],
        *,
        task: Task = "segment",
        tolerance: float = 0.0,
    ) -> None:
        _check_task(task)
        self.task, self.tolerance = task, check_tolerance(tolerance)
        self.folder = Path(folder)
        self.class_names = check_class_names(class_names)
        for name in self.class_names:
            if not is_text(name):
                raise AdapterError(f"class name {name!r} has characters that no text file holds")
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise AdapterError(
                f"{folder} exists and is not empty: name a new folder, so that labels of an "
                "earlier dataset do not mix with the new ones"
            )
        self._names: set[str] = set()
        self.splits: dict[str, int] = {}
        self.left_out = 0

    def add(
        self,
        image: Any,
        detections: Any,
        *,
        split: str = "train",
        name: str | None = None,
    ) -> Path:
        """Add an image and its detections. An image without detections is background.

        Args:
            image: A path, whose file is copied where YOLO's readers know its format; or an image
                in any form that ``model.segment`` takes, RGB, which is written as PNG.
            detections: ``sv.Detections``, with masks for "segment". Those with an empty mask are
                left out and counted.
            split: "train", "val" or "test".
            name: Name of the files without a suffix; by default the image's own name, or its
                number. A number is appended to a name that is taken.

        Returns:
            The label file.

        Raises:
            AdapterError: The split is unknown, masks are missing or of another size than the
                image, or the name is no file name.
        """
        if split not in ("train", "val", "test"):
            raise AdapterError(f"split is 'train', 'val' or 'test'; got {split!r}")
        if name is not None and (set(name) & set("/\\\0") or name.strip(". ") == ""):
            raise AdapterError(f"name is the name of a file, without folders; got {name!r}")
        source = Path(image) if isinstance(image, (str, os.PathLike)) else None
        pixels: Array | None = None
        if source is not None and source.suffix.lower() in _COPIED:
            size = _read_size(source)
        else:
            pixels = read_rgb(image).permute(1, 2, 0).numpy()
            size = (pixels.shape[0], pixels.shape[1])
        if detections.mask is not None and len(detections):
            height, width = detections.mask.shape[1:]
            if (height, width) != size:
                raise AdapterError(
                    f"the masks have {width} x {height} pixels and the image has {size[1]} x "
                    f"{size[0]} (width x height): pass detections of this image"
                )
        rows = yolo_rows(
            detections,
            self.class_names,
            task=self.task,
            tolerance=self.tolerance,
            size=size,
        )
        # Readers do not look at hidden files.
        stem = name or (source.stem.lstrip(".") if source else "") or f"{len(self._names):06d}"
        stem = self._free_name(stem)
        pictures, labels = (self.folder / kind / split for kind in ("images", "labels"))
        for folder in (pictures, labels):
            folder.mkdir(parents=True, exist_ok=True)
        if pixels is not None:
            write_picture(Image.fromarray(pixels), pictures / f"{stem}.png")
        elif source is not None:
            shutil.copyfile(source, pictures / f"{stem}{source.suffix.lower()}")
        target = labels / f"{stem}.txt"
        target.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        self.splits[split] = self.splits.get(split, 0) + 1
        if len(rows) < len(detections):
            self.left_out += len(detections) - len(rows)
            logger.warning("%s: %s", stem, describe_left_out(len(detections) - len(rows)))
        if min(size) < _MIN_SIDE:
            logger.warning(
                "%s has %d x %d pixels (width x height), and Ultralytics does not read images with "
                "a side below %d",
                *(stem, size[1], size[0], _MIN_SIDE),
            )
        return target

    def close(self) -> Path:
        """Write ``data.yaml``. Without validation images it names the training images twice.

        Returns:
            The file.

        Raises:
            AdapterError: No image was added.
        """
        if not self.splits:
            raise AdapterError("no image was added; a dataset needs at least one")
        some = "train" if "train" in self.splits else next(iter(self.splits))
        splits = {"train": some, "val": some, **{name: name for name in self.splits}}
        path = str(self.folder.resolve())
        # Without a path, readers take the folder of data.yaml.
        lines = [f"path: {quote_yaml(path)}"] if is_text(path) else []
        lines += [f"{name}: images/{folder}" for name, folder in splits.items()]
        lines += ["names:"] + [f"  {i}: {quote_yaml(n)}" for i, n in enumerate(self.class_names)]
        target = self.folder / "data.yaml"
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return target

    def __enter__(self) -> YoloWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()

    def _free_name(self, stem: str) -> str:
        free, number = stem, 1
        while free.casefold() in self._names:  # one file on systems that fold the case
            free, number = f"{stem}_{number}", number + 1
        self._names.add(free.casefold())
        return free


def _read_size(path: Path) -> tuple[int, int]:
    """The (height, width) of an image file as it is displayed; an unreadable one raises."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(0x0112) in _SIDEWAYS
    except (OSError, ValueError, SyntaxError):
        _, height, width = read_rgb(path).shape
        return height, width
    return (width, height) if sideways else (height, width)


def is_text(value: str) -> bool:
    """Whether a text can be encoded, as names of files that are no Unicode cannot.

    Args:
        value: The text.
    """
    return not any("\ud800" <= c <= "\udfff" for c in value)


def quote_yaml(value: str) -> str:
    """Quote a text for YAML, with ASCII characters alone.

    Readers open files in the encoding of their system, and some remove what is not printable.

    Args:
        value: Any text that can be encoded.
    """

    def quote(c: str) -> str:
        # JSON writes characters beyond U+FFFF as two surrogates, which YAML does not have, and
        # leaves the character DEL, which YAML does not allow.
        if c > "\uffff" or c == "\x7f":
            return f"\\U{ord(c):08X}"
        return json.dumps(c)[1:-1]

    return f'"{"".join(map(quote, value))}"'
