"""Tracks in the formats of other tools: MOT challenge, COCO-VID, SA-Co/VEval.

MOT and VEval's predictions hold numbers alone; a second file has the names.

All are written from the run file of tracking, frame by frame or a group of tracks at a time, so
that neither the length of the video nor the number of objects is limited by memory.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..data.types import ClipRecord
from ..data.veval import read_clip_annotations
from ..errors import VideoError
from ..io.atomic import replacing
from ..io.jsonl import Record
from ..masks.polygons import MaskForm, check_mask_form, check_tolerance, to_polygons
from .track_file import read_frame_records, read_video

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 64_000_000
"""Characters of run lengths that are in memory at a time."""


MAX_NAME_BYTES = 100
"""Longest part of a file name that is made of a concept."""


@dataclass(frozen=True)
class _Summary:
    """What a run file contains."""

    video: Record
    frames: list[int]  # indices
    sizes: list[tuple[int, int]]  # (height, width) in pixels, of each frame
    lengths: dict[int, int]  # characters of run lengths, by identity
    concepts: list[str]

    @property
    def name(self) -> str:
        return str(self.video["name"])

    @property
    def length(self) -> int:
        """Frames of the video, as far as it is known."""
        return max([self.video["frames"] or 0, *(frame + 1 for frame in self.frames[-1:])])

    def file_names(self, frames: Iterable[int]) -> list[str]:
        """The file of each frame; for a video, its name and the number of the frame."""
        files = dict(enumerate(self.video.get("file_names") or ()))
        return [files.get(frame, f"{self.name}/{frame:06d}") for frame in frames]

    def shape(self, frames: Sequence[int] | None = None) -> Record:
        """Height and width, and "sizes" of frames where not all of them have the same."""
        first = self.sizes[0] if self.sizes else (0, 0)
        shape: Record = {"height": first[0], "width": first[1]}
        if len(set(self.sizes)) > 1:
            by_frame = dict(zip(self.frames, self.sizes, strict=True))
            chosen = self.frames if frames is None else frames
            shape["sizes"] = [by_frame.get(frame, first) for frame in chosen]
        return shape


def _summarize(path: Path) -> _Summary:
    """Read a run file once."""
    video = read_video(path)
    frames, lengths, sizes = list[int](), dict[int, int](), list[tuple[int, int]]()
    concepts = dict.fromkeys(video["concepts"])
    for record in read_frame_records(path):
        frames.append(record["frame"])
        sizes.append((record["size"][0], record["size"][1]))
        for o in record["objects"]:
            concepts.setdefault(o["concept"])
            length = len(o["mask"]["counts"]) if "mask" in o else 16
            lengths[o["id"]] = lengths.get(o["id"], 0) + length
    lengths.pop(-1, None)  # objects that were not confirmed are no tracks
    return _Summary(video, frames, sizes, dict(sorted(lengths.items())), list(concepts))


def _warn_of_sizes(summary: _Summary, target: Path) -> None:
    different = list(dict.fromkeys(summary.sizes))
    if len(different) > 1:
        (h0, w0), (h1, w1) = different[:2]
        logger.warning(
            "%s: frames of %s have %d sizes, such as %d x %d and %d x %d (width x height). Masks "
            'and boxes are in pixels of their own frame, and "sizes" lists [height, width] of each',
            *(target, summary.name, len(different), w0, h0, w1, h1),
        )


def names_path(target: Path, format: str) -> Path:
    """The file that holds the names which a format has no place for.

    Args:
        target: The file of tracks.
        format: "mot" or "veval".
    """
    return target.with_name(f"{target.stem}.{format}-names.json")


def _write_names(
    path: Path, summary: _Summary, video_id: Any, length: int, categories: list[Record]
) -> None:
    """Write names of the video, its frames and the concepts as SA-Co/VEval's truth has them.

    Frame t of the tracks, from 0, is ``videos[0]["file_names"][t]``.
    """
    video = {
        "id": video_id,
        "video_name": summary.name,
        **summary.shape(range(length)),
        "length": length,
        "fps": summary.video["rate"],
    }
    if summary.video.get("file_names"):
        video["file_names"] = summary.file_names(range(length))
    content = {
        "info": {"description": "Names for tracks by efficientsam3"},
        "videos": [video],
        "categories": categories,
        "video_np_pairs": [
            {"video_id": video_id, "category_id": c["id"], "noun_phrase": c["name"]}
            for c in categories
        ],
        "annotations": [],
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def write_mot(source: Path, target: Path) -> list[Path]:
    """Write MOT challenge text: frame, id, left, top, width, height, score, -1, -1, -1.

    Frames and identities count from 1. A MOT file has one class, so that several concepts are
    written to a file each, with the concept in its name. ``names_path(target, "mot")`` gets the
    names of the concepts, each with its file, and of the frames.

    Args:
        source: The run file.
        target: The file to write.

    Returns:
        The files that were written, without that of names.
    """
    summary = _summarize(source)
    _warn_of_sizes(summary, target)
    targets = _mot_files(summary.concepts, target)
    for concept, path in targets.items():
        with replacing(path) as temporary, temporary.open("w", encoding="ascii") as file:
            for record in read_frame_records(source):
                for o in record["objects"]:
                    if o["concept"] == concept and o["id"] >= 0:
                        x, y, w, h = _xywh(o["box"])
                        file.write(
                            f"{record['frame'] + 1},{o['id'] + 1},{x:.2f},{y:.2f},{w:.2f},{h:.2f},"
                            f"{o['score']:.5f},-1,-1,-1\n"
                        )
    categories = [
        {"id": i, "name": concept, "file": path.name}
        for i, (concept, path) in enumerate(targets.items(), 1)
    ]
    _write_names(names_path(target, "mot"), summary, 1, summary.length, categories)
    return list(targets.values())


def _mot_files(concepts: list[str], target: Path) -> dict[str, Path]:
    """The file of each concept: ``target``, or files beside it with the concept in their names."""
    if len(concepts) < 2:
        return dict.fromkeys(concepts, target)
    names = [re.sub(r"\W+", "-", concept).strip("-") for concept in concepts]
    names = [name.encode()[:MAX_NAME_BYTES].decode(errors="ignore") for name in names]
    # Names that differ in case alone are one file on some systems.
    if len({name.casefold() for name in names}) < len(names) or not all(names):
        names = [f"{i}-{name}".strip("-") for i, name in enumerate(names, 1)]
    return {
        concept: target.with_name(f"{target.stem}-{name}{target.suffix}")
        for concept, name in zip(concepts, names, strict=True)
    }


def write_coco(
    source: Path, target: Path, *, masks: MaskForm = "rle", tolerance: float = 0.0
) -> None:
    """Write COCO-VID as YouTube-VIS has it: an annotation a track, with an entry a frame or null.

    Frames are those that were tracked; ``videos[0]["frames"]`` has their indices and
    ``videos[0]["file_names"]`` their files. Frames of a video file have none and are named by the
    video and the index. Identities count from 1, as all of COCO's; ``track_id`` counts from 0, as
    elsewhere in this package. Where the size of frames changes, ``videos[0]["sizes"]`` has that of
    each frame.

    Args:
        source: The run file.
        target: The file to write.
        masks: "rle" writes run lengths, which hold every pixel; "polygon" a polygon for each part
            of a mask, for tools that read nothing else.
        tolerance: Polygons are simplified by at most this many pixels.

    Raises:
        ArgumentError: ``masks`` or ``tolerance`` is wrong.
    """
    check_mask_form(masks)
    check_tolerance(tolerance)
    summary = _summarize(source)
    _warn_of_sizes(summary, target)
    length = len(summary.frames)
    places = {frame: i for i, frame in enumerate(summary.frames)}
    category_ids = {name: i for i, name in enumerate(summary.concepts, 1)}
    shape = {**summary.shape(), "length": length}
    video = {
        "id": 1,
        "name": summary.name,
        **shape,
        "fps": summary.video["rate"],
        "frames": summary.frames,
        "file_names": summary.file_names(summary.frames),
    }
    shape.pop("sizes", None)
    annotations = (
        {
            "id": id + 1,
            "track_id": id,
            "video_id": 1,
            "category_id": category_ids[track.concept],
            "score": track.score,
            **_in_form(track.lists(places, length), masks, tolerance),
            "iscrowd": 0,
            **shape,
        }
        for id, track in _read_tracks(source, summary)
    )
    known = {key: value for key, value in summary.video.items() if key != "file_names"}
    with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        info = {"description": "Tracks by efficientsam3", **known}
        file.write('{"info": ' + json.dumps(info) + ',\n"videos": ' + json.dumps([video]))
        categories = [{"id": i, "name": concept} for concept, i in category_ids.items()]
        file.write(',\n"categories": ' + json.dumps(categories) + ',\n"annotations": ')
        _write_list(file, annotations)
        file.write("}\n")


def write_veval(source: Path, target: Path, truth: Path | None = None) -> None:
    """Write predictions for SA-Co/VEval, with an entry for each frame of the video.

    The file is a list of {"video_id", "category_id", "score", "segmentations", "bboxes", "areas"}.
    ``names_path(target, "veval")`` gets the names of the video, the concepts and the frames, and
    can be read as a file of SA-Co/VEval without annotations.

    Args:
        source: The run file.
        target: The file to write.
        truth: A file of SA-Co/VEval, which has the identities of the video, by its name, and of
            the concepts. None: the video is 1, and concepts count from 1 in their order.

    Raises:
        VideoError: ``truth`` does not contain the video or a concept, or has another size.
    """
    summary = _summarize(source)
    length, video_id = summary.length, 1
    category_ids: dict[str, Any] = {name: i for i, name in enumerate(summary.concepts, 1)}
    if truth is None:
        _warn_of_sizes(summary, target)
    else:
        clip, category_ids = _find_ids(summary.name, summary.concepts, truth)
        video_id, length = clip.id, clip.length
        for frame, (h, w) in zip(summary.frames, summary.sizes, strict=True):
            if frame < length and (h, w) != clip.size:
                raise VideoError(
                    f"frame {frame} of {summary.name} has {w} x {h} pixels (width x height), and "
                    f"{truth} has {clip.size[1]} x {clip.size[0]}: predictions have the size of "
                    "the ground truth. Track the frames that it was annotated on"
                )
    places = {frame: frame for frame in summary.frames if frame < length}
    predictions = (
        {
            "video_id": video_id,
            "category_id": category_ids[track.concept],
            "score": track.score,
            **track.lists(places, length),
        }
        for _, track in _read_tracks(source, summary)
    )
    with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        _write_list(file, predictions)
        file.write("\n")
    categories = [{"id": category_ids[name], "name": name} for name in summary.concepts]
    _write_names(names_path(target, "veval"), summary, video_id, length, categories)


def check_truth(name: str, concepts: Iterable[str], truth: Path) -> None:
    """Check before tracking that a file of SA-Co/VEval contains a video and concepts.

    Args:
        name: Name of the video.
        concepts: Phrases.
        truth: The file.

    Raises:
        VideoError: It does not; the message says what it contains.
    """
    _find_ids(name, list(concepts), truth)


def _find_ids(name: str, concepts: list[str], truth: Path) -> tuple[ClipRecord, dict[str, Any]]:
    """A video, and identities of concepts, in a file of SA-Co/VEval."""
    annotations = read_clip_annotations(truth)
    found = [v for v in annotations.clips.values() if v.name in (name, Path(name).stem)]
    if len(found) != 1:
        known = ", ".join(v.name for v in list(annotations.clips.values())[:5])
        raise VideoError(
            f"{truth} has {len(found) or 'no'} videos named {Path(name).stem!r}; it has {known}"
        )
    by_phrase = {phrase: number for number, phrase in annotations.phrases.items()}
    missing = [c for c in concepts if c not in by_phrase]
    if missing:
        known = ", ".join(list(by_phrase)[:8])
        raise VideoError(f"{truth} does not ask for {', '.join(missing)}; it asks for {known}")
    return found[0], by_phrase


# Track by track -------------------------------------------------------------------------------


@dataclass(eq=False)
class _Track:
    """The records of one object, by frame."""

    concept: str
    records: dict[int, Record] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Mean score over its frames."""
        return round(sum(o["score"] for o in self.records.values()) / len(self.records), 5)

    def lists(self, places: dict[int, int], length: int) -> Record:
        """Its masks, boxes and areas, an entry a frame; None where it is not seen.

        Args:
            places: Places of frames in the lists, by frame.
            length: Length of the lists.
        """
        out: Record = {key: [None] * length for key in ("segmentations", "bboxes", "areas")}
        for frame, o in self.records.items():
            if frame in places:
                out["segmentations"][places[frame]] = o.get("mask")
                out["bboxes"][places[frame]] = _xywh(o["box"])
                out["areas"][places[frame]] = o["area"]
        return out


