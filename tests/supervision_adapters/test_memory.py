"""Objects followed by memory: the convention, on a tiny model with a memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import supervision as sv

import efficientsam3 as es3
from efficientsam3.config import tiny_config
from supervision_adapters import AdapterError, VideoMemoryTracker, iter_track, to_detections
from supervision_adapters.memory import match_objects

from ..conftest import tiny_model
from .conftest import make, shapes

LOW = es3.TrackSettings(hotstart_delay=0, detection_threshold=0.3, new_track_threshold=0.3)


def test_it_detects_by_itself(tiny: es3.ImageModel, photo: Any) -> None:
    tracker = VideoMemoryTracker(tiny, ["cat", "dog"], settings=LOW)
    expected = es3.ConceptTracker(tiny, ["cat", "dog"], tracker="memory", settings=LOW)
    for i in range(3):
        frame = np.roll(photo, i, 1)
        out = tracker.update(frame=frame)
        (said,) = expected.step(frame)
        assert out.tracker_id.tolist() == said.instances.track_ids.tolist()
        assert np.array_equal(np.asarray(out.mask), said.instances.masks)
        assert set(out.data["det_index"].tolist()) <= {-1}
        names = [tracker.class_names[i] for i in out.class_id]
        assert names == out.data["class_name"].tolist()
    assert len(out) > 0 and len(tracker.tracked_objects) == len(out)
    tracker.reset()
    assert tracker.update(frame=photo).tracker_id.tolist()[:1] == [0]


def test_frames_in_the_order_of_opencv(tiny: es3.ImageModel, photo: Any) -> None:
    rgb = VideoMemoryTracker(tiny, "cat", settings=LOW).update(frame=photo)
    bgr = VideoMemoryTracker(tiny, "cat", settings=LOW, color="bgr").update(frame=photo[..., ::-1])
    assert np.array_equal(rgb.xyxy, bgr.xyxy)


def test_two_classes_never_share_a_number(tiny: es3.ImageModel, photo: Any) -> None:
    """The detections' "dog" is 0 as the tracker's own "bird" is; exports go by the number."""
    tracker = VideoMemoryTracker(tiny, "bird", settings=LOW)
    out = tracker.update(to_detections(make(shapes()), class_names=["dog", "cat"]), photo)
    assert tracker.class_names == ["bird", "dog", "cat"]
    assert [tracker.class_names[i] for i in out.class_id] == out.data["class_name"].tolist()


def test_detections_of_others_come_back_with_their_classes(
    tiny: es3.ImageModel, photo: Any
) -> None:
    given = to_detections(make(shapes()), class_names=["fish", "cat", "owl", "dog"])
    tracker = VideoMemoryTracker(tiny, settings=LOW)
    for _ in range(3):
        out = tracker.update(given, photo)
        assert given.tracker_id is None and "det_index" not in given.data
        rows = out.data["det_index"]
        assert set(range(4)) <= set(rows.tolist()), "a detection is lost"
        of = rows >= 0
        assert np.array_equal(out.class_id[of], given.class_id[rows[of]])
        assert out.data["class_name"][of].tolist() == given.data["class_name"][rows[of]].tolist()
        assert [tracker.class_names[i] for i in out.class_id] == out.data["class_name"].tolist()
    assert tracker.class_names == ["class 0", "cat", "class 2", "dog"]
    pending = out[out.tracker_id == -1]
    assert np.array_equal(np.asarray(pending.mask), shapes()[pending.data["det_index"]])


def test_boxes_alone_get_masks_first(tiny: es3.ImageModel, photo: Any) -> None:
    boxes = sv.Detections(
        xyxy=np.array([[2, 3, 40, 30.0]]), confidence=np.array([0.9]), class_id=np.array([5])
    )
    out = VideoMemoryTracker(tiny, settings=LOW).update(boxes, photo)
    assert out.mask.shape[1:] == (48, 64) and set(out.class_id.tolist()) == {5}


def test_nothing_and_other_sizes(tiny: es3.ImageModel, photo: Any) -> None:
    tracker = VideoMemoryTracker(tiny, settings=LOW)
    assert tracker.tracked_objects.tracker_id.dtype == int
    for frame in (photo, photo[:30, :40], np.tile(photo, (2, 2, 1))):
        out = tracker.update(sv.Detections.empty(), frame)
        assert len(out) == 0 and out.tracker_id.dtype == int
        assert out.mask.shape == (0, *frame.shape[:2])
    tracker.update(to_detections(make(shapes())), photo)
    large = np.kron(photo, np.ones((2, 2, 1), np.uint8))
    out = tracker.update(sv.Detections.empty(), large)
    assert out.mask.shape[1:] == (96, 128)


def test_memory_stays_the_same(tiny: es3.ImageModel, photo: Any) -> None:
    tracker = VideoMemoryTracker(tiny, settings=LOW)
    tracker.update(to_detections(make(shapes()[:2])), photo)
    assert tracker.core._masklets is not None
    engine = tracker.core._masklets.engine
    sizes = []
    for _ in range(28):
        tracker.update(sv.Detections.empty(), photo)
        sizes.append(engine.nbytes)
    assert engine.ids == [0, 1] and sizes[0] < sizes[-1] == sizes[-6]


def test_what_it_refuses(tiny: es3.ImageModel, photo: Any) -> None:
    with pytest.raises(AdapterError, match="needs each frame"):
        VideoMemoryTracker(tiny, "cat").update(sv.Detections.empty())
    with pytest.raises(AdapterError, match="nothing to find"):
        VideoMemoryTracker(tiny).update(frame=photo)
    with pytest.raises(AdapterError, match="hotstart_delay=15 delays results"):
        VideoMemoryTracker(tiny, "cat", settings=es3.TrackSettings())
    without = tiny_model(config=tiny_config(parts=("geometry", "masks")))
    with pytest.raises(es3.MissingAbilityError, match="tracker='iou'"):
        VideoMemoryTracker(without, "cat")


def test_a_stream_without_a_detector(tiny: es3.ImageModel, photo: Any) -> None:
    frames = [np.roll(photo, i, 1) for i in range(3)]
    out = list(iter_track(frames, VideoMemoryTracker(tiny, "cat", settings=LOW)))
    assert len(out) == 3 and out[0][2].tracker_id is not None


def test_rows_are_found_by_class_and_mask() -> None:
    shown = make(shapes()[[2, 1]], ["dog", "dog"])
    assert match_objects(shown, make(shapes()), 0.5).tolist() == [2, -1], "the ring is a cat there"
    assert match_objects(shown, make(shapes()[:0]), 0.5).tolist() == [-1, -1]
