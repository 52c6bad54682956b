"""Data sets of images with an annotation file: COCO, LVIS, SA-Co."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import DataError, ImageError
from ..io.images import read_rgb, read_rgb_of_size
from ..io.paths import log_unnamed
from ..types import Array
from .sample import TrainingSample
from .types import ImageAnnotations, ImageRecord


class AnnotatedImages:
    """Images of a folder, with the objects and phrases of annotation files.

    Args:
        images: The folder that the paths of images are relative to.
        annotations: Readers, ``CocoAnnotations`` or ``SaCoAnnotations``. What several, as of
            subsets of SA-Co, say of the same image becomes one sample.
    """

    def __init__(self, images: str | Path, *annotations: ImageAnnotations) -> None:
        self.images = Path(images)
        self._records: dict[str, list[tuple[ImageAnnotations, int]]] = {}
        for reader in annotations:
            for index in range(len(reader)):
                self._records.setdefault(reader.file(index), []).append((reader, index))
        self._keys = list(self._records)
        files = (Path(path) for reader in annotations for path in getattr(reader, "paths", ()))
        log_unnamed([self.images], [*(self.images / key for key in self._keys), *files])

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """Path of the image below the folder of images.

        Args:
            index: Which image.
        """
        return self._keys[index]

    def files(self, index: int) -> list[Path]:
        """The files of a sample: its image and its annotation files.

        Args:
            index: Which image.
        """
        key = self._keys[index]
        annotations = (getattr(reader, "paths", ()) for reader, _ in self._records[key])
        return [self.images / key, *(Path(path) for paths in annotations for path in paths)]

    def __getitem__(self, index: int) -> TrainingSample:
        records = [reader[row] for reader, row in self._records[self._keys[index]]]
        for record in records[1:]:
            if record.size != records[0].size:
                raise DataError(f"{record.place} has another size of the image than before")
        image = read_image(self.images / self._keys[index], records[0].place, records[0].size)
        return TrainingSample.of(_merge(records), image)


def _merge(records: Sequence[ImageRecord]) -> ImageRecord:
    """What several files say of one image."""
    out = records[0]
    for record in records[1:]:
        first = len(out.objects)
        queries = tuple(
            replace(
                query,
                objects=tuple(first + i for i in query.objects),
                other_annotators=tuple(
                    tuple(first + i for i in group) for group in query.other_annotators
                ),
            )
            for query in record.queries
        )
        out = replace(out, objects=out.objects + record.objects, queries=out.queries + queries)
    return out


def read_image(path: Path, place: str, size: tuple[int, int] | None = None) -> Array:
    """Read an image that a record names.

    Args:
        path: The image.
        place: The record, for errors.
        size: (height, width) that the record says; None does not check it.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: The image is missing, damaged, or of another size.
    """
    if not os.path.isfile(path):  # also of a name that no file can have
        raise DataError(f"{place} names the image {path}, which is missing")
    try:
        rgb = read_rgb(path) if size is None else read_rgb_of_size(path, size)
    except ImageError as error:
        raise DataError(f"{place}: {error}") from error
    return rgb.permute(1, 2, 0).numpy()
