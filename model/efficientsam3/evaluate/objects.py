"""Track given objects through videos, and score the masks by J&F.

The data sets are DAVIS, YouTube-VOS, MOSE, LVOS and SA-V. Predictions have the form of the
annotations (``data.object_videos``): those of other programs can be scored, and ours can be sent to
a server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..data.object_videos import ObjectVideo, object_numbers, read_gray
from ..errors import AnnotationError, RunFileError
from ..io.atomic import replacing_folder, write_picture
from ..io.identity import identity
from ..io.jsonl import RunFile
from ..types import Array
from .errors import PredictionError
from .metrics.jf import JFScore, contour_accuracy, region_similarity
from .model_identity import model_identity
from .report import Progress, Report

if TYPE_CHECKING:
    from ..predictor import ImageModel

RUN_FILE = "run.jsonl"
"""The run file in a folder of predictions."""


# Predictions --------------------------------------------------------------------------------------


def predict_objects(
    model: ImageModel,
    videos: Sequence[ObjectVideo],
    folder: str | Path,
    *,
    restart: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Track the objects of all videos from the masks in which they first appear.

    A stopped run continues with the next video. Videos whose frames or annotations have changed
    are tracked again; with another model all are, and a warning is logged.

    Args:
        model: A model with the ability "video".
        videos: Videos with frames, from ``read_object_videos``.
        folder: Gets a folder for each video, in the form of its annotations: maps of all frames,
            where pixels that objects share belong to the lower number, as SAM 2 writes them; or
            black and white images of the annotated frames.
        restart: Track all videos again.
        progress: Called after each video.

    Returns:
        ``folder``.

    Raises:
        MissingAbilityError: the model has no video memory.
        RunFileError: the folder is not empty, and no earlier run wrote it.
    """
    model.require("video")
    target = Path(folder)
    if not (target / RUN_FILE).exists() and target.is_dir() and any(target.iterdir()):
        raise RunFileError(
            f"{target} is not empty and has no {RUN_FILE} of an earlier run: name another folder"
        )
    identities = {video.name: identity(_files(video)) for video in videos}
    start = time.perf_counter()
    with RunFile(target / RUN_FILE, "object masks", model_identity(model), restart=restart) as run:
        missing = {video.name for video in videos if not (target / video.name).is_dir()}
        pending = missing.union(run.pending(identities))
        done = before = len(videos) - len(pending)
        for video in videos:
            if video.name not in pending:
                continue
            run.write({"started": video.name})  # the run file comes first in the folder
            with replacing_folder(target / video.name) as new:
                for frame, masks in track_given_objects(model, video):
                    _write_masks(video, new, frame, masks)
            run.add(video.name, None, identity=identities[video.name])
            done += 1
            if progress is not None:
                progress(Progress(done, len(videos), before, 0, time.perf_counter() - start))
    return target


def _files(video: ObjectVideo) -> list[Path]:
    """The files that the predictions of a video depend on."""
    of_objects = [path for files in video.object_masks.values() for path in files.values()]
    return [*video.frame_files, *video.maps.values(), *of_objects]


