"""Cuts are found and end tracks, with every tracker; flashes, fades and pans are none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import efficientsam3 as es3
from efficientsam3.errors import TrackError
from efficientsam3.video.concept_tracker import ConceptTracker
from efficientsam3.video.cuts import CutDetector
from efficientsam3.video.interactive import InteractiveTracker
from efficientsam3.video.settings import CutSettings, IoUSettings, TrackSettings
from efficientsam3.video.track_file import from_record, to_record

from .films import SIZE, Pixels, Seer, scene, shot, view


def cuts(frames: Sequence[Pixels], settings: CutSettings | None = None) -> list[int]:
    detector = CutDetector(settings)
    return [i for i, frame in enumerate(frames) if detector.is_cut(frame)]


def brighter(frame: Pixels, by: int) -> Pixels:
    return (frame.astype(int) + by).clip(0, 255).astype(np.uint8)


def mix(one: Pixels, other: Pixels, share: float) -> Pixels:
    return (one * (1 - share) + other * share).astype(np.uint8)


BLACK = np.zeros((*SIZE, 3), np.uint8)


@pytest.mark.parametrize("count", [2, 8])
def test_ten_hard_cuts_are_all_found(count: int) -> None:
    frames = [frame for seed in range(11) for frame in shot(seed, count)]
    assert cuts(frames) == [count * i for i in range(1, 11)]


def test_where_all_frames_differ_there_is_no_cut() -> None:
    assert cuts([shot(seed, 1)[0] for seed in range(12)]) == []


@pytest.mark.parametrize("by", [60, 120, 180, 255, -60, -120, -255])
@pytest.mark.parametrize("length", [1, 3])
def test_a_flash_is_no_cut(by: int, length: int) -> None:
    for seed in range(4):
        frames = shot(seed, 12)
        frames[5 : 5 + length] = [brighter(frame, by) for frame in frames[5 : 5 + length]]
        assert cuts(frames) == [], seed


@pytest.mark.parametrize("steps", [6, 12, 25])
def test_a_fade_is_no_cut(steps: int) -> None:
    for seed in range(3):
        one, other = shot(seed, 4)[-1], shot(seed + 100, 4)[0]
        shares = [i / steps for i in range(steps + 1)]
        out = [mix(one, BLACK, share) for share in shares]
        assert cuts([one, *out, BLACK, BLACK, *out[::-1], one]) == []
        assert cuts([one, one, *(mix(one, other, share) for share in shares), other]) == []
        back = [mix(other, BLACK, share) for share in shares[::-1]]
        assert cuts([one, *out, BLACK, BLACK, *back, other]) == []


@pytest.mark.parametrize("speed", [0.05, 0.15, 0.3])
@pytest.mark.parametrize("blurred", [False, True])
def test_a_fast_pan_is_no_cut(speed: float, blurred: bool) -> None:
    for seed in range(4):
        wide = scene(seed)
        frames = [view(wide)] * 3
        for i in range(int(2 / speed)):
            parts = [view(wide, (i + k / 5) * speed) for k in range(5 if blurred else 1)]
            frames.append(np.mean(parts, 0).astype(np.uint8))
        assert cuts(frames) == [], seed


def test_black_frames_between_two_scenes() -> None:
    for seed in range(4):
        frames = [*shot(seed, 5), BLACK, BLACK, *shot(seed + 50, 5)]
        assert cuts(frames) == [7]
        assert cuts([*shot(seed, 5), BLACK, *shot(seed, 5)]) == [], "the same scene goes on"


@pytest.mark.slow
def test_all_in_one_film(tmp_path: Path) -> None:
    """Ten cuts, a flash, a fade and a pan, through a video encoder."""
    frames, expected = [], []
    for seed in range(11):
        expected.append(len(frames))
        frames += shot(seed, 8)
        if seed == 3:
            frames += [brighter(frames[-1], 200)] * 2 + [frames[-1]] * 3
        elif seed == 5:
            last = frames[-1]
            frames += [mix(last, BLACK, abs(i - 10) / 10) for i in range(10, -1, -1)]
            frames += [mix(last, BLACK, 1 - i / 10) for i in range(11)]
        elif seed == 7:
            frames += [view(scene(seed), 0.18 + 0.25 * i) for i in range(7)]
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        (stream.height, stream.width), stream.pix_fmt = SIZE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    tracked = list(es3.track(Seer(), path, ["red"], tracker="iou"))  # type: ignore[arg-type]
    assert [frame.index for frame in tracked if frame.cut] == expected[1:]
    scenes = np.searchsorted(expected, [frame.index for frame in tracked], side="right")
    seen: dict[int, set[int]] = {}
    for number, frame in zip(scenes.tolist(), tracked, strict=True):
        seen.setdefault(number, set()).update(frame.instances.track_ids.tolist())  # type: ignore[union-attr]
        assert not set(frame.lost) & set(frame.instances.track_ids.tolist())  # type: ignore[union-attr]
    everyone = [id for ids in seen.values() for id in ids]
    assert len(everyone) == len(set(everyone)) and len(seen) == 11, "identities are new"


# Trackers -------------------------------------------------------------------------------------

TWO_SHOTS = [*shot(1, 6), *shot(2, 6)]


def ids_by_shot(frames: list[Any]) -> list[set[int]]:
    return [{int(i) for f in frames[a : a + 6] for i in f.instances.track_ids} for a in (0, 6)]


@pytest.mark.parametrize("tracker", ["iou", "memory"])
def test_identities_after_a_cut_are_new(tiny: es3.ImageModel, tracker: str) -> None:
    settings = TrackSettings(
        detection_threshold=0.0,
        new_track_threshold=0.0,
        hotstart_delay=0,
        max_objects=3,
        iou=IoUSettings(new_track_threshold=0.0),
    )
    tracked = list(es3.track(tiny, TWO_SHOTS, ["thing"], tracker=tracker, settings=settings))
    assert [f.index for f in tracked] == list(range(12))
    assert [f.index for f in tracked if f.cut] == [6]
    one, two = ids_by_shot(tracked)
    assert one and two and not one & two
    assert tracked[6].lost and set(tracked[6].lost) <= one
    alone = list(es3.track(tiny, TWO_SHOTS[6:], ["thing"], tracker=tracker, settings=settings))
    for a, b in zip(tracked[6:], alone, strict=True):
        assert np.array_equal(a.instances.masks, b.instances.masks), "the memory was empty"
    settings = replace(settings, cuts=None)
    whole = list(es3.track(tiny, TWO_SHOTS, ["thing"], tracker=tracker, settings=settings))
    assert not any(f.cut or f.lost for f in whole)


def test_objects_that_were_pointed_at_end_too(tiny: es3.ImageModel) -> None:
    tracker = ConceptTracker(tiny, tracker="memory", settings=TrackSettings(hotstart_delay=0))
    for image in TWO_SHOTS[3:6]:
        tracker.step(image)
    (id,) = tracker.add_object(box=(10, 30, 60, 70)).track_ids.tolist()  # type: ignore[union-attr]
    (frame,) = tracker.step(TWO_SHOTS[6])
    assert frame.cut and frame.lost == (id,) and tracker.ids == []


def test_the_detector_runs_at_a_cut(tiny: es3.ImageModel) -> None:
    seer = Seer()
    list(es3.track(seer, TWO_SHOTS, ["red"], tracker="iou", detect_every=4))  # type: ignore[arg-type]
    assert seer.asked == 4, "on frames 0, 4, 6 and 10"


def test_interactive_objects_are_lost_at_a_cut_and_said(
    tiny: es3.ImageModel, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = InteractiveTracker(tiny, TWO_SHOTS)
    tracker.add_box(3, 1, (10, 30, 60, 70))
    tracker.add_box(3, 2, (60, 30, 100, 70))
    with caplog.at_level(logging.WARNING):
        frames = {f.index: f for f in tracker.propagate()}
    assert frames[6].cut and frames[6].lost == (1, 2)
    assert "frame 6 of the list begins another scene: objects 1, 2 are lost" in caplog.text
    assert all(not len(frames[i].instances) for i in range(6, 12))
    assert any(len(frames[i].instances) for i in range(3, 6))
    tracker.add_box(8, 2, (10, 30, 60, 70))
    again = {f.index: f for f in tracker.propagate(start=4)}
    assert [i for i, f in again.items() if f.lost] == [6] and again[6].lost == (1, 2)
    assert all(not len(again[i].instances) for i in range(6, 8))
    assert again[8].instances.track_ids.tolist() == [2]  # type: ignore[union-attr]
    back = [f.index for f in tracker.propagate("backward") if len(f.instances)]
    assert min(back) < 4 and 8 in back
    through = InteractiveTracker(tiny, TWO_SHOTS, cuts=None)
    through.add_box(3, 1, (10, 30, 60, 70))
    assert not any(f.cut for f in through.propagate())


def test_a_cut_is_in_the_run_file() -> None:
    tracked = list(es3.track(Seer(), TWO_SHOTS, ["red"], tracker="iou"))  # type: ignore[arg-type]
    again = from_record(to_record(tracked[6]), ("red",))
    assert again.cut and again.lost == tracked[6].lost
    assert "cut" not in to_record(tracked[5])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min_similarity": 1.5}, "min_similarity is between 0 and 1"),
        ({"times_usual": 0.5}, "times_usual is 1 or more"),
        ({"min_shared_colors": -1}, "min_shared_colors is between"),
    ],
)
def test_settings_are_checked(values: dict[str, float], words: str) -> None:
    with pytest.raises(TrackError, match=words):
        CutSettings(**values)
