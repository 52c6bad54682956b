"""Clips: metrics computed by hand, and errors for wrong files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efficientsam3.evaluate import (
    AnnotationError,
    PredictionError,
    Progress,
    evaluate_clips,
    read_clip_annotations,
)

Write = Callable[[str, Any], Path]
CAT, DOG, BUS = 1, 2, 5


def track(toy: SimpleNamespace, boxes: list[Any], **more: Any) -> dict[str, Any]:
    """A masklet by its box in each frame, None where it is not visible."""
    return {
        "video_id": 3,
        "category_id": CAT,
        "segmentations": [None if b is None else toy.rle_of(b) for b in boxes],
        "bboxes": [None if b is None else toy.xywh(b) for b in boxes],
        "areas": [None if b is None else (b[2] - b[0]) * (b[3] - b[1]) for b in boxes],
        **more,
    }


@pytest.fixture
def truth(toy: SimpleNamespace) -> dict[str, Any]:
    """A clip of three frames: two cats, no dog; a bus in another clip of two."""
    height, width = toy.SIZE
    left, right = toy.LEFT, toy.RIGHT
    return {
        "info": {"version": "v1"},
        "videos": [
            {
                "id": number,
                "video_name": f"clip{number}",
                "file_names": [f"clip{number}/{t:05d}.jpg" for t in range(length)],
                "height": height,
                "width": width,
                "length": length,
            }
            for number, length in ((3, 3), (4, 2))
        ],
        "annotations": [
            track(toy, [left, left, left], id=1, iscrowd=0, noun_phrase="cat"),
            track(toy, [None, right, right], id=2, iscrowd=0, noun_phrase="cat"),
            track(toy, [right, None], id=3, iscrowd=0, video_id=4, category_id=BUS),
        ],
        "categories": [
            {"id": CAT, "name": "cat"},
            {"id": DOG, "name": "dog"},
            {"id": BUS, "name": "bus"},
        ],
        "video_np_pairs": [
            {"id": 1, "video_id": 3, "category_id": CAT, "noun_phrase": "cat", "num_masklets": 2},
            {"id": 2, "video_id": 3, "category_id": DOG, "noun_phrase": "dog", "num_masklets": 0},
            {"id": 3, "video_id": 4, "category_id": BUS, "noun_phrase": "bus", "num_masklets": 1},
        ],
    }


def test_reading(truth: dict[str, Any], write: Write, toy: SimpleNamespace) -> None:
    clips = read_clip_annotations(write("veval.json", truth)).queries
    found = {k: (c.clip.name, c.phrase, c.clip.length, len(c.tracks)) for k, c in clips.items()}
    assert found == {
        (3, CAT): ("clip3", "cat", 3, 2),
        (3, DOG): ("clip3", "dog", 3, 0),
        (4, BUS): ("clip4", "bus", 2, 1),
    }
    track = clips[3, CAT].tracks[1]
    assert track.boxes == [None, toy.RIGHT, toy.RIGHT] and track.masks[0] is None


@pytest.mark.parametrize("iou", ["mask", "box"])
def test_perfect_tracks(truth: dict[str, Any], write: Write, iou: str) -> None:
    rows = [dict(row, score=0.9) for row in truth["annotations"]]
    seen: list[Progress] = []
    report = evaluate_clips(
        write("veval.json", truth), write("p.json", rows), iou=iou, progress=seen.append
    )
    assert report.metrics["cgF1"] == pytest.approx(100, abs=0.02)
    assert {k: report.metrics[k] for k in ("pHOTA", "DetA", "AssA", "LocA")} == pytest.approx(
        {"pHOTA": 100, "DetA": 100, "AssA": 100, "LocA": 100}
    )
    assert report.counts["clips"] == 2 and report.counts["pairs"] == 3
    assert [(p.done, p.total) for p in seen] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("iou", ["mask", "box"])
def test_metrics_computed_by_hand(
    truth: dict[str, Any], write: Write, toy: SimpleNamespace, iou: str
) -> None:
    left, right = toy.LEFT, toy.RIGHT
    rows = [
        # Two of three frames: space-time IoU 2/3, a match at 0.50, 0.55, 0.60, 0.65.
        track(toy, [left, left, None], score=0.9),
        track(toy, [None, right, right], score=0.3),  # right, but scores too little
        track(toy, [left, None, None], score=0.7, category_id=DOG),  # there is none
        # The bus is not found. A cat in a clip without that query is a false positive as well.
        track(toy, [left, None], score=0.6, video_id=4),
    ]
    report = evaluate_clips(write("veval.json", truth), write("p.json", rows), iou=iou)
    figures, counts = report.metrics, report.counts
    # Positive pairs: 3 instances, 1 prediction. At 4 of 10 levels P = 1, R = 1/3, F1 = 1/2.
    assert figures["pmF1"] == pytest.approx(100 * 0.4 / 2, abs=0.02)
    assert figures["pmF1@75"] == 0
    # TP cat, FN bus, FP dog and the other clip's cat, TN none: -2 / sqrt(3 * 2 * 2 * 1).
    assert [counts[f"IL_{n}"] for n in ("TP", "FP", "FN", "TN")] == [1, 2, 1, 0]
    assert figures["IL_MCC"] == pytest.approx(-2 / 12**0.5, abs=1e-6)
    # Detections: TP 2, FN 1 + 2 + 1 (bus), FP 1 + 1. A = 2 / (3 + 2 - 2).
    assert figures["DetA"] == pytest.approx(100 * 2 / 8)
    assert figures["AssA"] == pytest.approx(100 * 2 / 3)
    assert figures["pHOTA"] == pytest.approx(100 * (2 / 8 * 2 / 3) ** 0.5)
    assert figures["DetRe"] == pytest.approx(100 * 2 / 6)
    assert figures["DetPr"] == pytest.approx(100 * 2 / 4)


def test_empty_masks_are_no_detections(
    truth: dict[str, Any], write: Write, toy: SimpleNamespace
) -> None:
    empty = (0, 0, 0, 0)
    rows = [dict(row, score=0.9) for row in truth["annotations"]]
    rows[1] = track(toy, [empty, toy.RIGHT, toy.RIGHT], score=0.9)
    for iou in ("mask", "box"):
        report = evaluate_clips(write("veval.json", truth), write("p.json", rows), iou=iou)
        assert report.metrics["DetPr"] == pytest.approx(100)


def test_jf(truth: dict[str, Any], write: Write) -> None:
    rows = [dict(row, score=0.9) for row in truth["annotations"][:2]]
    report = evaluate_clips(write("veval.json", truth), write("p.json", rows), jf=True)
    # The bus is not found.
    assert {k: report.metrics[k] for k in ("J", "F", "J&F")} == pytest.approx(
        {"J": 100 * 2 / 3, "F": 100 * 2 / 3, "J&F": 100 * 2 / 3}
    )


Spoil = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda c: c["annotations"][0]["segmentations"].pop(),
            r"annotations\[0\] \(id 1\) has segmentations for 2 frames, but clip clip3 has 3",
        ),
        (lambda c: c["annotations"][0].update(video_id=8), "video_id 8, which no record of videos"),
        (
            lambda c: c["annotations"][1]["segmentations"][2].update(size=[60, 40]),
            r"annotations\[1\] \(id 2\) has a mask in frame 2 that is wrong: it has 60 x 40",
        ),
        (lambda c: c["video_np_pairs"][0].update(category_id=9), "category_id 9, which no record"),
        (lambda c: c["videos"][0].update(file_names=[]), "neither 'file_names' nor a 'length'"),
        (lambda c: (c["annotations"].clear(), c["video_np_pairs"].clear()), "the split is empty"),
        (lambda c: c.pop("categories"), "has no list 'categories'; it has 'info', 'videos'"),
    ],
)
def test_wrong_annotations_are_named(
    truth: dict[str, Any], write: Write, spoil: Spoil, sentence: str
) -> None:
    spoil(truth)
    with pytest.raises(AnnotationError, match=sentence):
        read_clip_annotations(write("veval.json", truth))


def test_wrong_predictions_are_named(
    truth: dict[str, Any], write: Write, toy: SimpleNamespace
) -> None:
    path = write("veval.json", truth)
    good = track(toy, [toy.LEFT] * 3, score=0.9)
    for rows, sentence in (
        ([dict(good, video_id=8)], r"predictions\[0\] has video_id 8, which no record of videos"),
        ([good, dict(good, category_id=77)], r"predictions\[1\] has category_id 77"),
        ([dict(good, bboxes=[])], "has bboxes for 0 frames, but clip clip3 has 3"),
        ([dict(good, score="high")], "has score 'high'"),
        ({"video_id": 3}, "is not a list of predictions"),
    ):
        with pytest.raises(PredictionError, match=sentence):
            evaluate_clips(path, write("p.json", rows))
    with pytest.raises(AnnotationError, match="is of images, not of clips"):
        read_clip_annotations(write("gold.json", toy.saco()))
