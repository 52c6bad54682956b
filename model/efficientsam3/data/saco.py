"""Reader of SA-Co Gold and Silver (arXiv 2511.16719).

A record of "images" is a pair of an image and a phrase.
Files of other makers in this format are read too. Their boxes may be in pixels; SA-Co's own are
parts of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AnnotationError
from .json_records import RecordTable, read_json
from .types import ImageRecord, ObjectAnnotation, PhraseQuery

CATEGORY = 1
"""The only category of these files; the phrase is in the record of the image."""


class SaCoAnnotations:
    """Images of a split, each with all of its phrases.

    Args:
        paths: A file, or the files of several annotators of the same split.
        contents: The contents of the files, if they are already read; None reads them.

    Raises:
        AnnotationError: A file has another format, a record is wrong, or the files are not of the
            same images and phrases.
    """

    def __init__(
        self, paths: str | Path | Sequence[str | Path], contents: Sequence[Any] | None = None
    ) -> None:
        files = [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]
        self.paths = files
        contents = [read_json(path) for path in files] if contents is None else contents
        self.format = "saco"
        self._annotators = [_Annotator.of(*one) for one in zip(files, contents, strict=True)]
        first = self._annotators[0].images
        if not first.rows:
            raise AnnotationError(
                f"{files[0]} has no pairs of image and phrase: the split is empty"
            )
        for annotator in self._annotators[1:]:
            annotator.check_same(first)
        self._by_file: dict[str, list[int]] = {}
        for index in range(len(first.rows)):
            self._by_file.setdefault(first.text(index, "file_name"), []).append(index)
        self._files = list(self._by_file)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def phrases(self) -> list[str]:
        """All phrases, each once."""
        first = self._annotators[0].images
        return list(dict.fromkeys(first.text(i, "text_input") for i in range(len(first.rows))))

    def file(self, index: int) -> str:
        """Path of an image below the folder of images.

        Args:
            index: Which image.
        """
        return self._files[index]

    def __getitem__(self, index: int) -> ImageRecord:
        first = self._annotators[0].images
        rows = self._by_file[self._files[index]]
        sizes = {first.size(row): row for row in rows}
        if len(sizes) > 1:
            row = list(sizes.values())[1]
            raise first.wrong(row, f"says that {self._files[index]} has another size than before")
        objects: list[ObjectAnnotation] = []
        queries = []
        for row in rows:
            pair = first.rows[row]["id"]
            groups = []
            for annotator in self._annotators:
                found = annotator.objects(pair)
                groups.append(tuple(range(len(objects), len(objects) + len(found))))
                objects += found
            queries.append(
                PhraseQuery(
                    first.text(row, "text_input"),
                    groups[0],
                    # A pair counts as exhaustive if every annotator says that it is.
                    all(annotator.is_exhaustive(pair) for annotator in self._annotators),
                    key=(pair, CATEGORY),
                    other_annotators=tuple(groups[1:]),
                )
            )
        size = first.size(rows[0])
        place = first.place(rows[0])
        return ImageRecord(self._files[index], size, tuple(objects), tuple(queries), place)


@dataclass(frozen=True, eq=False)
class _Annotator:
    """One file: what one annotator saw."""

    images: RecordTable
    annotations: RecordTable
    ids: dict[Any, int]
    by_pair: dict[Any, list[int]]
    relative: bool

    @classmethod
    def of(cls, path: Path, content: Any) -> _Annotator:
        keys = ("id", "file_name", "text_input", "width", "height")
        images = RecordTable.of(path, content, "images", keys)
        annotations = RecordTable.of(
            path, content, "annotations", ("image_id", "bbox", "segmentation")
        )
        ids = images.by_id()
        by_pair = annotations.group_by("image_id", ids, "images")
        return cls(images, annotations, ids, by_pair, annotations.boxes_are_relative())

    def check_same(self, first: RecordTable) -> None:
        """Refuse a file that is not of the same images and phrases as the first annotator's."""
        for row in first.rows:
            if row["id"] not in self.ids:
                raise AnnotationError(
                    f"{self.images.path} has no image of id {row['id']!r}, which {first.path} has: "
                    "several files are several annotators of one split. Evaluate splits one at a "
                    "time"
                )
            index = self.ids[row["id"]]
            for key in ("text_input", "file_name", "width", "height"):
                own = self.images.rows[index][key]
                if own != row[key]:
                    raise self.images.wrong(
                        index, f"has {key} {own!r}, but in {first.path} it is {row[key]!r}"
                    )

    def is_exhaustive(self, pair: Any) -> bool:
        """Whether the annotator marked all instances of a pair."""
        return bool(self.images.rows[self.ids[pair]].get("is_instance_exhaustive", 1))

    def objects(self, pair: Any) -> list[ObjectAnnotation]:
        """The instances of a pair."""
        size = self.images.size(self.ids[pair])
        return [self._object(index, size) for index in self.by_pair[pair]]

    def _object(self, index: int, size: tuple[int, int]) -> ObjectAnnotation:
        from pycocotools import mask as coco

        row = self.annotations.rows[index]
        mask = self.annotations.mask(index, row["segmentation"], size, "segmentation")
        box = self.annotations.box_in_pixels(index, size, self.relative)
        crowd = bool(row.get("iscrowd", row.get("is_crowd", 0)))
        return ObjectAnnotation(box, mask, crowd, float(coco.area(mask)))
