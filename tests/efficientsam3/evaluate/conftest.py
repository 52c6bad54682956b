"""Small splits of each layout, and images for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pycocotools import mask as coco

from efficientsam3.evaluate import GroundTruth, read_ground_truth

Box = tuple[int, int, int, int]
HEIGHT, WIDTH = 40, 60


def mask_of(box: Box) -> npt.NDArray[np.bool_]:
    x0, y0, x1, y1 = box
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def rle_of(box: Box) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask_of(box), np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def xywh(box: Box) -> list[float]:
    x0, y0, x1, y1 = box
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]


LEFT, RIGHT, TOP = (5, 10, 25, 30), (35, 10, 55, 30), (20, 0, 40, 8)

# (image, phrase, boxes)
PAIRS: list[tuple[str, str, list[Box]]] = [
    ("a.png", "red square", [LEFT, RIGHT]),
    ("a.png", "dog", []),
    ("b.png", "red square", [LEFT]),
    ("sub/c.png", "dog", []),
    ("sub/c.png", "blue thing", [TOP]),
]


def saco(pairs: Sequence[tuple[str, str, Sequence[Box]]] = PAIRS) -> dict[str, Any]:
    """A file of SA-Co; ids of pairs begin at 10."""
    images, annotations = [], []
    for number, (image, phrase, boxes) in enumerate(pairs, 10):
        images.append(
            {
                "id": number,
                "file_name": image,
                "text_input": phrase,
                "width": WIDTH,
                "height": HEIGHT,
                "queried_category": "0",
                "is_instance_exhaustive": 1,
                "is_pixel_exhaustive": 1,
            }
        )
        for box in boxes:
            x, y, w, h = xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "source": "manual",
                    "area": w * h / (WIDTH * HEIGHT),
                    "bbox": [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT],
                    "segmentation": rle_of(box),
                    "category_id": 1,
                    "iscrowd": 0,
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }


def result(number: int, box: Box, score: float, category: int = 1) -> dict[str, Any]:
    """A prediction in COCO's result format."""
    return {
        "image_id": number,
        "category_id": category,
        "score": score,
        "bbox": xywh(box),
        "segmentation": rle_of(box),
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The folder of the images that ``PAIRS`` names."""
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "sub/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((HEIGHT, WIDTH, 3), rng.integers(0, 255, 3), np.uint8)
        pixels[mask_of(LEFT)] = (220, 30, 40)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Write a JSON file."""

    def function(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return function


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """The names above, since tests cannot import from here."""
    return SimpleNamespace(
        PAIRS=PAIRS,
        LEFT=LEFT,
        RIGHT=RIGHT,
        TOP=TOP,
        SIZE=(HEIGHT, WIDTH),
        saco=saco,
        result=result,
        rle_of=rle_of,
        xywh=xywh,
    )


@pytest.fixture
def truth(toy: SimpleNamespace, write: Callable[[str, Any], Path]) -> GroundTruth:
    """The toy split."""
    return read_ground_truth(write("gold.json", toy.saco()))
