"""``es3.track`` and ``ConceptTracker``, with scripted detections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import efficientsam3 as es3
from efficientsam3.errors import TrackError
from efficientsam3.io.frame_types import Frame
from efficientsam3.types import Instances
from efficientsam3.video.concept_tracker import ConceptTracker

from .scripted import ScriptedModel, block, disc, frames, instances


def two_cats_and_a_dog(t: int) -> Instances:
    masks = [disc(15, 10 + 2 * t, 6), disc(45, 60 - 2 * t, 6), block(25, 30 + t, 8, 12)]
    return instances(masks, ["cat", "cat", "dog"], [0.9, 0.8, 0.7])


def test_identities_are_unique_over_concepts() -> None:
    model = ScriptedModel(two_cats_and_a_dog)
    out = list(es3.track(model, frames(5), ["cat", "dog"], tracker="iou"))
    assert [f.index for f in out] == [0, 1, 2, 3, 4]
    assert [f.time for f in out] == [0, 0.1, 0.2, 0.3, 0.4]
    for f in out:
        assert f.instances.track_ids.tolist() == [0, 1, 2]
        assert f.instances.labels == ["cat", "cat", "dog"]
        assert f.image is None
        assert np.array_equal(f.instances.masks, two_cats_and_a_dog(f.index).masks)


def test_frames_are_read_lazily() -> None:
    """An endless source; no frame is read before it is asked for."""
    read = []

    def camera() -> Iterator[Frame]:
        for frame in iter(lambda: frames(1, first=len(read))[0], None):
            read.append(frame.index)
            yield frame

    stream = es3.track(ScriptedModel(two_cats_and_a_dog), camera(), "cat", tracker="iou")
    assert read == []
    for expected in range(3):
        assert next(stream).index == expected
        assert read == list(range(expected + 1))


def test_the_detector_runs_on_every_nth_frame() -> None:
    model = ScriptedModel(two_cats_and_a_dog)
    out = list(es3.track(model, frames(10), ["cat"], tracker="iou", detect_every=3))
    assert model.read == [0, 3, 6, 9]
    assert len(out) == 10
    for f in out[4:]:
        assert f.instances.track_ids.tolist() == [0, 1]
        true = two_cats_and_a_dog(f.index).masks[:2]
        assert (f.instances.masks & true).sum() > 0.7 * true.sum()


def test_keep_images() -> None:
    clip = frames(2)
    model = ScriptedModel(two_cats_and_a_dog)
    out = list(es3.track(model, clip, "dog", tracker="iou", keep_images=True))
    assert all(np.array_equal(f.image, c.image) for f, c in zip(out, clip, strict=True))


def test_a_concept_without_detections_and_an_empty_clip() -> None:
    model = ScriptedModel(two_cats_and_a_dog)
    out = list(es3.track(model, frames(3), ["unicorn"], tracker="iou"))
    assert [len(f.instances) for f in out] == [0, 0, 0]
    assert out[0].instances.track_ids.shape == (0,)
    assert out[0].instances.size == (60, 80)
    assert list(es3.track(model, [], ["cat"], tracker="iou")) == []


def test_concepts_are_added_and_removed_in_mid_stream() -> None:
    tracker = ConceptTracker(
        ScriptedModel(two_cats_and_a_dog), "cat", tracker="iou", detect_every=4
    )
    clip = frames(8)
    assert tracker.step(clip[0])[0].instances.track_ids.tolist() == [0, 1]
    tracker.add_concept("dog")
    (second,) = tracker.step(clip[1])  # on the next frame, though detect_every is not due
    assert second.instances.track_ids.tolist() == [0, 1, 2]
    tracker.remove_concept("cat")
    tracker.remove_object(2)
    assert tracker.ids == []
    (third,) = tracker.step(clip[2])
    assert len(third.instances) == 0
    assert tracker.concepts == ("dog",)
    with pytest.raises(es3.PromptError, match="'cat' is not tracked; concepts are dog"):
        tracker.remove_concept("cat")


def test_exemplars_are_used_on_their_frame() -> None:
    model = ScriptedModel(two_cats_and_a_dog)
    tracker = ConceptTracker(model, ["cat", "dog"], tracker="iou")
    tracker.add_exemplars([[0, 0, 9, 9]], concept="cat", frame=2)
    for frame in frames(4):
        assert tracker.step(frame)[0].instances.track_ids.tolist() == [0, 1, 2]
    assert [(i, c) for i, c, boxes in model.asked if boxes is not None] == [(2, "cat")]
    assert (2, ["dog"], None) in model.asked
    with pytest.raises(TrackError, match="frame 1 has passed"):
        tracker.add_exemplars([[0, 0, 9, 9]], concept="cat", frame=1)
    with pytest.raises(es3.MissingAbilityError, match="Name a concept that the boxes refine"):
        tracker.add_exemplars([[0, 0, 9, 9]])


def test_detections_of_another_detector() -> None:
    model = ScriptedModel(lambda _: instances([]))
    tracker = ConceptTracker(model, tracker="iou")
    for t, frame in enumerate(frames(3)):
        (out,) = tracker.step(frame, two_cats_and_a_dog(t))
        assert out.instances.track_ids.tolist() == [0, 1, 2]
    assert model.read == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"tracker": "box"}, TrackError, "tracker is 'auto', 'memory', 'iou'; got 'box'"),
        ({"detect_every": 0}, TrackError, "detect_every is a whole number of frames from 1; got 0"),
        ({"threshold": 2.0}, TrackError, "detection_threshold is between 0 and 1; got 2"),
        ({"tracker": "memory"}, es3.MissingAbilityError, "no video memory"),
        ({"concepts": None}, es3.PromptError, "nothing to track"),
        ({"concepts": ["a", "b"], "boxes": [[0, 0, 5, 5]]}, es3.PromptError, "boxes show one"),
    ],
)
def test_errors_come_before_a_frame_is_read(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    def source() -> Iterator[Frame]:
        raise RuntimeError("read")
        yield

    options = {"concepts": ["cat"], **options}
    with pytest.raises(error, match=words):
        es3.track(ScriptedModel(two_cats_and_a_dog), source(), **options)


def test_tracking_with_a_real_memory(tiny: es3.ImageModel) -> None:
    """Detector, memory, decisions and results together, with every delay."""
    rng = np.random.default_rng(0)
    clip = [rng.integers(0, 255, (40, 56, 3), np.uint8)] * 5
    once = es3.TrackSettings(hotstart_delay=0, new_track_threshold=0.2, detection_threshold=0.3)
    late = replace(once, hotstart_delay=4, hotstart_unmatched=4, hotstart_duplicates=4)
    out = list(es3.track(tiny, clip, ["cat", "dog"], settings=once))
    assert [f.index for f in out] == list(range(5))
    followed = [set(f.instances.track_ids.tolist()) for f in out]
    assert followed[0]
    assert followed[0] & followed[-1]
    for f in out:
        labels = dict(zip(f.instances.track_ids.tolist(), f.instances.labels, strict=True))
        assert len(labels) == len(f.instances)
        for concept in ("cat", "dog"):
            rows = [i for i, name in enumerate(f.instances.labels) if name == concept]
            assert f.instances[rows].masks.sum(0).max(initial=0) <= 1
    waited = list(es3.track(tiny, clip, ["cat", "dog"], settings=late, detect_every=2))
    assert [f.index for f in waited] == list(range(5))
    tracker = ConceptTracker(tiny, "cat", settings=once)
    assert tracker.tracker == "memory"
    tracker.step(clip[0])
    pointed = tracker.add_object(points=[[20, 20]])
    corrected = tracker.add_object(track_id=int(pointed.track_ids[0]), box=[10, 10, 30, 30])
    assert corrected.track_ids.tolist() == pointed.track_ids.tolist()
    tracker.add_exemplars([[5, 5, 25, 25]], concept="cat")
    tracker.step(clip[1])
    tracker.remove_object(int(pointed.track_ids[0]))
    tracker.step(clip[2])


def test_a_reversed_source_is_tracked_backward() -> None:
    model = ScriptedModel(two_cats_and_a_dog)
    out = list(es3.track(model, reversed(frames(5)), ["cat", "dog"], tracker="iou"))
    assert [f.index for f in out] == [4, 3, 2, 1, 0]
    assert [f.instances.track_ids.tolist() for f in out] == [[0, 1, 2]] * 5
