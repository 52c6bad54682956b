"""Scenes as files: SA-Co/Gold JSON with images, SA-Co/VEval JSON with folders of frames.

Each finished scene is a record of a run file beside the images, so that a run that was stopped
continues. The JSON is written last.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from efficientsam3.errors import ArgumentError, EfficientSam3Error
from efficientsam3.io import rle
from efficientsam3.io.atomic import write_picture
from efficientsam3.io.jsonl import RunFile

from .clips import make_clip
from .compositor import Mask, Pixels, mask_to_box
from .queries import Query, choose_queries
from .saco_json import Format, Record, gold_sections, read_info, veval_sections, write_json
from .scenes import SceneGenerator

Progress = Callable[[int, int], None]
"""Called with the number of finished scenes and the number of all scenes."""

SCENES_FILE, CLIPS_FILE = "gold.json", "veval.json"
IMAGES_FOLDER, FRAMES_FOLDER = "images", "frames"
JPEG_QUALITY = 95
MAX_PHRASES = 8
"""Phrases of a scene, half of them negative where it has enough of both."""


class SceneFilesError(EfficientSam3Error, OSError):
    """Scenes cannot be written to a folder."""


def write_scenes(
    generator: SceneGenerator,
    folder: str | Path,
    count: int,
    *,
    first_seed: int = 0,
    phrases: int = MAX_PHRASES,
    restart: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write scenes in the format of SA-Co/Gold.

    A run with the same arguments continues an earlier one; other seeds or more scenes extend it.

    Args:
        generator: The generator of the scenes.
        folder: Gets ``gold.json``, ``images/`` and the run file ``scenes.jsonl``.
        count: Number of scenes.
        first_seed: Seed of the first scene; the next ones follow.
        phrases: Most phrases of a scene.
        restart: Write all scenes again.
        progress: Called as the work goes on.

    Returns:
        The path of ``gold.json``. Each record of its "images" is an image with a phrase; phrases
        that are absent from the image have no annotations.

    Raises:
        ArgumentError: ``count`` is less than 1.
        RunFileError: ``scenes.jsonl`` is another file, or damaged.
        SceneFilesError: ``gold.json`` is another file, or the disk is full.
    """
    folder = Path(folder)

    def render(seed: int) -> Record:
        scene = generator.scene(seed)
        name = f"scene_{seed:07d}.jpg"
        _save_image(scene.image, folder / IMAGES_FOLDER / name)
        masks = [_encode_mask(obj.mask) for obj in scene.objects]
        queries = [_encode_query(q) for q in choose_queries(scene.queries, phrases, seed)]
        return {"file": name, "size": generator.size, "queries": queries, "masks": masks}

    asked = {**_settings(generator), "phrases": phrases}
    seeds = range(first_seed, first_seed + count)
    file = folder / SCENES_FILE
    _write(file, "scenes", asked, seeds, render, gold_sections, restart, progress)
    return file


def write_clips(
    generator: SceneGenerator,
    folder: str | Path,
    count: int,
    *,
    frames: int = 16,
    first_seed: int = 0,
    phrases: int = MAX_PHRASES,
    restart: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write clips in the format of SA-Co/VEval.

    A run with the same arguments continues an earlier one; other seeds or more clips extend it.

    Args:
        generator: The generator of the clips.
        folder: Gets ``veval.json``, ``frames/`` with a folder of JPEG files for each clip, and the
            run file ``clips.jsonl``.
        count: Number of clips.
        frames: Frames of a clip, from 2.
        first_seed: Seed of the first clip; the next ones follow.
        phrases: Most phrases of a clip.
        restart: Write all clips again.
        progress: Called as the work goes on.

    Returns:
        The path of ``veval.json``. It has pairs of a video and a phrase with their masklets; pairs
        whose phrase is absent from the clip have none.

    Raises:
        ArgumentError: ``count`` is less than 1, or ``frames`` less than 2.
        RunFileError: ``clips.jsonl`` is another file, or damaged.
        SceneFilesError: ``veval.json`` is another file, or the disk is full.
    """
    folder = Path(folder)

    def render(seed: int) -> Record:
        clip = make_clip(generator, seed, frames)
        name = f"clip_{seed:07d}"
        files = []
        masklets: list[list[Record | None]] = [[] for _ in clip.objects]
        for index, frame in enumerate(clip):
            files.append(f"{name}/{index:05d}.jpg")
            _save_image(frame.image, folder / FRAMES_FOLDER / files[-1])
            for masklet, mask in zip(masklets, frame.masks, strict=True):
                masklet.append(_encode_mask(mask) if mask.any() else None)
        queries = [_encode_query(q) for q in choose_queries(clip.queries, phrases, seed)]
        size = generator.size
        return {"file": name, "files": files, "size": size, "queries": queries, "masks": masklets}

    asked = {**_settings(generator), "phrases": phrases, "frames": frames}
    seeds = range(first_seed, first_seed + count)
    file = folder / CLIPS_FILE
    _write(file, "clips", asked, seeds, render, veval_sections, restart, progress)
    return file


def _settings(generator: SceneGenerator) -> Record:
    return {
        "split": generator.split.name,
        "size": generator.size,
        "art": generator.stickers.fingerprint,
        "concepts": len(generator.names),
        "names": hashlib.sha256("\n".join(generator.names).encode()).hexdigest()[:16],
    }


def _write(
    file: Path,
    kind: str,
    asked: Record,
    seeds: range,
    render: Callable[[int], Record],
    sections: Format,
    restart: bool,
    progress: Progress | None,
) -> None:
    """Render the scenes that the run file lacks, then write the JSON file."""
    count = len(seeds)
    if count < 1:
        raise ArgumentError(f"the number of {kind} is at least 1; got count={count}")
    report = progress or (lambda done, total: None)
    info = {"split": asked["split"], "seed": seeds.start, "count": count}
    info |= {key: value for key, value in asked.items() if key not in ("split", "names")}
    if file.exists() and read_info(file) is None:
        raise SceneFilesError(
            f"{file} was not written by `efficientsam3 scenes make`, and is left as it is: name "
            "another folder"
        )
    run_path = file.with_name(f"{kind}.jsonl")
    with _explain_full_disk(file.parent), RunFile(run_path, kind, asked, restart=restart) as run:
        pending = run.pending(dict.fromkeys(map(str, seeds)))
        if pending:
            file.unlink(missing_ok=True)  # it describes images that are written again
        for done, seed in enumerate(pending, count - len(pending)):
            report(done, count)
            run.add(seed, render(int(seed)))
        report(count, count)
        if not file.exists() or read_info(file) != info:
            write_json(file, info, sections(lambda: map(run.result, map(str, seeds))))


@contextmanager
def _explain_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SceneFilesError(
            f"the disk of {folder} is full. Finished scenes are kept: free some space and run the "
            "same command to continue"
        ) from error


def _save_image(image: Pixels, path: Path) -> None:
    write_picture(Image.fromarray(image), path, quality=JPEG_QUALITY, subsampling=0)


def _encode_mask(mask: Mask) -> Record:
    """{"rle", "box": [x, y, width, height], "area"}, in pixels."""
    x0, y0, x1, y1 = (int(v) for v in mask_to_box(mask))
    run_lengths = rle.encode_cut(mask[y0:y1, x0:x1], (x0, y0, x1, y1), mask.shape)
    return {"rle": run_lengths, "box": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum())}


def _encode_query(query: Query) -> Record:
    return {"phrase": query.phrase, "objects": list(query.objects), "kind": query.kind}
