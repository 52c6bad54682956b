"""Objects that a person points at: prompts, directions, corrections, streams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import efficientsam3 as es3
from efficientsam3.errors import TrackError
from efficientsam3.video import interactive
from efficientsam3.video.frame_cache import FrameCache
from efficientsam3.video.interactive import InteractiveTracker
from efficientsam3.video.memory_tracker import MemoryTracker
from efficientsam3.video.types import TrackedFrame

from .test_memory_tracker import box_masks, pictures

Picture = npt.NDArray[np.uint8]

LEFT, RIGHT = (4, 8, 24, 30), (36, 10, 60, 40)


@pytest.fixture(scope="module")
def clip() -> list[Picture]:
    return pictures(8)


@pytest.fixture
def tracker(tiny: es3.ImageModel, clip: list[Picture]) -> InteractiveTracker:
    return InteractiveTracker(tiny, clip)


def block(box: tuple[int, int, int, int]) -> npt.NDArray[np.bool_]:
    return box_masks(box)[0].numpy()


def frames_and_ids(run: Iterator[TrackedFrame]) -> list[tuple[int, list[int]]]:
    """The frames of a propagation, with the objects of each."""
    out = []
    for frame in run:
        assert frame.instances.track_ids is not None
        out.append((frame.index, frame.instances.track_ids.tolist()))
    return out


def same(ours: es3.Instances, theirs: es3.Instances) -> None:
    assert np.array_equal(ours.track_ids, theirs.track_ids)
    assert np.array_equal(ours.masks, theirs.masks)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


# Propagation ----------------------------------------------------------------------------------


def test_results_equal_those_of_the_memory_tracker(
    tiny: es3.ImageModel, tracker: InteractiveTracker, clip: list[Picture]
) -> None:
    tracker.add_mask(0, 5, block(LEFT))
    tracker.add_mask(0, 2, block(RIGHT))
    engine = MemoryTracker(tiny)
    for id, box in ((5, LEFT), (2, RIGHT)):
        engine.add_masks(0, engine.read(clip[0]), [id], box_masks(box))
    run = list(tracker.propagate())
    assert [f.index for f in run] == list(range(8))
    for t in range(1, 8):
        features = engine.read(clip[t])
        found = engine.propagate(t, features)
        engine.remember(t, features, found)
        ours = run[t].instances
        assert ours.track_ids is not None
        assert ours.track_ids.tolist() == [5, 2]
        assert ours.scores == pytest.approx(found.quality.numpy(), abs=1e-3)
        coarse = torch.nn.functional.interpolate(found.logits[None], (48, 64), mode="bilinear")
        agree = (torch.from_numpy(ours.masks) == (coarse[0] > 0)).float().mean().item()
        assert agree > 0.97, "holes are filled, nothing else differs"


def test_a_given_mask_is_shown_on_its_frame(tracker: InteractiveTracker) -> None:
    shown = tracker.add_mask(3, 0, block(LEFT))
    assert shown.size == (48, 64)
    assert (shown.masks[0] == block(LEFT)).mean() > 0.97
    first = next(tracker.propagate())
    assert first.index == 3
    same(first.instances, shown)
    assert first.instances.labels == ["object"]


def test_directions(tracker: InteractiveTracker) -> None:
    tracker.add_mask(2, 0, block(LEFT))
    tracker.add_mask(5, 1, block(RIGHT))
    assert frames_and_ids(tracker.propagate()) == [
        (2, [0]), (3, [0]), (4, [0]), (5, [0, 1]), (6, [0, 1]), (7, [0, 1])
    ]  # fmt: skip
    assert frames_and_ids(tracker.propagate("backward")) == [
        (5, [1]), (4, [1]), (3, [1]), (2, [0, 1]), (1, [0, 1]), (0, [0, 1])
    ]  # fmt: skip
    both = frames_and_ids(tracker.propagate("both"))
    assert both[:6] == [(2, [0]), (3, [0]), (4, [0]), (5, [0, 1]), (6, [0, 1]), (7, [0, 1])]
    assert both[6:] == [(4, [1]), (3, [1]), (2, [1]), (1, [0, 1]), (0, [0, 1])]
    pairs = [(t, id) for t, ids in both for id in ids]
    assert len(pairs) == len(set(pairs)) == 16, "each object once on each frame"


def test_propagation_of_some_frames_and_objects(tracker: InteractiveTracker) -> None:
    tracker.add_mask(1, 0, block(LEFT))
    tracker.add_mask(1, 1, block(RIGHT))
    assert frames_and_ids(tracker.propagate(start=2, stop=4)) == [(2, [0, 1]), (3, [0, 1])]
    assert frames_and_ids(tracker.propagate(ids=[1], stop=3)) == [(1, [1]), (2, [1])]
    assert frames_and_ids(tracker.propagate("backward", start=1, stop=-1))[-1] == (0, [0, 1])


def test_a_pause_changes_no_result(tiny: es3.ImageModel, clip: list[Picture]) -> None:
    unpaused, paused = (InteractiveTracker(tiny, clip) for _ in range(2))
    for tracker in (unpaused, paused):
        tracker.add_mask(0, 0, block(LEFT))
    without = list(unpaused.propagate())
    first = list(paused.propagate(stop=4))
    rest = list(paused.propagate(start=4))
    assert [f.index for f in first + rest] == list(range(8))
    for a, b in zip(without, first + rest, strict=True):
        same(a.instances, b.instances)


def test_a_second_propagation_gives_the_same_results(
    tiny: es3.ImageModel, clip: list[Picture]
) -> None:
    tracker = InteractiveTracker(tiny, clip)
    tracker.add_mask(0, 0, block(LEFT))
    once = list(tracker.propagate())
    again = list(tracker.propagate())
    for a, b in zip(once, again, strict=True):
        same(a.instances, b.instances)


# Corrections ----------------------------------------------------------------------------------


def test_a_correction_changes_its_frame_and_later_ones(tracker: InteractiveTracker) -> None:
    tracker.add_mask(0, 0, block(LEFT))
    before = list(tracker.propagate())
    corrected = tracker.add_points(4, 0, [[30, 30], [10, 40]], [0, 1])
    assert tracker.prompted(0) == [0, 4]
    assert not np.array_equal(corrected.masks, before[4].instances.masks)
    after = list(tracker.propagate(start=4))
    assert [f.index for f in after] == [4, 5, 6, 7]
    same(after[0].instances, corrected)
    assert not np.array_equal(after[1].instances.masks, before[5].instances.masks)


def test_a_correction_uses_the_tracked_mask(tiny: es3.ImageModel, clip: list[Picture]) -> None:
    """It uses the points alone when that mask is no longer kept."""
    tracker, fresh = InteractiveTracker(tiny, clip), InteractiveTracker(tiny, clip)
    tracker.add_mask(0, 0, block(LEFT))
    list(tracker.propagate())
    corrected = tracker.add_points(2, 0, [[30, 30]])
    from_points = fresh.add_points(2, 0, [[30, 30]])
    assert not np.array_equal(corrected.masks, from_points.masks)
    tracker._tracked.clear()
    tracker.remove_prompt(2, 0)
    same(tracker.add_points(2, 0, [[30, 30]]), from_points)


def test_clicks_on_a_frame_add_up_and_can_be_replaced(
    tiny: es3.ImageModel, clip: list[Picture]
) -> None:
    tracker = InteractiveTracker(tiny, clip)
    first = tracker.add_points(1, 3, [[20, 20]])
    tracker.add_points(1, 3, [[50, 40]], [0])
    assert tracker._clicks[3][1].xy.tolist() == [
        [pytest.approx(20 / 64), pytest.approx(20 / 48)],
        [pytest.approx(50 / 64), pytest.approx(40 / 48)],
    ]
    assert tracker._clicks[3][1].labels.tolist() == [1, 0]
    again = tracker.add_points(1, 3, [[20, 20]], replace=True)
    same(again, first)
    boxed = tracker.add_box(1, 3, [8, 6, 40, 36])
    assert tracker._clicks[3][1].labels.tolist() == [2, 3]
    interactive_answer = tiny.segment_objects(clip[1], boxes=[[8, 6, 40, 36]])
    assert boxed.scores == pytest.approx(interactive_answer.scores, abs=1e-3)
    tracker.add_points(1, 3, [[20, 20]], box=[8, 6, 40, 36])
    assert tracker._clicks[3][1].labels.tolist() == [2, 3, 1]


def test_the_first_and_last_eight_of_many_points_are_used(
    tracker: InteractiveTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    add = tracker.engine.add_points
    monkeypatch.setattr(
        tracker.engine, "add_points", lambda *args: asked.append(args[3]) or add(*args)
    )
    tracker.add_points(0, 0, [[x, 5] for x in range(20)])
    used = (asked[0][:, 0] * 64).round().int().tolist()
    assert used == [*range(8), *range(12, 20)]


def test_prompts_and_objects_are_removed(tracker: InteractiveTracker) -> None:
    tracker.add_mask(0, 0, block(LEFT))
    tracker.add_mask(2, 0, block(RIGHT))
    tracker.add_mask(0, 1, block(RIGHT))
    list(tracker.propagate(stop=4))
    tracker.remove_prompt(2, 0)
    assert tracker.prompted(0) == [0]
    assert frames_and_ids(tracker.propagate(stop=3)) == [(0, [0, 1]), (1, [0, 1]), (2, [0, 1])]
    tracker.remove_object(0)
    assert tracker.ids == tracker.engine.ids == [1]
    assert frames_and_ids(tracker.propagate(stop=2)) == [(0, [1]), (1, [1])]
    tracker.remove_prompt(0, 1)
    assert tracker.ids == []
    with pytest.raises(TrackError, match="no object was given yet"):
        tracker.propagate()
    tracker.add_points(0, 1, [[3, 3]])
    tracker.reset()
    assert tracker.ids == tracker.engine.ids == []
    assert tracker.engine.nbytes == 0


def test_an_absent_object_is_not_shown(
    tracker: InteractiveTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.add_mask(0, 0, block(LEFT))
    propagate = tracker.engine.propagate

    def absent(*args: object, **options: object) -> object:
        found = propagate(*args, **options)
        return found._replace(presence=found.presence - 100)

    monkeypatch.setattr(tracker.engine, "propagate", absent)
    assert frames_and_ids(tracker.propagate(stop=3)) == [(0, [0]), (1, []), (2, [])]


# Memory and sources -----------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_video(
    tiny: es3.ImageModel, clip: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interactive, "CACHED_MASKS", 5)
    read: list[int] = []

    def stream() -> Iterator[Picture]:
        for t in range(30):
            read.append(t)
            yield clip[t % 8]

    tracker = InteractiveTracker(tiny, stream(), max_cached_frames=6)
    tracker.add_mask(0, 0, block(LEFT))
    sizes = []
    for frame in tracker.propagate():
        assert read[-1] == frame.index, "nothing is read ahead"
        sizes.append(tracker.engine.nbytes)
    assert len(sizes) == 30
    assert sizes[20] == sizes[29]
    assert len(tracker._tracked) == 5
    assert len(tracker.frames._cached) == 6
    assert len(tracker._features) <= 4


def test_a_stream_takes_prompts_on_cached_frames(tiny: es3.ImageModel, clip: list[Picture]) -> None:
    tracker = InteractiveTracker(tiny, iter(clip), max_cached_frames=3)
    tracker.add_mask(0, 0, block(LEFT))
    for frame in tracker.propagate():
        if frame.index == 5:
            break
    tracker.add_points(4, 0, [[10, 10]])
    assert frames_and_ids(tracker.propagate(start=4)) == [(4, [0]), (5, [0]), (6, [0]), (7, [0])]
    with pytest.raises(TrackError, match="frame 2 of the stream has passed"):
        tracker.add_points(2, 1, [[10, 10]])


def test_frames_are_encoded_once(
    tiny: es3.ImageModel, clip: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = InteractiveTracker(tiny, clip)
    count = []
    read = tracker.engine.read
    monkeypatch.setattr(tracker.engine, "read", lambda image: count.append(1) or read(image))
    for x in (5, 10, 15):
        tracker.add_points(0, 0, [[x, 5]])
    tracker.add_mask(0, 1, block(RIGHT))
    assert len(count) == 1
    list(tracker.propagate())
    assert len(count) == 8


def test_a_rereadable_source_gives_any_frame(clip: list[Picture], tmp_path: Path) -> None:
    from PIL import Image

    for t, picture in enumerate(clip):
        Image.fromarray(picture).save(tmp_path / f"{t}.png")
    for source in (clip, np.stack(clip), tmp_path, str(tmp_path / "*.png")):
        cache = FrameCache(source, max_frames=3)
        assert cache.rereadable
        for index in (5, 2, 3, 0, 7, 6, 1):
            frame = cache.get(index)
            assert frame.index == index
            assert np.array_equal(frame.image, clip[index])
            assert len(cache._cached) <= 3
        assert [f.index for f in cache.forward(4)] == [4, 5, 6, 7]
        assert [f.index for f in cache.backward(5)] == [5, 4, 3, 2, 1, 0]
        with pytest.raises(TrackError, match="has no frame 8"):
            cache.get(8)


def test_reading_backward_rarely_reopens_the_source(
    clip: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientsam3.video import frame_cache as module

    opened: list[int] = []
    read = module.read_frames

    def counted(source: object, start: int = 0, **options: object) -> object:
        opened.append(start)
        return read(source, start=start, **options)

    monkeypatch.setattr(module, "read_frames", counted)
    cache = FrameCache(clip * 5, max_frames=11)
    assert [f.index for f in cache.backward(39)] == list(range(39, -1, -1))
    assert len(opened) <= 5


def test_cached_frames_are_bounded_in_bytes(clip: list[Picture]) -> None:
    cache = FrameCache(clip, max_frames=100, max_bytes=4 * clip[0].nbytes)
    for _ in cache.forward(0):
        assert len(cache._cached) <= 4
    assert [f.index for f in cache.backward(7)] == list(range(7, -1, -1))
    assert len(cache._cached) <= 4


def test_a_film(tiny: es3.ImageModel, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from .films import number, write_film

    path = write_film(tmp_path / "film.mp4", 12)
    tracker = InteractiveTracker(tiny, path, max_cached_frames=4)
    assert tracker.frames.rereadable
    tracker.add_points(6, 0, [[20, 20]])
    seen = [frame.index for frame in tracker.propagate("both")]
    assert seen == [*range(6, 12), *range(5, -1, -1)]
    for index in (9, 2, 11, 0):
        assert number(tracker.frame(index).image) == index
    tracker.close()


# Errors -----------------------------------------------------------------------------------------


def test_errors_name_the_value_and_the_rule(tracker: InteractiveTracker) -> None:
    with pytest.raises(TrackError, match="no object was given yet"):
        tracker.propagate()
    with pytest.raises(es3.PromptError, match="id is a whole number from 0"):
        tracker.add_points(0, -1, [[3, 3]])
    with pytest.raises(es3.PromptError, match="outside the image"):
        tracker.add_points(0, 0, [[300, 3]])
    with pytest.raises(es3.PromptError, match=r"a mask is \(H, W\) bool"):
        tracker.add_mask(0, 0, np.zeros((1, 48, 64), bool))
    with pytest.raises(es3.PromptError, match="pass logits > 0"):
        tracker.add_mask(0, 0, np.full((48, 64), 0.3))
    with pytest.raises(es3.PromptError, match="around one object"):
        tracker.add_box(0, 0, [[1, 1, 9, 9], [2, 2, 9, 9]])
    with pytest.raises(TrackError, match="the list has no frame 90"):
        tracker.add_points(90, 0, [[3, 3]])
    assert tracker.ids == [], "nothing is begun by a mistake"
    tracker.add_points(0, 0, [[3, 3]])
    with pytest.raises(TrackError, match="direction is one of forward, backward, both"):
        tracker.propagate("sideways")
    with pytest.raises(TrackError, match="goes through the whole video"):
        tracker.propagate("both", start=3)
    with pytest.raises(TrackError, match="no object 7 was given; these are: 0"):
        tracker.propagate(ids=[7])
    with pytest.raises(TrackError, match="object 0 has no prompt on frame 4"):
        tracker.remove_prompt(4, 0)
