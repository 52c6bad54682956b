"""Many images to files: overlay pictures, masks and one COCO JSON; a stopped run goes on.

out/instances.json      COCO: images, categories, annotations with run-length masks
out/overlays/<image>.jpg
out/masks/<image>.png   the number of the instance at each pixel
out/records/<image>.json  what is known of one image; written last, so what has one is done
"""

from __future__ import annotations

import glob
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from . import __version__, draw, rle
from .errors import ImageError, PromptError
from .types import Array, Instances

if TYPE_CHECKING:
    from .image import ImageModel

Record = dict[str, Any]

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2"}
    | {".ppm", ".pgm", ".avif"}
)
"""Endings by which files in a folder are taken for images."""

FORMAT = 1


# Images -------------------------------------------------------------------------------------


class Source(NamedTuple):
    """An image file, and the folder under which it was found: both absolute."""

    path: Path
    folder: Path


def find_images(arguments: Iterable[str | Path], out: str | Path) -> list[Source]:
    """Images by files, folders (and all under them) and patterns, each once, in order of names.

    Args:
        out: folder of the results; pictures that were written there are no input.

    Raises:
        ImageError: nothing is there, or no image.
    """
    names = [str(argument) for argument in arguments]
    written = tuple(_absolute(Path(out)) / kind for kind in ("overlays", "masks"))
    found: dict[Path, Source] = {}
    for name in names:
        for path, folder in _matches(name):
            for image in _walk(path) if path.is_dir() else [path]:
                if not any(image.is_relative_to(folder) for folder in written):
                    found.setdefault(image, Source(image, folder))
    if not found:
        raise ImageError(
            f"no images in {', '.join(names)}: their names end in {' '.join(sorted(SUFFIXES))}"
        )
    return [found[path] for path in sorted(found)]


def _matches(argument: str) -> list[tuple[Path, Path]]:
    """What an argument names, and the folder that names of results are relative to."""
    path = Path(argument).expanduser()
    if path.is_dir():
        return [(_absolute(path), _absolute(path))]
    if path.exists():
        return [(_absolute(path), _absolute(path.parent))]
    if not glob.has_magic(argument):
        raise ImageError(f"there is no image or folder at {argument}")
    fixed = path
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    # Folders count, as they do where the shell expands the pattern; with ** their files come by
    # themselves.
    folders = "**" not in argument
    names = (Path(name) for name in glob.glob(str(path), recursive=True))
    found = [n for n in names if (n.is_dir() and folders) or (n.is_file() and _is_image(n))]
    if not found:
        raise ImageError(f"no image matches {argument}")
    return [(_absolute(name), _absolute(fixed)) for name in found]


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # symbolic links stay: their names are the user's


