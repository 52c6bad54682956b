"""COCO files of detections, in which masks with holes and parts stay objects to learn from."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .detections import from_detections, read_names
from .errors import AdapterError


class CocoWriter:
    """Collects detections of images and writes one COCO instances file.

    Every mask is a run-length code with ``iscrowd`` 0: as a polygon a hole or a part would be
    lost, and a crowd is passed over by evaluators and trainers. Only the codes are kept in memory.

    >>> out = CocoWriter(detector.class_names)
    >>> out.add("a.jpg", detector.predict("a.jpg"))
    >>> out.write("annotations.json")

    Args:
        class_names: the categories, with ids from 1 in this order.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = check_names(class_names)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._files: set[str] = set()

    def add(
        self,
        file_name: str | os.PathLike[str],
        detections: Any,
        size: tuple[int, int] | None = None,
    ) -> int:
        """Add an image with its detections; one without any counts too.

        Args:
            file_name: as the file will say it.
            detections: ``sv.Detections`` of it. Without masks, boxes are written. Detections with
                an empty mask are left out.
            size: (height, width); masks know it.

        Returns:
            How many annotations were written.
        """
        name = os.fspath(file_name)
        if name in self._files:
            raise AdapterError(f"{name} was added before; an image has one row in a COCO file")
        found = from_detections(detections, size, self.class_names)
        numbers = number_classes(detections, self.class_names)
        image = len(self._images) + 1
        height, width = found.size
        before = len(self._annotations)
        codes = None if found.patches is None else found.rles
        for row, number in enumerate(numbers):
            box = found.boxes[row].tolist()
            extra: dict[str, Any] = {}
            if codes is not None:
                pixels, corners = found.crop(row)
                if not pixels.any():
                    continue
                box = list(corners)
                extra = {"segmentation": codes[row], "area": int(pixels.sum())}
            x0, y0, x1, y1 = box
            if detections.confidence is not None:
                extra["score"] = round(float(found.scores[row]), 6)
            if found.track_ids is not None and found.track_ids[row] >= 0:
                extra["track_id"] = int(found.track_ids[row])
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image,
                    "category_id": number + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    **extra,
                }
            )
        self._files.add(name)
        self._images.append({"id": image, "file_name": name, "height": height, "width": width})
        return len(self._annotations) - before

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names, 1)]
        return {
            "images": self._images,
            "annotations": self._annotations,
            "categories": categories,
        }

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the file; what stands there is replaced when the new one is whole."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        part.write_text(json.dumps(self.content()), encoding="utf-8")
        part.replace(target)
        return target


def check_names(class_names: Sequence[str]) -> list[str]:
    """Class names as a list: at least one, none twice."""
    names = [class_names] if isinstance(class_names, str) else list(class_names)
    if not names or len(set(names)) < len(names):
        raise AdapterError(f"class_names are different names, at least one; got {names}")
    return names


def number_classes(detections: Any, class_names: Sequence[str]) -> list[int]:
    """(N,) places in ``class_names``, by the names that the detections have, else by class_id."""
    names = read_names(detections, class_names)
    strangers = sorted(set(names) - set(class_names))
    if strangers:
        raise AdapterError(
            f"class_names has no {', '.join(map(repr, strangers))}; it has "
            f"{', '.join(class_names)}. Name every class of the dataset."
        )
    return [list(class_names).index(name) for name in names]
