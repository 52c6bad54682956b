"""A tiny saved model and a small data set in COCO's format, for fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from efficientsam3.checkpoints.save import save_folder
from efficientsam3.config import StudentConfig

from ..conftest import COLORS, colored_sample, tiny_net

QUICK = {"loop.accelerator": "cpu", "loop.precision": "32-true", "loop.log_every": "1"}
"""Settings of the loop that give the same numbers on every machine."""
OPTIONS: dict[str, Any] = {"held_out": 2, "workers": 0, "prompts": 2, "rank": 2}


def save_model(folder: Path, **changes: Any) -> Path:
    """Save a tiny model, whose image encoder has batch norms."""
    vision = StudentConfig("repvit-m0.9", {"embed_dim": [8, 16, 24], "depth": [0, 1, 1]})
    given = {"vision": vision, "resolution": 96, "grid": 6, **changes}
    config, net = tiny_net(**given)
    save_folder(folder, "tiny", config, net)
    return folder


def write_coco(folder: Path, count: int = 6, *, masks: bool = True) -> tuple[Path, Path]:
    """Write colored rectangles; each color is a category. Returns the file and the images."""
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        sample = colored_sample(number)
        height, width = sample.size
        name = f"{number}.png"
        Image.fromarray(sample.image).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for query in sample.queries:
            for index in query.objects:
                x0, y0, x1, y1 = sample.boxes[index].tolist()
                rle = coco.encode(np.asfortranarray(sample.mask(index), np.uint8))
                shape = {"segmentation": {**rle, "counts": rle["counts"].decode()}}
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": COLORS.index(query.phrase),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        **(shape if masks else {}),
                    }
                )
    categories = [{"id": i, "name": name.replace(" ", "_")} for i, name in enumerate(COLORS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json", folder / "images"
