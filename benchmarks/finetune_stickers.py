"""Fine-tune a model to twelve kinds of stickers that the packaged one was never trained on.

It needs the extras `train` and `scenes`, and the stickers of `efficientsam3 scenes fetch`.

python benchmarks/finetune_stickers.py --out out/finetune
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from efficientsam3.train.finetune import finetune
from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.concepts import SPLITS
from efficientsam3_stickers.scenes import SceneGenerator

NAMES = (
    *("broccoli", "fire engine", "flamingo", "hedgehog", "ladybug", "lollipop"),
    *("owl", "penguin", "skateboard", "squid", "taco", "taxi"),
)


def write_scenes(folder: Path, count: int) -> None:
    """Write scenes of unseen concepts in an unseen style, as images and COCO JSON."""
    generator = SceneGenerator(StickerArt.open(), SPLITS["unseen"], 336, NAMES)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        scene = generator.scene(number)
        name = f"{number:04d}.png"
        Image.fromarray(scene.image).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": 336, "height": 336})
        for found in scene.objects:
            x0, y0, x1, y1 = found.box.tolist()
            rle = coco.encode(np.asfortranarray(found.mask, np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": NAMES.index(found.concept.name) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(found.mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/finetune"))
    parser.add_argument("--model", default="efficientsam3-stickers", help="a name or a folder")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=None)
    options = parser.parse_args(arguments)
    data = options.out / "data"
    if not (data / "coco.json").exists():
        write_scenes(data, options.scenes)
    result = finetune(
        options.model,
        data / "coco.json",
        data / "images",
        options.out / "run",
        steps=options.steps,
    )
    for name in ("cgF1", "pmF1", "IL_MCC"):
        print(f"{name}: {result.before[name]:.3g} before, {result.after[name]:.3g} after")
    print(f"adapter: {result.adapter}, {result.adapter.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
