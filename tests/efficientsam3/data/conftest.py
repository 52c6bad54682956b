"""Small data sets on disk, in the layouts of the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

SIZE = 30, 40  # height, width


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)
    return pixels


def rectangle(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def packed(mask: np.ndarray) -> dict[str, Any]:
    out = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": out["counts"].decode()}


def sa1b_record(name: str, count: int = 2) -> dict[str, Any]:
    annotations = []
    for i in range(count):
        x, y, side = 3 + 6 * i, 2 + 5 * i, 5 + 3 * i
        mask = rectangle(x, y, x + side, y + side)
        annotations.append(
            {
                "id": i,
                "segmentation": packed(mask),
                "bbox": [x, y, side, side],
                "area": int(mask.sum()),
                "point_coords": [[x + 1.0, y + 2.0]],
                "predicted_iou": 0.9,
                "stability_score": 0.9,
                "crop_box": [0, 0, SIZE[1], SIZE[0]],
            }
        )
    image = {"image_id": 1, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}
    return {"image": image, "annotations": annotations}


def write_sa1b(root: Path, arranged: bool = False) -> None:
    """Six images of two tars, as released or as upstream arranges them."""
    for tar, numbers in (("sa_000000", (1, 2, 10)), ("sa_000001", (11, 12, 13))):
        for number in numbers:
            name = f"sa_{number}"
            images = root / "images" / "train" if arranged else root / tar
            labels = root / "annotations" / "train" if arranged else root / tar
            write_image(images / f"{name}.jpg", number)
            labels.mkdir(parents=True, exist_ok=True)
            (labels / f"{name}.json").write_text(json.dumps(sa1b_record(name)))


@pytest.fixture
def sa1b(tmp_path: Path) -> Path:
    write_sa1b(tmp_path / "sa1b")
    return tmp_path / "sa1b"
