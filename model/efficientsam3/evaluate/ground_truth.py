"""Ground truth of images: pairs of an image and a phrase, with the instances in the image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.coco import CocoAnnotations
from ..data.formats import annotation_format
from ..data.json_records import read_json
from ..data.saco import CATEGORY, SaCoAnnotations
from ..data.types import ImageRecord, ObjectAnnotation, QueryKey
from ..errors import AnnotationError
from ..io.paths import find_files


@dataclass(frozen=True, eq=False, slots=True)
class Pair:
    """An image and a phrase, the unit of evaluation.

    Attributes:
        key: (image_id, category_id) that predictions for it have.
        file: Path of the image below the folder of images.
        size: (height, width) in pixels.
        phrase: What the model is prompted with.
        category: What average precision is averaged over.
        annotators: The instances that each of one to three annotators marked.
        exhaustive: Whether all instances are marked. If not, the pair does not count for cgF1, and
            predictions that match nothing are neither right nor wrong.
        countable: Whether instances are marked one by one. If not, the pair does not count for
            cgF1.
    """

    key: QueryKey
    file: str
    size: tuple[int, int]
    phrase: str
    category: str
    annotators: tuple[tuple[ObjectAnnotation, ...], ...]
    exhaustive: bool = True
    countable: bool = True

    @property
    def targets(self) -> tuple[ObjectAnnotation, ...]:
        """The instances that the first annotator marked."""
        return self.annotators[0]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The ground truth of a split of images.

    Attributes:
        name: Name of the split.
        layout: Format of the files: "saco", "coco" or "lvis".
        paths: The files.
        pairs: All pairs, grouped by image.
        complete: Whether these are all images of the split.
        categories: Names of categories by id.
        frequencies: "r", "c" or "f" by name of LVIS' categories.
        negatives: The most absent categories for an image; None: no limit.
    """

    name: str
    layout: str
    paths: tuple[Path, ...]
    pairs: tuple[Pair, ...]
    complete: bool = True
    categories: dict[Any, str] = field(default_factory=dict)
    frequencies: dict[str, str] = field(default_factory=dict)
    negatives: int | None = None

    @cached_property
    def images(self) -> dict[str, list[Pair]]:
        """Pairs by image, in order."""
        out: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            out.setdefault(pair.file, []).append(pair)
        return out

    def subset(self, images: Iterable[str]) -> GroundTruth:
        """The pairs of some images.

        Args:
            images: Files of images, as pairs have them.
        """
        chosen = set(images)
        pairs = tuple(p for p in self.pairs if p.file in chosen)
        return replace(self, pairs=pairs, complete=self.complete and len(pairs) == len(self.pairs))


def read_ground_truth(
    annotations: str | Path | Sequence[str | Path],
    *,
    limit: int | None = None,
    negatives: int | None = None,
) -> GroundTruth:
    """Read a split of SA-Co (Gold, Silver), COCO or LVIS.

    Args:
        annotations: A file, SA-Co/Gold's files of up to three annotators, or a pattern
            ("gold_metaclip_merged_*_release_test.json").
        limit: Read the first images only; None: all.
        negatives: COCO: at most this many absent categories for an image; None: all, which makes
            80 phrases for each image.

    Raises:
        AnnotationError: a file or a record is wrong; the message names it.
    """
    names = [annotations] if isinstance(annotations, (str, Path)) else list(annotations)
    paths = find_files(names, AnnotationError)
    return parse_ground_truth([(path, read_json(path)) for path in paths], limit, negatives)


def parse_ground_truth(
    contents: Sequence[tuple[Path, Any]], limit: int | None = None, negatives: int | None = None
) -> GroundTruth:
    """Parse a split whose files are already read; see ``read_ground_truth``.

    Args:
        contents: Files with their parsed JSON.
        limit: Use the first images only; None: all.
        negatives: COCO: at most this many absent categories for an image; None: all.

    Raises:
        AnnotationError: a record is wrong; the message names it.
    """
    paths = tuple(path for path, _ in contents)
    formats = [annotation_format(*one) for one in contents]
    if "veval" in formats:
        raise AnnotationError(f"{paths[0]} is of clips, not of images: use evaluate_clips")
    if limit is not None and limit < 1:
        raise AnnotationError(f"limit is 1 image or more; got {limit}")
    annotations: SaCoAnnotations | CocoAnnotations
    categories: dict[Any, str] = {CATEGORY: "object"}
    frequencies: dict[str, str] = {}
    if set(formats) == {"saco"}:
        annotations = SaCoAnnotations(paths, [content for _, content in contents])
    elif len(contents) > 1:
        raise AnnotationError(
            f"several files are several annotators of SA-Co/Gold, but {paths[0]} is "
            f"{formats[0].upper()}: evaluate one file at a time"
        )
    else:
        annotations = CocoAnnotations(*contents[0], negatives=negatives)
        categories, frequencies = annotations.names, annotations.frequencies
    count = min(len(annotations), len(annotations) if limit is None else limit)
    pairs = tuple(pair for i in range(count) for pair in _pairs(annotations[i], annotations.format))
    if not pairs:
        raise AnnotationError(f"{paths[0]} has no image with a phrase: the split is empty")
    return GroundTruth(
        split_name(paths[0]),
        annotations.format,
        paths,
        pairs,
        count == len(annotations),
        categories,
        frequencies,
        negatives if annotations.format != "saco" else None,
    )


def _pairs(record: ImageRecord, format: str) -> Iterator[Pair]:
    """The pairs of an image."""
    for query in record.queries:
        annotators = tuple(
            tuple(record.objects[i] for i in group)
            for group in (query.objects, *query.other_annotators)
        )
        yield Pair(
            key=query.key or (record.file, query.phrase),
            file=record.file,
            size=record.size,
            phrase=query.phrase,
            category=query.phrase,
            annotators=annotators,
            exhaustive=query.exhaustive,
            # The instances of a crowd of COCO are not marked one by one.
            countable=format == "saco" or not any(target.crowd for target in annotators[0]),
        )


def split_name(path: Path) -> str:
    """The name of a split: that of the file without the letter of SA-Co/Gold's annotator.

    Args:
        path: A file of the split.
    """
    return re.sub(r"_merged_[a-z]_", "_merged_", path.stem)


def group_splits(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Group files by split, in order.

    Files of several annotators belong to one split if their names are SA-Co/Gold's, or if they have
    the same pairs.

    Args:
        paths: Files of annotations.

    Returns:
        The files of each split by its name.
    """
    out: dict[str, list[Path]] = {}
    for path in paths:
        out.setdefault(split_name(path), []).append(path)
    if len(out) > 1 and all(len(files) == 1 for files in out.values()):
        by_pairs: dict[str, list[Path]] = {}
        for (path,) in out.values():  # one file is in memory at a time
            by_pairs.setdefault(_pairs_digest(path), []).append(path)
        out = {split_name(files[0]): files for files in by_pairs.values()}
    return out


def _pairs_digest(path: Path) -> str:
    """A digest that two SA-Co files share if they have the same pairs; else the path."""
    content = read_json(path)
    if annotation_format(path, content) != "saco":
        return str(path)
    rows = [(row.get("id"), row.get("text_input")) for row in content["images"]]
    return hashlib.sha256(repr(sorted(rows, key=repr)).encode()).hexdigest()
