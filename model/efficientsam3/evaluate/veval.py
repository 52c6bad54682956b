"""SA-Co/VEval: clips, phrases, and the objects that are followed through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..rle import box_of
from .errors import AnnotationError, PredictionError
from .records import Box, Record, Table, read_json
from .truth import layout_of

Key = tuple[Any, Any]
"""(video_id, category_id)."""


@dataclass(frozen=True, eq=False)
class ClipTrack:
    """One object through a clip; an entry a frame, None where it is not seen.

    masks: compressed run lengths. boxes: x0, y0, x1, y1 in pixels. score: 1 for a true object.
    """

    masks: Sequence[Record | None]
    boxes: Sequence[Box | None]
    crowd: bool = False
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip and a phrase. size: (height, width). length: frames. tracks: the true objects."""

    key: Key
    name: str
    size: tuple[int, int]
    length: int
    phrase: str
    tracks: tuple[ClipTrack, ...] = ()


@dataclass(frozen=True, eq=False)
class ClipTruth:
    """The ground truth of a split of clips.

    clips: by key; those without tracks are negative. has_negatives: whether the file lists them.
    sizes, lengths: of the clips by video_id. phrases: by category_id.
    """

    path: Path
    clips: dict[Key, Clip]
    has_negatives: bool
    videos: dict[Any, Clip] = field(default_factory=dict)
    phrases: dict[Any, str] = field(default_factory=dict)


def read_clips(path: str | Path) -> ClipTruth:
    """Read a file of SA-Co/VEval.

    Raises:
        AnnotationError: names the file and the record.
    """
    return parse_clips(Path(path), read_json(Path(path)))


def parse_clips(path: Path, content: Any) -> ClipTruth:
    """As ``read_clips``, of a file that was read before."""
    if layout_of(path, content) != "veval":
        raise AnnotationError(f"{path} is of images, not of clips; see evaluate_images")
    rows = Table.of(path, content, "videos", ("id", "height", "width"))
    categories = Table.of(path, content, "categories", ("id", "name"))
    annotations = Table.of(
        path, content, "annotations", ("video_id", "category_id", "segmentations")
    )
    ids, category_ids = rows.by_id(), categories.by_id()
    phrases = {number: categories.text(i, "name") for number, i in category_ids.items()}
    videos = {number: _video(rows, i) for number, i in ids.items()}
    annotations.known("video_id", ids, "videos")
    annotations.known("category_id", category_ids, "categories")
    tracks: dict[Key, list[ClipTrack]] = {}
    for index, row in enumerate(annotations.rows):
        key = (row["video_id"], row["category_id"])
        tracks.setdefault(key, []).append(_track(annotations, index, videos[row["video_id"]]))
    keys = dict.fromkeys(tracks)
    has_negatives = "video_np_pairs" in content
    if has_negatives:
        pairs = Table.of(path, content, "video_np_pairs", ("video_id", "category_id"))
        pairs.known("video_id", ids, "videos")
        pairs.known("category_id", category_ids, "categories")
        keys |= dict.fromkeys((row["video_id"], row["category_id"]) for row in pairs.rows)
    if not keys:
        raise AnnotationError(f"{path} has no clip and phrase: an empty split")
    clips = {key: clip_of(videos, phrases, key, tracks.get(key, ())) for key in keys}
    return ClipTruth(path, clips, has_negatives, videos, phrases)


def clip_of(
    videos: dict[Any, Clip], phrases: dict[Any, str], key: Key, tracks: Sequence[ClipTrack] = ()
) -> Clip:
    """A clip and a phrase by their numbers."""
    video = videos[key[0]]
    return Clip(key, video.name, video.size, video.length, phrases[key[1]], tuple(tracks))


def _video(table: Table, index: int) -> Clip:
    row = table.rows[index]
    names = row.get("file_names")
    length = len(names) if isinstance(names, list) else row.get("length")
    if not isinstance(length, int) or length < 1:
        raise table.wrong(index, "has neither 'file_names' nor a 'length' of 1 frame or more")
    name = str(row.get("video_name", row["id"]))
    return Clip((row["id"], None), name, table.size(index), length, "")


def _track(table: Table, index: int, video: Clip, score: float = 1.0) -> ClipTrack:
    row = table.rows[index]
    masks, boxes = row["segmentations"], row.get("bboxes")
    for key, values in (("segmentations", masks), ("bboxes", boxes)):
        if values is None and key == "bboxes":
            continue
        if not isinstance(values, list) or len(values) != video.length:
            got = len(values) if isinstance(values, list) else type(values).__name__
            raise table.wrong(
                index, f"has {key} for {got} frames, but clip {video.name} has {video.length}"
            )
    shapes = [
        None if mask is None else table.mask(index, mask, video.size, f"mask in frame {t}")
        for t, mask in enumerate(masks)
    ]
    if boxes is None:
        corners = [None if mask is None else box_of(mask) for mask in shapes]
    else:
        corners = [
            None if box is None else table.box(index, box, f"box in frame {t}")
            for t, box in enumerate(boxes)
        ]
    return ClipTrack(shapes, corners, bool(row.get("iscrowd", 0)), score)


def read_clip_predictions(path: str | Path, truth: ClipTruth) -> dict[Key, list[ClipTrack]]:
    """Predicted tracks by clip and phrase: a list of {video_id, category_id, score,
    segmentations, bboxes, areas}, one entry a frame in each of the last three.

    Raises:
        PredictionError: names the file and the record.
    """
    path = Path(path)
    content = read_json(path, PredictionError)
    if not isinstance(content, list):
        raise PredictionError(
            f"{path} is no list of predictions: {{video_id, category_id, score, segmentations}}"
        )
    table = Table(path, "predictions", content, PredictionError)
    table.need(("video_id", "category_id", "score", "segmentations"))
    table.known("video_id", truth.videos, f"videos in {truth.path}")
    table.known("category_id", truth.phrases, f"categories in {truth.path}")
    out: dict[Key, list[ClipTrack]] = {}
    for index, row in enumerate(table.rows):
        track = _track(table, index, truth.videos[row["video_id"]], table.score(index))
        out.setdefault((row["video_id"], row["category_id"]), []).append(track)
    return out


def unseen(track: ClipTrack) -> list[bool]:
    """Frames in which a predicted track has nothing: no mask, an empty one, or an empty box."""
    from pycocotools import mask as coco

    return [
        mask is None or not coco.area(mask) or box is None or not any(box)
        for mask, box in zip(track.masks, track.boxes, strict=True)
    ]
