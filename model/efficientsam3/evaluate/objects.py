"""J&F of objects that are given by their masks where they first appear: DAVIS, YouTube-VOS, MOSE,
LVOS, SA-V.

A folder of annotations has a folder for each video. As in DAVIS, this holds an image for each
annotated frame, whose pixels are numbers of objects; as in SA-V, a folder for each object, with
black and white images. Pictures are in a folder for each video beside it. Predictions are written
in the same form, so that those of other programs can be scored, and ours sent to a server.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .. import __version__
from ..types import Array
from .davis import JandF, contour_accuracy, region_similarity
from .errors import AnnotationError, PredictionError, ResumeError
from .images import weights_digest
from .records import Record
from .score import Progress, Report

if TYPE_CHECKING:
    from ..image import ImageModel

PICTURES = (".jpg", ".jpeg", ".png")
VOID = 255
"""In maps of objects: nobody's pixel."""
RUN = "run.json"
"""In a folder of predictions: what they were made by."""


@dataclass(frozen=True, eq=False)
class ObjectVideo:
    """A video with annotated objects.

    Attributes:
        name: of its folders. pictures: all frames, in order; empty where none were asked for.
        maps: by frame's name, an image of numbers of objects (DAVIS).
        own: by object's name, then frame's, a black and white image (SA-V).
    """

    name: str
    pictures: tuple[Path, ...]
    maps: Mapping[str, Path] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)

    @cached_property
    def frames(self) -> tuple[str, ...]:
        """Names of annotated frames, in order."""
        return tuple(sorted({*self.maps, *(name for own in self.own.values() for name in own)}))

    def masks(self, frame: str) -> dict[str, Array]:
        """Objects that a frame says something of: (H, W) bool, empty where out of sight.

        Maps say nothing of objects that they do not show.
        """
        if frame in self.maps:
            return read_map(self.maps[frame])
        return {id: read_mask(own[frame]) for id, own in self.own.items() if frame in own}


def read_map(path: Path) -> dict[str, Array]:
    """Masks of the objects in an image of numbers."""
    numbers = _pixels(path)
    return {str(n): numbers == n for n in np.unique(numbers).tolist() if n not in (0, VOID)}


def read_mask(path: Path) -> Array:
    """A black and white image as (H, W) bool."""
    return _pixels(path) > 0


def _pixels(path: Path, error_of: type[Exception] = AnnotationError) -> Array:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise error_of(f"{path} is no image that can be read: {error}") from error
    if pixels.ndim != 2:
        raise error_of(
            f"{path} is {image.mode}, in colours; an annotation has one number a pixel: a palette "
            "or grey image, as DAVIS, YouTube-VOS, MOSE and SA-V have them"
        )
    return pixels


# Reading ------------------------------------------------------------------------------------------


def read_videos(
    annotations: str | Path,
    pictures: str | Path | None = None,
    videos: str | Path | Sequence[str] | None = None,
) -> list[ObjectVideo]:
    """The videos of a folder of annotations.

    Args:
        annotations: such as ``DAVIS/Annotations/480p``, ``sav_val/Annotations_6fps``.
        pictures: such as ``DAVIS/JPEGImages/480p``, ``sav_val/JPEGImages_24fps``; None: without.
        videos: which ones: names, or a file with one a line (``sav_val.txt``); None: all.

    Raises:
        AnnotationError: names the folder or the file.
    """
    root = Path(annotations)
    if not root.is_dir():
        raise AnnotationError(f"there is no folder of annotations at {root}")
    found = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    if videos is not None:
        wanted = videos if not isinstance(videos, (str, Path)) else _names(Path(videos))
        if lost := [name for name in wanted if name not in found]:
            raise AnnotationError(f"{root} has no video {', '.join(lost[:3])}")
        found = {name: found[name] for name in wanted}
    out = [_video(path, None if pictures is None else Path(pictures)) for path in found.values()]
    if not out:
        raise AnnotationError(
            f"{root} has no folder of a video; DAVIS' is Annotations/480p, SA-V's Annotations_6fps"
        )
    return out


def _names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise AnnotationError(f"{path}, the list of videos, cannot be read: {error}") from error


