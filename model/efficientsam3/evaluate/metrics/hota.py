"""HOTA of phrases (pHOTA): how well objects are detected in frames and associated through a clip.

HOTA is Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking" (IJCV
2021); the numbers are those of its toolkit TrackEval (``trackeval/metrics/hota.py``). pHOTA is
SA-Co/VEval's: each pair of a clip and a phrase is a sequence of its own, of one class (upstream's
``sam3/eval/saco_veval_eval.py`` and its ``hota_eval_toolkit``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

from ...io.rle import Rle, compress
from ...masks.overlap import Track, mask_iou
from ...types import Array
from ..errors import PredictionError

ALPHAS = np.arange(0.05, 0.99, 0.05)
"""IoUs from which a detection counts as matched: 0.05, 0.10, ... 0.95."""

EPSILON = float(np.finfo(float).eps)
NEAR_ZERO = 1e-10


class FrameOverlaps(NamedTuple):
    """The objects of one frame, and how far they overlap.

    Attributes:
        targets: (n,) int numbers, from 0, of the true objects that are visible in the frame.
        predictions: (m,) int numbers, from 0, of the predicted objects.
        iou: (n, m) IoU of each true with each predicted object.
    """

    targets: Array
    predictions: Array
    iou: Array


def _zeros() -> Array:
    return np.zeros(len(ALPHAS))


@dataclass(eq=False)
class HotaScore:
    """Accumulates clips and computes HOTA and its parts. All sums are by alpha, (19,).

    Args:
        threshold: Tracks count that score more than this.
        tp: Matched detections.
        fn: True detections without match.
        fp: Predicted detections without match.
        iou: Sum of the IoU of matches.
        ass_a: Sum over matches of the association accuracy.
        ass_re: Sum over matches of the association recall.
        ass_pr: Sum over matches of the association precision.
    """

    threshold: float = 0.5
    tp: Array = field(default_factory=_zeros)
    fn: Array = field(default_factory=_zeros)
    fp: Array = field(default_factory=_zeros)
    iou: Array = field(default_factory=_zeros)
    ass_a: Array = field(default_factory=_zeros)
    ass_re: Array = field(default_factory=_zeros)
    ass_pr: Array = field(default_factory=_zeros)

    def update(
        self, predicted: Sequence[Track], scores: Sequence[float] | Array, target: Sequence[Track]
    ) -> HotaScore:
        """Add one clip and phrase.

        Args:
            predicted: N tracks, each with a mask or None for every frame of the clip.
            scores: (N,) in [0, 1].
            target: M true tracks of the same length.

        Returns:
            The score of this clip alone.

        Raises:
            PredictionError: numbers of tracks and scores, or lengths of tracks, differ.
        """
        if len(scores) != len(predicted):
            raise PredictionError(f"{len(predicted)} tracks need as many scores; got {len(scores)}")
        kept = [
            _without_empty(track)
            for track, score in zip(predicted, scores, strict=True)
            if score > self.threshold
        ]
        return self.update_from_frames(mask_overlaps(kept, target))

    def update_from_frames(self, frames: Iterable[FrameOverlaps]) -> HotaScore:
        """Add one clip and phrase by the overlaps in its frames.

        Args:
            frames: The frames in order, of tracks that score more than the threshold.

        Returns:
            The score of this clip alone.
        """
        clip = _score_clip(list(frames), self.threshold)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(clip, name))
        return clip

    def merge(self, other: HotaScore) -> HotaScore:
        """Both scores together, as if all clips had been added to one.

        Args:
            other: A score with the same threshold.

        Raises:
            PredictionError: the thresholds differ.
        """
        if other.threshold != self.threshold:
            raise PredictionError(
                f"scores of thresholds {self.threshold} and {other.threshold} cannot be merged"
            )
        return HotaScore(self.threshold, *(getattr(self, n) + getattr(other, n) for n in _SUMS))

    __add__ = merge

    def compute(self) -> dict[str, float]:
        """All metrics, 0 to 100, each the mean over ``ALPHAS``.

        pHOTA: root of DetA * AssA. DetA, DetRe, DetPr: detections in frames. AssA, AssRe, AssPr:
        association, averaged over matched detections. LocA: IoU of matches. OWTA: root of
        DetRe * AssA, for annotations that are not exhaustive.
        """
        matched = np.maximum(1, self.tp)
        det_a = self.tp / np.maximum(1, self.tp + self.fn + self.fp)
        det_re = self.tp / np.maximum(1, self.tp + self.fn)
        det_pr = self.tp / np.maximum(1, self.tp + self.fp)
        ass_a, ass_re, ass_pr = self.ass_a / matched, self.ass_re / matched, self.ass_pr / matched
        by_alpha = {
            "pHOTA": np.sqrt(det_a * ass_a),
            "DetA": det_a,
            "AssA": ass_a,
            "DetRe": det_re,
            "DetPr": det_pr,
            "AssRe": ass_re,
            "AssPr": ass_pr,
            # TrackEval's convention: without matches LocA is 1.
            "LocA": np.maximum(NEAR_ZERO, self.iou) / np.maximum(NEAR_ZERO, self.tp),
            "OWTA": np.sqrt(det_re * ass_a),
        }
        return {name: 100 * float(value.mean()) for name, value in by_alpha.items()}


_SUMS = tuple(f.name for f in fields(HotaScore) if f.name != "threshold")


def _score_clip(frames: list[FrameOverlaps], threshold: float) -> HotaScore:
    """HOTA of one sequence. Rows are true objects, columns predicted ones."""
    from scipy.optimize import linear_sum_assignment

    out = HotaScore(threshold)
    rows = 1 + max((int(f.targets.max()) for f in frames if len(f.targets)), default=-1)
    columns = 1 + max((int(f.predictions.max()) for f in frames if len(f.predictions)), default=-1)
    # The number of frames each object is in, and the global alignment of each two (section 4.3).
    target_frames, predicted_frames = np.zeros((rows, 1)), np.zeros((1, columns))
    together = np.zeros((rows, columns))
    for frame in frames:
        target_frames[frame.targets] += 1
        predicted_frames[:, frame.predictions] += 1
        iou = frame.iou
        rivals = iou.sum(1, keepdims=True) + iou.sum(0, keepdims=True) - iou
        here = np.ix_(frame.targets, frame.predictions)
        together[here] += np.divide(iou, rivals, out=np.zeros_like(iou), where=rivals > EPSILON)
    alignment = together / np.maximum(EPSILON, target_frames + predicted_frames - together)

    matches = np.zeros((len(ALPHAS), rows, columns))
    for frame in frames:
        # One assignment for all alphas, as in TrackEval.
        weight = alignment[np.ix_(frame.targets, frame.predictions)] * frame.iou
        i, j = linear_sum_assignment(weight, maximize=True)
        iou = frame.iou[i, j]
        good = iou >= ALPHAS[:, None] - EPSILON  # (alphas, matches)
        out.tp += good.sum(1)
        out.iou += (good * iou).sum(1)
        matches[:, frame.targets[i], frame.predictions[j]] += good
    out.fn = target_frames.sum() - out.tp
    out.fp = predicted_frames.sum() - out.tp

    def over_matches(share: Array) -> Array:
        return np.asarray((matches * share).sum((1, 2)))

    out.ass_a = over_matches(matches / np.maximum(1, target_frames + predicted_frames - matches))
    out.ass_re = over_matches(matches / np.maximum(1, target_frames))
    out.ass_pr = over_matches(matches / np.maximum(1, predicted_frames))
    return out


def _without_empty(track: Track) -> list[Rle | None]:
    """The track without masks that have no pixel, which would count as false detections."""
    from pycocotools import mask as coco

    return [rle if rle is not None and coco.area(compress(rle)) else None for rle in track]


def mask_overlaps(predicted: Sequence[Track], target: Sequence[Track]) -> Iterator[FrameOverlaps]:
    """The overlaps in the frames of a clip by its tracks of masks.

    Args:
        predicted: Predicted tracks, each with a mask or None for every frame.
        target: True tracks of the same length.

    Yields:
        The overlaps of each frame.

    Raises:
        PredictionError: the tracks have different lengths.
    """
    lengths = {len(track) for track in (*predicted, *target)}
    if len(lengths) > 1:
        raise PredictionError(
            "tracks of one clip have one entry a frame, so one length; "
            f"got {' and '.join(map(str, sorted(lengths)))}"
        )
    for t in range(max(lengths, default=0)):
        true = {i: m for i, track in enumerate(target) if (m := track[t]) is not None}
        guessed = {i: m for i, track in enumerate(predicted) if (m := track[t]) is not None}
        iou = mask_iou(list(guessed.values()), list(true.values())).T
        yield FrameOverlaps(np.array(list(true), int), np.array(list(guessed), int), iou)
