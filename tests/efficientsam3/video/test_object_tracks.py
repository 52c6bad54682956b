"""Objects of frames are followed by their motion and their look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from efficientsam3.types import Array
from efficientsam3.video import object_tracks
from efficientsam3.video.object_tracks import ObjectTracks, distinct
from efficientsam3.video.types import FoundObjects

SIZE = (40, 40)
RED, ALSO_RED, BLUE = (1.0, 0.1, 0.0), (1.0, 0.0, 0.1), (0.0, 1.0, 0.0)
"""Looks of two things of one kind, and of another thing."""


def square(y: float, x: float, side: int = 6) -> Array:
    mask = np.zeros(SIZE, bool)
    top, left = round(y), round(x)
    mask[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = True
    return mask


def frame_of(
    *objects: tuple[Array, tuple[float, ...]], scores: Sequence[float] | None = None
) -> FoundObjects:
    masks = np.stack([mask for mask, _ in objects]) if objects else np.zeros((0, *SIZE), bool)
    logits = torch.where(torch.from_numpy(masks), 5.0, -5.0)
    certain = torch.tensor([0.9] * len(objects) if scores is None else list(scores))
    looks = torch.tensor([look for _, look in objects]).reshape(-1, 3)
    return FoundObjects(logits, certain, looks)


def test_things_of_one_kind_cross_by_their_motion() -> None:
    tracks = ObjectTracks()
    for t in range(8):
        right, left = square(10, 2 + 4 * t), square(13, 30 - 4 * t)
        there = [(right, RED), (left, ALSO_RED)]
        order = [0, 1] if t % 2 else [1, 0]
        tracks.read(t, frame_of(*(there[i] for i in order)))
        if not t:
            tracks.bind(order.index(0), 7, decided=True)
            tracks.bind(order.index(1), 8, decided=True)
        assert tracks.rows_of([7, 8]) == {7: order.index(0), 8: order.index(1)}, t


def test_things_of_two_kinds_are_told_apart_by_their_looks() -> None:
    tracks = ObjectTracks()
    tracks.read(0, frame_of((square(10, 10), RED), (square(10, 18), BLUE)))
    tracks.bind(0, 1, decided=True)
    tracks.bind(1, 2, decided=True)
    tracks.read(1, frame_of((square(10, 10), BLUE), (square(10, 18), RED)))
    assert tracks.rows_of([1, 2]) == {1: 1, 2: 0}


def test_an_object_that_was_hidden_is_found_again() -> None:
    tracks = ObjectTracks()
    tracks.read(0, frame_of((square(5, 5), RED)))
    tracks.bind(0, 1, decided=True)
    for t in range(1, 8):
        tracks.read(t, frame_of((square(20, 20), BLUE)))
        assert tracks.rows_of([1]) == {}
        assert tracks.knows(1)
    tracks.read(8, frame_of((square(20, 20), BLUE), (square(9, 14), RED)))
    assert tracks.rows_of([1]) == {1: 1}


def test_a_neighbor_that_nobody_tracks_is_not_taken_for_a_hidden_object() -> None:
    def shown(seen_before: bool) -> dict[int, int]:
        tracks = ObjectTracks()
        mine, other = (square(10, 10), RED), (square(10, 17), ALSO_RED)
        tracks.read(0, frame_of(mine, *[other] * seen_before))
        tracks.bind(0, 1, decided=True)
        tracks.read(1, frame_of(other))
        return tracks.rows_of([1])

    assert shown(seen_before=True) == {}
    assert shown(seen_before=False) == {1: 0}


def test_backward_travel_begins_where_the_object_was_given() -> None:
    tracks = ObjectTracks()

    def at(t: int) -> FoundObjects:
        return frame_of((square(10, 4 + 3 * t), RED), (square(10, 34 - 3 * t), ALSO_RED))

    tracks.read(2, at(2))
    tracks.bind(0, 1, decided=True)
    for t in range(3, 8):
        tracks.read(t, at(t))
        assert tracks.rows_of([1]) == {1: 0}, t
    for t in (1, 0):
        tracks.read(t, at(t))
        assert tracks.rows_of([1]) == {1: 0}, t


def test_a_decision_counts_more_than_what_was_followed() -> None:
    tracks = ObjectTracks()
    both = frame_of((square(10, 10), RED), (square(10, 28), BLUE))
    tracks.read(0, both)
    tracks.bind(0, 1)
    tracks.read(1, both)
    assert tracks.rows_of([1]) == {1: 0}
    tracks.bind(1, 1, decided=True)
    assert tracks.rows_of([1]) == {1: 1}
    for t in (2, 3):
        tracks.read(t, both)
        assert tracks.rows_of([1]) == {1: 1}


def test_an_object_is_placed_by_its_mask_where_the_frame_shows_none() -> None:
    tracks = ObjectTracks()
    tracks.read(0, frame_of((square(30, 30), BLUE)))
    tracks.place(1, square(10, 10))
    tracks.place(2, np.zeros(SIZE, bool))
    assert tracks.knows(1) and not tracks.knows(2)
    assert tracks.rows_of([1, 2]) == {} and tracks.taken() == set()
    tracks.read(1, frame_of((square(30, 30), BLUE), (square(10, 11), RED)))
    assert tracks.rows_of([1]) == {1: 1}


def test_a_forgotten_object_is_not_tracked_and_may_be_again() -> None:
    tracks = ObjectTracks()
    one = frame_of((square(10, 10), RED))
    tracks.read(0, one)
    tracks.bind(0, 1, decided=True)
    tracks.forget(1)
    tracks.forget(5)
    tracks.read(1, one)
    assert tracks.rows_of([1]) == {} and not tracks.knows(1)
    tracks.bind(0, 2)
    assert tracks.rows_of([2]) == {2: 0} and tracks.taken() == {0}


def test_reading_a_frame_twice_changes_nothing() -> None:
    tracks = ObjectTracks()
    tracks.read(0, frame_of((square(10, 10), RED)))
    tracks.bind(0, 1)
    tracks.read(0, frame_of((square(30, 30), BLUE)))
    assert tracks.rows_of([1]) == {1: 0}


@pytest.mark.parametrize("looks", [True, False], ids=["looks", "no looks"])
def test_frames_without_objects_and_objects_without_looks(looks: bool) -> None:
    tracks = ObjectTracks()
    one = frame_of((square(10, 10), RED))
    one = one if looks else one._replace(looks=None)
    tracks.read(0, one)
    tracks.bind(0, 1)
    tracks.read(1, frame_of())
    assert tracks.rows_of([1]) == {}
    tracks.read(2, one)
    assert tracks.rows_of([1]) == {1: 0}


def test_copies_and_specks_are_no_objects() -> None:
    speck = np.zeros(SIZE, bool)
    speck[3, 3] = True
    found = frame_of(
        (square(10, 10, 12), RED),
        (speck, RED),
        (square(10, 10, 12), BLUE),
        (square(10, 11, 6), RED),
        scores=[0.5, 0.9, 0.8, 0.6],
    )
    kept = distinct(found)
    assert kept.scores.tolist() == pytest.approx([0.8, 0.6])
    assert torch.equal(kept.logits, found.logits[[2, 3]])
    assert kept.looks is not None and found.looks is not None
    assert torch.equal(kept.looks, found.looks[[2, 3]])
    assert len(distinct(frame_of()).scores) == 0


def test_what_is_kept_does_not_grow_with_the_video() -> None:
    tracks = ObjectTracks()
    for t in range(60):
        tracks.read(t, frame_of((square(10, 10), RED), (square((7 * t) % 30, 30), BLUE)))
        tracks.bind(0, 1, decided=True)
    assert len(tracks._tracks) <= 2 + object_tracks.MAX_AGE
    assert all(len(t.decided) <= object_tracks.MOST_PLACES for t in tracks._tracks)