def _video(path: Path, pictures: Path | None) -> ObjectVideo:
    maps = {p.stem: p for p in sorted(path.glob("*.png"))}
    own = {
        folder.name: {p.stem: p for p in sorted(folder.glob("*.png"))}
        for folder in sorted(path.iterdir())
        if folder.is_dir()
    }
    own = {id: frames for id, frames in own.items() if frames}
    if bool(maps) == bool(own):
        raise AnnotationError(
            f"{path} has {'images and folders of images' if maps else 'no image'}: a video has a "
            "PNG for each frame (DAVIS), or a folder of them for each object (SA-V)"
        )
    video = ObjectVideo(path.name, () if pictures is None else _pictures(path, pictures), maps, own)
    names = {picture.stem for picture in video.pictures}
    if pictures is not None and (lost := [name for name in video.frames if name not in names]):
        raise AnnotationError(
            f"{pictures / path.name} has no picture of frame {lost[0]}, which {path} annotates"
        )
    return video


def _pictures(path: Path, pictures: Path) -> tuple[Path, ...]:
    folder = pictures / path.name
    if not folder.is_dir():
        raise AnnotationError(f"there are no pictures of {path.name}: no folder {folder}")
    return tuple(sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES))


# Following ----------------------------------------------------------------------------------------


