"""COCO and LVIS instance annotations: categories become phrases."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from ...types import Array
from ..errors import DataError
from .files import check_size, corners, read_image, read_json, some
from .masks import read_segmentation
from .sample import PhraseQuery, TrainingSample


class Coco:
    """COCO's instance format, such as ``instances_train2017.json``.

    Every category is annotated exhaustively, so each that an image has not is a negative.

    Args:
        annotations: the file. images: the folder in which ``file_name`` is looked up.
        negatives: absent categories a sample, drawn by its name alone; None: all.

    Raises:
        DataError: no images, no categories, annotations of images or categories that are not
            there, a damaged file.
    """

    def __init__(
        self, annotations: str | Path, images: str | Path, negatives: int | None = 8
    ) -> None:
        self.path, self.images, self.negatives = Path(annotations), Path(images), negatives
        content = read_json(self.path)
        lacking = {"images", "annotations", "categories"} - set(content)
        if lacking:
            raise DataError(f"{self.path} has no {some(lacking)}: it is not COCO's instance format")
        self._records: list[dict[str, Any]] = content["images"]
        if not self._records:
            raise DataError(f"{self.path} has no images: the split is empty")
        self.categories: dict[int, dict[str, Any]] = {c["id"]: c for c in content["categories"]}
        self._annotations: dict[int, list[dict[str, Any]]] = {r["id"]: [] for r in self._records}
        for annotation in content["annotations"]:
            if annotation["image_id"] not in self._annotations:
                raise DataError(
                    f"{self.path}: annotation {annotation.get('id')} names image "
                    f"{annotation['image_id']}, which 'images' has not"
                )
            if annotation["category_id"] not in self.categories:
                raise DataError(
                    f"{self.path}: annotation {annotation.get('id')} names category "
                    f"{annotation['category_id']}, which 'categories' has not"
                )
            self._annotations[annotation["image_id"]].append(annotation)

    def __len__(self) -> int:
        return len(self._records)

    def key(self, index: int) -> str:
        """The image's file name."""
        return str(self._records[index]["file_name"])

    def names(self, category: int) -> list[str]:
        """Phrases for a category, the usual first."""
        return [str(self.categories[category]["name"])]

    @property
    def phrases(self) -> list[str]:
        """All names of all categories, each once."""
        return list(dict.fromkeys(name for c in self.categories for name in self.names(c)))

    def _exhaustive(self, record: dict[str, Any], category: int) -> bool:
        return True

    def _absent(self, record: dict[str, Any], present: set[int]) -> list[int]:
        return [c for c in self.categories if c not in present]

    def __getitem__(self, index: int) -> TrainingSample:
        record, key = self._records[index], self.key(index)
        where = f"{self.path}, image {record['id']}"
        image = read_image(self.images / key, where)
        check_size(image, record, where)
        size = image.shape[0], image.shape[1]
        boxes: list[Array] = []
        masks, crowd = [], []
        objects: dict[int, list[int]] = {}
        crowded = set()
        for annotation in self._annotations[record["id"]]:
            named = f"{self.path}, annotation {annotation.get('id')}"
            box = corners(annotation.get("bbox"), size, named)
            of_category = objects.setdefault(annotation["category_id"], [])
            if annotation.get("iscrowd"):
                crowded.add(annotation["category_id"])
            elif box[2] > box[0] and box[3] > box[1]:  # COCO has a few lines without area
                of_category.append(len(boxes))
            else:
                continue
            boxes.append(box)
            masks.append(read_segmentation(annotation.get("segmentation"), size, named))
            crowd.append(bool(annotation.get("iscrowd")))
        queries = []
        for category, rows in objects.items():
            if not rows:
                continue  # a crowd alone: neither present instances nor an absent category
            exhaustive = category not in crowded and self._exhaustive(record, category)
            for place, name in enumerate(self.names(category)):
                kind = "synonym" if place else "name"
                queries.append(PhraseQuery(name, tuple(rows), exhaustive, kind))
        absent = self._absent(record, set(objects))
        if self.negatives is not None and len(absent) > self.negatives:
            absent = random.Random(key).sample(absent, self.negatives)
        queries += [PhraseQuery(self.names(c)[0], kind="negative") for c in absent]
        return TrainingSample(
            key,
            image,
            np.array(boxes, np.float32).reshape(-1, 4),
            tuple(masks),
            tuple(queries),
            np.array(crowd, bool),
        )


class Lvis(Coco):
    """LVIS v1 (arXiv 1908.03195), such as ``lvis_v1_train.json``.

    A category is known to be absent only where the image lists it in ``neg_category_ids``,
    and known to be complete unless ``not_exhaustive_category_ids`` lists it.

    Args:
        annotations: the file. images: the folder that holds ``train2017`` and ``val2017``.
        negatives: as for ``Coco``. synonyms: a query for each synonym, beside the name.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        negatives: int | None = None,
        *,
        synonyms: bool = True,
    ) -> None:
        super().__init__(annotations, images, negatives)
        self.synonyms = synonyms
        # Looked up once, also because a file of another format should fail here.
        lacking = [r for r in self._records if "neg_category_ids" not in r]
        if lacking:
            raise DataError(
                f"{self.path}: image {lacking[0]['id']} has no 'neg_category_ids': it is not a "
                "file of LVIS; read it as COCO"
            )

    def key(self, index: int) -> str:
        """Folder and name of the image, as ``coco_url`` ends."""
        record = self._records[index]
        if "coco_url" not in record:
            return str(record["file_name"])
        return "/".join(Path(urlparse(record["coco_url"]).path).parts[-2:])

    def names(self, category: int) -> list[str]:
        """The name and, if asked, its synonyms, as plain words."""
        content = self.categories[category]
        names = [content["name"], *(content.get("synonyms", ()) if self.synonyms else ())]
        return list(dict.fromkeys(map(plain, names)))

    def _exhaustive(self, record: dict[str, Any], category: int) -> bool:
        return category not in record.get("not_exhaustive_category_ids", ())

    def _absent(self, record: dict[str, Any], present: set[int]) -> list[int]:
        unknown = set(record["neg_category_ids"]) - self.categories.keys()
        if unknown:
            raise DataError(
                f"{self.path}: image {record['id']} names absent category {min(unknown)}, which "
                "'categories' has not"
            )
        return [c for c in record["neg_category_ids"] if c not in present]


def plain(name: str) -> str:
    """``crab_(animal)`` -> ``crab``."""
    return re.sub(r"\s*\(.*?\)", "", str(name).replace("_", " ")).strip()
