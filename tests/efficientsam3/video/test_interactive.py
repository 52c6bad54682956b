"""Objects that are pointed at: prompts anywhere, runs both ways, corrections, streams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import efficientsam3 as es3
from efficientsam3.video import interactive
from efficientsam3.video.concepts import TrackedFrame
from efficientsam3.video.interactive import InteractiveTracker
from efficientsam3.video.memory import MemoryTracker
from efficientsam3.video.settings import TrackError
from efficientsam3.video.shelf import Shelf

from .test_memory import box_masks, pictures

pytestmark = pytest.mark.usefixtures("one_thread")

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


def told(run: Iterator[TrackedFrame]) -> list[tuple[int, list[int]]]:
    """Frames of a run, and which objects each gives."""
    out = []
    for frame in run:
        assert frame.instances.track_ids is not None
        out.append((frame.index, frame.instances.track_ids.tolist()))
    return out


def same(ours: es3.Instances, theirs: es3.Instances) -> None:
    assert np.array_equal(ours.track_ids, theirs.track_ids)
    assert np.array_equal(ours.masks, theirs.masks)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


# Runs -----------------------------------------------------------------------------------------


def test_a_mask_is_followed_as_the_engine_follows_it(
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


def test_what_was_given_is_shown_where_it_was_given(tracker: InteractiveTracker) -> None:
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
    assert told(tracker.propagate()) == [
        (2, [0]), (3, [0]), (4, [0]), (5, [0, 1]), (6, [0, 1]), (7, [0, 1])
    ]  # fmt: skip
    assert told(tracker.propagate("backward")) == [
        (5, [1]), (4, [1]), (3, [1]), (2, [0, 1]), (1, [0, 1]), (0, [0, 1])
    ]  # fmt: skip
    both = told(tracker.propagate("both"))
    assert both[:6] == [(2, [0]), (3, [0]), (4, [0]), (5, [0, 1]), (6, [0, 1]), (7, [0, 1])]
    assert both[6:] == [(4, [1]), (3, [1]), (2, [1]), (1, [0, 1]), (0, [0, 1])]
    pairs = [(t, id) for t, ids in both for id in ids]
    assert len(pairs) == len(set(pairs)) == 16, "each object once on each frame"


def test_part_of_a_run(tracker: InteractiveTracker) -> None:
    tracker.add_mask(1, 0, block(LEFT))
    tracker.add_mask(1, 1, block(RIGHT))
    assert told(tracker.propagate(start=2, stop=4)) == [(2, [0, 1]), (3, [0, 1])]
    assert told(tracker.propagate(ids=[1], stop=3)) == [(1, [1]), (2, [1])]
    assert told(tracker.propagate("backward", start=1, stop=-1))[-1] == (0, [0, 1])


def test_a_run_that_pauses_goes_on_as_if_it_had_not(
    tiny: es3.ImageModel, clip: list[Picture]
) -> None:
    whole, paused = (InteractiveTracker(tiny, clip) for _ in range(2))
    for tracker in (whole, paused):
        tracker.add_mask(0, 0, block(LEFT))
    without = list(whole.propagate())
    first = list(paused.propagate(stop=4))
    rest = list(paused.propagate(start=4))
    assert [f.index for f in first + rest] == list(range(8))
    for a, b in zip(without, first + rest, strict=True):
        same(a.instances, b.instances)


def test_a_run_does_not_remember_the_one_before(tiny: es3.ImageModel, clip: list[Picture]) -> None:
    tracker = InteractiveTracker(tiny, clip)
    tracker.add_mask(0, 0, block(LEFT))
    once = list(tracker.propagate())
    again = list(tracker.propagate())
    for a, b in zip(once, again, strict=True):
        same(a.instances, b.instances)


# Corrections ----------------------------------------------------------------------------------


def test_a_correction_changes_the_frame_and_what_follows(tracker: InteractiveTracker) -> None:
    tracker.add_mask(0, 0, block(LEFT))
    before = list(tracker.propagate())
    corrected = tracker.add_points(4, 0, [[30, 30], [10, 40]], [0, 1])
    assert tracker.prompted(0) == [0, 4]
    assert not np.array_equal(corrected.masks, before[4].instances.masks)
    after = list(tracker.propagate(start=4))
    assert [f.index for f in after] == [4, 5, 6, 7]
    same(after[0].instances, corrected)
    assert not np.array_equal(after[1].instances.masks, before[5].instances.masks)


def test_a_correction_begins_from_the_mask_that_was_seen(
    tiny: es3.ImageModel, clip: list[Picture]
) -> None:
    """And from the clicks alone, once that mask is kept no more."""
    tracker, fresh = InteractiveTracker(tiny, clip), InteractiveTracker(tiny, clip)
    tracker.add_mask(0, 0, block(LEFT))
    list(tracker.propagate())
    mended = tracker.add_points(2, 0, [[30, 30]])
    anew = fresh.add_points(2, 0, [[30, 30]])
    assert not np.array_equal(mended.masks, anew.masks)
    tracker._seen.clear()
    tracker.remove_prompt(2, 0)
    same(tracker.add_points(2, 0, [[30, 30]]), anew)


def test_clicks_on_a_frame_add_up_and_can_be_replaced(
    tiny: es3.ImageModel, clip: list[Picture]
) -> None:
    tracker = InteractiveTracker(tiny, clip)
    first = tracker.add_points(1, 3, [[20, 20]])
    tracker.add_points(1, 3, [[50, 40]], [0])
    assert tracker._given[3][1].xy.tolist() == [
        [pytest.approx(20 / 64), pytest.approx(20 / 48)],
        [pytest.approx(50 / 64), pytest.approx(40 / 48)],
    ]
    assert tracker._given[3][1].labels.tolist() == [1, 0]
    again = tracker.add_points(1, 3, [[20, 20]], replace=True)
    same(again, first)
    boxed = tracker.add_box(1, 3, [8, 6, 40, 36])
    assert tracker._given[3][1].labels.tolist() == [2, 3]
    interactive_answer = tiny.segment_objects(clip[1], boxes=[[8, 6, 40, 36]])
    assert boxed.scores == pytest.approx(interactive_answer.scores, abs=1e-3)
    tracker.add_points(1, 3, [[20, 20]], box=[8, 6, 40, 36])
    assert tracker._given[3][1].labels.tolist() == [2, 3, 1]


def test_of_many_clicks_the_first_and_last_eight_count(
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


def test_prompts_and_objects_go(tracker: InteractiveTracker) -> None:
    tracker.add_mask(0, 0, block(LEFT))
    tracker.add_mask(2, 0, block(RIGHT))
    tracker.add_mask(0, 1, block(RIGHT))
    list(tracker.propagate(stop=4))
    tracker.remove_prompt(2, 0)
    assert tracker.prompted(0) == [0]
    assert told(tracker.propagate(stop=3)) == [(0, [0, 1]), (1, [0, 1]), (2, [0, 1])]
    tracker.remove_object(0)
    assert tracker.ids == tracker.engine.ids == [1]
    assert told(tracker.propagate(stop=2)) == [(0, [1]), (1, [1])]
    tracker.remove_prompt(0, 1)
    assert tracker.ids == []
    with pytest.raises(TrackError, match="no object was given yet"):
        tracker.propagate()
    tracker.add_points(0, 1, [[3, 3]])
    tracker.reset()
    assert tracker.ids == tracker.engine.ids == []
    assert tracker.engine.nbytes == 0


def test_who_is_not_there_is_not_shown(
    tracker: InteractiveTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.add_mask(0, 0, block(LEFT))
    propagate = tracker.engine.propagate

    def gone(*args: object, **options: object) -> object:
        found = propagate(*args, **options)
        return found._replace(presence=found.presence - 100)

    monkeypatch.setattr(tracker.engine, "propagate", gone)
    assert told(tracker.propagate(stop=3)) == [(0, [0]), (1, []), (2, [])]


# Memory and sources -----------------------------------------------------------------------------


def test_what_is_kept_does_not_grow(
    tiny: es3.ImageModel, clip: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interactive, "SEEN", 5)
    read: list[int] = []

    def stream() -> Iterator[Picture]:
        for t in range(30):
            read.append(t)
            yield clip[t % 8]

    tracker = InteractiveTracker(tiny, stream(), held=6)
    tracker.add_mask(0, 0, block(LEFT))
    sizes = []
    for frame in tracker.propagate():
        assert read[-1] == frame.index, "nothing is read ahead"
        sizes.append(tracker.engine.nbytes)
    assert len(sizes) == 30
    assert sizes[20] == sizes[29]
    assert len(tracker._seen) == 5
    assert len(tracker.frames._held) == 6
    assert len(tracker._features) <= 4


def test_a_stream_takes_prompts_on_frames_that_are_held(
    tiny: es3.ImageModel, clip: list[Picture]
) -> None:
    tracker = InteractiveTracker(tiny, iter(clip), held=3)
    tracker.add_mask(0, 0, block(LEFT))
    for frame in tracker.propagate():
        if frame.index == 5:
            break
    tracker.add_points(4, 0, [[10, 10]])
    assert told(tracker.propagate(start=4)) == [(4, [0]), (5, [0]), (6, [0]), (7, [0])]
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


def test_any_frame_of_what_can_be_read_again(clip: list[Picture], tmp_path: Path) -> None:
    from PIL import Image

    for t, picture in enumerate(clip):
        Image.fromarray(picture).save(tmp_path / f"{t}.png")
    for source in (clip, np.stack(clip), tmp_path, str(tmp_path / "*.png")):
        shelf = Shelf(source, held=3)
        assert shelf.rereadable
        for index in (5, 2, 3, 0, 7, 6, 1):
            frame = shelf.get(index)
            assert frame.index == index
            assert np.array_equal(frame.image, clip[index])
            assert len(shelf._held) <= 3
        assert [f.index for f in shelf.forwards(4)] == [4, 5, 6, 7]
        assert [f.index for f in shelf.backwards(5)] == [5, 4, 3, 2, 1, 0]
        with pytest.raises(TrackError, match="has no frame 8"):
            shelf.get(8)


def test_going_back_opens_the_source_once_in_a_while(
    clip: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientsam3.video import shelf as module

    opened: list[int] = []
    read = module.read_frames

    def counted(source: object, start: int = 0, **options: object) -> object:
        opened.append(start)
        return read(source, start=start, **options)

    monkeypatch.setattr(module, "read_frames", counted)
    shelf = Shelf(clip * 5, held=11)
    assert [f.index for f in shelf.backwards(39)] == list(range(39, -1, -1))
    assert len(opened) <= 5


def test_pictures_that_are_held_are_bounded_in_bytes(clip: list[Picture]) -> None:
    shelf = Shelf(clip, held=100, held_bytes=4 * clip[0].nbytes)
    for _ in shelf.forwards(0):
        assert len(shelf._held) <= 4
    assert [f.index for f in shelf.backwards(7)] == list(range(7, -1, -1))
    assert len(shelf._held) <= 4


def test_a_film(tiny: es3.ImageModel, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from .films import number, write_film

    path = write_film(tmp_path / "film.mp4", 12)
    tracker = InteractiveTracker(tiny, path, held=4)
    assert tracker.frames.rereadable
    tracker.add_points(6, 0, [[20, 20]])
    seen = [frame.index for frame in tracker.propagate("both")]
    assert seen == [*range(6, 12), *range(5, -1, -1)]
    for index in (9, 2, 11, 0):
        assert number(tracker.frame(index).image) == index
    tracker.close()


# Mistakes ---------------------------------------------------------------------------------------


def test_mistakes_are_named(tracker: InteractiveTracker) -> None:
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
    with pytest.raises(es3.PromptError, match="one box goes around one object"):
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
    with pytest.raises(TrackError, match="nothing was given of object 0 on frame 4"):
        tracker.remove_prompt(4, 0)