def predict_objects(
    model: ImageModel,
    videos: Sequence[ObjectVideo],
    folder: str | Path,
    *,
    restart: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Follow the objects of all videos from the masks in which they first appear.

    Args:
        model: with the ability "video".
        folder: gets a folder for each video, in the form of its annotations: maps of all frames,
            where pixels that objects share go to the lower number, as SAM 2 writes them; or black
            and white images of the annotated frames. What an earlier run finished is kept.
        restart: forget it. progress: called after each video.

    Raises:
        MissingAbilityError: the model has no video memory.
        ResumeError: the folder has predictions of another model, or of others.
    """
    model.require("video")
    target = Path(folder)
    identity = {
        "efficientsam3": __version__,
        "model": model.name,
        "weights": weights_digest(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if restart and (target / RUN).is_file():  # never what others made, such as annotations
        for video in videos:
            shutil.rmtree(target / video.name, ignore_errors=True)
        (target / RUN).unlink(missing_ok=True)
    _same(target, identity)
    start, before = time.perf_counter(), sum((target / v.name).is_dir() for v in videos)
    done = before
    for video in videos:
        if (target / video.name).is_dir():
            continue
        with tempfile.TemporaryDirectory(dir=target, prefix=f".{video.name}.") as name:
            work = Path(name) / "new"
            work.mkdir()
            for frame, masks in follow(model, video):
                _write(video, work, frame, masks)
            os.replace(work, target / video.name)
        done += 1
        if progress is not None:
            progress(Progress(done, len(videos), before, 0, time.perf_counter() - start))
    return target


def _same(folder: Path, identity: Record) -> None:
    """Make a folder of predictions, or see that the one there is of the same run."""
    path = folder / RUN
    if path.is_file():
        try:
            told = json.loads(path.read_text())
        except ValueError:
            told = None
        if told == identity:
            return
        raise ResumeError(
            f"{folder} has predictions of another model or version; name another folder, or begin "
            "anew (--restart)"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise ResumeError(f"{folder} is not empty, and no run of this program; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(identity) + "\n")


def follow(model: ImageModel, video: ObjectVideo) -> Iterator[tuple[str, dict[str, Array]]]:
    """Frames of a video by name, with the masks (H, W) bool of objects that have been given."""
    from ..video.interactive import InteractiveTracker

    places = {picture.stem: number for number, picture in enumerate(video.pictures)}
    ids: dict[str, int] = {}
    tracker = InteractiveTracker(model, [str(picture) for picture in video.pictures])
    try:
        for frame in video.frames:
            for id, mask in video.masks(frame).items():
                if id not in ids and mask.any():
                    ids[id] = len(ids)
                    tracker.add_mask(places[frame], ids[id], mask)
        if not ids:
            raise AnnotationError(f"{video.name}: no object is annotated in any frame")
        names = {number: id for id, number in ids.items()}
        first = 0
        for tracked in tracker.propagate():
            found = tracked.instances
            for earlier in range(first, tracked.index):  # before the first object
                yield video.pictures[earlier].stem, dict.fromkeys(ids, np.zeros(found.size, bool))
            first = tracked.index + 1
            masks = dict.fromkeys(ids, np.zeros(found.size, bool))
            if found.track_ids is not None:
                for number, mask in zip(found.track_ids.tolist(), found.masks, strict=True):
                    masks[names[number]] = mask
            yield video.pictures[tracked.index].stem, masks
    finally:
        tracker.close()


def _write(video: ObjectVideo, folder: Path, frame: str, masks: Mapping[str, Array]) -> None:
    """The masks of a frame in the form of the annotations."""
    for id, own in video.own.items():
        if frame in own and id in masks:
            (folder / id).mkdir(exist_ok=True)
            Image.fromarray(masks[id]).save(folder / id / f"{frame}.png")
    if video.maps:
        size = next(iter(masks.values())).shape
        numbers = np.zeros(size, np.uint8)
        for id in sorted(masks, key=int, reverse=True):
            numbers[masks[id]] = int(id)
        image = Image.fromarray(numbers)
        if colours := _palette(next(iter(video.maps.values()))):
            # Of a short palette Pillow would write as many bits a number as it needs.
            image.putpalette(colours + [0] * (768 - len(colours)))
        image.save(folder / f"{frame}.png")


def _palette(path: Path) -> list[int] | None:
    """The colours of a map's numbers; they mean nothing, but one can look at them."""
    with Image.open(path) as image:
        return image.getpalette()


# Scoring ------------------------------------------------------------------------------------------


def score_objects(
    videos: Sequence[ObjectVideo],
    predictions: str | Path,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """J&F of predictions: of each object the mean over its frames, then the mean over objects.

    As DAVIS and SA-V have it: the frame that gives an object and the last do not count. Videos that
    are annotated in one frame alone have nothing to score.

    Args:
        predictions: a folder for each video, in the form of the annotations.
        progress: called after each video.

    Raises:
        PredictionError: predictions are missing, or of another size; names the first.
    """
    root, start = Path(predictions), time.perf_counter()
    total, frames = JandF(), 0
    for done, video in enumerate(videos, 1):
        for pairs in _scored(video, root / video.name):
            count = len(total.j)
            _score(pairs, total, single=bool(video.own))
            frames += len(pairs) if len(total.j) > count else 0
        if progress is not None:
            progress(Progress(done, len(videos), 0, 0, time.perf_counter() - start))
    if not total.j:
        raise AnnotationError(
            "no object is annotated on more than the frame that gives it and the last: there is "
            "nothing to score (a test set, whose server wants the predictions?)"
        )
    counts = {"videos": len(videos), "instances": len(total.j), "frames": frames}
    return Report("objects", total.figures(), counts, {"predictions": str(root)})


def _scored(video: ObjectVideo, folder: Path) -> Iterator[list[tuple[Path, Path]]]:
    """Annotations and predictions that are scored together: of a video, or of each object."""
    if video.maps:
        yield [(video.maps[name], folder / f"{name}.png") for name in video.frames[1:-1]]
    for id, own in video.own.items():
        yield [(own[name], folder / id / f"{name}.png") for name in sorted(own)[1:-1]]


def _score(pairs: Sequence[tuple[Path, Path]], total: JandF, *, single: bool) -> None:
    """Add the objects of some frames: each counts from where it is annotated or predicted first,
    if it is annotated at all. single: images are of one object, black and white.
    """
    both: dict[int, list[tuple[float, float]]] = {}
    annotated: set[int] = set()
    for true, guessed in pairs:
        if not guessed.is_file():
            raise PredictionError(f"there is no prediction {guessed}")
        truth, guess = _pixels(true), _pixels(guessed, PredictionError)
        if truth.shape != guess.shape:
            raise PredictionError(
                f"{guessed} is {guess.shape[1]} x {guess.shape[0]} pixels, and {true} "
                f"{truth.shape[1]} x {truth.shape[0]}"
            )
        if single:
            truth, guess = (truth > 0).astype(int), (guess > 0).astype(int)
        there = _numbers(truth)
        annotated |= there
        for id in there | _numbers(guess) | both.keys():
            masks = guess == id, truth == id
            pair = region_similarity(*masks), contour_accuracy(*masks)
            both.setdefault(id, []).append(pair)
    for id in sorted(annotated):
        j, f = np.mean(both[id], 0)
        total.j.append(float(j))
        total.f.append(float(f))


def _numbers(pixels: Array) -> set[int]:
    """The objects of an image."""
    return {int(n) for n in np.unique(pixels)} - {0, VOID}
