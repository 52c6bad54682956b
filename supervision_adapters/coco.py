"""COCO files of detections, with masks as run lengths or as polygons."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficientsam3.io import rle
from efficientsam3.io.atomic import replacing
from efficientsam3.masks.extent import Extent, describe_left_out, extent
from efficientsam3.masks.polygons import (
    MaskForm,
    check_mask_form,
    check_tolerance,
    part_polygons,
)

from .detections import check_class_names, from_detections, read_class_ids
from .errors import AdapterError

logger = logging.getLogger(__name__)


class CocoWriter:
    """Collects detections of images and writes one COCO instances file.

    Every mask is written with ``iscrowd`` 0, because evaluators and trainers skip crowds. Its
    ``bbox`` is the mask's extent, and ``area`` counts its pixels.

    >>> out = CocoWriter(detector.class_names)
    >>> out.add("a.jpg", detector.predict("a.jpg"))
    >>> out.write("annotations.json")

    Args:
        class_names: The categories, with ids from 1 in this order.
        masks: "rle" writes run lengths, which hold every pixel; "polygon" writes a polygon for
            each part, for tools that read nothing else. Bridges without area lead to holes.
        tolerance: Polygons are simplified by at most this many pixels. At 0, pycocotools reads
            every pixel back.

    Attributes:
        left_out: Number of detections that were not written, because their mask has no pixel.

    Raises:
        AdapterError: Class names are invalid.
        ArgumentError: An option is invalid.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        masks: MaskForm = "rle",
        tolerance: float = 0.0,
    ) -> None:
        check_mask_form(masks)
        self.class_names = check_class_names(class_names)
        self.masks, self.tolerance = masks, check_tolerance(tolerance)
        self.left_out = 0
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._files: set[str] = set()

    def add(
        self,
        file_name: str | os.PathLike[str],
        detections: Any,
        size: tuple[int, int] | None = None,
    ) -> int:
        """Add an image with its detections. An image without detections is added too.

        Args:
            file_name: Name of the image in the COCO file.
            detections: ``sv.Detections`` of the image. Without masks, boxes are written.
                Detections with an empty mask are left out and counted.
            size: Height and width of the image in pixels; needed where there are no masks.

        Returns:
            The number of annotations that were added.

        Raises:
            AdapterError: The image was added before, or a class is not one of ``class_names``.
        """
        name = os.fspath(file_name)
        if name in self._files:
            raise AdapterError(f"{name} was added before; add each image once")
        found = from_detections(detections, size, self.class_names)
        class_ids = read_class_ids(detections, self.class_names)
        image = len(self._images) + 1
        height, width = found.size
        before = len(self._annotations)
        for row, class_id in enumerate(class_ids):
            shape = extent(found, row)
            if shape is None:
                continue
            extra: dict[str, Any] = {}
            if detections.confidence is not None:
                extra["score"] = round(float(found.scores[row]), 6)
            if found.track_ids is not None and found.track_ids[row] >= 0:
                extra["track_id"] = int(found.track_ids[row])
            if shape.pixels is not None:
                extra["segmentation"] = self._segmentation(shape, found.size)
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image,
                    "category_id": class_id + 1,
                    "bbox": shape.xywh,
                    "area": shape.area,
                    "iscrowd": 0,
                    **extra,
                }
            )
        added = len(self._annotations) - before
        if added < len(found):
            self.left_out += len(found) - added
            logger.warning("%s: %s", name, describe_left_out(len(found) - added))
        self._files.add(name)
        self._images.append({"id": image, "file_name": name, "height": height, "width": width})
        return added

    def _segmentation(self, shape: Extent, size: tuple[int, int]) -> Any:
        """A mask in the writer's form."""
        x0, y0, x1, y1 = map(int, shape.box)
        pixels = np.asarray(shape.pixels)
        if self.masks == "rle":
            return rle.encode_cut(pixels, (x0, y0, x1, y1), size)
        polygons = part_polygons(pixels, self.tolerance)
        return [
            (polygon + np.array([x0, y0])).astype(float).ravel().tolist() for polygon in polygons
        ]

    def content(self) -> dict[str, Any]:
        """Return the content of the file: images, annotations and categories."""
        categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names, 1)]
        return {
            "images": self._images,
            "annotations": self._annotations,
            "categories": categories,
        }

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the file. An existing file is replaced when the new one is complete.

        Args:
            path: The JSON file to write.

        Returns:
            The path.
        """
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.content()), encoding="utf-8")
        return Path(path)
