"""SA-Co Gold and Silver (arXiv 2511.16719), and scenes in their format: images and phrases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...types import Array
from ..errors import DataError
from .files import check_size, corners, read_image, read_json
from .masks import read_segmentation
from .sample import PhraseQuery, TrainingSample


class SaCo:
    """Pairs of image and phrase, all phrases of an image in one sample.

    A record of ``images`` is a pair; one without annotations is a negative.

    Args:
        annotations: a file, or several (subsets, not the three annotators of one).
        images: the folder in which ``file_name`` is looked up.

    Raises:
        DataError: no pairs; annotations of pairs that are not there; a damaged file.
    """

    def __init__(self, annotations: str | Path | Sequence[str | Path], images: str | Path) -> None:
        self.images = Path(images)
        paths = [annotations] if isinstance(annotations, (str, Path)) else list(annotations)
        self._pairs: dict[str, list[tuple[str, dict[str, Any], list[dict[str, Any]]]]] = {}
        for path in paths:
            self._read(Path(path))
        self._keys = list(self._pairs)

    def _read(self, path: Path) -> None:
        pairs, found = read_pairs(path)
        by_pair: dict[Any, list[dict[str, Any]]] = {p["id"]: [] for p in pairs}
        for annotation in found:
            if annotation.get("image_id") not in by_pair:
                raise DataError(
                    f"{path}: annotation {annotation.get('id')} names pair "
                    f"{annotation.get('image_id')}, which 'images' has not"
                )
            by_pair[annotation["image_id"]].append(annotation)
        for pair in pairs:
            where = f"{path}, pair {pair['id']}"
            self._pairs.setdefault(pair["file_name"], []).append((where, pair, by_pair[pair["id"]]))

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The image's file name."""
        return self._keys[index]

    def __getitem__(self, index: int) -> TrainingSample:
        key = self._keys[index]
        pairs = self._pairs[key]
        image = read_image(self.images / key, pairs[0][0])
        size = image.shape[0], image.shape[1]
        boxes: list[Array] = []
        masks, crowd, queries = [], [], []
        for where, pair, found in pairs:
            check_size(image, pair, where)
            chosen = []
            for annotation in found:
                named = f"{where}, annotation {annotation.get('id')}"
                if not annotation.get("iscrowd"):
                    chosen.append(len(boxes))
                boxes.append(corners(annotation.get("bbox"), size, named, unit=True))
                masks.append(read_segmentation(annotation.get("segmentation"), size, named))
                crowd.append(bool(annotation.get("iscrowd")))
            exhaustive = bool(pair.get("is_instance_exhaustive", True)) and (
                len(chosen) == len(found)
            )
            queries.append(PhraseQuery(pair["text_input"], tuple(chosen), exhaustive))
        return TrainingSample(
            key,
            image,
            np.array(boxes, np.float32).reshape(-1, 4),
            tuple(masks),
            tuple(queries),
            np.array(crowd, bool),
        )

    @property
    def phrases(self) -> list[str]:
        """All phrases, each once."""
        return list(
            dict.fromkeys(pair["text_input"] for p in self._pairs.values() for _, pair, _ in p)
        )


def read_pairs(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``images`` and ``annotations`` of an SA-Co file.

    Raises:
        DataError: another kind of file, or no pairs.
    """
    content = read_json(path)
    pairs = content.get("images") if isinstance(content, dict) else None
    if not isinstance(pairs, list):
        raise DataError(f"{path} has no list 'images': it is not a file of SA-Co Gold or Silver")
    if not pairs:
        raise DataError(f"{path} has no pairs of image and phrase: the split is empty")
    for pair in pairs:
        lacking = _lacking(pair, ("id", "file_name", "text_input"))
        if lacking:
            raise DataError(
                f"{path}: a record of 'images' lacks {', '.join(lacking)}; got {pair!r:.120}"
            )
    return pairs, content.get("annotations") or []


def _lacking(record: dict[str, Any], names: Iterable[str]) -> list[str]:
    return [n for n in names if n not in record]
