"""Words and pictures become a dataset that `yolo segment train` takes; what is in it is drawn.

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

    limit, out = options.threshold, options.out
    made = auto_annotate(options.data, options.concepts, out, options.model, conf=limit)
    print(f"{made.objects} objects in {made.images} pictures: {made.data}")
    folders = [str(out / kind / "train") for kind in ("images", "labels")]
    sheet = Image.new("RGB", (4 * 240, 3 * 240))
    for place, (path, _, found) in enumerate(sv.DetectionDataset.from_yolo(*folders, made.data)):
        picture = sv.PolygonAnnotator().annotate(Image.open(path).convert("RGB"), found)
        sheet.paste(ImageOps.pad(picture, (236, 236)), (place % 4 * 240, place // 4 * 240))
    sheet.save(out / "sheet.jpg")


if __name__ == "__main__":
    main()
