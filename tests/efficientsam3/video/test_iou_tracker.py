"""Tracking by overlap alone."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from efficientsam3.errors import TrackError
from efficientsam3.video.iou_tracker import IoUTracker
from efficientsam3.video.settings import IoUSettings

from .scripted import block, disc, instances


def ids(*frames, settings: IoUSettings | None = None) -> list[list[int]]:
    """The identities of the detections of each frame."""
    tracker = IoUTracker(settings)
    return [tracker.update(found).track_ids.tolist() for found in frames]


@pytest.mark.parametrize("kind", ["pixels", "logits", "boxes"])
def test_objects_keep_their_identity_whatever_their_order(kind: str) -> None:
    options = {"logits": kind == "logits", "boxes_only": kind == "boxes"}
    clip = []
    for t in range(6):
        masks = [disc(20, 10 + 3 * t, 6), disc(40, 60 - 3 * t, 6)]
        clip.append(instances(masks[:: -1 if t % 2 else 1], **options))
    assert ids(*clip) == [[0, 1], [1, 0]] * 3


def test_a_track_never_takes_a_detection_of_another_concept() -> None:
    mask = disc(30, 40, 10)
    assert ids(instances([mask], "cat"), instances([mask], "dog"), instances([mask], "cat")) == [
        [0],
        [1],
        [0],
    ]


def test_two_concepts_on_the_same_pixels() -> None:
    mask = disc(30, 40, 10)
    assert ids(
        *[instances([mask, mask], labels) for labels in (["cat", "dog"], ["dog", "cat"])]
    ) == [
        [0, 1],
        [1, 0],
    ]


def test_crossing_objects_keep_their_velocity() -> None:
    """When they meet, their boxes are equal and half of their masks overlaps."""
    clip = []
    for t in range(30):
        left, right = block(0, 5 + 2 * t, 60, 8), block(0, 67 - 2 * t, 60, 8)
        clip.append(instances([left & ~right, right] if t % 2 else [right, left & ~right]))
    out = ids(*clip)
    assert all(row == ([1, 0] if t % 2 else [0, 1]) for t, row in enumerate(out))


def test_an_object_that_leaves_and_returns_keeps_its_identity() -> None:
    here = [instances([disc(30, 40 + 2 * t, 7)]) for t in range(4)]
    away = [instances([])] * 8
    assert ids(*here, *away, instances([disc(30, 55, 7)]))[-1] == [0]


def test_an_object_that_is_absent_for_too_long_gets_a_new_identity() -> None:
    settings = IoUSettings(max_age=5)
    mask = disc(30, 40, 7)
    clip = [instances([mask]), *[instances([])] * 6, instances([mask])]
    assert ids(*clip, settings=settings)[-1] == [1]
    assert ids(clip[0], *clip[3:], settings=settings)[-1] == [0]


def test_fast_small_objects_are_matched_by_shape() -> None:
    """They do not overlap their masks of the frame before."""
    clip = [instances([disc(30, 8 + 12 * t, 4), block(30, 70 - 12 * t, 2, 9)]) for t in range(5)]
    assert ids(*clip) == [[0, 1]] * 5
    assert ids(*clip, settings=IoUSettings(max_distance=0))[1] == [2, 3]


def test_shape_iou_decides_what_may_continue_a_track_elsewhere() -> None:
    """A wrong detection of two things as one, and then one of a small thing."""
    large, small = disc(30, 30, 20), disc(30, 60, 8)
    assert 0.15 < small.sum() / large.sum() < 0.2
    clip = [instances([large]), instances([small])]
    assert ids(*clip) == [[0], [0]]
    assert ids(*clip, settings=IoUSettings(shape_iou=0.25)) == [[0], [1]]


def test_min_hits_delays_the_identity() -> None:
    mask, noise = disc(30, 40, 10), disc(10, 10, 3)
    clip = [instances([mask]), instances([noise, mask]), instances([mask]), instances([mask])]
    assert ids(*clip, settings=IoUSettings(min_hits=3)) == [[-1], [-1, -1], [0], [0]]


def test_weak_detections_continue_tracks_and_begin_none() -> None:
    strong, weak = (instances([disc(30, 40, 10)], scores=s) for s in (0.9, 0.55))
    settings = IoUSettings(new_track_threshold=0.7)
    assert ids(weak, strong, weak, settings=settings) == [[-1], [0], [0]]


def test_detections_keep_their_order() -> None:
    found = instances([disc(30, 40, 5), disc(30, 41, 5), disc(5, 5, 2)], scores=[0.9, 0.8, 0.2])
    out = IoUTracker().update(found)
    assert out.track_ids.tolist() == [0, 1, -1]
    assert out.scores is found.scores
    assert out.patches is found.patches


def test_frames_that_change_size() -> None:
    small = [instances([disc(30, 20, 8), disc(30, 60, 8)]) for _ in range(2)]
    wide = [instances([disc(90, 180, 24, (180, 240)), disc(90, 60, 24, (180, 240))])] * 2
    assert ids(*small, *wide, *small) == [[0, 1]] * 2 + [[1, 0]] * 2 + [[0, 1]] * 2


def test_empty_frames_and_empty_masks() -> None:
    empty = instances([np.zeros((60, 80), bool)])
    assert ids(instances([]), empty, instances([]), empty) == [[], [0], [], [1]]
    assert ids(*[instances([], boxes_only=True)] * 2) == [[], []]


def test_identities_are_unique_until_reset() -> None:
    tracker = IoUTracker(IoUSettings(max_age=0))
    mask = disc(30, 40, 9)
    first = [tracker.update(f).track_ids.tolist() for f in (instances([mask]), instances([]))]
    assert first == [[0], []]
    assert tracker.ids == []
    assert tracker.update(instances([mask])).track_ids.tolist() == [1]
    tracker.reset()
    assert tracker.update(instances([mask]), 0).track_ids.tolist() == [0]


def test_backward_tracking_equals_forward_tracking() -> None:
    clip = [instances([disc(20, 10 + 3 * t, 5), disc(40, 70 - 3 * t, 5)]) for t in range(12)]
    tracker = IoUTracker()
    assert [tracker.update(clip[t], t).track_ids.tolist() for t in range(11, -1, -1)] == [
        [0, 1]
    ] * 12


def test_skipped_frames_count_in_the_motion() -> None:
    clip = [instances([disc(20, 6 + 2 * t, 5), disc(22, 74 - 2 * t, 5)]) for t in range(34)]
    tracker = IoUTracker()
    for t in (0, 1, 2, 12):
        assert tracker.update(clip[t], t).track_ids.tolist() == [0, 1]


def test_a_frame_that_is_given_twice_is_an_error() -> None:
    tracker = IoUTracker()
    tracker.update(instances([]), 3)
    with pytest.raises(TrackError, match="frame 3 was given before"):
        tracker.update(instances([]), 3)


@pytest.mark.parametrize("kind", ["pixels", "logits", "boxes"])
def test_expected_moves_the_last_masks(kind: str) -> None:
    options = {"logits": kind == "logits", "boxes_only": kind == "boxes"}
    tracker = IoUTracker()
    assert tracker.expected(5) is None
    for t in range(6):
        tracker.update(instances([disc(30, 10 + 2 * t, 6), disc(30, 74, 5)], **options), t)
    moved = tracker.expected(8)
    assert moved.track_ids.tolist() == [0, 1]
    true = instances([disc(30, 10 + 2 * 8, 6), disc(30, 74, 5)])
    assert np.abs(moved.boxes - true.boxes).max() <= 4
    assert np.abs(moved.boxes[0, ::2] - true.boxes[0, ::2]).max() < np.abs(4)
    if kind != "boxes":
        assert (moved.masks & true.masks).sum() > 0.8 * true.masks.sum()


def test_expected_leaves_out_objects_outside_the_image() -> None:
    tracker = IoUTracker()
    for t in range(8):
        tracker.update(instances([block(20, 40 + 4 * t, 10, 10), block(0, 0, 9, 9)]), t)
    assert tracker.expected(9).track_ids.tolist() == [0, 1]
    assert tracker.expected(13).track_ids.tolist() == [1]


def test_removed_tracks_end() -> None:
    tracker = IoUTracker()
    found = instances([disc(20, 20, 6), disc(40, 60, 6)], ["cat", "dog"])
    tracker.update(found)
    tracker.remove(0)
    assert tracker.ids == [1]
    tracker.remove_label("dog")
    assert tracker.ids == []
    assert tracker.update(found).track_ids.tolist() == [2, 3]


def test_a_thousand_detections() -> None:
    rng = np.random.default_rng(0)
    size = (500, 500)
    at = [(15 * (i // 32) + 4, 15 * (i % 32) + 4) for i in range(1000)]
    cells = [block(y, x, 9, 9, size) for y, x in at]
    found = instances(cells)
    tracker = IoUTracker()
    tracker.update(found)
    order = rng.permutation(1000)
    start = time.process_time()
    out = tracker.update(found[order])
    assert out.track_ids.tolist() == order.tolist()
    assert time.process_time() - start < 2


def test_ended_tracks_are_released() -> None:
    tracker = IoUTracker(IoUSettings(max_age=3))
    for t in range(200):
        tracker.update(instances([disc(30, 20 + 40 * (t % 2), 3)], f"thing {t}"), t)
    assert len(tracker.ids) <= 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"match_iou": 1.5}, "match_iou is between 0 and 1; got 1.5"),
        ({"min_hits": 0}, "min_hits is a whole number from 1; got 0"),
        ({"max_age": -1}, "max_age is a whole number from 0; got -1"),
        ({"max_distance": -2.0}, "max_distance is 0 or more lengths"),
    ],
)
def test_settings_out_of_range_are_errors(change: dict[str, float], words: str) -> None:
    with pytest.raises(TrackError, match=words):
        replace(IoUSettings(), **change)
