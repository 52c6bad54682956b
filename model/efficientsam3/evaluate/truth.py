"""Ground truth of images: pairs of a picture and a phrase, with the instances in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..rle import encode
from .errors import AnnotationError
from .records import Box, Record, find_files, read_json

Array = npt.NDArray[Any]

Key = tuple[Any, Any]
"""What names a pair in a file of predictions: (image_id, category_id)."""


@dataclass(frozen=True, eq=False, slots=True)
class Target:
    """One true instance.

    box: x0, y0, x1, y1 in pixels. mask: compressed run lengths, None where only boxes are known.
    crowd: several instances in one, not to be told apart. area: in pixels.
    """

    box: Box
    mask: Record | None
    crowd: bool
    area: float

    @classmethod
    def of(cls, mask: Array, crowd: bool = False) -> Target:
        """By its mask, (H, W) bool."""
        rle, box = encode(mask)
        return cls(box, rle, crowd, float(np.count_nonzero(mask)))


@dataclass(frozen=True, eq=False, slots=True)
class Pair:
    """A picture and a phrase.

    Attributes:
        key: (image_id, category_id) that predictions for it have.
        file: of the picture, relative to the folder of images. size: (height, width).
        phrase: what is asked. category: what precision is averaged over.
        truths: the instances, as one to three annotators saw them.
        exhaustive: whether all instances are in the truth; if not, the pair has no cgF1, and
            predictions that match nothing are neither right nor wrong.
        countable: whether they are marked one by one; if not, the pair has no cgF1.
    """

    key: Key
    file: str
    size: tuple[int, int]
    phrase: str
    category: str
    truths: tuple[tuple[Target, ...], ...]
    exhaustive: bool = True
    countable: bool = True

    @property
    def targets(self) -> tuple[Target, ...]:
        """The instances by the first annotator."""
        return self.truths[0]


@dataclass(frozen=True, eq=False)
class Truth:
    """The ground truth of a split.

    Attributes:
        name: of the split. layout: "saco", "coco" or "lvis". paths: the files.
        pairs: grouped by picture. complete: whether these are all pictures of the split.
        categories: names by id. frequencies: of LVIS' categories by name, "r", "c" or "f".
        negatives: absent categories that are asked of a picture at most; None: all there are.
    """

    name: str
    layout: str
    paths: tuple[Path, ...]
    pairs: tuple[Pair, ...]
    complete: bool = True
    categories: dict[Any, str] = field(default_factory=dict)
    frequencies: dict[str, str] = field(default_factory=dict)
    negatives: int | None = None

    @property
    def pictures(self) -> dict[str, list[Pair]]:
        """Pairs by picture, in order."""
        out: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            out.setdefault(pair.file, []).append(pair)
        return out

    def only(self, pictures: Iterable[str]) -> Truth:
        """The pairs of some pictures."""
        chosen = set(pictures)
        pairs = tuple(p for p in self.pairs if p.file in chosen)
        return replace(self, pairs=pairs, complete=self.complete and len(pairs) == len(self.pairs))

    def digest(self) -> str:
        """What tells whether the files are still the same."""
        out = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    out.update(block)
        return out.hexdigest()


def read_truth(
    annotations: str | Path | Sequence[str | Path],
    *,
    limit: int | None = None,
    negatives: int | None = None,
) -> Truth:
    """Read a split, of any layout that is known: SA-Co (Gold, Silver), COCO, LVIS.

    Args:
        annotations: a file, or SA-Co/Gold's files of up to three annotators, or a pattern
            ("gold_metaclip_merged_*_release_test.json").
        limit: read the first pictures only.
        negatives: with COCO, ask for at most so many absent categories of a picture; all if
            omitted, 80 phrases a picture.

    Raises:
        AnnotationError: names the file and the record.
    """
    names = [annotations] if isinstance(annotations, (str, Path)) else list(annotations)
    paths = find_files(names, AnnotationError)
    return parse_truth([(path, read_json(path)) for path in paths], limit, negatives)


def parse_truth(
    contents: Sequence[tuple[Path, Any]], limit: int | None = None, negatives: int | None = None
) -> Truth:
    """As ``read_truth``, of files that were read before."""
    from . import coco, saco

    first, content = contents[0]
    layouts = {layout_of(*one) for one in contents}
    if "veval" in layouts:
        raise AnnotationError(f"{first} is of clips, not of images; see evaluate_clips")
    if not content["images"]:
        raise AnnotationError(f"{first} has no image: an empty split has nothing to evaluate")
    if limit is not None and limit < 1:
        raise AnnotationError(f"limit is 1 picture or more; got {limit}")
    if layouts == {"saco"}:
        truth = saco.read(list(contents), limit)
    elif len(contents) > 1:
        raise AnnotationError(
            f"several files are several annotators of SA-Co/Gold, but {first} is "
            f"{layout_of(first, content).upper()}: evaluate one file at a time"
        )
    else:
        truth = coco.read(first, content, layouts.pop(), limit, negatives)
    if not truth.pairs:
        raise AnnotationError(f"{first} has no image with a phrase to ask: an empty split")
    return truth


def layout_of(path: Path, content: Any) -> str:
    """What wrote a file: "saco", "coco", "lvis" or "veval"."""
    if isinstance(content, dict) and "videos" in content:
        return "veval"
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or "annotations" not in content:
        what = (
            ", ".join(map(repr, content)) if isinstance(content, dict) else type(content).__name__
        )
        raise AnnotationError(
            f"{path} is no ground truth that is known: it has {what or 'nothing'}. SA-Co, COCO and "
            "LVIS have 'images' and 'annotations', SA-Co/VEval has 'videos'"
        )
    first = images[0] if images and isinstance(images[0], dict) else {}
    if "text_input" in first:
        return "saco"
    if "neg_category_ids" in first or "not_exhaustive_category_ids" in first:
        return "lvis"
    return "coco"


def split_name(path: Path) -> str:
    """A name for a split: the file's, without the letter of SA-Co/Gold's annotator."""
    return re.sub(r"_merged_[a-z]_", "_merged_", path.stem)


def group_splits(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by the split that they are of, in order.

    Annotators of one split are told by SA-Co/Gold's names, or else by having the same pairs.
    """
    out: dict[str, list[Path]] = {}
    for path in paths:
        out.setdefault(split_name(path), []).append(path)
    if len(out) > 1 and all(len(files) == 1 for files in out.values()):
        by_pairs: dict[str, list[Path]] = {}
        for (path,) in out.values():  # one is in memory at a time
            by_pairs.setdefault(_pairs_digest(path), []).append(path)
        out = {split_name(files[0]): files for files in by_pairs.values()}
    return out


def _pairs_digest(path: Path) -> str:
    """What two files of SA-Co have in common if they are of the same pairs; else the path."""
    content = read_json(path)
    if layout_of(path, content) != "saco":
        return str(path)
    rows = [(row.get("id"), row.get("text_input")) for row in content["images"]]
    return hashlib.sha256(repr(sorted(rows, key=repr)).encode()).hexdigest()
