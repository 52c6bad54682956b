"""A run over many images: which are pending, and what is written of each."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import __version__
from ..errors import ImageError, PromptError
from ..everything import check_everything
from ..io.atomic import write_picture
from ..io.batches import batched
from ..io.identity import Identity, identity
from ..io.image_files import ImageFile, absolute
from ..io.jsonl import Record
from ..io.pages import count_several, note_pages
from ..io.pixel_values import SourceRange
from ..io.samples import read_rgb_array
from ..masks.polygons import MaskForm
from ..prompts import check_batch_size, check_segment_arguments
from ..types import Instances
from ..viz import overlay as draw
from .annotations import index_map, to_annotations
from .coco_file import CocoSummary, common_folder, write_coco
from .run_file import RUN_FILE, InstanceFile, path_of

if TYPE_CHECKING:
    from ..predictor import ImageModel

logger = logging.getLogger(__name__)


class Task(NamedTuple):
    """An image to segment.

    Attributes:
        image: The file.
        name: Name of its result files, without folder and ending.
    """

    image: ImageFile
    name: str


class _Picture(NamedTuple):
    """A task with its picture.

    Attributes:
        task: The task.
        stamp: The identity of the file as it was read.
        pages: Pages of the file.
        image: (H, W, 3) uint8 RGB; the path, where the file is read in windows; or why it cannot
            be read.
    """

    task: Task
    stamp: Identity
    pages: int
    image: Any


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
        from ..outputs import OBJECT
        from ..segmenter import VISUAL

        self.arguments = dict(arguments)
        self.everything = bool(self.arguments.pop("everything", False))
        concepts = None
        if self.everything:
            check_everything(**self.arguments)
        else:
            concepts = check_segment_arguments(**self.arguments)
        shown = self.arguments.get("exemplars") or []
        drawn = [n for n in ("boxes", "points", "masks") if arguments.get(n) is not None]
        self._is_drawn = bool(drawn)
        is_click = drawn == ["points"] and not shown
        self.categories = list(concepts or [OBJECT if is_click or self.everything else VISUAL])
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
            self.file.head.setdefault("folder", common_folder(folders))
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
        taken = {name.lower() for key, name in names.items() if os.path.exists(path_of(key))}
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
        self, model: ImageModel, tasks: Iterable[Task], batch_size: int = 1
    ) -> Iterator[tuple[Task, Instances | Exception]]:
        """Segment images and write their files, in order.

        Args:
            model: The model that ``model`` of the constructor identifies.
            tasks: From ``pending``.
            batch_size: Images that are in memory, and go through the model, together. With 1, a
                run that was stopped and continued finds the same to the bit; with more, which
                images are together changes scores by rounding. Where tiles are read, it is 1.

        Yields:
            Each task with its instances, or with the error that this image raised.

        Raises:
            PromptError: ``batch_size`` is not a whole number from 1.
        """
        size = check_batch_size(batch_size)
        if self.arguments.get("tile") is not None:
            size = 1
        arguments = self.arguments
        if shown := arguments.get("exemplars"):
            arguments = {**arguments, "exemplars": [model.exemplar(**one) for one in shown]}
        for batch in batched(self._read(tasks), size):
            read = [one for one in batch if not isinstance(one.image, Exception)]
            answers = iter(self._ask(model, [one.image for one in read], arguments))
            for one in batch:
                found = one.image if isinstance(one.image, Exception) else next(answers)
                try:
                    if isinstance(found, Instances):
                        self._write(one, found)
                except (ImageError, MemoryError) as error:
                    found = error
                if isinstance(found, Exception):
                    reason = str(found) or type(found).__name__
                    self.file.fail(one.task.image.key, reason, identity=one.stamp)
                yield one.task, found

    def _read(self, tasks: Iterable[Task]) -> Iterator[_Picture]:
        """Read the pictures of tasks, one when it is asked for."""
        path: Path | None = None
        pages, values = 1, SourceRange()
        for task in tasks:
            stamp = identity(task.image.path)
            image: Any = None
            try:
                if task.image.path != path:
                    path = task.image.path
                    pages, values = count_several(path), SourceRange()
                    if pages > 1:
                        note_pages(path, pages, values)
                if self._reads_windows() and pages == 1:
                    image = path
                else:
                    image = read_rgb_array(path, values, page=task.image.page - 1)
            except (ImageError, MemoryError) as error:
                image = error
            yield _Picture(task, stamp, pages, image)

    def _ask(
        self, model: ImageModel, images: list[Any], arguments: Mapping[str, Any]
    ) -> list[Instances | Exception]:
        """Ask for images together, and one by one where that fails."""
        try:
            if len(images) > 1:
                images = model.encode(images, batch_size=len(images))
                if not self.everything and not self._is_drawn:
                    return list(model.segment(images, **arguments, batch_size=len(images)))
            ask = model.segment_everything if self.everything else model.segment
            return [ask(image, **arguments) for image in images]
        except (ImageError, PromptError, MemoryError) as error:
            if len(images) == 1:
                return [error]
            return [answer for image in images for answer in self._ask(model, [image], arguments)]

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
        return {key: n for key, n in counts.items() if n > 1 and path_of(key) not in others}

    def _write(self, picture: _Picture, found: Instances) -> None:
        """Write the files of one image; its record last."""
        task = picture.task
        annotations, numbers = to_annotations(found, "masks" in self.wanted)
        written: dict[str, str | None] = {}
        if "masks" in self.wanted:
            written["masks"] = None
            if numbers is not None:
                name = written["masks"] = f"masks/{task.name}.png"
                write_picture(index_map(found, numbers), self._path(name))
        if "overlays" in self.wanted:
            name = written["overlays"] = f"overlays/{task.name}.jpg"
            write_picture(draw.overlay(picture.image, found), self._path(name), quality=90)
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
            identity=picture.stamp,
            name=task.name,
            page=task.image.page,
            pages=picture.pages,
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
        return write_coco(self.file, self._path("instances.json"), masks=masks, tolerance=tolerance)


def _free_name(image: ImageFile, taken: set[str]) -> str:
    """The image's name without its ending; with it, or with a number, where that is taken."""
    relative = Path(os.path.relpath(image.path, image.folder))
    full, page = relative.as_posix(), f"-page{image.page}" if image.page > 1 else ""
    numbered = (f"{full}{page}-{number}" for number in itertools.count(2))
    short = relative.with_suffix("").as_posix()
    candidates = itertools.chain([short + page, full + page], numbered)
    return next(name for name in candidates if name.lower() not in taken)
