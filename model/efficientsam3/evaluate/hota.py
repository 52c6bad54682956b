"""HOTA of phrases (pHOTA): how well objects are found in frames and kept apart through a clip.

HOTA is Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking" (IJCV
2021). A pair of a clip and a phrase is a sequence of its own, of one class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..rle import Rle
from .errors import PredictionError
from .overlap import Track, mask_iou

Array = npt.NDArray[Any]

ALPHAS = np.arange(0.05, 0.99, 0.05)
"""Overlaps from which a detection counts as found: 0.05, 0.10, ... 0.95."""

EPSILON = float(np.finfo(float).eps)
NEAR_ZERO = 1e-10


class Frame(NamedTuple):
    """What is in one frame.

    truth: (n,) int numbers of the true objects seen in it, from 0. found: (m,) of the predicted.
    overlap: (n, m) IoU of them.
    """

    truth: Array
    found: Array
    overlap: Array


def _zeros() -> Array:
    return np.zeros(len(ALPHAS))


@dataclass(eq=False)
class HotaScore:
    """Sums over clips, from which all figures follow.

    Args:
        threshold: tracks count that score more than this.
    """

    threshold: float = 0.5
    tp: Array = field(default_factory=_zeros)
    fn: Array = field(default_factory=_zeros)
    fp: Array = field(default_factory=_zeros)
    overlap: Array = field(default_factory=_zeros)
    alike: Array = field(default_factory=_zeros)
    recalled: Array = field(default_factory=_zeros)
    precise: Array = field(default_factory=_zeros)

    def add(
        self, found: Sequence[Track], scores: Sequence[float] | Array, truth: Sequence[Track]
    ) -> HotaScore:
        """Add one clip and phrase.

        Args:
            found: N predicted tracks, each with a mask or None for every frame of the clip.
            scores: (N,) in [0, 1]. truth: M true tracks of the same length.

        Returns:
            The score of this clip alone.
        """
        if len(scores) != len(found):
            raise PredictionError(f"{len(found)} tracks need as many scores; got {len(scores)}")
        kept = [
            drop_empty(track)
            for track, score in zip(found, scores, strict=True)
            if score > self.threshold
        ]
        return self.add_frames(mask_frames(kept, truth))

    def add_frames(self, frames: Iterable[Frame]) -> HotaScore:
        """Add one clip and phrase by the overlaps in its frames; gives the score of it alone."""
        clip = _score(list(frames), self.threshold)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(clip, name))
        return clip

    def merge(self, other: HotaScore) -> HotaScore:
        """Both together, as if all clips had been added to one."""
        if other.threshold != self.threshold:
            raise PredictionError(
                f"scores of thresholds {self.threshold} and {other.threshold} cannot be merged"
            )
        return HotaScore(self.threshold, *(getattr(self, n) + getattr(other, n) for n in _SUMS))

    __add__ = merge

    def figures(self) -> dict[str, float]:
        """All figures, 0 to 100, each the mean over ``ALPHAS``.

        pHOTA: root of DetA * AssA. DetA, DetRe, DetPr: detections in frames. AssA, AssRe, AssPr:
        association, over matched detections. LocA: overlap of what matched. OWTA: root of
        DetRe * AssA, for truth that is not exhaustive.
        """
        det_a = self.tp / np.maximum(1, self.tp + self.fn + self.fp)
        det_re = self.tp / np.maximum(1, self.tp + self.fn)
        det_pr = self.tp / np.maximum(1, self.tp + self.fp)
        ass_a, ass_re, ass_pr = (
            total / np.maximum(1, self.tp) for total in (self.alike, self.recalled, self.precise)
        )
        levels = {
            "pHOTA": np.sqrt(det_a * ass_a),
            "DetA": det_a,
            "AssA": ass_a,
            "DetRe": det_re,
            "DetPr": det_pr,
            "AssRe": ass_re,
            "AssPr": ass_pr,
            # With no match the overlap of matches is 1 by convention.
            "LocA": np.maximum(NEAR_ZERO, self.overlap) / np.maximum(NEAR_ZERO, self.tp),
            "OWTA": np.sqrt(det_re * ass_a),
        }
        return {name: 100 * float(value.mean()) for name, value in levels.items()}


_SUMS = tuple(f.name for f in fields(HotaScore) if f.name != "threshold")


def _score(frames: list[Frame], threshold: float) -> HotaScore:
    """One sequence. Rows are true objects, columns predicted ones."""
    from scipy.optimize import linear_sum_assignment

    out = HotaScore(threshold)
    rows = 1 + max((int(f.truth.max()) for f in frames if len(f.truth)), default=-1)
    columns = 1 + max((int(f.found.max()) for f in frames if len(f.found)), default=-1)
    # How many frames each object is in, and how far each two are the same through the clip.
    seen, shown, together = np.zeros((rows, 1)), np.zeros((1, columns)), np.zeros((rows, columns))
    for frame in frames:
        seen[frame.truth] += 1
        shown[:, frame.found] += 1
        o = frame.overlap
        rivals = o.sum(1, keepdims=True) + o.sum(0, keepdims=True) - o
        here = np.ix_(frame.truth, frame.found)
        together[here] += np.divide(o, rivals, out=np.zeros_like(o), where=rivals > EPSILON)
    alignment = together / np.maximum(EPSILON, seen + shown - together)

    matches = np.zeros((len(ALPHAS), rows, columns))
    for frame in frames:
        # The same matches for all alphas: one object is followed, whatever overlap is asked.
        weight = alignment[np.ix_(frame.truth, frame.found)] * frame.overlap
        i, j = linear_sum_assignment(weight, maximize=True)
        overlap = frame.overlap[i, j]
        good = overlap >= ALPHAS[:, None] - EPSILON  # (alphas, matches)
        out.tp += good.sum(1)
        out.overlap += (good * overlap).sum(1)
        matches[:, frame.truth[i], frame.found[j]] += good
    out.fn = seen.sum() - out.tp
    out.fp = shown.sum() - out.tp

    def over_matches(share: Array) -> Array:
        return np.asarray((matches * share).sum((1, 2)))

    out.alike = over_matches(matches / np.maximum(1, seen + shown - matches))
    out.recalled = over_matches(matches / np.maximum(1, seen))
    out.precise = over_matches(matches / np.maximum(1, shown))
    return out


def drop_empty(track: Track) -> list[Rle | None]:
    """The track without masks that have no pixel: they would count as false detections."""
    from pycocotools import mask as coco

    from ..rle import compress

    return [rle if rle is not None and coco.area(compress(rle)) else None for rle in track]


def mask_frames(found: Sequence[Track], truth: Sequence[Track]) -> Iterable[Frame]:
    """The frames of a clip by its tracks of masks.

    Raises:
        PredictionError: tracks of different lengths.
    """
    lengths = {len(track) for track in (*found, *truth)}
    if len(lengths) > 1:
        raise PredictionError(
            "tracks of one clip have one entry a frame, so one length; "
            f"got {' and '.join(map(str, sorted(lengths)))}"
        )
    for t in range(max(lengths, default=0)):
        true = {i: m for i, track in enumerate(truth) if (m := track[t]) is not None}
        guessed = {i: m for i, track in enumerate(found) if (m := track[t]) is not None}
        overlap = mask_iou(list(guessed.values()), list(true.values())).T
        yield Frame(np.array(list(true), int), np.array(list(guessed), int), overlap)
