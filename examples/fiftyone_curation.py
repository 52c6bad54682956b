"""Label a folder of images in FiftyOne, rank them, find more like one label, save masks as COCO.

python examples/fiftyone_curation.py FOLDER "dog, yellow car" [MODEL [THRESHOLD]]
"""

import sys

import fiftyone as fo
import fiftyone.operators as foo

PLUGIN, OUT = "@efficientsam3/curation", "out/fiftyone_curation"


def main(
    folder: str, concepts: str, model: str = "efficientsam3-stickers", threshold: str = "0.5"
) -> None:
    dataset, options = fo.Dataset.from_images_dir(folder), {"model": model}
    options["threshold"] = float(threshold)

    def run(operator: str, **params: object) -> None:
        context = {"dataset": dataset, "selected_labels": params.pop("selected", [])}
        result = foo.execute_operator(f"{PLUGIN}/{operator}", context, params=options | params)
        print(f"{operator}: {result.result['message']}")

    first, *others = (name.strip() for name in concepts.split(","))
    run("segment_concepts", concepts=[first, *others], class_agnostic=True)  # one label per object
    ranked = dataset.sort_by(f"esam3.concept_presence.{first}", reverse=True)
    best = ranked.first()
    print(f"most likely to show a {first}, found or not: {best.filename}")
    like_this = [d for d in best.esam3.detections if d.label == first][:1]
    chosen = [{"sample_id": best.id, "field": "esam3", "label_id": d.id} for d in like_this]
    if chosen:
        run("find_similar", selected=chosen, concept=first)
    dataset.draw_labels(f"{OUT}/pictures", label_fields=["esam3"], overwrite=True)
    dataset.export(f"{OUT}/coco", fo.types.COCODetectionDataset, label_field="esam3")


if __name__ == "__main__":
    main(*sys.argv[1:])
