"""Concepts tracked by memory, with a scripted detector and a scripted tracker."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import efficientsam3 as es3
from efficientsam3.errors import TrackError
from efficientsam3.types import Array, Instances
from efficientsam3.video.concept_tracker import ConceptTracker
from efficientsam3.video.settings import TrackSettings

from .scripted import ScriptedMemory, ScriptedModel, block, frames, instances
from .scripted_worlds import GRID, NOW, Oracle, at, crossing, detect, follow, ids


def test_crossing_objects_keep_their_identities() -> None:
    out = follow(crossing, 17, ["cat"])
    assert ids(out) == [[0, 1]] * 17
    for f in out[::4]:
        true = crossing(f.index)["cat 1"]
        assert abs(int(f.instances.mask(1).sum()) - true.sum() * 60 / 48 * 80 / 64) < 60


def test_an_object_that_leaves_and_returns_keeps_its_identity() -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 20) if t < 4 or t > 9 else at(0, 0, 0, 0), "cat 1": at(30, 40)}

    assert ids(follow(world, 14, ["cat"])) == [[0, 1]] * 4 + [[1]] * 6 + [[0, 1]] * 4


def test_concepts_are_independent() -> None:
    """Pixels of a wheel belong to the car too; each concept has its own identities."""

    def world(t: int) -> dict[str, Array]:
        return {"car 0": at(10, 5 + t, 20, 40), "wheel 0": at(20, 10 + t, 8, 8)}

    out = follow(world, 5, ["wheel", "car"])
    assert ids(out) == [[0, 1]] * 5
    for f in out:
        assert f.instances.labels == ["wheel", "car"]
        assert (f.instances.masks.all(0)).sum() > 50  # pixels of both
        assert f.instances.concepts == ("wheel", "car")


def test_objects_of_a_concept_share_no_pixel() -> None:
    def world(_: int) -> dict[str, Array]:
        return {"cat 0": at(10, 10, 20, 20), "cat 1": at(10, 29, 20, 20)}

    def found(t: int) -> Instances:
        return detect(lambda _: {"cat 0": at(10, 10, 20, 20), "cat 1": at(10, 27, 20, 20)})(t)

    def overlapping(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 10, 20, 20), "cat 1": at(10, 27 if t else 29, 20, 20)}

    apart = follow(overlapping, 3, ["cat"], found)
    shared = follow(overlapping, 3, ["cat"], found, settings=replace(NOW, allow_overlap=True))
    assert not apart[2].instances.masks.all(0).any()
    assert shared[2].instances.masks.all(0).any()
    assert ids(apart) == ids(shared) == [[0, 1]] * 3


def test_max_objects_keeps_the_highest_scores() -> None:
    def world(t: int) -> dict[str, Array]:
        return {f"cat {i}": at(4 + 14 * (i // 4), 2 + 15 * (i % 4)) for i in range(12)}

    def found(t: int) -> Instances:
        all_of_them = detect(world)(t)
        return replace(all_of_them, scores=np.linspace(0.71, 0.99, 12).astype(np.float32))

    out = follow(world, 3, ["cat"], found, settings=replace(NOW, max_objects=5))
    assert ids(out) == [[0, 1, 2, 3, 4]] * 3
    assert out[0].instances.scores.min() > 0.88


def test_a_concept_without_detections_empty_frames_and_empty_clips() -> None:
    out = follow(lambda _: {}, 4, ["unicorn"])
    assert ids(out) == [[]] * 4
    assert out[0].instances.size == (60, 80)
    assert follow(lambda _: {}, 0, ["unicorn"]) == []


def test_frames_that_change_size() -> None:
    model = ScriptedModel(detect(crossing))
    tracker = ConceptTracker(model, "cat", tracker=Oracle(crossing), settings=NOW)
    for t, size in enumerate([(60, 80), (31, 200), (19, 20), (60, 80)]):
        (out,) = tracker.step(frames(1, size, first=t)[0])
        assert out.instances.size == size
        assert out.instances.track_ids.tolist() == [0, 1]
        assert out.instances.masks.shape == (2, *size)


def test_backward_tracking_equals_forward_tracking_of_the_reversed_clip() -> None:
    turned = lambda t: crossing(16 - t)  # noqa: E731
    forward = follow(turned, 17, ["cat"])
    model = ScriptedModel(detect(crossing))
    tracker = ConceptTracker(model, "cat", tracker=Oracle(turned), settings=NOW)
    backward = [out for frame in reversed(frames(17)) for out in tracker.step(frame)]
    assert [f.index for f in backward] == list(range(16, -1, -1))
    for one, other in zip(forward, backward, strict=True):
        assert one.instances.track_ids.tolist() == other.instances.track_ids.tolist()
        assert np.array_equal(one.instances.masks, other.instances.masks)
    with pytest.raises(TrackError, match="frame 5 after frame 0: a stream has each frame once"):
        tracker.step(frames(1, first=5)[0])


def test_objects_are_tracked_by_memory_between_detections() -> None:
    model = ScriptedModel(detect(crossing))
    tracker = ConceptTracker(model, "cat", tracker=Oracle(crossing), settings=NOW, detect_every=4)
    out = [done for frame in frames(9) for done in tracker.step(frame)]
    assert model.read == [0, 4, 8]
    assert ids(out) == [[0, 1]] * 9


def test_misses_count_for_all_frames_until_the_next_detection() -> None:
    """With detect_every=4, two missed detections are the 8 frames of SAM3's rule."""

    def found(t: int) -> Instances:
        return detect(crossing if t == 0 else lambda _: {})(t)

    model = ScriptedModel(found)
    tracker = ConceptTracker(model, "cat", tracker=Oracle(crossing), detect_every=4)
    without = []
    for t, frame in enumerate(frames(10)):
        tracker.step(frame)
        without += [t] if not tracker.ids else []
    assert without == [8, 9]