def _walk(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        yield from (path for n in names if _is_image(path := Path(here, n)))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


# Questions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What is asked of each image; arguments as in ``ImageModel.segment``."""

    concepts: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    box_labels: tuple[int, ...] = ()
    points: tuple[tuple[float, ...], ...] = ()
    point_labels: tuple[int, ...] = ()
    threshold: float = 0.5
    max_instances: int | None = None
    nms: float | None = None

    def __post_init__(self) -> None:
        # What is wrong for every image is said once, before any is read.
        if not (self.concepts or self.boxes or self.points):
            raise PromptError("nothing to find: name a concept, show a box or click a point")
        if not all(concept.strip() for concept in self.concepts):
            raise PromptError("a concept is a phrase such as 'person'; got an empty one")
        if len(self.concepts) > 1 and (self.boxes or self.points):
            raise PromptError(
                f"boxes and points show one concept; got {len(self.concepts)}: "
                f"{', '.join(self.concepts)}"
            )
        for box in self.boxes:
            if box[2] <= box[0] or box[3] <= box[1]:
                raise PromptError(
                    f"box {','.join(f'{v:g}' for v in box)} is empty or inverted: it is "
                    "x0,y0,x1,y1 in pixels with x0 < x1 and y0 < y1"
                )

    def ask(self, model: ImageModel, image: Any) -> Instances:
        """The answer of a model for one image."""
        return model.segment(
            image,
            list(self.concepts) or None,
            boxes=list(self.boxes) or None,
            box_labels=list(self.box_labels) or None,
            points=list(self.points) or None,
            point_labels=list(self.point_labels) or None,
            threshold=self.threshold,
            max_instances=self.max_instances,
            nms=self.nms,
        )

    @property
    def categories(self) -> list[str]:
        """Labels that an answer can have."""
        from .image import OBJECT, VISUAL

        names = dict.fromkeys(concept.strip() for concept in self.concepts)
        return list(names) or [VISUAL if self.boxes else OBJECT]


# Results ------------------------------------------------------------------------------------


class Task(NamedTuple):
    """An image that is to be done, and the name of its files."""

    source: Source
    name: str


@dataclass
class Plan:
    """What is to be done, what is done, and why some that had been done is done again."""

    tasks: list[Task] = field(default_factory=list)
    done: int = 0
    again: dict[str, int] = field(default_factory=dict)


class Merged(NamedTuple):
    """The COCO file, what is in it, and images that were done with other settings."""

    path: Path
    images: int
    annotations: int
    left_out: int


class Results:
    """The folder with the results of a question to many images.

    Args:
        folder: made if need be.
        question, model: what decides the results; ``model`` as plain values. Images that were
            done with another question or model are done again.
        masks, overlays: whether to write them.
    """

    def __init__(
        self,
        folder: str | Path,
        question: Question,
        model: Record,
        *,
        masks: bool = True,
        overlays: bool = True,
    ) -> None:
        self.folder = _absolute(Path(folder))
        self.question = question
        # As JSON gives it back, so that the two can be compared.
        self.settings: Record = json.loads(
            json.dumps({"efficientsam3": __version__, **model, **asdict(question)})
        )
        self.wanted = {"masks": masks, "overlays": overlays}

    def plan(self, images: Sequence[Source]) -> Plan:
        """Sort out which images are to be done."""
        plan, taken = Plan(), set[str]()
        for source in images:
            name, record = self._name(source, taken)
            taken.add(name.lower())
            why = self._stale(record, source) if record is not None else ""
            if record is not None and not why:
                plan.done += 1
                continue
            if why:
                plan.again[why] = plan.again.get(why, 0) + 1
            plan.tasks.append(Task(source, name))
        return plan

    def _name(self, source: Source, taken: set[str]) -> tuple[str, Record | None]:
        """The image's name without its ending; with it, or a number, where that is another's."""
        relative = Path(os.path.relpath(source.path, source.folder))
        whole, free = relative.as_posix(), ""
        numbered = (f"{whole}-{number}" for number in itertools.count(2))
        for name in itertools.chain([relative.with_suffix("").as_posix(), whole], numbered):
            if name.lower() in taken:
                continue
            record = self._read(name)
            if record is not None and record["image"] == str(source.path):
                return name, record
            if not free and (record is None or not os.path.exists(record["image"])):
                free = name
            if record is None:  # nor has a later name one of this image
                break
        return free, None

    def _stale(self, record: Record, source: Source) -> str:
        """Why a record cannot stand for an image; "" if it can."""
        if record["settings"] != self.settings:
            return f"made with other settings: {_difference(record['settings'], self.settings)}"
        if record["file"] != _file(source.path):
            return "the image has changed"
        for kind, wanted in self.wanted.items():
            path = record["written"].get(kind, "")
            # None: the answer had nothing to write.
            if wanted and path is not None and not (path and (self.folder / path).is_file()):
                return f"without {kind}"
        return ""

    def write(self, task: Task, image: Array, found: Instances) -> None:
        """Write the files of one image; (H, W, 3) uint8 RGB. The record comes last."""
        from .weights import replacing

        record_path = self._record(task.name)
        # What is there of another run is no longer true from here on.
        record_path.unlink(missing_ok=True)
        annotations, numbers = _annotations(found)
        written: dict[str, str | None] = {}
        if self.wanted["masks"]:
            written["masks"] = None
            if numbers is not None:
                name = written["masks"] = f"masks/{task.name}.png"
                _index_map(found, numbers).save(self._file(name))
        if self.wanted["overlays"]:
            name = written["overlays"] = f"overlays/{task.name}.jpg"
            draw.overlay(image, found).save(self._file(name), quality=90)
        record = {
            "format": FORMAT,
            "image": str(task.source.path),
            "folder": str(task.source.folder),
            "file": _file(task.source.path),
            "settings": self.settings,
            "width": found.size[1],
            "height": found.size[0],
            "presence": {k: round(v, 5) for k, v in found.concept_presence.items()},
            "annotations": annotations,
            "written": written,
        }
        with replacing(record_path) as path:
            path.write_text(json.dumps(record))

    def merge(self) -> Merged:
        """Write ``instances.json`` of all images that were ever done with these settings.

        One record is in memory at a time. Images that are gone are left out.
        """
        from .weights import replacing

        categories = {name: i for i, name in enumerate(self.question.categories, 1)}
        names, left_out = [], 0
        records = self.folder / "records"
        for path in records.rglob("[!.]*.json"):
            name = path.relative_to(records).with_suffix("").as_posix()
            record = self._read(name)
            if record is None or not os.path.exists(record["image"]):
                continue
            if record["settings"] == self.settings:
                names.append((record["image"], record["folder"], name))
            else:
                left_out += 1
        names.sort()
        folder = _common([folder for _, folder, _ in names])
        head = {
            "info": {
                "description": f"Instances found by {self.settings['model']}",
                "folder": folder,
                "settings": self.settings,
            },
            "licenses": [],
            "categories": [
                {"id": i, "name": name, "supercategory": ""} for name, i in categories.items()
            ],
        }
        target = self.folder / "instances.json"
        images, count = [], 0
        with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(head)[:-1] + ', "annotations": [')
            for number, (path, _, name) in enumerate(names, 1):
                record = self._read(name) or {}
                images.append(
                    {
                        "id": number,
                        "file_name": _relative(path, folder),
                        "width": record["width"],
                        "height": record["height"],
                        "presence": record["presence"],
                    }
                )
                for annotation in record["annotations"]:
                    category = categories[annotation.pop("concept")]
                    count += 1
                    keys = {"id": count, "image_id": number, "category_id": category}
                    file.write(",\n" * (count > 1) + json.dumps(keys | annotation))
            file.write('], "images": ' + json.dumps(images) + "}\n")
        return Merged(target, len(images), count, left_out)

    def _record(self, name: str) -> Path:
        return self.folder / "records" / f"{name}.json"

    def _read(self, name: str) -> Record | None:
        """A record; None if there is none that this version can read."""
        try:
            record = json.loads(self._record(name).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return record if isinstance(record, dict) and record.get("format") == FORMAT else None

    def _file(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def segment_images(
    model: ImageModel, results: Results, tasks: Iterable[Task]
) -> Iterator[tuple[Task, Instances | Exception]]:
    """Do the tasks one after another; what one image cannot be done for is its own matter.

    Yields:
        Each task with its instances, or the error that it ended with.
    """
    from .pixels import read_rgb

    for task in tasks:
        try:
            pixels = read_rgb(task.source.path)
            found = results.question.ask(model, pixels)
            results.write(task, pixels.permute(1, 2, 0).numpy(), found)
        except (ImageError, PromptError, MemoryError) as error:
            yield task, error
        else:
            yield task, found


def _annotations(found: Instances) -> tuple[list[Record], Array | None]:
    """COCO's annotations, and the number of the instance at each pixel, None without masks."""
    out: list[Record] = []
    for i, (x0, y0, x1, y1) in enumerate(found.boxes.tolist()):
        out.append(
            {
                "concept": found.labels[i],
                "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                "area": round((x1 - x0) * (y1 - y0), 2),
                "iscrowd": 0,
                "score": round(float(found.scores[i]), 5),
                "presence": round(float(found.presence[i]), 5),
                "number": i + 1,  # in the image's mask file
            }
        )
    if found.patches is None:
        return out, None
    numbers = np.zeros(found.size, np.uint8 if len(found) < 256 else np.uint16)
    areas = np.full(len(found) + 1, np.inf)  # by number; the ground, 0, is the largest
    for i, annotation in enumerate(out):
        pixels, box = found.crop(i)  # enlarged once; one is in memory at a time
        annotation["segmentation"] = rle.encode_cut(pixels, box, found.size)
        annotation["area"] = areas[i + 1] = int(pixels.sum())
        there, larger = numbers[box[1] : box[3], box[0] : box[2]], areas > areas[i + 1]
        np.copyto(there, i + 1, where=pixels & larger[there])  # the smaller one lies on top
    return out, numbers


def _index_map(found: Instances, numbers: Array) -> Image.Image:
    """The mask file: 1 where the first instance is, 0 where none is.

    One file an image, with its name and size, is what annotation tools and training code read;
    200 files an image fill a disk's directory. It has one instance a pixel; the COCO file's run
    lengths have the overlaps too. The palette shows the overlay's colours; more than 255 instances
    take 16 bits, which PNG has no palette for.
    """
    image = Image.fromarray(numbers)
    if numbers.dtype == np.uint8:
        image.putpalette([0, 0, 0, *(v for colour in draw.colours(found) for v in colour)])
    return image


def _file(path: Path) -> Record:
    """What tells that a file is still the same."""
    stat = path.stat()
    return {"bytes": stat.st_size, "modified": stat.st_mtime_ns}


def _difference(old: Record, new: Record) -> str:
    changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    values = {k: f"{k} was {_plain(old.get(k))}, is {_plain(new.get(k))}" for k in changed}
    return "; ".join(v if len(v) < 120 else f"other {k}" for k, v in values.items())


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _common(folders: list[str]) -> str:
    """The folder that all lie in; "" if there is none."""
    try:
        return os.path.commonpath(folders) if folders else ""
    except ValueError:  # on two of Windows' drives
        return ""


def _relative(path: str, folder: str) -> str:
    return Path(os.path.relpath(path, folder) if folder else path).as_posix()
