"""Reader of SA-Co/VEval (arXiv 2511.16719): clips, phrases, and the objects through the clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import AnnotationError
from ..io.rle import box_of
from .formats import annotation_format
from .json_records import RecordTable, read_json
from .types import ClipAnnotations, ClipQuery, ClipRecord, ObjectTrack, QueryKey


def read_clip_annotations(path: str | Path, content: Any = None) -> ClipAnnotations:
    """Read a file of SA-Co/VEval.

    Args:
        path: The file.
        content: Its content, if it is already read; None reads the file.

    Raises:
        AnnotationError: The file is not of this format, or a record is wrong.
    """
    path = Path(path)
    content = read_json(path) if content is None else content
    if annotation_format(path, content) != "veval":
        raise AnnotationError(f"{path} is of images, not of clips; see evaluate_images")
    videos = RecordTable.of(path, content, "videos", ("id", "height", "width"))
    categories = RecordTable.of(path, content, "categories", ("id", "name"))
    annotations = RecordTable.of(
        path, content, "annotations", ("video_id", "category_id", "segmentations")
    )
    phrases = {id: categories.text(index, "name") for id, index in categories.by_id().items()}
    clips = {id: _clip(videos, index) for id, index in videos.by_id().items()}
    annotations.group_by("video_id", clips, "videos")
    annotations.group_by("category_id", phrases, "categories")
    tracks: dict[QueryKey, list[ObjectTrack]] = {}
    for index, row in enumerate(annotations.rows):
        key = (row["video_id"], row["category_id"])
        tracks.setdefault(key, []).append(parse_track(annotations, index, clips[key[0]]))
    lists_negatives = "video_np_pairs" in content
    if lists_negatives:
        pairs = RecordTable.of(path, content, "video_np_pairs", ("video_id", "category_id"))
        pairs.group_by("video_id", clips, "videos")
        pairs.group_by("category_id", phrases, "categories")
        for row in pairs.rows:
            tracks.setdefault((row["video_id"], row["category_id"]), [])
    if not tracks:
        raise AnnotationError(f"{path} has no clip with a phrase: the split is empty")
    queries = {
        key: ClipQuery(key, clips[key[0]], phrases[key[1]], tuple(found))
        for key, found in tracks.items()
    }
    return ClipAnnotations(path, queries, lists_negatives, clips, phrases)


def _clip(videos: RecordTable, index: int) -> ClipRecord:
    row = videos.rows[index]
    names = row.get("file_names")
    length = len(names) if isinstance(names, list) else row.get("length")
    if not isinstance(length, int) or length < 1:
        raise videos.wrong(index, "has neither 'file_names' nor a 'length' of 1 frame or more")
    # "name" is COCO-VID's key, which this package writes.
    name = str(row.get("video_name", row.get("name", row["id"])))
    return ClipRecord(row["id"], name, videos.size(index), length, _sizes(videos, index, length))


def _sizes(videos: RecordTable, index: int, length: int) -> tuple[tuple[int, int], ...] | None:
    """The sizes of frames of a video whose frames differ in size."""
    sizes = videos.rows[index].get("sizes")
    if sizes is None:
        return None
    if not isinstance(sizes, list) or len(sizes) != length:
        raise videos.wrong(index, f"has sizes that are not a list of {length} [height, width]")
    for size in sizes:
        if (
            not isinstance(size, list)
            or len(size) != 2
            or not all(isinstance(n, int) and n > 0 for n in size)
        ):
            raise videos.wrong(index, f"has the size {size!r}; it is [height, width] in pixels")
    return tuple((height, width) for height, width in sizes)


def parse_track(
    table: RecordTable, index: int, clip: ClipRecord, score: float = 1.0
) -> ObjectTrack:
    """Parse one record of annotations or of predictions.

    Args:
        table: The records, with "segmentations" and perhaps "bboxes", an entry a frame. Without
            boxes, those of the masks are taken.
        index: Which record.
        clip: The clip that it belongs to.
        score: Of a prediction.

    Raises:
        EfficientSam3Error: The class that the table has; the record is wrong.
    """
    row = table.rows[index]
    for key in ("segmentations", "bboxes"):
        values = row.get(key)
        if key == "bboxes" and values is None:
            continue
        if not isinstance(values, list) or len(values) != clip.length:
            got = len(values) if isinstance(values, list) else type(values).__name__
            raise table.wrong(
                index, f"has {key} for {got} frames, but clip {clip.name} has {clip.length}"
            )
    masks = [
        None if mask is None else table.mask(index, mask, clip.size_of(t), f"mask in frame {t}")
        for t, mask in enumerate(row["segmentations"])
    ]
    if row.get("bboxes") is None:
        boxes = [None if mask is None else box_of(mask) for mask in masks]
    else:
        boxes = [
            None if box is None else table.box(index, box, f"box in frame {t}")
            for t, box in enumerate(row["bboxes"])
        ]
    return ObjectTrack(masks, boxes, bool(row.get("iscrowd", 0)), score)
