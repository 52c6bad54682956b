"""The convention of the `trackers` package: what goes in comes out, with identities."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from PIL import Image

from supervision_adapters import (
    AdapterError,
    ConceptDetector,
    MaskIoUTracker,
    PerClassTracker,
    iter_track,
    to_detections,
)

from .conftest import make, shapes


def strips(step: int, size: tuple[int, int] = (60, 80)) -> Any:
    """Two bars that cross each other like the lines of an X: their boxes are hard to tell."""
    masks = np.zeros((2, *size), bool)
    rows = np.arange(10, 50)
    for width in range(3):
        masks[0, rows, rows + step // 2 - 8 + width] = True
        masks[1, rows, 68 - rows - step // 2 + width] = True
    return to_detections(make(masks, ["cat", "cat"]))


def disc(x: float, size: tuple[int, int] = (48, 64), label: str = "cat", y: float = 20) -> Any:
    scale = size[0] / 48
    ys, xs = np.mgrid[: size[0], : size[1]]
    mask = (ys - y * scale) ** 2 + (xs - x * scale) ** 2 < (6 * scale) ** 2
    return to_detections(make(mask[None], [label]))


@pytest.fixture(params=["masks", "per class"])
def tracker(request: pytest.FixtureRequest) -> Any:
    return MaskIoUTracker() if request.param == "masks" else PerClassTracker(MaskIoUTracker)


def test_identities_follow_and_are_never_used_again(tracker: Any) -> None:
    seen = [tracker.update(disc(10 + 2 * i)).tracker_id.tolist() for i in range(10)]
    assert seen == [[0]] * 10
    for _ in range(40):
        tracker.update(to_detections(make(shapes()[:0])))
    assert tracker.update(disc(10)).tracker_id.tolist() == [1], "it was forgotten, and is another"
    tracker.reset()
    assert tracker.update(disc(40)).tracker_id.tolist() == [0]


def test_detections_come_out_as_they_went_in(tracker: Any) -> None:
    given = to_detections(make(shapes()))
    given.metadata["camera"] = "left"
    out = tracker.update(given, frame=np.zeros((48, 64, 3), np.uint8), timestamp=0.5)
    assert given.tracker_id is None, "the input was changed"
    assert np.array_equal(out.xyxy, given.xyxy) and np.array_equal(out.class_id, given.class_id)
    assert np.array_equal(np.asarray(out.mask), shapes())
    assert out.data["class_name"].tolist() == ["dog", "cat", "dog", "cat"]
    assert "_row" not in out.data and out.metadata == {"camera": "left"}
    assert out.tracker_id.dtype == int and sorted(out.tracker_id.tolist()) == [0, 1, 2, 3]
    back = tracker.update(given[::-1])
    assert back.tracker_id.tolist() == out.tracker_id.tolist()[::-1], "order matters"
    assert len(tracker.tracked_objects) == 4


def test_frames_without_anything(tracker: Any) -> None:
    assert tracker.tracked_objects.tracker_id.dtype == int
    for empty in (sv.Detections.empty(), to_detections(make(shapes()[:0]))):
        out = tracker.update(empty)
        assert len(out) == 0 and out.tracker_id.dtype == int and out.tracker_id.shape == (0,)
    assert tracker.update_with_detections(disc(10)).tracker_id.tolist() == [0]


def test_what_crosses_is_not_confused() -> None:
    tracker = MaskIoUTracker()
    rng = np.random.default_rng(0)
    for step in range(30):
        order = rng.permutation(2)
        out = tracker.update(strips(step)[order])
        assert out.tracker_id.tolist() == order.tolist(), step


def test_classes_do_not_mix(tracker: Any) -> None:
    assert tracker.update(disc(20, label="cat")).tracker_id.tolist() == [0]
    assert tracker.update(disc(20, label="dog")).tracker_id.tolist() == [1]
    assert tracker.update(disc(20, label="cat")).tracker_id.tolist() == [0]


def test_frames_change_their_size(tracker: Any) -> None:
    sizes = [(48, 64), (48, 64), (96, 128), (24, 32), (48, 64)]
    for i, size in enumerate(sizes):
        out = tracker.update(disc(20 + i, size))
        assert out.tracker_id.tolist() == [0] and out.mask.shape[1:] == size


def test_pending_until_seen_often_enough() -> None:
    tracker = MaskIoUTracker(minimum_consecutive_frames=3)
    seen = [tracker.update(disc(20 + i)).tracker_id.tolist() for i in range(4)]
    assert seen == [[-1], [-1], [0], [0]]
    assert len(tracker.tracked_objects) == 1


def test_weak_detections_go_on_but_do_not_begin() -> None:
    weak = disc(20)
    weak.confidence = np.array([0.2], np.float32)
    tracker = MaskIoUTracker(track_activation_threshold=0.5)
    assert tracker.update(weak).tracker_id.tolist() == [-1]
    assert tracker.update(disc(20)).tracker_id.tolist() == [0]
    assert tracker.update(weak).tracker_id.tolist() == [0]


def test_the_buffer_is_in_frames_at_thirty_a_second() -> None:
    empty = to_detections(make(shapes()[:0]))
    for rate, kept in ((30.0, 4), (60.0, 8)):
        tracker = MaskIoUTracker(lost_track_buffer=4, frame_rate=rate)
        tracker.update(disc(20))
        for _ in range(kept - 1):
            tracker.update(empty)
        assert tracker.update(disc(20)).tracker_id.tolist() == [0]
        for _ in range(kept + 1):
            tracker.update(empty)
        assert tracker.update(disc(20)).tracker_id.tolist() == [1]
    with pytest.raises(AdapterError, match="frame_rate more than 0"):
        MaskIoUTracker(frame_rate=0)


def test_boxes_alone_need_a_frame() -> None:
    boxes = sv.Detections(xyxy=np.array([[10, 10, 30, 30.0]]), class_id=np.array([0]))
    with pytest.raises(AdapterError, match=r"update\(detections, frame\)"):
        MaskIoUTracker().update(boxes)
    tracker, frame = MaskIoUTracker(), np.zeros((48, 64, 3), np.uint8)
    assert tracker.update(boxes, frame).tracker_id.tolist() == [0]
    boxes.xyxy += 2
    assert tracker.update(boxes).tracker_id.tolist() == [0]


def test_memory_is_flat(tracker: Any) -> None:
    """Also while objects come and go."""
    frames = [disc(10 + 10 * i) for i in range(4)]
    for i in range(60):
        tracker.update(frames[i % 4])
    tracemalloc.start(1)
    for i in range(60):
        tracker.update(frames[i % 4])
    before = tracemalloc.get_traced_memory()[0]
    for i in range(120):
        tracker.update(frames[i % 4])
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 8_000, f"{grown} bytes in 120 frames"


@pytest.mark.slow
@pytest.mark.slow
def test_two_thousand_frames_of_a_stream() -> None:
    """The process itself does not grow: frames, masks and tracks are let go."""
    psutil = pytest.importorskip("psutil")
    found = [disc(10 + 10 * i) for i in range(4)]
    numbers = iter(range(2000))
    stream = (np.zeros((240, 320, 3), np.uint8) for _ in range(2000))
    sizes = []
    for index, _, _ in iter_track(stream, MaskIoUTracker(), lambda _: found[next(numbers) % 4]):
        if index % 500 == 499:
            sizes.append(psutil.Process().memory_info().rss)
    assert sizes[-1] - sizes[0] < 4 << 20, sizes


def test_a_thousand_instances_in_a_frame() -> None:
    masks = np.zeros((1000, 100, 200), bool)
    for i, mask in enumerate(masks):
        y, x = divmod(i, 40)
        mask[y * 4 : y * 4 + 3, x * 5 : x * 5 + 4] = True
    found = to_detections(make(masks, ["cat"] * 1000))
    tracker = MaskIoUTracker()
    first = tracker.update(found).tracker_id
    assert sorted(first.tolist()) == list(range(1000))
    order = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(tracker.update(found[order]).tracker_id, first[order])


# Around other trackers -----------------------------------------------------------------------


PACKAGE = ["ByteTrackTracker", "SORTTracker", "OCSORTTracker", "BoTSORTTracker"]


class Backwards:
    """A tracker that gives its rows in another order, and leaves some out."""

    def __init__(self) -> None:
        self.frames: list[Any] = []

    def update(self, detections: Any, frame: Any = None) -> Any:
        self.frames.append(frame)
        detections.tracker_id = np.arange(len(detections)) + 7
        return detections[::-1][: max(len(detections) - 1, 0)]


def test_rows_find_back_to_their_detections() -> None:
    made: list[Backwards] = []

    def factory() -> Backwards:
        made.append(Backwards())
        return made[-1]

    tracker = PerClassTracker(factory)
    frame = np.zeros((48, 64, 3), np.uint8)
    out = tracker.update(to_detections(make(shapes())), frame)
    assert out.tracker_id.tolist() == [-1, -1, 0, 1]
    assert len(made) == 2 and made[0].frames[0] is frame
    tracker.update(disc(10), frame)
    assert [len(m.frames) for m in made] == [2, 2], "a class without detections has frames too"
    with pytest.raises(AdapterError, match="pass its class, or a lambda"):
        PerClassTracker(MaskIoUTracker())


@pytest.mark.parametrize("name", PACKAGE)
def test_every_tracker_of_the_package(name: str) -> None:
    trackers = pytest.importorskip("trackers")
    kind = getattr(trackers, name)
    tracker = PerClassTracker(kind)
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (48, 64, 3), np.uint8)
    for i in range(8):
        parts = [disc(10 + i, label="cat"), disc(50 - i, label="dog", y=36)]
        both = sv.Detections.merge([to_detections_named(p) for p in parts])
        out = tracker.update(both, frame)
        assert out.mask is not None and np.array_equal(out.xyxy, both.xyxy)
    assert sorted(out.tracker_id.tolist()) == [0, 1]
    tracker.reset()
    assert set(tracker.update(both, frame).tracker_id.tolist()) <= {-1, 0, 1}


def to_detections_named(detections: Any) -> Any:
    """With class 0 for cats and 1 for dogs."""
    detections.class_id = np.array([["cat", "dog"].index(n) for n in detections.data["class_name"]])
    detections.confidence = np.full(len(detections), 0.95, np.float32)
    return detections


def test_ours_is_one_of_the_package() -> None:
    base = pytest.importorskip("trackers.core.base").BaseTracker
    from supervision_adapters import register_with_trackers

    kind = register_with_trackers()
    assert register_with_trackers() is kind
    info = base._lookup_tracker("efficientsam3-mask-iou")
    assert info.tracker_class is kind and "lost_track_buffer" in info.parameters
    tracker = kind(lost_track_buffer=10)
    assert isinstance(tracker, base) and isinstance(tracker, MaskIoUTracker)
    assert tracker.update(disc(20)).tracker_id.tolist() == [0]
    assert len(tracker.tracked_objects) == 1
    tracker.reset()


# Streams -------------------------------------------------------------------------------------


def test_a_stream_of_frames(tiny: Any, photo: Any, tmp_path: Path) -> None:
    detector = ConceptDetector(tiny, ["cat"], threshold=0.3, color="bgr")
    frames = [np.roll(photo, i, 1)[..., ::-1].copy() for i in range(3)]
    out = list(iter_track(iter(frames), MaskIoUTracker(), detector))
    assert [i for i, _, _ in out] == [0, 1, 2]
    assert all(f is g for (_, f, _), g in zip(out, frames, strict=True))
    assert out[0][2].tracker_id.tolist() == list(range(len(out[0][2])))
    for i, frame in enumerate(frames):
        Image.fromarray(frame[..., ::-1]).save(tmp_path / f"{i}.png")
    for source in (tmp_path, str(tmp_path), sorted(tmp_path.iterdir())):
        read = list(iter_track(source, MaskIoUTracker(), detector))
        assert np.array_equal(read[1][1], frames[1]), "read frames have the detector's order"
        assert np.array_equal(read[1][2].xyxy, out[1][2].xyxy)


def test_a_stream_takes_any_detector_and_tracker(photo: Any) -> None:
    class Itself:
        def update(self, detections: Any, frame: Any) -> Any:
            assert detections is None
            return disc(20)

    ((_, _, out),) = iter_track([photo], Itself())
    assert len(out) == 1
    ((_, _, out),) = iter_track([photo], MaskIoUTracker(), lambda frame: disc(30))
    assert out.tracker_id.tolist() == [0]