def track_given_objects(
    model: ImageModel, video: ObjectVideo
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Track the objects of one video, each from the first frame that annotates it.

    Args:
        model: A model with the ability "video".
        video: A video with frames.

    Yields:
        The name of each frame, and masks (H, W) bool by object; all False where an object is not
        visible.

    Raises:
        AnnotationError: no object is annotated.
    """
    from ..video.interactive import InteractiveTracker

    indices = {file.stem: index for index, file in enumerate(video.frame_files)}
    ids: dict[str, int] = {}
    files = [str(file) for file in video.frame_files]
    tracker = InteractiveTracker(model, files, cuts=None)  # data sets track through cuts
    try:
        for frame in video.frames:
            for name, mask in video.masks(frame).items():
                if name not in ids and mask.any():
                    ids[name] = len(ids)
                    tracker.add_mask(indices[frame], ids[name], mask)
        if not ids:
            raise AnnotationError(f"{video.name}: no object is annotated in any frame")
        names = {id: name for name, id in ids.items()}
        expected = 0
        for tracked in tracker.propagate():
            found = tracked.instances
            for earlier in range(expected, tracked.index):  # before the first object
                empty = dict.fromkeys(ids, np.zeros(found.size, bool))
                yield video.frame_files[earlier].stem, empty
            expected = tracked.index + 1
            masks = dict.fromkeys(ids, np.zeros(found.size, bool))
            if found.track_ids is not None:
                for id, mask in zip(found.track_ids.tolist(), found.masks, strict=True):
                    masks[names[id]] = mask
            yield video.frame_files[tracked.index].stem, masks
    finally:
        tracker.close()


def _write_masks(video: ObjectVideo, folder: Path, frame: str, masks: Mapping[str, Array]) -> None:
    """Write the masks of one frame in the form of the annotations."""
    for name, files in video.object_masks.items():
        if frame in files and name in masks:
            write_picture(Image.fromarray(masks[name]), folder / name / f"{frame}.png")
    if video.maps:
        numbers = np.zeros(next(iter(masks.values())).shape, np.uint8)
        for name in sorted(masks, key=int, reverse=True):
            numbers[masks[name]] = int(name)
        image = Image.fromarray(numbers)
        with Image.open(next(iter(video.maps.values()))) as annotated:
            palette = annotated.getpalette()
        if palette:
            # Pillow writes fewer bits a pixel with a short palette, which tools do not expect.
            image.putpalette(palette + [0] * (768 - len(palette)))
        write_picture(image, folder / f"{frame}.png")


# Scores -------------------------------------------------------------------------------------------


def score_objects(
    videos: Sequence[ObjectVideo],
    predictions: str | Path,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Score masks by J&F: of each object the mean over its frames, then the mean over objects.

    As in DAVIS and SA-V, the frame that gives an object and the last annotated one do not count.

    Args:
        videos: Annotated videos, from ``read_object_videos``.
        predictions: A folder with a folder for each video, in the form of the annotations.
        progress: Called after each video.

    Raises:
        AnnotationError: no object is annotated in a frame that counts.
        PredictionError: a prediction is missing, or has another size; the message names it.
    """
    root, start = Path(predictions), time.perf_counter()
    score, frames = JFScore(), 0
    for done, video in enumerate(videos, 1):
        for files in _file_pairs(video, root / video.name):
            added = _score_files(files, score, single=bool(video.object_masks))
            frames += len(files) if added else 0
        if progress is not None:
            progress(Progress(done, len(videos), 0, 0, time.perf_counter() - start))
    if not score.j:
        raise AnnotationError(
            "no object is annotated on more than the frame that gives it and the last: there is "
            "nothing to score (a test set, whose server scores predictions?)"
        )
    counts = {"videos": len(videos), "instances": len(score.j), "frames": frames}
    return Report("objects", score.compute(), counts, {"predictions": str(root)})


def _file_pairs(video: ObjectVideo, folder: Path) -> Iterator[list[tuple[Path, Path]]]:
    """Files of annotations and predictions, of the whole video (DAVIS) or by object (SA-V)."""
    if video.maps:
        yield [(video.maps[name], folder / f"{name}.png") for name in video.frames[1:-1]]
    for name, files in video.object_masks.items():
        yield [(files[t], folder / name / f"{t}.png") for t in sorted(files)[1:-1]]


def _score_files(files: Sequence[tuple[Path, Path]], score: JFScore, *, single: bool) -> int:
    """Add the objects of some frames to a score; gives their number.

    An object counts from the first frame that annotates or predicts it, if any annotates it.
    ``single``: the images are of one object, black and white.
    """
    jf: dict[int, list[tuple[float, float]]] = {}
    annotated: set[int] = set()
    for target_file, predicted_file in files:
        if not predicted_file.is_file():
            raise PredictionError(f"there is no prediction {predicted_file}")
        target, predicted = read_gray(target_file), read_gray(predicted_file, PredictionError)
        if target.shape != predicted.shape:
            raise PredictionError(
                f"{predicted_file} is {predicted.shape[1]} x {predicted.shape[0]} pixels, and "
                f"{target_file} {target.shape[1]} x {target.shape[0]}"
            )
        if single:
            target, predicted = (target > 0).astype(int), (predicted > 0).astype(int)
        annotated.update(object_numbers(target))
        for number in annotated.union(object_numbers(predicted), jf):
            masks = predicted == number, target == number
            jf.setdefault(number, []).append((region_similarity(*masks), contour_accuracy(*masks)))
    for number in sorted(annotated):
        j, f = np.mean(jf[number], 0)
        score.j.append(float(j))
        score.f.append(float(f))
    return len(annotated)
