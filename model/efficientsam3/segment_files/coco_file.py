"""The COCO file of all images of a run."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

from ..io.atomic import replacing
from ..io.identity import identity
from ..io.jsonl import Record
from ..masks.polygons import MaskForm, check_mask_form, check_tolerance, to_polygons
from .run_file import InstanceFile, path_of

logger = logging.getLogger(__name__)


class CocoSummary(NamedTuple):
    """The COCO file that was written.

    Attributes:
        path: The file.
        images: Number of images in it.
        annotations: Number of annotations in it.
        left_out: Number of instances that are not in it, because their mask has no pixel.
    """

    path: Path
    images: int
    annotations: int
    left_out: int = 0


def write_coco(
    file: InstanceFile, target: Path, *, masks: MaskForm = "rle", tolerance: float = 0.0
) -> CocoSummary:
    """Write the COCO file of a run; see ``SegmentRun.write_coco``.

    Args:
        file: The run file.
        target: The COCO file.
        masks: "rle" or "polygon".
        tolerance: Of polygons, in pixels.

    Raises:
        ArgumentError: An argument is wrong.
    """
    check_mask_form(masks)
    check_tolerance(tolerance)
    paths = [key for key, record in file.inputs.items() if _is_there(key, record)]
    paths.sort(key=lambda key: (path_of(key), file.inputs[key]["page"]))
    folder = file.head.get("folder")
    if folder is None:
        folder = common_folder([file.inputs[path]["folder"] for path in paths])
    asked = file.head["asked"]
    categories = {name: number for number, name in enumerate(file.categories, 1)}
    head = {
        "info": {
            "description": f"Instances found by {asked['model']}",
            "folder": folder,
            "settings": asked,
        },
        "licenses": [],
        "categories": [
            {"id": number, "name": name, "supercategory": ""} for name, number in categories.items()
        ],
    }
    images, count, left_out, outside = [], 0, 0, 0
    with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.write(json.dumps(head)[:-1] + ', "annotations": [')
        for number, path in enumerate(paths, 1):
            result = file.result(path)
            name = _relative(path, folder)
            outside += name.startswith("../")
            annotations = result.pop("annotations")
            left_out += result.pop("left_out", 0)
            images.append({"id": number, "file_name": name, **result})
            for annotation in annotations:
                category = categories[annotation.pop("concept")]
                if masks == "polygon" and "segmentation" in annotation:
                    polygons = to_polygons(annotation["segmentation"], tolerance)
                    annotation["segmentation"] = polygons
                count += 1
                keys = {"id": count, "image_id": number, "category_id": category}
                out.write(",\n" * (count > 1) + json.dumps(keys | annotation))
        out.write('], "images": ' + json.dumps(images) + "}\n")
    if outside:
        logger.warning(
            "%s: names of images are relative to %s, as in the first run; %d images are "
            "outside of it, and their names begin with ../",
            *(target, folder, outside),
        )
    return CocoSummary(target, len(images), count, left_out)


def _is_there(key: str, record: Record) -> bool:
    """Whether an image has a result and still exists, and a page is of the file as it is now."""
    if "failed" in record or not os.path.exists(path_of(key)):
        return False
    return bool(record["page"] == 1 or record["identity"] == identity(path_of(key)))


def _relative(path: str, folder: str) -> str:
    """A path relative to a folder; as it is where there is none, or it is on another drive."""
    try:
        return Path(os.path.relpath(path, folder) if folder else path).as_posix()
    except ValueError:
        return Path(path).as_posix()


def common_folder(folders: list[str]) -> str:
    """The folder that all folders lie in; "" if there is none.

    Args:
        folders: Absolute paths.
    """
    try:
        return os.path.commonpath(folders) if folders else ""
    except ValueError:  # on two drives of Windows
        return ""
