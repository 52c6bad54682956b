"""Many images to files: overlays, masks and one COCO JSON. A stopped run continues.

out/instances.json      COCO: images, categories, annotations with run-length masks
out/overlays/<image>.jpg
out/masks/<image>.png   the number of the instance at each pixel
out/run.jsonl           what is known of each image (see ``io.jsonl``)
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from . import __version__
from .errors import ImageError, PromptError, RunFileError
from .everything import check_everything
from .io import rle
from .io.atomic import replacing, write_picture
from .io.identity import Identity, identity
from .io.image_files import ImageFile as ImageFile
from .io.image_files import absolute
from .io.image_files import find_images as find_images
from .io.jsonl import DAMAGED_LINE, Record, RunFile
from .io.pages import count_several, note_pages
from .io.pixel_values import SourceRange
from .io.samples import read_rgb_array
from .masks.extent import extent
from .masks.polygons import MaskForm, check_mask_form, check_tolerance, to_polygons
from .prompts import check_segment_arguments
from .types import Array, Instances
from .viz import overlay as draw

if TYPE_CHECKING:
    from .predictor import ImageModel

RUN_FILE = "run.jsonl"

logger = logging.getLogger(__name__)


# Results ------------------------------------------------------------------------------------


class Task(NamedTuple):
    """An image to segment.

    Attributes:
        image: The file.
        name: Name of its result files, without folder and ending.
    """

    image: ImageFile
    name: str


class CocoSummary(NamedTuple):
    """The COCO file that was written.

    Attributes:
        path: The file.
        images: Number of images in it.
        annotations: Number of annotations in it.
        left_out: Number of instances that are not in it, because their mask has no pixel.
    """

    path: Path
    images: int
    annotations: int
    left_out: int = 0


class InstanceFile(RunFile):
    """The run file of a ``SegmentRun``; see ``RunFile``.

    Args:
        path: A file whose name ends in .jsonl.
        categories: What instances are of.
        asked: All that decides the instances, as plain values.
        restart: Start again, whatever an earlier run has finished.

    Raises:
        RunFileError: The file is not one of instances. It is left as it is.
    """

    def __init__(
        self, path: Path, categories: Sequence[str], asked: Mapping[str, Any], restart: bool
    ) -> None:
        self.categories = set(categories)
        super().__init__(path, "instances", asked, restart=restart)
        if not isinstance(self.head.get("folder"), (str, type(None))):
            raise RunFileError(f"{path}, line 1 is damaged: delete the file, or name another")

    def note(self, record: Record) -> None:
        """Check a record.

        Args:
            record: The record of an image.

        Raises:
            RunFileError: It lacks what ``SegmentRun`` writes.
        """
        if "failed" in record:
            return
        result: Any = record.get("result")
        written: Any = record.get("written")
        found = result.get("annotations") if isinstance(result, dict) else None
        if (
            not all(isinstance(record.get(key), str) for key in ("input", "name", "folder"))
            or not all(isinstance(record.get(key), int) for key in ("page", "pages"))
            or not isinstance(written, dict)
            or not all(isinstance(path, (str, type(None))) for path in written.values())
            or not isinstance(found, list)
            or not isinstance(result.get("left_out", 0), int)
            or not all(isinstance(a, dict) and isinstance(a.get("concept"), str) for a in found)
            or not {a["concept"] for a in found} <= self.categories
        ):
            raise RunFileError(
                f"{self.path} has a damaged record, {record!s:.60}...: it is not that of an "
                f"image. {DAMAGED_LINE}"
            )


class SegmentRun:
    """The folder with the results of one set of arguments for many images.

    A folder with an earlier run is continued. Where arguments or model differ from those of the
    earlier run, the run starts again, and a warning is logged. Images that have changed, or whose
    result files are missing, are segmented again.

    Args:
        folder: Created with the first result.
        arguments: Keyword arguments of ``ImageModel.segment``, as plain values, "exemplars" being
            a list of arguments of ``ImageModel.exemplar``; with "everything": True those of
            ``segment_everything``. Concepts that are a mapping make its classes the categories.
            With a tile, and without masks and overlays, files are read in windows.
        model: What identifies the model and its weights, as plain values; "model" is its name.
        masks: Whether to write mask files.
        overlays: Whether to write overlay pictures.
        restart: Segment all images again.

    Raises:
        PromptError: an argument is wrong, whatever the image.
        RunFileError: the folder has a file ``run.jsonl`` of something else.
    """

    def __init__(
        self,
        folder: str | Path,
        arguments: Mapping[str, Any],
        model: Mapping[str, Any],
        *,
        masks: bool = True,
        overlays: bool = True,
        restart: bool = False,
    ) -> None:
        from .outputs import OBJECT
        from .segmenter import VISUAL

        self.arguments = dict(arguments)
        self.everything = bool(self.arguments.pop("everything", False))
        concepts = None
        if self.everything:
            check_everything(**self.arguments)
        else:
            concepts = check_segment_arguments(**self.arguments)
        shown = self.arguments.get("exemplars") or []
        drawn = shown or any(arguments.get(name) is not None for name in ("boxes", "masks"))
        self.categories = list(concepts or [VISUAL if drawn else OBJECT])
        self.folder = absolute(Path(folder))
        self.wanted = [k for k, want in (("masks", masks), ("overlays", overlays)) if want]
        asked = {"efficientsam3": __version__, **model, **arguments}
        if shown:
            asked["exemplars"] = [{**one, "image": identity(Path(one["image"]))} for one in shown]
        self.file = InstanceFile(self.folder / RUN_FILE, self.categories, asked, restart)

    def __enter__(self) -> SegmentRun:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def pending(self, images: Sequence[ImageFile]) -> list[Task]:
        """The images that are still to be segmented.

        Args:
            images: From ``find_images``.

        Returns:
            Images that are new, that failed or changed, or whose result files are missing.
        """
        done = self.file.inputs
        if not self.file.resumed:
            folders = list(dict.fromkeys(str(image.folder) for image in images))
            self.file.head.setdefault("folder", _common_folder(folders))
        stamps = {image.path: identity(image.path) for image in images}
        pending = set(self.file.pending({image.key: stamps[image.path] for image in images}))
        lost = [
            image.key
            for image in images
            if image.key not in pending and self._lacks_files(done[image.key])
        ]
        if lost:
            logger.warning(
                "%d of %d images lack their %s and are segmented again, the first of them %s",
                *(len(lost), len(images), " or ".join(self.wanted), lost[0]),
            )
        pending.update(lost)
        names = {path: record["name"] for path, record in done.items() if "name" in record}
        taken = {name.lower() for key, name in names.items() if os.path.exists(_path_of(key))}
        tasks = []
        for image in images:
            if image.key in pending:
                name = names.get(image.key) or _free_name(image, taken)
                taken.add(name.lower())
                tasks.append(Task(image, name))
        return tasks

    def _lacks_files(self, record: Record) -> bool:
        for kind in self.wanted:
            path = record["written"].get(kind, "")
            # None: the model has no masks to write.
            if path is not None and not (path and (self.folder / path).is_file()):
                return True
        return False

    def segment(
        self, model: ImageModel, tasks: Iterable[Task]
    ) -> Iterator[tuple[Task, Instances | Exception]]:
        """Segment images one after another and write their files.

        Args:
            model: The model that ``model`` of the constructor identifies.
            tasks: From ``pending``.

        Yields:
            Each task with its instances, or with the error that this image raised.
        """
        path: Path | None = None
        pages, values, arguments = 1, SourceRange(), self.arguments
        if shown := arguments.get("exemplars"):
            arguments = {**arguments, "exemplars": [model.exemplar(**one) for one in shown]}
        for task in tasks:
            stamp = identity(task.image.path)
            try:
                if task.image.path != path:
                    path = task.image.path
                    pages, values = count_several(path), SourceRange()
                    if pages > 1:
                        note_pages(path, pages, values)
                by_windows = self._reads_windows() and pages == 1
                pixels = None
                if not by_windows:
                    pixels = read_rgb_array(path, values, page=task.image.page - 1)
                ask = model.segment_everything if self.everything else model.segment
                found = ask(path if pixels is None else pixels, **arguments)
                self._write(task, stamp, pages, pixels, found)
            except (ImageError, PromptError, MemoryError) as error:
                reason = str(error) or type(error).__name__
                self.file.fail(task.image.key, reason, identity=stamp)
                yield task, error
            else:
                yield task, found

    def _reads_windows(self) -> bool:
        """Whether the model reads the file in windows: nothing needs the whole picture."""
        return self.arguments.get("tile") is not None and not self.wanted

    def several_pages(self, images: Sequence[ImageFile]) -> dict[str, int]:
        """The files of several pages of which only the first is segmented.

        Args:
            images: From ``find_images``.

        Returns:
            The number of pages by path.
        """
        others = {str(image.path) for image in images if image.page > 1}
        counts = {i.key: self.file.inputs.get(i.key, {}).get("pages", 1) for i in images}
        return {key: n for key, n in counts.items() if n > 1 and _path_of(key) not in others}

    def _write(
        self, task: Task, stamp: Identity, pages: int, image: Array | None, found: Instances
    ) -> None:
        """Write the files of one image, (H, W, 3) uint8 RGB; its record last."""
        annotations, numbers = to_annotations(found, "masks" in self.wanted)
        written: dict[str, str | None] = {}
        if "masks" in self.wanted:
            written["masks"] = None
            if numbers is not None:
                name = written["masks"] = f"masks/{task.name}.png"
                write_picture(_index_map(found, numbers), self._path(name))
        if "overlays" in self.wanted and image is not None:
            name = written["overlays"] = f"overlays/{task.name}.jpg"
            write_picture(draw.overlay(image, found), self._path(name), quality=90)
        result = {
            "width": found.size[1],
            "height": found.size[0],
            "presence": {k: round(v, 5) for k, v in found.concept_presence.items()},
            "annotations": annotations,
            "left_out": len(found) - len(annotations),
        }
        self.file.add(
            task.image.key,
            result,
            identity=stamp,
            name=task.name,
            page=task.image.page,
            pages=pages,
            folder=str(task.image.folder),
            written=written,
        )

    def _path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_coco(self, *, masks: MaskForm = "rle", tolerance: float = 0.0) -> CocoSummary:
        """Write ``instances.json`` of all images that this run or an earlier one segmented.

        The result of one image is in memory at a time. Images that no longer exist are left out.
        Names are relative to the common folder of the images of the first run, so that they stay
        when a later run adds other folders.

        Args:
            masks: "rle" writes run lengths, which hold every pixel; "polygon" a polygon for each
                part, for tools that read nothing else.
            tolerance: Polygons are simplified by at most this many pixels. At 0, pycocotools reads
                every pixel back.

        Raises:
            ArgumentError: An argument is wrong.
        """
        check_mask_form(masks)
        check_tolerance(tolerance)
        paths = [key for key, record in self.file.inputs.items() if _is_there(key, record)]
        paths.sort(key=lambda key: (_path_of(key), self.file.inputs[key]["page"]))
        folder = self.file.head.get("folder")
        if folder is None:
            folder = _common_folder([self.file.inputs[path]["folder"] for path in paths])
        asked = self.file.head["asked"]
        categories = {name: number for number, name in enumerate(self.categories, 1)}
        head = {
            "info": {
                "description": f"Instances found by {asked['model']}",
                "folder": folder,
                "settings": asked,
            },
            "licenses": [],
            "categories": [
                {"id": number, "name": name, "supercategory": ""}
                for name, number in categories.items()
            ],
        }
        target = self._path("instances.json")
        images, count, left_out, outside = [], 0, 0, 0
        with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(head)[:-1] + ', "annotations": [')
            for number, path in enumerate(paths, 1):
                result = self.file.result(path)
                name = _relative(path, folder)
                outside += name.startswith("../")
                annotations = result.pop("annotations")
                left_out += result.pop("left_out", 0)
                images.append({"id": number, "file_name": name, **result})
                for annotation in annotations:
                    category = categories[annotation.pop("concept")]
                    if masks == "polygon" and "segmentation" in annotation:
                        polygons = to_polygons(annotation["segmentation"], tolerance)
                        annotation["segmentation"] = polygons
                    count += 1
                    keys = {"id": count, "image_id": number, "category_id": category}
                    file.write(",\n" * (count > 1) + json.dumps(keys | annotation))
            file.write('], "images": ' + json.dumps(images) + "}\n")
        if outside:
            logger.warning(
                "%s: names of images are relative to %s, as in the first run; %d images are "
                "outside of it, and their names begin with ../",
                *(target, folder, outside),
            )
        return CocoSummary(target, len(images), count, left_out)


def _path_of(key: str) -> str:
    """The file of a key of ``ImageFile``."""
    return re.sub(r"#page=\d+$", "", key)


def _is_there(key: str, record: Record) -> bool:
    """Whether an image has a result and still exists, and a page is of the file as it is now."""
    if "failed" in record or not os.path.exists(_path_of(key)):
        return False
    return bool(record["page"] == 1 or record["identity"] == identity(_path_of(key)))


def _relative(path: str, folder: str) -> str:
    """A path relative to a folder; as it is where there is none, or it is on another drive."""
    try:
        return Path(os.path.relpath(path, folder) if folder else path).as_posix()
    except ValueError:
        return Path(path).as_posix()


def _free_name(image: ImageFile, taken: set[str]) -> str:
    """The image's name without its ending; with it, or with a number, where that is taken."""
    relative = Path(os.path.relpath(image.path, image.folder))
    full, page = relative.as_posix(), f"-page{image.page}" if image.page > 1 else ""
    numbered = (f"{full}{page}-{number}" for number in itertools.count(2))
    short = relative.with_suffix("").as_posix()
    candidates = itertools.chain([short + page, full + page], numbered)
    return next(name for name in candidates if name.lower() not in taken)


