"""Tracking by masks against tracking by boxes, on the same detections, without a model.

    python benchmarks/association.py --clips 16

Detections are the true masks of sticker clips: as they are, and spoilt (15 % missed, edges two
pixels in or out, false ones). Box trackers are those of the package ``trackers``, one for each
concept, set to take every detection. Needs the extra ``scenes`` and ``pip install trackers``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from efficientsam3.evaluate.hota import Frame, HotaScore
from efficientsam3.evaluate.overlap import mask_iou
from efficientsam3.scenes.art import Art
from efficientsam3.scenes.clips import film
from efficientsam3.scenes.compose import World
from efficientsam3.scenes.concepts import SPLITS
from efficientsam3.types import Array, BitPatch, Instances
from efficientsam3.video.mask_tracker import MaskTracker

FIRST = 10_000
"""Seed of the first clip."""

Found = list[tuple[Array, str, int]]
"""Masks, concepts, and the true object of each; -1: none."""


class BoxTracker:
    """A tracker of boxes for each concept, so that none takes another's detections."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.trackers: dict[str, Any] = defaultdict(make)
        self.ids: dict[tuple[str, int], int] = {}

    def update(self, found: Instances, _: int) -> Instances:
        import supervision as sv

        out = np.full(len(found), -1, np.int64)
        for label in {*self.trackers, *found.labels}:
            rows = np.array([i for i, name in enumerate(found.labels) if name == label], int)
            detections = sv.Detections(
                xyxy=found.boxes[rows].reshape(-1, 4),
                confidence=found.scores[rows],
                class_id=np.zeros(len(rows), int),
                data={"row": rows},
            )
            said = self.trackers[label].update(detections)
            given = () if said.tracker_id is None else said.tracker_id
            for row, id in zip(said.data.get("row", ()), given, strict=True):
                if id >= 0:
                    out[row] = self.ids.setdefault((label, int(id)), len(self.ids))
        return replace(found, track_ids=out)


def trackers() -> dict[str, Callable[[], Any]]:
    from trackers import ByteTrackTracker, OCSORTTracker, SORTTracker

    once = {"minimum_consecutive_frames": 1}
    low = {"track_activation_threshold": 0.5, **once}
    high = {"high_conf_det_threshold": 0.5, **once}
    return {
        "MaskTracker": MaskTracker,
        "ByteTrack": lambda: BoxTracker(lambda: ByteTrackTracker(**{**low, **high})),
        "SORT": lambda: BoxTracker(lambda: SORTTracker(**low)),
        "OC-SORT": lambda: BoxTracker(lambda: OCSORTTracker(**high)),
    }


def spoil(rng: np.random.Generator, there: Found) -> Found:
    """What a middling detector would find."""
    out = [(_wobble(rng, mask), name, true) for mask, name, true in there if rng.random() > 0.15]
    if there and rng.random() < 0.1:
        mask = np.zeros_like(there[0][0])
        y, x = rng.integers(0, mask.shape[0] - 20, 2)
        mask[y : y + 20, x : x + 20] = True
        out.append((mask, there[rng.integers(len(there))][1], -1))
    return out


def _wobble(rng: np.random.Generator, mask: Array) -> Array:
    by = int(rng.integers(-2, 3))
    if by > 0:
        return ndimage.binary_dilation(mask, iterations=by)
    inner = ndimage.binary_erosion(mask, iterations=-by) if by else mask
    return inner if np.count_nonzero(inner) > 10 else mask


def detections(rng: np.random.Generator, found: Found) -> Instances:
    patches = [BitPatch.cut(mask) for mask, _, _ in found]
    size = found[0][0].shape if found else (1, 1)
    scores = rng.uniform(0.55, 0.98, len(found)).astype(np.float32)
    boxes = np.array([p.crop(size)[1] for p in patches], np.float32).reshape(-1, 4)
    return Instances(boxes, scores, scores, [name for _, name, _ in found], size, list(patches))


def follow(clips: list[list[Found]], make: Callable[[], Any], spoilt: bool) -> dict[str, float]:
    """pHOTA and its parts, switches of identity, and milliseconds of CPU a frame."""
    score, switches, spent = HotaScore(0.0), 0, 0.0
    for number, clip in enumerate(clips):
        rng, tracker = np.random.default_rng(number), make()
        last: dict[int, int] = {}
        pairs: dict[str, list[Frame]] = defaultdict(list)
        for index, there in enumerate(clip):
            found = spoil(rng, there) if spoilt else there
            found = [found[i] for i in rng.permutation(len(found))]
            given = detections(rng, found)
            start = time.process_time()
            ids = tracker.update(given, index).track_ids.tolist()
            spent += time.process_time() - start
            for (_, _, true), id in zip(found, ids, strict=True):
                if true >= 0 and id >= 0:
                    switches += last.get(true, id) != id
                    last[true] = id
            for name in {name for frame in clip for _, name, _ in frame}:
                truth = [(mask, true) for mask, n, true in there if n == name]
                mine = [
                    (f[0], id) for f, id in zip(found, ids, strict=True) if f[1] == name and id >= 0
                ]
                overlap = np.zeros((len(truth), len(mine)))
                if overlap.size:
                    overlap = mask_iou(*(np.array([m for m, _ in s]) for s in (truth, mine)))
                numbers = [np.array([i for _, i in side], int) for side in (truth, mine)]
                pairs[name].append(Frame(*numbers, overlap))
        for frames in pairs.values():
            score.add_frames(frames)
    figures = {k: v for k, v in score.figures().items() if k in ("pHOTA", "DetA", "AssA")}
    return figures | {"switches": switches, "ms": 1000 * spent / sum(map(len, clips))}


def draw(count: int, size: int, frames: int) -> list[list[Found]]:
    """Clips of held-out seeds: in each frame the objects in sight."""
    world = World(Art.open(None), SPLITS["seen"], size)
    out = []
    for seed in range(FIRST, FIRST + count):
        clip = film(world, seed, frames)
        names = [actor.concept.name for actor in clip.actors]
        masks = [frame.masks for frame in clip]
        out.append([[(m, names[i], i) for i, m in enumerate(f) if m.any()] for f in masks])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    clips = draw(chosen.clips, chosen.size, chosen.frames)
    for spoilt in (False, True):
        for name, make in trackers().items():
            figures = follow(clips, make, spoilt)
            line = "  ".join(f"{k} {v:.{2 if k == 'ms' else 1}f}" for k, v in figures.items())
            print(f"{'spoilt' if spoilt else 'true':7s} {name:12s} {line}", flush=True)


if __name__ == "__main__":
    main()
