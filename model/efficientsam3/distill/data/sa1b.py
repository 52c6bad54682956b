"""SA-1B (arXiv 2304.02643): images and masks without words."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

import numpy as np

from ..errors import DataError
from .files import check_size, corners, read_image, read_json, read_list, some
from .masks import read_segmentation
from .sample import TrainingSample

log = logging.getLogger(__name__)


class SA1B:
    """SA-1B as released, or as upstream arranges it.

    As released, a folder for each tar, with ``sa_1.jpg`` beside ``sa_1.json``, at any depth
    below ``root``; as upstream arranges it, ``images/{split}/sa_1.jpg`` and
    ``annotations/{split}/sa_1.json``.

    Args:
        root: of the data. split: of upstream's arrangement; the other has none.
        subset: a file of names, one a line, or the names: of images (``sa_1``, ``sa_1.jpg``)
            or of tars (``sa_000020.tar``), whose images lie in a folder of that name.
        largest: keep that many objects of each image, the largest; None: all.

    Raises:
        DataError: nothing there; an annotation without its image, or the other way round;
            names of the subset that are not there.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        subset: str | Path | Iterable[str] | None = None,
        largest: int | None = None,
    ) -> None:
        self.root, self.largest = Path(root), largest
        arranged = (self.root / "images").is_dir()
        images_root = self.root / "images" / split if arranged else self.root
        labels_root = self.root / "annotations" / split if arranged else self.root
        images, labels = _find(images_root, ".jpg"), _find(labels_root, ".json")
        if subset is not None:
            names = read_list(subset)
            images, labels = _chosen(images, names), _chosen(labels, names)
            _check_all_found(names, images)
        if not images and not labels:
            raise DataError(
                f"there is no sa_*.jpg below {images_root}. Unpack a tar of SA-1B into a folder "
                "of its own there."
            )
        if lone := labels.keys() - images.keys():
            raise DataError(
                f"{len(lone):,} annotations below {labels_root} name images that are not there: "
                f"{some(lone)}. Unpack their tars again, or pass a subset without them."
            )
        if lone := images.keys() - labels.keys():
            raise DataError(
                f"{len(lone):,} images below {images_root} have no annotation: {some(lone)}. "
                "Unpack their tars again, or read the folder as ImageFolder, without masks."
            )
        # By number, so that the order is not that of the file system.
        self._keys = sorted(images, key=lambda k: (len(k), k))
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The name without ending, ``sa_1``."""
        return self._keys[index]

    def __getitem__(self, index: int) -> TrainingSample:
        key = self._keys[index]
        path = self._labels[key]
        content = read_json(path)
        try:
            record, annotations = content["image"], content["annotations"]
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is not an annotation of SA-1B: no {error}") from error
        image = read_image(self._images[key], str(path))
        check_size(image, record, str(path))
        size = image.shape[0], image.shape[1]
        if self.largest is not None:
            annotations = sorted(annotations, key=lambda a: -a["area"])[: self.largest]
        boxes = [corners(a["bbox"], size, str(path)) for a in annotations]
        points = [a["point_coords"][0] for a in annotations]
        masks = tuple(
            read_segmentation(a["segmentation"], size, f"{path}, annotation {a.get('id')}")
            for a in annotations
        )
        return TrainingSample(
            key,
            image,
            np.array(boxes, np.float32).reshape(-1, 4),
            masks,
            points=np.array(points, np.float32).reshape(-1, 2),
        )


class ImageFolder:
    """Images below a folder, without annotations: for teachers' features.

    Args:
        root: searched at any depth. endings: of files that are images.
    """

    def __init__(
        self,
        root: str | Path,
        subset: str | Path | Iterable[str] | None = None,
        endings: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".webp"),
    ) -> None:
        self.root = Path(root)
        paths = [Path(p) for p in _walk(self.root) if p.lower().endswith(endings)]
        names = {p.relative_to(self.root).as_posix(): p for p in paths}
        if subset is not None:
            wanted = read_list(subset)
            missing = wanted - names.keys()
            if missing:
                raise DataError(f"{self.root} lacks {len(missing):,} images: {some(missing)}")
            names = {k: v for k, v in names.items() if k in wanted}
        if not names:
            raise DataError(f"there is no image ({', '.join(endings)}) below {self.root}")
        self._keys = sorted(names)
        self._paths = names

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The path below the root."""
        return self._keys[index]

    def __getitem__(self, index: int) -> TrainingSample:
        key = self._keys[index]
        image = read_image(self._paths[key], str(self.root))
        return TrainingSample(key, image, np.zeros((0, 4), np.float32))


def _walk(root: Path) -> Iterator[str]:
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            yield os.path.join(folder, name)


def _find(root: Path, ending: str) -> dict[str, Path]:
    """Files ``sa_*`` with an ending, by name without it."""
    found = {}
    for path in _walk(root):
        name = os.path.basename(path)
        if name.startswith("sa_") and name.endswith(ending):
            found[name[: -len(ending)]] = Path(path)
    return found


def _without_ending(name: str) -> str:
    for ending in (".tar", ".jpg", ".json"):
        name = name.removesuffix(ending)
    return name


def _chosen(found: dict[str, Path], names: set[str]) -> dict[str, Path]:
    stems = {_without_ending(PurePath(n).name) for n in names}
    return {k: p for k, p in found.items() if k in stems or not stems.isdisjoint(p.parts)}


def _check_all_found(names: set[str], images: dict[str, Path]) -> None:
    there = set(images)
    for path in {p.parent for p in images.values()}:
        there.update(path.parts)
    missing = {n for n in names if _without_ending(PurePath(n).name) not in there}
    if missing:
        raise DataError(
            f"{len(missing):,} names of the subset are not there: {some(missing)}. The name of a "
            "tar needs its images in a folder of that name (sa_000020/sa_1.jpg)."
        )
