"""Make a dataset for `yolo segment train` from images and words, and draw its labels.

python examples/text_to_yolo_dataset.py photos/ --concepts dog "yellow car" --model NAME
yolo segment train model=yolo11n-seg.pt data=out/examples/dataset/data.yaml
"""

import argparse
from pathlib import Path

import supervision as sv
from PIL import Image, ImageOps

from supervision_adapters.ultralytics import auto_annotate


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", default=["demo/scenes/images"])
    parser.add_argument("--concepts", nargs="+", default=["animal", "plant", "food"])
    parser.add_argument("--model", default="efficientsam3-stickers")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("out/examples/dataset"))
    options = parser.parse_args(arguments)

    # With class_agnostic, each object gets its best label.
    settings = {"threshold": options.threshold, "class_agnostic": True}
    out = options.out
    made = auto_annotate(options.data, options.concepts, out, options.model, **settings)
    print(f"{made.objects} objects in {made.images} images: {made.data}")
    folders = [str(out / kind / "train") for kind in ("images", "labels")]
    sheet = Image.new("RGB", (4 * 240, 3 * 240))
    for cell, (path, _, labels) in enumerate(sv.DetectionDataset.from_yolo(*folders, made.data)):
        image = sv.PolygonAnnotator().annotate(Image.open(path).convert("RGB"), labels)
        sheet.paste(ImageOps.pad(image, (236, 236)), (cell % 4 * 240, cell // 4 * 240))
    sheet.save(out / "sheet.jpg")


if __name__ == "__main__":
    main()
