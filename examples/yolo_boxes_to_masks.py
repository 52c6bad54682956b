"""Add masks to YOLO's boxes (extra `ultralytics`, AGPL-3.0).

python examples/yolo_boxes_to_masks.py photo.jpg --yolo yolo11n.pt --model NAME
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("YOLO_AUTOINSTALL", "false")
from ultralytics import YOLO

import efficientsam3 as es3
from supervision_adapters.ultralytics import segment_boxes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", nargs="?", default="demo/scenes/images/scene_0000001.jpg")
    parser.add_argument("--yolo", default="yolo11n.pt", help="downloaded by Ultralytics")
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--model", default="efficientsam3-stickers")
    parser.add_argument("--out", type=Path, default=Path("out/examples/yolo_boxes_to_masks.jpg"))
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)

    boxes = YOLO(options.yolo)(options.image, conf=options.conf, max_det=20)
    (results,) = segment_boxes(es3.load(options.model), boxes)
    for row in results.summary():
        print(f"{row['name']} {row['confidence']:.2f}")
    results.save(str(options.out))


if __name__ == "__main__":
    main()
