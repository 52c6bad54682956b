"""Predicted tracks in SA-Co/VEval's format."""

from __future__ import annotations

from pathlib import Path

from ..data.json_records import RecordTable, read_json
from ..data.types import ClipAnnotations, ObjectTrack, QueryKey
from ..data.veval import parse_track
from .errors import PredictionError


def read_clip_predictions(
    path: str | Path, truth: ClipAnnotations
) -> dict[QueryKey, list[ObjectTrack]]:
    """Read predicted tracks.

    Args:
        path: A list of {video_id, category_id, score, segmentations, bboxes, areas} with one entry
            a frame in each of the last three; bboxes and areas may be missing.
        truth: The clips and phrases that they are for.

    Returns:
        Tracks by (video_id, category_id).

    Raises:
        PredictionError: The file or a record is wrong; the message names it.
    """
    path = Path(path)
    content = read_json(path, PredictionError)
    if not isinstance(content, list):
        raise PredictionError(
            f"{path} is not a list of predictions: {{video_id, category_id, score, segmentations}}"
        )
    table = RecordTable(path, "predictions", content, PredictionError)
    table.require(("video_id", "category_id", "score", "segmentations"))
    table.group_by("video_id", truth.clips, f"videos in {truth.path}")
    table.group_by("category_id", truth.phrases, f"categories in {truth.path}")
    out: dict[QueryKey, list[ObjectTrack]] = {}
    for index, row in enumerate(table.rows):
        track = parse_track(table, index, truth.clips[row["video_id"]], table.score(index))
        out.setdefault((row["video_id"], row["category_id"]), []).append(track)
    return out


def is_unseen(track: ObjectTrack) -> list[bool]:
    """Find the frames in which a track has no mask, an empty mask, or an empty box.

    Args:
        track: A predicted track.

    Returns:
        A flag for each frame.
    """
    from pycocotools import mask as coco

    return [
        mask is None or not coco.area(mask) or box is None or not any(box)
        for mask, box in zip(track.masks, track.boxes, strict=True)
    ]
