"""Tracks in the forms that other tools read: MOT challenge, COCO-VID, SA-Co/VEval.

All are written from the file of a run, frame by frame or track by track, so that neither the
length of the video nor the number of its objects is limited by memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..lines import Record
from ..weights import replacing
from .errors import VideoError
from .journal import read_head, read_records

AT_ONCE = 64_000_000
"""Characters of masks that are in memory at a time."""


@dataclass(frozen=True)
class Outline:
    """What is in a file of tracks. frames: their indices. sizes: characters of masks by track."""

    video: Record
    frames: list[int]
    size: tuple[int, int]
    sizes: dict[int, int]
    concepts: list[str]


def outline(path: Path) -> Outline:
    """Read through a file of tracks once."""
    video = read_head(path)["video"]
    frames, sizes, size = list[int](), dict[int, int](), (0, 0)
    concepts = dict.fromkeys(video["concepts"])
    for record in read_records(path):
        size = size if frames else (record["size"][0], record["size"][1])
        frames.append(record["frame"])
        for o in record["objects"]:
            concepts.setdefault(o["concept"])
            length = len(o["mask"]["counts"]) if "mask" in o else 16
            sizes[o["id"]] = sizes.get(o["id"], 0) + length
    sizes.pop(-1, None)  # not confirmed: no track
    return Outline(video, frames, size, dict(sorted(sizes.items())), list(concepts))


def write_mot(source: Path, target: Path) -> list[Path]:
    """MOT challenge's text: frame, id, left, top, width, height, score, -1, -1, -1.

    Frames and identities count from 1, and a file is of one class: several concepts get a file
    each, with the concept in its name.
    """
    names = outline(source).concepts
    targets = dict.fromkeys(names, target)
    if len(names) > 1:
        plain = [re.sub(r"\W+", "-", name).strip("-") for name in names]
        if len(set(plain)) < len(plain):
            plain = [f"{i}-{name}" for i, name in enumerate(plain, 1)]
        targets = {
            name: target.with_name(f"{target.stem}-{short}{target.suffix}")
            for name, short in zip(names, plain, strict=True)
        }
    for name, path in targets.items():
        with replacing(path) as temporary, temporary.open("w", encoding="ascii") as file:
            for record in read_records(source):
                for o in record["objects"]:
                    if o["concept"] == name and o["id"] >= 0:
                        x, y, w, h = _xywh(o["box"])
                        file.write(
                            f"{record['frame'] + 1},{o['id'] + 1},{x:.2f},{y:.2f},{w:.2f},{h:.2f},"
                            f"{o['score']:.5f},-1,-1,-1\n"
                        )
    return list(targets.values())


def write_coco(source: Path, target: Path) -> None:
    """COCO-VID as YouTube-VIS has it: an annotation a track, with an entry a frame or null.

    Frames are those that were followed: ``videos[0]["frames"]`` has their indices. Identities, as
    COCO's all, count from 1; ``track_id`` is as elsewhere.
    """
    inside = outline(source)
    height, width = inside.size
    places = {frame: i for i, frame in enumerate(inside.frames)}
    category = {name: i for i, name in enumerate(inside.concepts, 1)}
    video = {
        "id": 1,
        "name": inside.video["name"],
        "height": height,
        "width": width,
        "length": len(inside.frames),
        "fps": inside.video["rate"],
        "frames": inside.frames,
        "file_names": [f"{inside.video['name']}/{frame:06d}" for frame in inside.frames],
    }

    def annotations() -> Iterator[Record]:
        for identity, track in _tracks(source, inside):
            yield {
                "id": identity + 1,
                "track_id": identity,
                "video_id": 1,
                "category_id": category[track.concept],
                "score": track.score,
                **track.lists(places),
                "iscrowd": 0,
                "height": height,
                "width": width,
                "length": len(inside.frames),
            }

    with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        info = {"description": "Tracks by efficientsam3", **inside.video}
        file.write('{"info": ' + json.dumps(info) + ',\n"videos": ' + json.dumps([video]))
        categories = [{"id": i, "name": name} for name, i in category.items()]
        file.write(',\n"categories": ' + json.dumps(categories) + ',\n"annotations": ')
        _write_list(file, annotations())
        file.write("}\n")


def write_veval(source: Path, target: Path, truth: Path | None = None) -> None:
    """Predictions for SA-Co/VEval: a list of {video_id, category_id, score, segmentations,
    bboxes, areas}, with an entry for each frame of the video.

    Args:
        truth: a file of SA-Co/VEval, for the numbers of the video, by its name, and of the
            concepts. Without it the video is 1, and concepts count from 1 as they were asked.

    Raises:
        VideoError: the truth lacks the video or a concept.
    """
    inside = outline(source)
    length = max([inside.video["frames"] or 0, *(frame + 1 for frame in inside.frames[-1:])])
    number: Any = 1
    category: dict[str, Any] = {name: i for i, name in enumerate(inside.concepts, 1)}
    if truth is not None:
        number, length, category = _numbers(inside, truth)
    places = {frame: frame for frame in inside.frames if frame < length}

    def predictions() -> Iterator[Record]:
        for _, track in _tracks(source, inside):
            yield {
                "video_id": number,
                "category_id": category[track.concept],
                "score": track.score,
                **track.lists(places, length),
            }

    with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        _write_list(file, predictions())
        file.write("\n")


def check_truth(name: str, concepts: Iterable[str], truth: Path) -> None:
    """Refuse a file of SA-Co/VEval without this video or these concepts, before the work.

    Raises:
        VideoError: says what the file has.
    """
    _numbers(Outline({"name": name, "frames": None}, [], (0, 0), {}, list(concepts)), truth)


def _numbers(inside: Outline, truth: Path) -> tuple[Any, int, dict[str, Any]]:
    """Of the video, its length, and the concepts in a file of SA-Co/VEval."""
    from ..evaluate.veval import read_clips

    clips = read_clips(truth)
    name = inside.video["name"]
    found = [v for v in clips.videos.values() if v.name in (name, Path(name).stem)]
    if len(found) != 1:
        known = ", ".join(v.name for v in list(clips.videos.values())[:5])
        raise VideoError(
            f"{truth} has {len(found) or 'no'} videos named {Path(name).stem!r}; it has {known}"
        )
    by_phrase = {phrase: number for number, phrase in clips.phrases.items()}
    lacking = [c for c in inside.concepts if c not in by_phrase]
    if lacking:
        known = ", ".join(list(by_phrase)[:8])
        raise VideoError(f"{truth} does not ask for {', '.join(lacking)}; it asks for {known}")
    return found[0].key[0], found[0].length, by_phrase


# Track by track -------------------------------------------------------------------------------


class _Track:
    """One object: its concept, and what is written of it, by frame."""

    def __init__(self, concept: str) -> None:
        self.concept = concept
        self.seen: dict[int, Record] = {}

    @property
    def score(self) -> float:
        """Mean over the frames in which it was seen."""
        return round(sum(o["score"] for o in self.seen.values()) / len(self.seen), 5)

    def lists(self, places: dict[int, int], length: int | None = None) -> Record:
        """{"segmentations", "bboxes", "areas"}: an entry a frame, None where it is not seen."""
        count = len(places) if length is None else length
        out: Record = {key: [None] * count for key in ("segmentations", "bboxes", "areas")}
        for frame, o in self.seen.items():
            if frame in places:
                out["segmentations"][places[frame]] = o.get("mask")
                out["bboxes"][places[frame]] = _xywh(o["box"])
                out["areas"][places[frame]] = o["area"]
        return out


def _tracks(source: Path, inside: Outline) -> Iterator[tuple[int, _Track]]:
    """Each track whole: a walk through the file for as many as fit into memory at once."""
    for identities in _shares(inside.sizes):
        tracks: dict[int, _Track] = {}
        for record in read_records(source):
            for o in record["objects"]:
                if o["id"] in identities:
                    track = tracks.setdefault(o["id"], _Track(o["concept"]))
                    track.seen[record["frame"]] = o
        yield from sorted(tracks.items())


def _shares(sizes: dict[int, int]) -> Iterator[set[int]]:
    share, total = set[int](), 0
    for identity, size in sizes.items():
        if share and total + size > AT_ONCE:
            yield share
            share, total = set(), 0
        share.add(identity)
        total += size
    if share:
        yield share


def _write_list(file: IO[str], records: Iterable[Record]) -> None:
    file.write("[")
    for i, record in enumerate(records):
        file.write(",\n" * (i > 0) + json.dumps(record))
    file.write("]")


def _xywh(box: list[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
