"""Scenes as files: SA-Co/Gold JSON with images, SA-Co/VEval JSON with folders of frames.

What is done is kept in a journal beside the images, a line a scene: a run that was stopped goes
on where it was. The JSON is written last.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .. import rle
from ..errors import EfficientSam3Error
from .canvas import Mask, Pixels, tight_box
from .clips import film
from .compose import World

if TYPE_CHECKING:
    from .phrases import Query

Record = dict[str, Any]
Progress = Callable[[int, int], None]
"""Called with how many scenes are done, and of how many."""

GOLD, VEVAL = "gold.json", "veval.json"
IMAGES, FRAMES = "images", "frames"
JOURNAL = ".{}.journal"
QUALITY = 95
"""Of the JPEG files."""
PHRASES = 8
"""Of each scene, as many negative as positive where it has them."""


class SceneFilesError(EfficientSam3Error, OSError):
    """Scenes that cannot be written to a folder."""


def write_scenes(
    world: World,
    folder: str | Path,
    count: int,
    *,
    first: int = 0,
    phrases: int = PHRASES,
    progress: Progress | None = None,
) -> Path:
    """Write scenes of seeds ``first``, ``first + 1``, ... as SA-Co/Gold.

    Args:
        folder: gets ``gold.json`` and ``images/``; a run that was stopped is gone on with.
        phrases: of each scene at most.

    Returns:
        The path of ``gold.json``: a record of ``images`` is an image and a phrase; phrases that
        are false of the image have no annotations.

    Raises:
        SceneFilesError: the disk is full, or the folder holds other scenes.
    """
    folder = Path(folder)
    settings = _settings(world, first, count, phrases=phrases)

    def render(seed: int) -> Record:
        scene = world.scene(seed)
        name = f"scene_{seed:07d}.jpg"
        _save(scene.image, folder / IMAGES / name)
        masks = [_region(o.mask) for o in scene.objects]
        asked = choose(scene.queries, phrases, seed)
        return {"file": name, "asked": [_record(q) for q in asked], "masks": masks}

    with _said(folder):
        lines = _go_on(folder / JOURNAL.format("gold"), folder / GOLD, settings, render, progress)
        if lines is not None:
            _write_json(folder / GOLD, settings, _gold(lines, world.size))
            lines.unlink()
    return folder / GOLD


def write_clips(
    world: World,
    folder: str | Path,
    count: int,
    *,
    frames: int = 16,
    first: int = 0,
    phrases: int = PHRASES,
    progress: Progress | None = None,
) -> Path:
    """Write clips of seeds ``first``, ``first + 1``, ... as SA-Co/VEval.

    Args:
        folder: gets ``veval.json`` and ``frames/``, a folder of JPEG files for each clip.
        frames: of each clip. phrases: of each clip at most.

    Returns:
        The path of ``veval.json``: pairs of a video and a phrase with their masklets; pairs of
        phrases that are false of the clip have none.

    Raises:
        SceneFilesError: the disk is full, or the folder holds other clips.
    """
    folder = Path(folder)
    settings = _settings(world, first, count, phrases=phrases, frames=frames)

    def render(seed: int) -> Record:
        clip = film(world, seed, frames)
        name = f"clip_{seed:07d}"
        files = []
        masklets: list[list[Record | None]] = [[] for _ in clip.actors]
        for index, frame in enumerate(clip):
            files.append(f"{name}/{index:05d}.jpg")
            _save(frame.image, folder / FRAMES / files[-1])
            for masklet, mask in zip(masklets, frame.masks, strict=True):
                masklet.append(_region(mask) if mask.any() else None)
        asked = choose(clip.queries, phrases, seed)
        return {"file": name, "files": files, "asked": [*map(_record, asked)], "masks": masklets}

    with _said(folder):
        lines = _go_on(folder / JOURNAL.format("veval"), folder / VEVAL, settings, render, progress)
        if lines is not None:
            _write_json(folder / VEVAL, settings, _veval(lines, world.size))
            lines.unlink()
    return folder / VEVAL


def choose(queries: Iterable[Query], count: int, seed: int) -> list[Query]:
    """Some of a scene's queries, half of them negative where there are enough of both."""
    rng = np.random.default_rng([seed, 8])
    queries = list(queries)
    positive = [q for q in queries if q.objects]
    negative = [q for q in queries if not q.objects]
    from_negative = min(len(negative), max(count // 2, count - len(positive)))
    from_positive = min(len(positive), count - from_negative)
    chosen = [positive[i] for i in sorted(rng.permutation(len(positive))[:from_positive])]
    return chosen + [negative[i] for i in sorted(rng.permutation(len(negative))[:from_negative])]


# One scene ------------------------------------------------------------------------------------


def _save(image: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=QUALITY, subsampling=0)


def _region(mask: Mask) -> Record:
    """{"rle", "box": [x, y, width, height], "area"}, in pixels."""
    x0, y0, x1, y1 = (int(v) for v in tight_box(mask))
    height, width = mask.shape
    lengths = rle.encode_cut(mask[y0:y1, x0:x1], (x0, y0, x1, y1), (height, width))
    return {"rle": lengths, "box": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum())}


def _record(query: Query) -> Record:
    return {"phrase": query.phrase, "objects": list(query.objects), "kind": query.kind}


# The journal ----------------------------------------------------------------------------------


def _settings(world: World, first: int, count: int, **more: int) -> Record:
    if count < 1:
        raise SceneFilesError(f"write at least 1 scene; got {count}")
    return {
        "split": world.split.name,
        "seed": first,
        "count": count,
        "size": world.size,
        "art": world.art.fingerprint,
        "concepts": len(world.pool),
        **more,
    }


def _go_on(
    journal: Path,
    result: Path,
    settings: Record,
    render: Callable[[int], Record],
    progress: Progress | None,
) -> Path | None:
    """Render what the journal lacks; None where the result is there already."""
    if result.exists():
        _compare(result, _info(result), settings)
        journal.unlink(missing_ok=True)
        return None
    done = _repair(journal, settings)
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8") as file:
        if done < 0:
            file.write(json.dumps(settings) + "\n")
        for index in range(max(done, 0), settings["count"]):
            if progress:
                progress(index, settings["count"])
            file.write(json.dumps(render(settings["seed"] + index)) + "\n")
            file.flush()
    if progress:
        progress(settings["count"], settings["count"])
    return journal


def _repair(journal: Path, settings: Record) -> int:
    """Scenes that the journal has; -1 if there is none. A line that was cut short is cut off."""
    if not journal.exists():
        return -1
    whole, lines = 0, 0
    with journal.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            if not lines:
                _compare(journal, _parse(journal, line), settings)
            whole, lines = whole + len(line), lines + 1
    os.truncate(journal, whole)
    return lines - 1


def _parse(path: Path, line: bytes | str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise SceneFilesError(f"{path} is damaged ({error}). Delete it and write again.") from error
    if not isinstance(record, dict):
        raise SceneFilesError(f"{path} is damaged. Delete it and write again.")
    return record


def _info(path: Path) -> Record:
    with path.open(encoding="utf-8") as file:  # the first line holds it: files can be large
        start = file.readline().strip()
    record = _parse(path, start.removeprefix('{"info": ').removesuffix(","))
    return {k: v for k, v in record.items() if k != "description"}


def _compare(path: Path, found: Record, settings: Record) -> None:
    other = [k for k in settings if found.get(k) != settings[k]]
    if other:
        said = ", ".join(f"{k} {found.get(k)!r} instead of {settings[k]!r}" for k in other)
        raise SceneFilesError(
            f"{path} is of other scenes: {said}. Choose another folder, or delete this one."
        )


@contextmanager
def _said(folder: Path) -> Iterator[None]:
    """A full disk in words."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SceneFilesError(
            f"the disk of {folder} is full. What is written is kept: make room and run the same "
            "again, and it goes on."
        ) from error


# The JSON -------------------------------------------------------------------------------------


def _read(journal: Path) -> Iterator[Record]:
    with journal.open(encoding="utf-8") as file:
        next(file)
        for line in file:
            yield _parse(journal, line)


def _write_json(
    path: Path, settings: Record, lists: Iterable[tuple[str, Iterable[Record]]]
) -> None:
    """A file of lists, a record a line, never whole in memory; it appears when it is."""
    temporary = path.with_suffix(".partial")
    info = {"description": "Scenes of stickers by efficientsam3", **settings}
    with temporary.open("w", encoding="utf-8") as file:
        file.write('{"info": ' + json.dumps(info))
        for name, records in lists:
            file.write(f',\n"{name}": [')
            for i, record in enumerate(records):
                file.write((",\n" if i else "\n") + json.dumps(record))
            file.write("\n]")
        file.write("\n}\n")
    temporary.replace(path)


def _gold(journal: Path, size: int) -> Iterator[tuple[str, Iterable[Record]]]:
    """Section by section, each by one walk through the journal."""

    def pairs() -> Iterator[tuple[int, Record, Record]]:
        number = 0
        for scene in _read(journal):
            for asked in scene["asked"]:
                number += 1
                yield number, scene, asked

    def images() -> Iterator[Record]:
        for number, scene, asked in pairs():
            yield {
                "id": number,
                "file_name": scene["file"],
                "text_input": asked["phrase"],
                "width": size,
                "height": size,
                "queried_category": "1",
                "is_instance_exhaustive": 1,
                "is_pixel_exhaustive": 1,
                "kind": asked["kind"],
            }

    def annotations() -> Iterator[Record]:
        number = 0
        for pair, scene, asked in pairs():
            for index in asked["objects"]:
                number += 1
                region = scene["masks"][index]
                yield {
                    "id": number,
                    "image_id": pair,
                    "source": "efficientsam3",
                    "area": region["area"] / size**2,
                    "bbox": [v / size for v in region["box"]],
                    "segmentation": region["rle"],
                    "category_id": 1,
                    "iscrowd": 0,
                }

    yield "images", images()
    yield "annotations", annotations()
    yield "categories", [{"id": 1, "name": "object"}]


def _veval(journal: Path, size: int) -> Iterator[tuple[str, Iterable[Record]]]:
    category: dict[str, int] = {}
    for clip in _read(journal):
        for asked in clip["asked"]:
            category.setdefault(asked["phrase"], len(category) + 1)

    def videos() -> Iterator[Record]:
        for number, clip in enumerate(_read(journal), 1):
            yield {
                "id": number,
                "video_name": clip["file"],
                "file_names": clip["files"],
                "height": size,
                "width": size,
                "length": len(clip["files"]),
            }

    def annotations() -> Iterator[Record]:
        number = 0
        for video, clip in enumerate(_read(journal), 1):
            for asked in clip["asked"]:
                for index in asked["objects"]:
                    number += 1
                    regions = clip["masks"][index]
                    yield {
                        "id": number,
                        "segmentations": [r and r["rle"] for r in regions],
                        "bboxes": [r and r["box"] for r in regions],
                        "areas": [r and r["area"] for r in regions],
                        "iscrowd": 0,
                        "video_id": video,
                        "height": size,
                        "width": size,
                        "category_id": category[asked["phrase"]],
                        "noun_phrase": asked["phrase"],
                    }

    def pairs() -> Iterator[Record]:
        number = 0
        for video, clip in enumerate(_read(journal), 1):
            for asked in clip["asked"]:
                number += 1
                yield {
                    "id": number,
                    "video_id": video,
                    "category_id": category[asked["phrase"]],
                    "noun_phrase": asked["phrase"],
                    "num_masklets": len(asked["objects"]),
                }

    yield "videos", videos()
    yield "annotations", annotations()
    yield "categories", [{"id": n, "name": phrase} for phrase, n in category.items()]
    yield "video_np_pairs", pairs()
