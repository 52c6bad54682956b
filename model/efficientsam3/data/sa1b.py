"""Reader of SA-1B (arXiv 2304.02643): images with masks, without words."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from ..errors import DataError, ImageError
from ..io.images import read_rgb_of_size
from ..io.paths import log_unnamed, walk_files
from ..types import Array
from .annotated_images import read_image
from .json_records import RecordTable, is_number
from .name_lists import first_names, read_names
from .sample import TrainingSample
from .tar_members import Place, TarMember, file_of, find_tars, list_members, read_json_of


class SA1B:
    """SA-1B as released, or as upstream arranges it.

    As released, there are tars with ``sa_1.jpg`` and ``sa_1.json``, which are read where they are,
    or a folder for each that is unpacked, at any depth below ``root``. As upstream arranges it,
    there are ``images/{split}/sa_1.jpg`` and ``annotations/{split}/sa_1.json``.

    Args:
        root: Folder of the data.
        split: Of upstream's arrangement; without meaning for the other.
        subset: A file of names, one a line, or the names: of images (``sa_1``, ``sa_1.jpg``), or of
            tars (``sa_000020.tar``) whose images are in a folder of that name. None takes all.
        largest: Keep so many objects of each image, the largest; None keeps all.

    Raises:
        DataError: There is no data; an annotation has no image, or an image no annotation; names of
            the subset are missing.
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
        names = None if subset is None else read_names(subset)
        images, labels = _find(images_root, ".jpg"), _find(labels_root, ".json")
        if not arranged:
            _add_tars(self.root, images, labels, names)
        if names is not None:
            images, labels = _choose(images, names), _choose(labels, names)
            _check_all_found(names, images)
        if not images and not labels:
            raise DataError(
                f"there is no sa_*.jpg and no tar with some below {images_root}. Download tars of "
                "SA-1B there."
            )
        if without := labels.keys() - images.keys():
            raise DataError(
                f"{len(without):,} annotations below {labels_root} name images that are missing: "
                f"{first_names(without)}. Unpack their tars again, or pass a subset without them."
            )
        if without := images.keys() - labels.keys():
            raise DataError(
                f"{len(without):,} images below {images_root} have no annotation: "
                f"{first_names(without)}. Unpack their tars again, or pass a subset "
                "without them."
            )
        # By number, so that the order does not depend on the file system.
        self._keys = sorted(images, key=lambda k: (len(k), k))
        self._images, self._labels = images, labels
        if subset is None:
            read = {*map(file_of, images.values()), *map(file_of, labels.values())}
            log_unnamed([images_root], read)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The file's name without suffix, ``sa_1``.

        Args:
            index: Which image.
        """
        return self._keys[index]

    def files(self, index: int) -> list[Path]:
        """The files of a sample: its image and its annotation file, or their tar.

        Args:
            index: Which image.
        """
        key = self._keys[index]
        found = dict.fromkeys(file_of(f) for f in (self._images[key], self._labels[key]))
        return list(found)

    def __getitem__(self, index: int) -> TrainingSample:
        key, label = self._keys[index], self._labels[self._keys[index]]
        path, content = Path(str(label)), read_json_of(label)
        keys = ("segmentation", "bbox", "area", "point_coords")
        table = RecordTable.of(path, content, "annotations", keys)
        image = RecordTable(path, "image", [content.get("image")])
        image.require(("height", "width"))
        size = image.size(0)
        rows = list(range(len(table.rows)))
        areas = [table.number(i, "area") for i in rows]
        if self.largest is not None:
            rows = sorted(rows, key=lambda i: -areas[i])[: self.largest]
        boxes = [table.box(i, table.rows[i]["bbox"]) for i in rows]
        points = [_point(table, i) for i in rows]
        limits = np.array([size[1], size[0], size[1], size[0]], np.float32)
        return TrainingSample(
            key,
            _read_image(self._images[key], str(path), size),
            np.array(boxes, np.float32).reshape(-1, 4).clip(0, limits),
            tuple(table.mask(i, table.rows[i]["segmentation"], size, "segmentation") for i in rows),
            points=np.array(points, np.float32).reshape(-1, 2),
        )


def _point(table: RecordTable, index: int) -> list[float]:
    """The first point of a record: [x, y] in pixels."""
    points = table.rows[index]["point_coords"]
    first = points[0] if isinstance(points, list) and points else None
    if not isinstance(first, list) or len(first) != 2 or not all(map(is_number, first)):
        raise table.wrong(index, f"has point_coords {points!r:.80}; they are [[x, y]] in pixels")
    return first


def _add_tars(
    root: Path, images: dict[str, Place], labels: dict[str, Place], names: set[str] | None
) -> None:
    """Add the files of tars; where names are of tars alone, of these."""
    tars = find_tars(root)
    if names and all(name.endswith(".tar") for name in names):
        tars = [tar for tar in tars if tar.name in names]
    for tar in tars:
        for member in list_members(tar):
            if member.name.startswith("sa_"):
                found = images if member.name.endswith(".jpg") else labels
                if member.name.endswith((".jpg", ".json")):
                    found.setdefault(_stem(member.name), member)


def _read_image(place: Place, record: str, size: tuple[int, int]) -> Array:
    """Read an image; of a tar, from memory."""
    if not isinstance(place, TarMember):
        return read_image(place, record, size)
    try:
        rgb = read_rgb_of_size(Image.open(BytesIO(place.read())), size)
    except (ImageError, OSError) as error:
        raise DataError(f"{place}: {error}") from error
    return rgb.permute(1, 2, 0).numpy()


def _find(root: Path, suffix: str) -> dict[str, Place]:
    """Files ``sa_*`` with a suffix, by name without it."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    return {
        path.name[: -len(suffix)]: path
        for path in walk_files(root, follow_links=True)
        if path.name.startswith("sa_") and path.name.endswith(suffix)
    }


def _stem(name: str) -> str:
    for suffix in (".tar", ".jpg", ".json"):
        name = name.removesuffix(suffix)
    return PurePath(name).name


def _choose(found: dict[str, Place], names: set[str]) -> dict[str, Place]:
    stems = {_stem(name) for name in names}
    return {k: p for k, p in found.items() if k in stems or not stems.isdisjoint(p.parts)}


def _check_all_found(names: set[str], images: dict[str, Place]) -> None:
    known = set(images)
    for parts in {place.parts[:-1] for place in images.values()}:
        known.update(parts)
    missing = {name for name in names if _stem(name) not in known}
    if missing:
        raise DataError(
            f"{len(missing):,} names of the subset are not there: {first_names(missing)}. The name "
            "of a tar needs the tar, or its images in a folder of that name (sa_000020/sa_1.jpg)."
        )