def to_annotations(found: Instances, numbered: bool = False) -> tuple[list[Record], Array | None]:
    """COCO annotations of the instances, and the number of the instance at each pixel.

    Args:
        found: Instances of one image.
        numbered: Whether the numbers are asked for.

    Returns:
        Annotations with "concept" in place of ids; an instance whose mask has no pixel has none.
        The numbers are (H, W), 0 where there is no instance; None without masks, or where they
        are not asked for.
    """
    out: list[Record] = []
    numbers = areas = None
    if found.patches is not None and numbered:
        numbers = np.zeros(found.size, np.uint8 if len(found) < 256 else np.uint16)
        areas = np.full(len(found) + 1, np.inf)  # by number; 0, the background, is the largest
    for i in range(len(found)):
        shape = extent(found, i)  # one mask at full size is in memory at a time
        if shape is None:
            continue
        mask: Record = {}
        x0, y0, x1, y1 = map(int, shape.box)
        if shape.pixels is not None:
            mask = {"segmentation": rle.encode_cut(shape.pixels, (x0, y0, x1, y1), found.size)}
        if shape.pixels is not None and numbers is not None and areas is not None:
            areas[i + 1] = shape.area
            there, larger = numbers[y0:y1, x0:x1], areas > shape.area
            # The smaller one lies on top.
            np.copyto(there, i + 1, where=shape.pixels & larger[there])
        out.append(
            {
                "concept": found.labels[i],
                "bbox": shape.xywh,
                "area": shape.area,
                "iscrowd": 0,
                "score": round(float(found.scores[i]), 5),
                "presence": round(float(found.presence[i]), 5),
                "number": i + 1,  # in the image's mask file
                **({} if found.phrases[i] == found.labels[i] else {"phrase": found.phrases[i]}),
                **mask,
            }
        )
    return out, numbers


def _index_map(found: Instances, numbers: Array) -> Image.Image:
    """The mask file: 1 where the first instance is, 0 where there is none.

    Annotation tools and training code read one index map an image. It has one instance a pixel;
    the run lengths of the COCO file have overlaps too. The palette has the overlay's colors. More
    than 255 instances take 16 bits a pixel, for which PNG has no palette.
    """
    image = Image.fromarray(numbers)
    if numbers.dtype == np.uint8:
        image.putpalette([0, 0, 0, *(v for color in draw.instance_colors(found) for v in color)])
    return image


def _common_folder(folders: list[str]) -> str:
    """The folder that all folders lie in; "" if there is none."""
    try:
        return os.path.commonpath(folders) if folders else ""
    except ValueError:  # on two drives of Windows
        return ""