def test_concepts_and_objects_change_in_mid_stream() -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 5 + t), "dog 0": at(30, 30), "cat 1": at(10, 40)}

    model = ScriptedModel(detect(world))
    settings = TrackSettings(hotstart_delay=3, hotstart_unmatched=2, hotstart_duplicates=2)
    tracker = ConceptTracker(model, "cat", tracker=Oracle(world), settings=settings)
    out = []
    for t, frame in enumerate(frames(9)):
        if t == 3:
            tracker.add_concept("dog")
        if t == 6:
            tracker.remove_object(1)
        if t == 8:
            tracker.remove_concept("dog")
        out += tracker.step(frame)
    out += tracker.flush()
    # A removed object disappears from the two delayed frames, and cat 1 is found again.
    assert ids(out) == [[0, 1]] * 3 + [[0, 1, 2]] + [[0, 2]] * 2 + [[0, 3]] * 3
    assert tracker.ids == [0, 3]
    assert out[5].instances.labels == ["cat", "dog"]


def test_objects_of_exemplars_are_tracked_by_memory() -> None:
    """The detector does not run on later frames, so no object becomes unmatched."""

    def world(t: int) -> dict[str, Array]:
        return {"visual 0": at(10, 5 + t), "cat 0": at(30, 30)}

    model = ScriptedModel(detect(world))
    tracker = ConceptTracker(model, "cat", tracker=Oracle(world))
    tracker.add_exemplars([[0, 0, 9, 9]], frame=2)
    out = [done for frame in frames(24) for done in tracker.step(frame)] + tracker.flush()
    assert ids(out) == [[0]] * 2 + [[0, 1]] * 22
    assert [i for i, _, boxes in model.asked if boxes is not None] == [2]
    assert out[-1].instances.labels == ["cat", "visual"]


def test_an_object_is_pointed_at_and_corrected() -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 10)}

    engine = Oracle(world)
    tracker = ConceptTracker(ScriptedModel(detect(world)), "cat", tracker=engine, settings=NOW)
    clip = frames(3)
    with pytest.raises(TrackError, match="no frame was given yet"):
        tracker.add_object(points=[[4, 4]])
    tracker.step(clip[0])
    new = tracker.add_object(points=[[40, 30]])
    assert new.track_ids.tolist() == [1]
    assert new.labels == ["object"]
    assert new.mask(0)[30, 40]
    assert engine.pointed[2] is None
    engine.names[1] = "cat 0"
    tracker.step(clip[1])
    better = tracker.add_object(track_id=0, box=[4, 6, 20, 20], points=[[5, 5]], point_labels=[0])
    xy, labels, previous = engine.pointed
    assert np.allclose(xy.numpy(), [[0.05, 0.1], [0.25, 1 / 3], [5 / 80, 5 / 60]])
    assert labels.tolist() == [2, 3, 0]
    assert previous.shape == GRID
    assert better.labels == ["cat"]
    assert better.scores.tolist() == [1]
    assert engine.conditioned(0) == [1]  # its detection on frame 0 no longer conditions it
    drawn = tracker.add_object(mask=np.ones((60, 80), bool), concept="wall")
    assert drawn.labels == ["wall"]
    assert tracker.ids == [0, 1, 2]
    with pytest.raises(TrackError, match="no object 7 is tracked; these are: 0, 1, 2"):
        tracker.add_object(track_id=7, points=[[4, 4]])
    with pytest.raises(es3.PromptError, match="nothing is pointed at"):
        tracker.add_object()


def test_pointing_changes_the_delayed_frame() -> None:
    world = lambda _: {}  # noqa: E731
    tracker = ConceptTracker(ScriptedModel(detect(world)), "cat", tracker=Oracle(world))
    clip = frames(2)
    tracker.step(clip[0])
    tracker.add_object(points=[[40, 30]])
    tracker.step(clip[1])
    assert ids(tracker.flush()) == [[0], []]


def test_objects_that_a_person_points_at_are_not_removed() -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 10)}

    tracker = ConceptTracker(ScriptedModel(detect(lambda _: {})), "cat", tracker=Oracle(world))
    clip = frames(20)
    tracker.step(clip[0])
    tracker.add_object(mask=block(12, 12, 12, 12), concept="cat")
    out = [done for frame in clip[1:] for done in tracker.step(frame)]
    assert ids(out)[1:] == [[0]] * (len(out) - 1)


