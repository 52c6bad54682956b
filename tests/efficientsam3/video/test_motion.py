"""Detections continue objects by motion where the memory's masks are poor."""

from __future__ import annotations

import pickle

import numpy as np

from efficientsam3.types import Array, Instances
from efficientsam3.video.motion import MotionLinks
from efficientsam3.video.settings import IoUSettings, TrackSettings

from .scripted import block, instances
from .test_adopt import GRID, SIZE, Poor, at, follow

SHOWN = TrackSettings(hotstart_delay=0, adopt_detection_iou=0.1)


def side_by_side(t: int) -> Instances:
    """Two dogs that move to the right; the second is where the first was six frames ago."""
    masks = [at(20, 4 + 3 * t), at(20, 24 + 3 * t)]
    return instances(masks, "dog", 0.9, size=SIZE, logits=True)


def test_a_memory_that_drifts_onto_a_neighbor_does_not_change_identities() -> None:
    def drawn(t: int, id: int) -> Array:  # from the third frame on, at the other dog
        return at(20, (4, 24)[id if t < 2 else 1 - id] + 3 * t)

    for frame in follow(side_by_side, 8, SHOWN, Poor(drawn)):
        found, shown = side_by_side(frame.index), frame.instances
        assert shown.track_ids.tolist() == [0, 1]  # type: ignore[union-attr]
        for row in range(2):
            assert np.array_equal(shown.mask(row), found.mask(row))


def test_a_memory_that_draws_elsewhere_begins_no_second_object() -> None:
    away = Poor(lambda t, id: at(34, 50, 8, 8))
    one = lambda t: instances([at(8, 4 + t)], "dog", 0.9, size=SIZE, logits=True)  # noqa: E731
    for frame in follow(one, 8, SHOWN, away):
        assert frame.instances.track_ids.tolist() == [0]  # type: ignore[union-attr]
        assert np.array_equal(frame.instances.mask(0), one(frame.index).mask(0))


def test_what_motion_does_not_join_is_joined_by_the_memory() -> None:
    """A dog is hidden, and comes back far away, where the memory draws it."""

    def script(t: int) -> Instances:
        masks = [at(4, 4)] if t < 2 else [] if t < 5 else [at(32, 48, 6, 12)]
        return instances(masks, "dog", 0.9, size=SIZE, logits=True)

    def drawn(t: int, id: int) -> Array:
        return at(4, 4) if t < 2 else np.zeros(GRID, bool) if t < 5 else at(33, 48, 6, 12)

    settings = TrackSettings(
        hotstart_delay=0, adopt_detection_iou=0.1, iou=IoUSettings(max_distance=0.0)
    )
    out = follow(script, 8, settings, Poor(drawn))
    ids = [frame.instances.track_ids.tolist() for frame in out]  # type: ignore[union-attr]
    assert ids == [[0]] * 2 + [[]] * 3 + [[0]] * 3


def test_links() -> None:
    links = MotionLinks(IoUSettings())
    links.read(0, side_by_side(0))
    memory = np.array([[0.2, 0.7], [0.6, 0.1]])
    assert np.array_equal(links.apply(memory, [0, 1], [5, 6]), memory)  # nothing is known yet
    links.bind(0, 5)
    links.bind(1, 6)
    links.read(1, side_by_side(1))
    assert np.array_equal(links.apply(memory, [0, 1], [5, 6]), np.eye(2))
    assert np.array_equal(links.apply(memory, [0, 1], [6, 7]), [[0, 0.7], [1, 0]])
    links = pickle.loads(pickle.dumps(links))
    links.forget(6)
    assert np.array_equal(links.apply(memory, [0, 1], [5, 6]), [[1, 0], [0, 0.1]])


def test_links_of_ended_tracks_are_forgotten() -> None:
    links = MotionLinks(IoUSettings(max_age=1, max_distance=0.0))
    for frame in range(40):  # no detection continues another
        links.read(frame, instances([block(0, 10 * (frame % 6), 8, 8)]))
        links.bind(0, 3)
    assert len(links._objects) <= 3


def test_boxes_are_enough() -> None:
    links = MotionLinks(IoUSettings())
    boxes = instances([block(10, 10, 20, 20)], boxes_only=True)
    links.read(0, boxes)
    links.bind(0, 3)
    links.read(1, boxes)
    assert links.apply(np.zeros((1, 1)), [0], [3]).tolist() == [[1]]


def test_a_detection_seen_beside_an_object_is_not_that_object() -> None:
    links = MotionLinks(IoUSettings(max_age=3, max_distance=0.0))
    left, right = block(20, 4, 8, 8), block(20, 44, 8, 8)
    links.read(0, instances([left, right]))
    links.bind(0, 5)
    drifted = np.array([[0.9]])
    links.read(1, instances([right]))  # the object left; its memory draws the other
    assert links.apply(drifted, [0], [5]).tolist() == [[0]]
    assert links.apply(drifted, [0], [6]).tolist() == [[0.9]]  # of this one nothing is known
    links.read(2, instances([right, block(0, 20, 8, 8)]))  # one that was not there before
    assert links.apply(np.array([[0.9], [0.9]]), [0, 1], [5]).tolist() == [[0], [0.9]]
    links.forget(5)
    assert links.apply(drifted, [0], [5]).tolist() == [[0.9]]
