"""YOLO segmentation datasets of detections: one row for each object, whatever its shape."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from efficientsam3.pixels import read_rgb
from efficientsam3.types import Array

from .coco import check_names, number_classes
from .detections import patches
from .errors import AdapterError
from .polygons import outline

INTO = 0.25
"""Where in a pixel its point is written: readers that round and readers that cut off the
fraction both come back to this pixel."""

READABLE = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Files that are copied as they are; others become PNG."""


def yolo_rows(detections: Any, class_names: Sequence[str]) -> list[str]:
    """``class x y x y ...`` for each detection, x and y in shares of the image.

    Parts of a mask are joined, and holes kept, by bridges without area; readers that draw the
    polygon's line as well join parts by one pixel's width. Detections with an empty mask are left
    out.

    Args:
        detections: ``sv.Detections`` with masks.
        class_names: of the dataset; a row begins with the place of its class in them.
    """
    if detections.mask is None:
        raise AdapterError(
            "rows of YOLO's segmentation format are masks, and these detections have none: "
            "ConceptDetector(model).segment_boxes(image, detections) makes them"
        )
    height, width = detections.mask.shape[1:]
    rows = []
    numbers = number_classes(detections, class_names)
    for number, patch in zip(numbers, patches(detections.mask), strict=True):
        pixels, (left, top, _, _) = patch.crop((height, width))
        if pixels.any():
            corner = np.array([left + INTO, top + INTO])
            points = (outline(pixels) + corner) / [width, height]
            rows.append(f"{number} {_write(points)}")
    return rows


def _write(points: Array) -> str:
    # A row needs three points; a mask of one pixel or of a line has fewer.
    enough = points[np.arange(max(3, len(points))).clip(max=len(points) - 1)]
    return " ".join(f"{value:.6f}" for value in enough.ravel())


class YoloWriter:
    """Writes images and labels of a dataset on which ``yolo segment train`` starts.

    >>> with YoloWriter("dataset", detector.class_names) as out:
    ...     out.add("a.jpg", detector.predict("a.jpg"))
    ...     out.add("b.jpg", detector.predict("b.jpg"), split="val")

    The folder gets ``images/<split>``, ``labels/<split>`` and ``data.yaml``.

    Args:
        folder: new, or empty.
        class_names: of the dataset, in order.

    Attributes:
        splits: images written, by split.
    """

    def __init__(self, folder: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        self.folder = Path(folder)
        self.class_names = check_names(class_names)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise AdapterError(
                f"{folder} is there and not empty: name a new folder, so that no labels of an "
                "earlier dataset stay among the new ones"
            )
        self._names: set[str] = set()
        self.splits: dict[str, int] = {}

    def add(
        self,
        image: Any,
        detections: Any,
        *,
        split: str = "train",
        name: str | None = None,
    ) -> Path:
        """Add an image and its detections; one without any is an example of the background.

        Args:
            image: a path, whose file is copied as it is where YOLO's readers know its kind; or
                pixels in any form that ``model.segment`` takes, RGB, which are written as PNG.
            detections: ``sv.Detections`` with masks.
            split: "train", "val" or "test".
            name: of the files, without an ending; the image's own, or its number, if omitted. A
                name that is taken gets a number.

        Returns:
            The file of labels.
        """
        if split not in ("train", "val", "test"):
            raise AdapterError(f"split is 'train', 'val' or 'test'; got {split!r}")
        rows = yolo_rows(detections, self.class_names)
        source = Path(image) if isinstance(image, (str, os.PathLike)) else None
        stem = self._free(name or (source.stem if source else f"{len(self._names):06d}"))
        pictures, labels = (self.folder / kind / split for kind in ("images", "labels"))
        for folder in (pictures, labels):
            folder.mkdir(parents=True, exist_ok=True)
        if source is not None and source.suffix.lower() in READABLE:
            shutil.copyfile(source, pictures / f"{stem}{source.suffix.lower()}")
        else:
            pixels = read_rgb(image).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(pictures / f"{stem}.png")
        target = labels / f"{stem}.txt"
        target.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        self.splits[split] = self.splits.get(split, 0) + 1
        return target

    def close(self) -> Path:
        """Write ``data.yaml``, and return it. Without validation images it names the training's."""
        if not self.splits:
            raise AdapterError("no image was added; a dataset has at least one")
        some = "train" if "train" in self.splits else next(iter(self.splits))
        splits = {"train": some, "val": some, **{name: name for name in self.splits}}
        lines = [f"path: {json.dumps(str(self.folder.resolve()))}"]
        lines += [f"{name}: images/{folder}" for name, folder in splits.items()]
        # JSON's strings are YAML's, so that a name may hold a colon or be a number.
        lines += ["names:"] + [f"  {i}: {json.dumps(n)}" for i, n in enumerate(self.class_names)]
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

    def _free(self, stem: str) -> str:
        free, number = stem, 1
        while free in self._names:
            free, number = f"{stem}_{number}", number + 1
        self._names.add(free)
        return free
