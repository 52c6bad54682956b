"""Sound files of each format of annotations, of two pictures and a clip."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from efficientsam3.io import rle

HEIGHT, WIDTH = 12, 16


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another value at a place."""
    copy = json.loads(json.dumps(value))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = new
    return copy


def a_mask(seed: int) -> np.ndarray[Any, Any]:
    """(H, W) bool, a rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[seed % 5 : seed % 5 + 6, seed % 7 : seed % 7 + 8] = True
    return mask


def run_lengths(seed: int) -> dict[str, Any]:
    return rle.encode_cut(a_mask(seed), (0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH))


def picture(suffix: str = "PNG") -> bytes:
    pixels = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, suffix)
    return file.getvalue()


SIZE = {"height": HEIGHT, "width": WIDTH}
POLYGON = [[2, 2, 9, 2, 9, 8, 2, 8]]
COCO = {
    "info": {},
    "images": [{"id": 1, "file_name": "a.png", **SIZE}, {"id": 2, "file_name": "b.png", **SIZE}],
    "categories": [{"id": 1, "name": "cat", "supercategory": "x"}, {"id": 7, "name": "dog"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [2, 2, 7, 6],
            "area": 42,
            "iscrowd": 0,
            "segmentation": POLYGON,
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 7,
            "bbox": [1, 1, 8, 6],
            "area": 48,
            "iscrowd": 1,
            "segmentation": run_lengths(1),
        },
        {
            "id": 3,
            "image_id": 2,
            "category_id": 1,
            "bbox": [0, 0, 3, 3],
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 192]},
        },
    ],
}
LVIS = {
    "images": [
        {
            "id": 1,
            "coco_url": "http://x/val2017/a.png",
            **SIZE,
            "neg_category_ids": [3],
            "not_exhaustive_category_ids": [1],
        }
    ],
    "categories": [
        {
            "id": 1,
            "name": "bow_(weapon)",
            "synonyms": ["bow_(weapon)", "long_bow"],
            "frequency": "r",
            "synset": "bow.n.01",
        },
        {
            "id": 3,
            "name": "bow_(ribbon)",
            "synonyms": ["bow_(ribbon)"],
            "frequency": "f",
            "synset": "bow.n.02",
        },
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [2, 2, 7, 6],
            "area": 42,
            "segmentation": POLYGON,
        }
    ],
}
SACO = {
    "images": [
        {
            "id": 1,
            "file_name": "a.png",
            "text_input": "red cat",
            **SIZE,
            "is_instance_exhaustive": 1,
        },
        {"id": 2, "file_name": "a.png", "text_input": "dog", **SIZE, "is_instance_exhaustive": 0},
    ],
    "categories": [{"id": 1, "name": "object"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "bbox": [0.1, 0.1, 0.5, 0.5],
            "area": 0.2,
            "segmentation": run_lengths(1),
        },
        {
            "id": 2,
            "image_id": 1,
            "bbox": [0.0, 0.1, 0.5, 0.5],
            "area": 0.2,
            "segmentation": run_lengths(3),
        },
    ],
}
VEVAL = {
    "videos": [
        {"id": 1, "video_name": "v", **SIZE, "length": 2, "file_names": ["v/0.jpg", "v/1.jpg"]}
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {
            "id": 1,
            "video_id": 1,
            "category_id": 1,
            "segmentations": [run_lengths(1), None],
            "bboxes": [[1, 1, 8, 6], None],
            "areas": [48, None],
            "iscrowd": 0,
            "noun_phrase": "cat",
        }
    ],
    "video_np_pairs": [
        {"video_id": 1, "category_id": 1, "num_masklets": 1},
        {"video_id": 1, "category_id": 2, "num_masklets": 0},
    ],
}
