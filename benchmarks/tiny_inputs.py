"""Small inputs for scripts that run commands many times: a tiny model, pictures, clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from efficientsam3 import ImageModel
from efficientsam3.config import tiny_config

IMAGES = 4
FRAMES = 36
"""More than the frames that are tracked again after a stop."""


def make_inputs(folder: Path) -> None:
    """A tiny model, pictures, frames of a clip, and annotations."""
    torch.manual_seed(0)
    ImageModel.from_config(tiny_config(), dtype="float32").save(folder / "tiny")
    for name, count in (("photos", IMAGES), ("frames", FRAMES)):
        (folder / name).mkdir()
        for i in range(count):
            noise = np.random.default_rng(0 if name == "frames" else i)
            pixels = noise.integers(0, 256, (12, 16, 3), np.uint8).repeat(5, 0).repeat(5, 1)
            Image.fromarray(np.roll(pixels, 2 * i, 1)).save(folder / name / f"{i:03d}.png")
    for number in range(2):
        write_video(folder / f"{number}.mp4", folder / "frames", 12 + 4 * number)
    size = {"height": 60, "width": 80}
    box, polygon = [10, 10, 40, 30], [[10, 10, 50, 10, 50, 40, 10, 40]]
    images = [{"id": i, "file_name": f"{i:03d}.png", **size} for i in range(IMAGES)]
    found = [
        {"id": i, "image_id": i, "bbox": box, "area": 1200, "iscrowd": 0, "segmentation": polygon}
        for i in range(IMAGES)
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "bus"}]
    coco = [{**record, "category_id": 1 + record["id"] % 2} for record in found]
    truth = {"images": images, "categories": categories, "annotations": coco}
    (folder / "truth.json").write_text(json.dumps(truth))
    pairs = [{**image, "text_input": "person"} for image in images]
    (folder / "saco.json").write_text(json.dumps({"images": pairs, "annotations": found}))


def write_video(path: Path, frames: Path, count: int) -> None:
    """Write the first frames of a folder as a video."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "yuv420p"
        for file in sorted(frames.iterdir())[:count]:
            with Image.open(file) as image:
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
