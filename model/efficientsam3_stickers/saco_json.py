"""The JSON formats of SA-Co/Gold and SA-Co/VEval, written record by record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from efficientsam3.io.atomic import replacing

Record = dict[str, Any]

Records = Callable[[], Iterable[Record]]
"""Reads all scenes again from the first one: they are never in memory together.

A scene has "file", "queries" and "masks"; a clip has "files" too, and a list of masks over time for
each object, None where it is not visible.
"""

Sections = Iterator[tuple[str, Iterable[Record]]]
"""Name and records of each list of a file."""

Format = Callable[[Records], Sections]

DESCRIPTION = "Scenes of stickers by efficientsam3"


def write_json(path: Path, info: Record, sections: Sections) -> None:
    """Write a JSON object of lists, one record a line. It appears when it is complete.

    Args:
        path: The file.
        info: Plain values for its first key, "info".
        sections: Its lists.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"info": ' + json.dumps({"description": DESCRIPTION, **info}))
        for name, records in sections:
            file.write(f',\n"{name}": [')
            for i, record in enumerate(records):
                file.write((",\n" if i else "\n") + json.dumps(record))
            file.write("\n]")
        file.write("\n}\n")


def read_info(path: Path) -> Record | None:
    """The "info" that ``write_json`` wrote; None where something else wrote the file.

    Args:
        path: The file, of which only the first line is read.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        line = file.readline().strip()
    try:
        info = json.loads(line.removeprefix('{"info": ').removesuffix(","))
    except ValueError:
        return None
    if not isinstance(info, dict) or info.pop("description", None) != DESCRIPTION:
        return None
    return info


def gold_sections(scenes: Records) -> Sections:
    """The lists of SA-Co/Gold, whose records of "images" are pairs of an image and a phrase.

    Args:
        scenes: Reads the scenes.
    """

    def pairs() -> Iterator[tuple[int, Record, Record]]:
        number = 0
        for scene in scenes():
            for query in scene["queries"]:
                number += 1
                yield number, scene, query

    def images() -> Iterator[Record]:
        for number, scene, query in pairs():
            yield {
                "id": number,
                "file_name": scene["file"],
                "text_input": query["phrase"],
                "width": scene["size"],
                "height": scene["size"],
                "queried_category": "1",
                "is_instance_exhaustive": 1,
                "is_pixel_exhaustive": 1,
                "kind": query["kind"],
            }

    def annotations() -> Iterator[Record]:
        number = 0
        for pair, scene, query in pairs():
            for index in query["objects"]:
                number += 1
                mask, size = scene["masks"][index], scene["size"]
                yield {
                    "id": number,
                    "image_id": pair,
                    "source": "efficientsam3",
                    "area": mask["area"] / size**2,
                    "bbox": [v / size for v in mask["box"]],
                    "segmentation": mask["rle"],
                    "category_id": 1,
                    "iscrowd": 0,
                }

    yield "images", images()
    yield "annotations", annotations()
    yield "categories", [{"id": 1, "name": "object"}]


def veval_sections(clips: Records) -> Sections:
    """The lists of SA-Co/VEval, with pairs of a video and a noun phrase.

    Args:
        clips: Reads the clips.
    """
    categories: dict[str, int] = {}
    for clip in clips():
        for query in clip["queries"]:
            categories.setdefault(query["phrase"], len(categories) + 1)

    def pairs() -> Iterator[tuple[int, Record, Record]]:
        for video, clip in enumerate(clips(), 1):
            for query in clip["queries"]:
                yield video, clip, query

    def videos() -> Iterator[Record]:
        for number, clip in enumerate(clips(), 1):
            yield {
                "id": number,
                "video_name": clip["file"],
                "file_names": clip["files"],
                "height": clip["size"],
                "width": clip["size"],
                "length": len(clip["files"]),
            }

    def annotations() -> Iterator[Record]:
        number = 0
        for video, clip, query in pairs():
            for index in query["objects"]:
                number += 1
                masks = clip["masks"][index]
                yield {
                    "id": number,
                    "segmentations": [m and m["rle"] for m in masks],
                    "bboxes": [m and m["box"] for m in masks],
                    "areas": [m and m["area"] for m in masks],
                    "iscrowd": 0,
                    "video_id": video,
                    "height": clip["size"],
                    "width": clip["size"],
                    "category_id": categories[query["phrase"]],
                    "noun_phrase": query["phrase"],
                }

    def np_pairs() -> Iterator[Record]:
        for number, (video, _, query) in enumerate(pairs(), 1):
            yield {
                "id": number,
                "video_id": video,
                "category_id": categories[query["phrase"]],
                "noun_phrase": query["phrase"],
                "num_masklets": len(query["objects"]),
            }

    yield "videos", videos()
    yield "annotations", annotations()
    yield "categories", [{"id": n, "name": phrase} for phrase, n in categories.items()]
    yield "video_np_pairs", np_pairs()
