"""Fine-tune a model on the labels of a field, by COCO JSON in the folder of the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fiftyone.core.labels as fol

from efficientsam3.errors import ImageError, join_names
from efficientsam3.io.atomic import replacing
from efficientsam3.io.samples import read_rgb_array

from ..ownership.overlap import encode_masks
from .checks import check_field, check_samples
from .steps import RunError

if TYPE_CHECKING:
    from efficientsam3.train.finetune import FinetuneResult

DATA_FILE = "coco.json"
"""The file of the labels, in the folder of the run."""


def finetune(
    samples: Any, field: str, out: str | os.PathLike[str], *, model: str, **options: Any
) -> FinetuneResult:
    """Fine-tune a model on the labels of images.

    The classes of the labels are the phrases, each of which is absent from the images without a
    label of it: every object of a class has to be labeled in every image. Samples whose field is
    None are not labeled and left out; empty ``Detections`` say that nothing is there. The run
    continues when the function is called again in the same way.

    >>> result = finetune(dataset.match_tags("checked"), "ground_truth", "runs/boats", model=NAME)
    >>> foz.load_zoo_model(NAME, adapter=str(result.adapter), classes=["sailing boat"])

    Args:
        samples: images, or a view of them.
        field: the field with ``Detections``. Masks are learned, and figures are measured, where
            they have masks; labels of boxes alone need ``held_out=0``.
        out: the folder of the run.
        model: a model name, or the folder of a saved model.
        **options: as ``efficientsam3.train.finetune.finetune`` takes them.

    Returns:
        the file of the adapter, and the figures before and after.

    Raises:
        RunError: the field does not exist, no sample has labels, only some labels have masks, or
            an image cannot be read.
        EfficientSam3Error: as ``efficientsam3.train.finetune.finetune``.
    """
    from efficientsam3.train.finetune import finetune as run

    file = Path(out) / DATA_FILE
    content = json.dumps(_to_coco(samples, field), indent=1) + "\n"
    # A file that is written anew would be other data to the run.
    if not file.is_file() or file.read_text(encoding="utf-8") != content:
        with replacing(file) as temporary:
            temporary.write_text(content, encoding="utf-8")
    # The paths of images are absolute.
    return run(model, file, Path(file.absolute().anchor), out, **options)


def _to_coco(samples: Any, field: str) -> dict[str, Any]:
    """The labels of a field in COCO's format, with masks of every pixel."""
    check_samples(samples)
    check_field(samples, field, kinds=(fol.Detections,))
    classes = sorted(samples.distinct(f"{field}.detections.label"))
    if not classes:
        raise RunError(f"no sample of this view has labels with a class in {field!r}")
    numbers = {name: number for number, name in enumerate(classes, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    without, unreadable = [], []
    for sample in samples.exists(field).select_fields(field):
        try:
            height, width = read_rgb_array(sample.filepath).shape[:2]
        except ImageError as error:
            unreadable.append(str(error))
            continue
        number = len(images) + 1
        path = os.path.abspath(sample.filepath)
        images.append({"id": number, "file_name": path, "height": height, "width": width})
        labels = [label for label in sample[field].detections if label.label]
        masked = [label for label in labels if label.has_mask]
        without += [path for _ in range(len(labels) - len(masked))]
        masks = iter(encode_masks(masked, (height, width)))
        for label in labels:
            x, y, w, h = label.bounding_box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[label.label],
                    "bbox": [x * width, y * height, w * width, h * height],
                    "iscrowd": int(bool(label.get_attribute_value("iscrowd", False))),
                    **({"segmentation": next(masks)} if label.has_mask else {}),
                }
            )
    if unreadable:
        raise RunError(
            f"{len(unreadable)} images cannot be read: {unreadable[0]}. Leave them out of the view"
        )
    if 0 < len(without) < len(annotations):
        raise RunError(
            f"{len(without)} of {len(annotations)} labels in {field!r} have no mask, in "
            f"{join_names(dict.fromkeys(without), 3)}: segment_prompts makes masks of boxes; or "
            "choose a view in which all labels have masks, or none"
        )
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