def _in_form(lists: Record, masks: MaskForm, tolerance: float) -> Record:
    """The lists of a track with its masks in a form."""
    if masks == "polygon":
        found = lists["segmentations"]
        lists["segmentations"] = [None if m is None else to_polygons(m, tolerance) for m in found]
    return lists


def _read_tracks(source: Path, summary: _Summary) -> Iterator[tuple[int, _Track]]:
    """Each track with all its frames; the file is read once for each group of tracks."""
    for ids in _groups(summary.lengths):
        tracks: dict[int, _Track] = {}
        for record in read_frame_records(source):
            for o in record["objects"]:
                if o["id"] in ids:
                    track = tracks.setdefault(o["id"], _Track(o["concept"]))
                    track.records[record["frame"]] = o
        yield from sorted(tracks.items())


def _groups(lengths: dict[int, int]) -> Iterator[set[int]]:
    """Identities of tracks that fit into memory together."""
    group, total = set[int](), 0
    for id, length in lengths.items():
        if group and total + length > MAX_CHARACTERS:
            yield group
            group, total = set(), 0
        group.add(id)
        total += length
    if group:
        yield group


def _write_list(file: IO[str], records: Iterable[Record]) -> None:
    file.write("[")
    for i, record in enumerate(records):
        file.write(",\n" * (i > 0) + json.dumps(record))
    file.write("]")


def _xywh(box: list[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
