"""Evaluate predicted tracks on clips: SA-Co/VEval."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.types import ClipAnnotations, ClipQuery, ClipRecord, ObjectTrack, QueryKey, Record
from ..data.veval import read_clip_annotations
from ..io.rle import decode
from ..masks.overlap import box_iou, box_track_iou, track_iou
from ..types import Array
from .clip_predictions import is_unseen, read_clip_predictions
from .errors import PredictionError
from .metrics.cgf1 import ConceptScore
from .metrics.hota import FrameOverlaps, HotaScore, mask_overlaps
from .metrics.jf import JFScore
from .report import Progress, Report


def evaluate_clips(
    annotations: str | Path | ClipAnnotations,
    predictions: str | Path | Mapping[QueryKey, list[ObjectTrack]],
    *,
    iou: str = "mask",
    threshold: float = 0.5,
    jf: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Score predicted tracks: cgF1 by their overlap in space and time, pHOTA, and J&F if asked for.

    Args:
        annotations: A file of SA-Co/VEval, or what ``read_clip_annotations`` gives.
        predictions: A list of {video_id, category_id, score, segmentations, bboxes, areas} in a
            JSON file, or tracks by (video_id, category_id).
        iou: What is compared, "mask" or "box".
        threshold: Tracks count that score at least this, for pHOTA more than this.
        jf: Whether to compute J&F too, of objects matched as in DAVIS' unsupervised task; it takes
            longer.
        progress: Called after each pair of a clip and a phrase.

    Raises:
        AnnotationError: the annotations are wrong; the message names the record.
        PredictionError: the predictions are wrong, and the message names the record; or ``iou`` has
            another value.
    """
    if iou not in ("mask", "box"):
        raise PredictionError(f"iou is 'mask' or 'box'; got {iou!r}")
    settings: Record = {"iou": iou, "threshold": threshold}
    truth, predicted = annotations, predictions
    if isinstance(truth, (str, Path)):
        truth = read_clip_annotations(truth)
    if isinstance(predicted, (str, Path)):
        settings["predictions"] = str(predicted)
        predicted = read_clip_predictions(predicted, truth)
    start = time.perf_counter()
    concept_score, hota, jf_score = ConceptScore(threshold), HotaScore(threshold), JFScore()
    # Predictions for a phrase that the file does not list for the clip make a negative pair.
    queries = [truth.query(key) for key in {**truth.queries, **predicted}]
    for done, query in enumerate(queries, 1):
        tracks = [t for t in predicted.get(query.key, []) if t.score >= threshold]
        targets = [t for t in query.tracks if not t.crowd]
        concept_score.update_from_overlaps([_track_iou(tracks, targets, iou)])
        above = [t for t in tracks if t.score > threshold]
        hota.update_from_frames(_frame_overlaps(above, query, iou))
        if jf and query.tracks:
            sides = ([_DenseTrack(t, query.clip) for t in s] for s in (tracks, query.tracks))
            jf_score.update_unsupervised(*sides)
        if progress is not None:
            progress(Progress(done, len(queries), 0, 0, time.perf_counter() - start))
    metrics = concept_score.compute() | hota.compute() | (jf_score.compute() if jf else {})
    settings |= {"annotations": [str(truth.path)], "negatives_listed": truth.lists_negatives}
    counts = {"clips": len(truth.clips), **concept_score.counts()}
    return Report(truth.path.stem, metrics, counts, settings)


def _track_iou(predicted: Sequence[ObjectTrack], target: Sequence[ObjectTrack], iou: str) -> Array:
    if iou == "mask":
        return track_iou([t.masks for t in predicted], [t.masks for t in target])
    return box_track_iou(_boxes(predicted), _boxes(target))


def _boxes(tracks: Sequence[ObjectTrack]) -> Array:
    """(N, T, 4) xyxy, all 0 where a track has no box."""
    if not tracks:
        return np.zeros((0, 1, 4))
    return np.array([[box or (0.0, 0.0, 0.0, 0.0) for box in t.boxes] for t in tracks])


def _frame_overlaps(
    predicted: Sequence[ObjectTrack], query: ClipQuery, iou: str
) -> Iterator[FrameOverlaps]:
    unseen = [is_unseen(track) for track in predicted]
    if iou == "mask":
        masks = [
            [None if hidden else m for hidden, m in zip(of_track, track.masks, strict=True)]
            for of_track, track in zip(unseen, predicted, strict=True)
        ]
        yield from mask_overlaps(masks, [track.masks for track in query.tracks])
        return
    guessed, true = _boxes(predicted), _boxes(query.tracks)
    for t in range(query.clip.length):
        rows = [i for i, track in enumerate(query.tracks) if track.boxes[t] is not None]
        columns = [i for i, of_track in enumerate(unseen) if not of_track[t]]
        overlap = np.zeros((len(rows), len(columns)))
        if rows and columns:
            overlap = box_iou(true[rows, t], guessed[columns, t])
        yield FrameOverlaps(np.array(rows, int), np.array(columns, int), overlap)


class _DenseTrack(Sequence[Array]):
    """The masks of a track, decoded when they are read: those of a long clip are too large."""

    def __init__(self, track: ObjectTrack, clip: ClipRecord) -> None:
        self.track, self.clip = track, clip

    def __len__(self) -> int:
        return len(self.track.masks)

    def __getitem__(self, index: Any) -> Any:
        mask = self.track.masks[index]
        return np.zeros(self.clip.size_of(index), bool) if mask is None else decode(mask)
