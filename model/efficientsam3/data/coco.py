"""Reader of COCO and LVIS instance annotations: a phrase is the name of a category.

In COCO every category was annotated in every image. In LVIS (arXiv 1908.03195) only some were: the
annotated ones and those listed in ``neg_category_ids`` as absent. Of the categories listed in
``not_exhaustive_category_ids``, not all instances are annotated.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import AnnotationError
from .formats import annotation_format
from .json_records import RecordTable, read_json
from .types import ImageRecord, ObjectAnnotation, PhraseQuery

SEED = 0
"""Of the choice of absent categories."""


class CocoAnnotations:
    """Images of a file in COCO's or LVIS's instance format.

    Args:
        path: Such as ``instances_train2017.json``, ``lvis_v1_train.json``.
        content: The content of the file, if it is already read; None reads the file.
        negatives: At most so many absent categories are queries of an image, drawn at random by the
            image's id; None takes all.
        synonyms: Whether LVIS's synonyms of a category's name are queries too.

    Attributes:
        format: "coco" or "lvis".
        names: The phrase of each category by its id.
        frequencies: LVIS's frequency of each category by its phrase: "r", "c" or "f".

    Raises:
        AnnotationError: The file has another format, or a record is wrong.
    """

    def __init__(
        self,
        path: str | Path,
        content: Any = None,
        *,
        negatives: int | None = None,
        synonyms: bool = False,
    ) -> None:
        self.path, self.negatives, self.synonyms = Path(path), negatives, synonyms
        self.paths = [self.path]
        content = read_json(self.path) if content is None else content
        self.format = annotation_format(self.path, content)
        if self.format not in ("coco", "lvis"):
            raise AnnotationError(f"{path} is not in COCO's or LVIS's format, but {self.format}")
        self._images = RecordTable.of(self.path, content, "images", ("id", "width", "height"))
        categories = RecordTable.of(self.path, content, "categories", ("id", "name"))
        self._annotations = RecordTable.of(
            self.path, content, "annotations", ("image_id", "category_id", "bbox")
        )
        if not self._images.rows:
            raise AnnotationError(f"{path} has no images: the split is empty")
        ids = categories.by_id()
        self._phrases = dict(zip(ids, category_phrases(categories), strict=True))
        self.names = {id: phrases[0] for id, phrases in self._phrases.items()}
        self.frequencies = {
            self.names[id]: str(categories.rows[index]["frequency"])
            for id, index in ids.items()
            if "frequency" in categories.rows[index]
        }
        self._annotations.group_by("category_id", ids, "categories")
        self._by_image = self._annotations.group_by("image_id", self._images.by_id(), "images")

    def __len__(self) -> int:
        return len(self._images.rows)

    @property
    def phrases(self) -> list[str]:
        """All phrases of all categories, each once."""
        used = self._phrases.values() if self.synonyms else [[n] for n in self.names.values()]
        return list(dict.fromkeys(phrase for phrases in used for phrase in phrases))

    def file(self, index: int) -> str:
        """Path of an image: ``file_name``, or folder and name at the end of LVIS's ``coco_url``.

        Args:
            index: Which image.
        """
        row = self._images.rows[index]
        if "file_name" in row:
            return self._images.text(index, "file_name")
        if "coco_url" in row:
            return "/".join(PurePosixPath(self._images.text(index, "coco_url")).parts[-2:])
        raise self._images.wrong(index, "has neither 'file_name' nor 'coco_url'")

    def __getitem__(self, index: int) -> ImageRecord:
        image, size = self._images.rows[index], self._images.size(index)
        objects: list[ObjectAnnotation] = []
        present: dict[Any, list[int]] = {}
        for row in self._by_image[image["id"]]:
            category = self._annotations.rows[row]["category_id"]
            present.setdefault(category, []).append(len(objects))
            objects.append(self._object(row, size))
        partial = self._category_list(index, "not_exhaustive_category_ids")
        queries = []
        # Ids may be numbers and texts, which Python does not compare.
        ids = [*present, *self._absent(index, present)]
        for category in sorted(ids, key=lambda id: (isinstance(id, str), id)):
            found = tuple(present.get(category, ()))
            phrases = self._phrases[category][: None if self.synonyms and found else 1]
            for place, phrase in enumerate(phrases):
                kind = "negative" if not found else "synonym" if place else "name"
                exhaustive = category not in partial
                key = (image["id"], category)
                queries.append(PhraseQuery(phrase, found, exhaustive, kind, key))
        return ImageRecord(
            self.file(index), size, tuple(objects), tuple(queries), self._images.place(index)
        )

    def _object(self, index: int, size: tuple[int, int]) -> ObjectAnnotation:
        row = self._annotations.rows[index]
        box = self._annotations.box(index, row["bbox"])
        shape = row.get("segmentation")
        mask = self._annotations.mask(index, shape, size, "segmentation") if shape else None
        area = (box[2] - box[0]) * (box[3] - box[1])
        area = self._annotations.number(index, "area") if "area" in row else area
        return ObjectAnnotation(box, mask, bool(row.get("iscrowd", 0)), area)

    def _absent(self, index: int, present: Mapping[Any, Any]) -> list[Any]:
        """Categories that are known to be absent from an image, or a choice of them."""
        image = self._images.rows[index]
        lvis = self.format == "lvis"
        known = self._category_list(index, "neg_category_ids") if lvis else list(self.names)
        for category in known:
            if category not in self.names:
                raise self._images.wrong(
                    index, f"names category {category!r:.80}, which no record of categories has"
                )
        absent = [category for category in known if category not in present]
        if self.negatives is None or len(absent) <= self.negatives:
            return absent
        return random.Random(f"{SEED} {image['id']}").sample(absent, self.negatives)

    def _category_list(self, index: int, key: str) -> list[Any]:
        """The ids of categories that an image names in a list."""
        listed = self._images.rows[index].get(key, [])
        if not isinstance(listed, list) or not all(isinstance(id, (int, str)) for id in listed):
            raise self._images.wrong(index, f"has {key} {listed!r:.80}; it is a list of ids")
        return listed


def category_phrases(categories: RecordTable) -> list[list[str]]:
    """Make phrases of categories: the name, then synonyms where the file has them.

    Underscores become spaces. LVIS marks the sense of a name in parentheses, "crab_(animal)"; the
    mark is left out, "crab", unless another category has the same words: "bow_(weapon)" and
    "bow_(decorative_ribbons)" stay "bow (weapon)" and "bow (decorative ribbons)".

    Args:
        categories: Records with "name"; LVIS's also have "synonyms", "synset", "frequency".

    Returns:
        For each category its phrases.

    Raises:
        AnnotationError: A name or a synonym is not a text.
    """
    full, short = [], []
    for index, row in enumerate(categories.rows):
        synonyms = row.get("synonyms", [])
        if not isinstance(synonyms, list) or not all(isinstance(name, str) for name in synonyms):
            raise categories.wrong(index, f"has synonyms {synonyms!r:.80}; they are texts")
        names = (categories.text(index, "name"), *filter(str.strip, synonyms))
        # A name of underscores alone has no words; it stays as it is.
        full.append([" ".join(name.replace("_", " ").split()) or name for name in names])
        is_lvis = not {"synonyms", "synset", "frequency"}.isdisjoint(row)
        short.append([_without_sense(name) if is_lvis else name for name in full[-1]])
    uses = Counter(phrase for phrases in short for phrase in set(phrases))
    return [
        list(dict.fromkeys(f if uses[s] > 1 else s for s, f in zip(*row, strict=True)))
        for row in zip(short, full, strict=True)
    ]


def _without_sense(name: str) -> str:
    return " ".join(re.sub(r"\(.*?\)", "", name).split()) or name