def test_the_iou_tracker_takes_no_points() -> None:
    tracker = ConceptTracker(ScriptedModel(detect(crossing)), "cat", tracker="iou")
    tracker.step(frames(1)[0])
    with pytest.raises(es3.MissingAbilityError, match="tracked by memory"):
        tracker.add_object(points=[[4, 4]])


def test_another_detectors_detections() -> None:
    """Masks are pixels; in a frame without detections all objects are unmatched."""
    settings = replace(NOW, hide_unmatched=True, keep_alive_init=1, keep_alive_max=1)
    tracker = ConceptTracker(None, tracker=Oracle(crossing), settings=settings)
    rescaled = instances([block(12, 2, 25, 10), block(15, 62, 25, 10)], "cat")
    clip = frames(3)
    (first,) = tracker.step(clip[0], rescaled)
    assert np.array_equal(first.instances.masks, rescaled.masks)
    (second,) = tracker.step(clip[1], instances([]))
    assert ids([first, second]) == [[0, 1], []]
    assert tracker.ids == [0, 1]


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_thousand_detections(count: int) -> None:
    size = (96, 96)
    boxes = [block(3 * (i // 32), 3 * (i % 32), 2, 2, size) for i in range(count)]

    def see(_: int, id: int) -> tuple[Array, float]:
        return np.where(boxes[id], np.float32(3), np.float32(-3)), 5.0

    found = instances(boxes, "cell", size=size, logits=True)
    tracker = ConceptTracker(None, tracker=ScriptedMemory(see), settings=NOW)
    for frame in frames(2, size):
        (out,) = tracker.step(frame, found)
        assert out.instances.track_ids.tolist() == list(range(count))


@pytest.mark.slow
@pytest.mark.parametrize("count", [160, pytest.param(2000, marks=pytest.mark.slow)])
def test_memory_is_flat(count: int) -> None:
    """Objects appear and disappear all the time; images are kept while frames are delayed."""
    small = (16, 16)

    def world(t: int) -> dict[str, Array]:
        return {
            f"cat {i}": block(4 * (i % 3), (3 * (t - 40 * i)) % 60 - 8, 4, 5, small)
            for i in range(max(0, t // 40 - 1), t // 40 + 1)
        }

    def script(t: int) -> Instances:
        there = {n: m for n, m in world(t).items() if m.any()}
        return instances(list(there.values()), "cat", size=small, logits=True)

    class Small(Oracle):
        def see(self, frame: int, id: int) -> tuple[Array, float]:
            mask = self.world(frame).get(self.names.get(id, ""))
            if mask is None or not mask.any():
                return np.full(small, -1024.0), -5.0
            return np.where(mask, 5.0, -5.0), 5.0

        def add_masks(
            self, frame: int, features: Any, ids: list[int], masks: Any, shared: str | None = None
        ) -> Any:
            for id, mask in zip(ids, masks.numpy(), strict=True):
                near = {n: (mask[::4, ::4] & m).sum() for n, m in self.world(frame).items()}
                self.names.setdefault(id, max(near, key=near.get, default=""))
            self.remembered.clear()
            return ScriptedMemory.add_masks(self, frame, features, ids, masks)

        def remove(self, ids: list[int]) -> None:
            super().remove(ids)
            for id in ids:
                del self.names[id]

    settings = TrackSettings(max_age=30)
    engine = Small(world)
    tracker = ConceptTracker(None, tracker=engine, settings=settings, keep_images=True)
    used, most = [], 0
    tracemalloc.start()
    for t in range(count):
        frame = frames(1, small, first=t)[0]
        tracker.step(frame, script(t))
        engine.remembered.clear()
        most = max(most, len(tracker.ids))
        if t in (count // 2 - 1, count - 1):
            gc.collect()
            used.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert tracker._masklets._next_id > count // 50
    assert most < 12
    # Caches fill by some 20 kB; a picture a frame would be 61 kB and more.
    assert used[1] - used[0] < 40_000


def test_objects_end_after_max_age() -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 20) if t < 3 or t > 12 else at(0, 0, 0, 0)}

    shown = ids(follow(world, 15, ["cat"], settings=replace(NOW, max_age=5)))
    assert shown == [[0]] * 3 + [[]] * 10 + [[1]] * 2
    assert ids(follow(world, 15, ["cat"], settings=replace(NOW, max_age=0)))[-1] == [0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"new_track_threshold": 1.2}, "new_track_threshold is between 0 and 1; got 1.2"),
        ({"hotstart_delay": -1}, "hotstart_delay is a whole number from 0; got -1"),
        ({"hotstart_delay": 5}, "hotstart_unmatched is from 1 to hotstart_delay, 5 frames; got 8"),
        ({"max_objects": 0}, "max_objects is a whole number from 1; got 0"),
    ],
)
def test_settings_out_of_range_are_errors(change: dict[str, Any], words: str) -> None:
    with pytest.raises(TrackError, match=words):
        TrackSettings(**change)
