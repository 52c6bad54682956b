"""Find concepts in an image and draw them with Supervision.

python examples/supervision_image.py photo.jpg --concepts dog "red car" --model NAME
"""

import argparse
from pathlib import Path

import supervision as sv
from PIL import Image

import efficientsam3 as es3
from supervision_adapters import ConceptDetector


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", nargs="?", default="demo/scenes/images/scene_0000001.jpg")
    parser.add_argument("--concepts", nargs="+", default=["animal", "food", "vehicle"])
    parser.add_argument("--model", default="efficientsam3-stickers")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("out/examples/supervision_image.jpg"))
    options = parser.parse_args(arguments)

    model = es3.load(options.model)
    # Nothing is both an animal and a vehicle: each object gets its best label.
    detector = ConceptDetector(
        model, options.concepts, threshold=options.threshold, class_agnostic=True
    )
    image = Image.open(options.image).convert("RGB")  # a PIL image has a known channel order
    detections = detector.predict(image)
    print(f"{len(detections)} found:", *detections.data["class_name"])
    for annotator in (sv.MaskAnnotator(), sv.PolygonAnnotator(), sv.LabelAnnotator()):
        image = annotator.annotate(image, detections)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    image.save(options.out)


if __name__ == "__main__":
    main()
