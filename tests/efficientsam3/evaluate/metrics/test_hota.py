"""HOTA of phrases: by hand, against TrackEval's recorded metrics, and against TrackEval."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco

from efficientsam3.evaluate import HotaScore, PredictionError
from efficientsam3.evaluate.metrics.hota import FrameOverlaps

NAMES = ("pHOTA", "DetA", "AssA", "DetRe", "DetPr", "AssRe", "AssPr", "LocA", "OWTA")


def square(x: int, width: int = 4) -> dict[str, Any]:
    mask = np.zeros((8, 20), np.uint8)
    mask[2:6, x : x + width] = 1
    rle: dict[str, Any] = coco.encode(np.asfortranarray(mask))
    return rle


A, B = square(0), square(10)


def test_perfect_tracks() -> None:
    metrics = HotaScore().update([[A, A, A], [None, B, B]], [0.9, 0.8], [[None, B, B], [A, A, A]])
    assert metrics.compute() == pytest.approx(dict.fromkeys(NAMES, 100))


def test_one_object_that_changes_its_identity() -> None:
    # One true object in 4 frames; predicted as track 1 in frames 1-2 and as track 2 in 3-4.
    # Every detection matches: DetA = 1. For each of the 4 matches: m = 2, n_gt = 4, n_trk = 2,
    # A = 2 / (4 + 2 - 2) = 0.5, recall 2 / 4, precision 2 / 2. HOTA = sqrt(1 * 0.5).
    score = HotaScore()
    score.update([[A, A, None, None], [None, None, A, A]], [1, 1], [[A, A, A, A]])
    metrics = score.compute()
    assert (metrics["DetA"], metrics["AssA"]) == (pytest.approx(100), pytest.approx(50))
    assert (metrics["AssRe"], metrics["AssPr"]) == (pytest.approx(50), pytest.approx(100))
    assert metrics["pHOTA"] == pytest.approx(100 * 0.5**0.5)


def test_misses_and_false_detections() -> None:
    # True: A in frames 1-4. Predicted: A in 1-2, nothing in 3, elsewhere (B) in 4; all one track.
    # TP 2, FN 2, FP 1: DetA = 2 / 5. A = 2 / (4 + 3 - 2) = 0.4 for both matches.
    score = HotaScore()
    score.update([[A, A, None, B]], [1], [[A, A, A, A]])
    metrics = score.compute()
    expected = {
        "DetA": 2 / 5,
        "DetRe": 2 / 4,
        "DetPr": 2 / 3,
        "AssA": 0.4,
        "pHOTA": (0.4 * 0.4) ** 0.5,
        "LocA": 1,
        "OWTA": (0.5 * 0.4) ** 0.5,
    }
    assert {k: metrics[k] for k in expected} == pytest.approx(
        {k: 100 * v for k, v in expected.items()}
    )


def test_matches_need_an_overlap_of_alpha() -> None:
    # Half of the square: IoU 0.5, which counts at 0.05 ... 0.50, 10 of 19 alphas.
    score = HotaScore()
    score.update([[square(0, 2)]], [1], [[A]])
    metrics = score.compute()
    assert metrics["DetA"] == metrics["AssA"] == pytest.approx(100 * 10 / 19)
    # LocA is 0.5 where there are matches, and 1 by convention where there are none.
    assert metrics["LocA"] == pytest.approx(100 * (10 * 0.5 + 9) / 19)


def test_low_scores_and_empty_masks_do_not_count() -> None:
    empty = square(0, 0)
    score = HotaScore()
    score.update(
        [[A, empty], [B, B]], [0.9, 0.5], [[A, None]]
    )  # an empty mask; a score of just 0.5
    assert score.compute()["pHOTA"] == pytest.approx(100)
    assert HotaScore().update([], [], [[A, A]]).compute()["DetRe"] == 0
    assert HotaScore().update([[A, A]], [1], []).compute()["DetPr"] == 0
    assert HotaScore().update([], [], []).compute()["pHOTA"] == 0


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(PredictionError, match="got 1 and 2"):
        HotaScore().update([[A]], [1], [[A, A]])
    with pytest.raises(PredictionError, match="1 tracks need as many scores; got 2"):
        HotaScore().update([[A]], [1, 1], [[A]])
    with pytest.raises(PredictionError, match=r"0\.5 and 0\.1"):
        HotaScore() + HotaScore(0.1)


def clips() -> list[list[FrameOverlaps]]:
    """Eight clips of up to four objects that appear and disappear, with random overlaps."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(8):
        true, guessed = rng.integers(0, 5, 2)
        frames = []
        for _ in range(7):
            rows, columns = (np.flatnonzero(rng.random(n) < 0.7) for n in (true, guessed))
            overlap = np.round(rng.random((len(rows), len(columns))), 2)
            frames.append(FrameOverlaps(rows, columns, overlap))
        out.append(frames)
    return out


def test_recorded_metrics_of_trackeval() -> None:
    score = HotaScore()
    parts = [HotaScore(), HotaScore()]
    for i, frames in enumerate(clips()):
        score.update_from_frames(frames)
        parts[i % 2].update_from_frames(frames)
    recorded = dict(zip(NAMES, RECORDED, strict=True))  # by TrackEval 1.3.0
    assert score.compute() == pytest.approx(recorded, abs=1e-9)
    assert (parts[0] + parts[1]).compute() == pytest.approx(recorded, abs=1e-9)


RECORDED = (
    *(29.84174484255148, 34.346005326664105, 26.53300222826711, 43.79526798647997),
    *(54.246411483253596, 38.65690780530986, 44.269745860434725, 78.82787379952157),
    33.88268386035166,
)


def test_each_clip_as_trackeval_scores_it() -> None:
    reference = pytest.importorskip("trackeval").metrics.HOTA()
    for frames in clips():
        expected = reference.eval_sequence(_as_trackeval(frames))
        got = HotaScore().update_from_frames(frames).compute()
        for name in NAMES:
            theirs = 100 * float(np.mean(expected[name.removeprefix("p")]))
            assert got[name] == pytest.approx(theirs, abs=1e-9), name


def _as_trackeval(frames: list[FrameOverlaps]) -> dict[str, Any]:
    def packed(ids: list[npt.NDArray[Any]]) -> tuple[list[npt.NDArray[Any]], int]:
        unique = np.unique(np.concatenate(ids))
        return [np.searchsorted(unique, i) for i in ids], len(unique)

    true, true_count = packed([f.targets for f in frames])
    guessed, count = packed([f.predictions for f in frames])
    return {
        "num_timesteps": len(frames),
        "gt_ids": true,
        "tracker_ids": guessed,
        "similarity_scores": [f.iou for f in frames],
        "num_gt_ids": true_count,
        "num_tracker_ids": count,
        "num_gt_dets": sum(map(len, true)),
        "num_tracker_dets": sum(map(len, guessed)),
    }
