"""Evaluation on clips: predicted tracks against SA-Co/VEval's ground truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..rle import decode
from .concept import ConceptScore
from .davis import JandF
from .errors import PredictionError
from .hota import Frame, HotaScore, mask_frames
from .overlap import box_iou, box_track_iou, track_iou
from .records import Record
from .score import Progress, Report
from .veval import (
    Clip,
    ClipTrack,
    ClipTruth,
    Key,
    clip_of,
    read_clip_predictions,
    read_clips,
    unseen,
)

Array = npt.NDArray[Any]


def evaluate_clips(
    annotations: str | Path,
    predictions: str | Path,
    *,
    iou: str = "mask",
    threshold: float = 0.5,
    contours: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Score tracks: cgF1 by overlap in space and time, pHOTA, and J&F if asked for.

    Args:
        annotations: a file of SA-Co/VEval.
        predictions: a list of {video_id, category_id, score, segmentations, bboxes, areas}.
        iou: what overlaps, "mask" or "box".
        threshold: tracks count that score at least this, for pHOTA more than this.
        contours: J&F too, of objects matched as in DAVIS' unsupervised task; takes longer.
        progress: called after each clip and phrase.

    Raises:
        AnnotationError, PredictionError: names the file and the record.
    """
    truth = read_clips(annotations)
    found = read_clip_predictions(predictions, truth)
    return score_clips(
        truth,
        found,
        iou=iou,
        threshold=threshold,
        contours=contours,
        progress=progress,
        settings={"predictions": str(predictions)},
    )


def score_clips(
    truth: ClipTruth,
    found: dict[Key, list[ClipTrack]],
    *,
    iou: str = "mask",
    threshold: float = 0.5,
    contours: bool = False,
    progress: Callable[[Progress], None] | None = None,
    settings: Record | None = None,
) -> Report:
    """As ``evaluate_clips``, on what was read before."""
    if iou not in ("mask", "box"):
        raise PredictionError(f"iou is 'mask' or 'box'; got {iou!r}")
    start = time.perf_counter()
    concepts, hota, davis = ConceptScore(threshold), HotaScore(threshold), JandF()
    # What is predicted for a phrase that was not asked of a clip is a negative pair too.
    clips = list(truth.clips.values())
    clips += [clip_of(truth.videos, truth.phrases, key) for key in found if key not in truth.clips]
    for done, clip in enumerate(clips, 1):
        tracks = found.get(clip.key, [])
        kept = [track for track in tracks if track.score >= threshold]
        concepts.add_overlaps([_overlap(kept, [t for t in clip.tracks if not t.crowd], iou)])
        hota.add_frames(_frames([t for t in kept if t.score > threshold], clip, iou))
        if contours and clip.tracks:
            davis.add_matched(*(_dense(side, clip) for side in (kept, clip.tracks)))
        if progress is not None:
            progress(Progress(done, len(clips), 0, 0, time.perf_counter() - start))
    figures = concepts.figures() | hota.figures() | (davis.figures() if contours else {})
    told: Record = {"annotations": [str(truth.path)], "iou": iou, "threshold": threshold}
    told |= {"negatives_listed": truth.has_negatives} | (settings or {})
    counts = {"clips": len(truth.videos), **concepts.counts()}
    return Report(truth.path.stem, figures, counts, told)


def _overlap(found: Sequence[ClipTrack], truth: Sequence[ClipTrack], iou: str) -> Array:
    if iou == "mask":
        return track_iou([t.masks for t in found], [t.masks for t in truth])
    return box_track_iou(_boxes(found), _boxes(truth))


def _boxes(tracks: Sequence[ClipTrack]) -> Array:
    """(N, T, 4) xyxy, all 0 where there is none."""
    if not tracks:
        return np.zeros((0, 1, 4))
    return np.array([[box or (0.0, 0.0, 0.0, 0.0) for box in t.boxes] for t in tracks])


def _frames(found: Sequence[ClipTrack], clip: Clip, iou: str) -> Iterator[Frame]:
    hidden = [unseen(track) for track in found]
    if iou == "mask":
        masks = [
            [None if h else m for h, m in zip(hide, track.masks, strict=True)]
            for hide, track in zip(hidden, found, strict=True)
        ]
        yield from mask_frames(masks, [track.masks for track in clip.tracks])
        return
    guessed, true = _boxes(found), _boxes(clip.tracks)
    for t in range(clip.length):
        rows = [i for i, track in enumerate(clip.tracks) if track.boxes[t] is not None]
        columns = [i for i, hide in enumerate(hidden) if not hide[t]]
        overlap = np.zeros((len(rows), len(columns)))
        if rows and columns:
            overlap = box_iou(true[rows, t], guessed[columns, t])
        yield Frame(np.array(rows, int), np.array(columns, int), overlap)


def _dense(tracks: Sequence[ClipTrack], clip: Clip) -> list[Sequence[Array]]:
    return [_Decoded(track, clip.size) for track in tracks]


class _Decoded(Sequence[Array]):
    """The masks of a track, decoded one at a time: a long clip's do not fit in memory."""

    def __init__(self, track: ClipTrack, size: tuple[int, int]) -> None:
        self.track, self.size = track, size

    def __len__(self) -> int:
        return len(self.track.masks)

    def __getitem__(self, index: Any) -> Any:
        mask = self.track.masks[index]
        return np.zeros(self.size, bool) if mask is None else decode(mask)
