"""Which tracked objects are shown, on which frames, with a scripted detector and tracker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from efficientsam3.types import Array, Instances
from efficientsam3.video.concept_tracker import ConceptTracker
from efficientsam3.video.settings import TrackSettings

from .scripted import ScriptedModel, block, frames
from .scripted_worlds import NOW, Oracle, at, crossing, detect, follow, ids


def test_results_are_delayed_by_hotstart() -> None:
    for delay in (0, 1, 4):
        settings = TrackSettings(hotstart_delay=delay, hotstart_unmatched=1, hotstart_duplicates=1)
        tracker = ConceptTracker(
            ScriptedModel(detect(crossing)), "cat", tracker=Oracle(crossing), settings=settings
        )
        waiting = [len(tracker.step(frame)) for frame in frames(8)]
        assert waiting == [0] * (delay - 1) + [1] * (9 - max(delay, 1))
        assert len(tracker.flush()) == max(delay - 1, 0)


def test_a_false_detection_is_never_shown_after_hotstart() -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 20), "cat 1": at(30, 40)}

    def found(t: int) -> Instances:
        both = detect(world)(t)
        return both if t == 2 else both[:1]

    settings = TrackSettings(hotstart_delay=6, hotstart_unmatched=4, hotstart_duplicates=4)
    assert ids(follow(world, 12, ["cat"], found, settings=settings)) == [[0]] * 12
    shown = ids(follow(world, 12, ["cat"], found))
    assert shown == [[0]] * 2 + [[0, 1]] * 10


def test_unconfirmed_objects_are_not_shown() -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 20)}

    def found(t: int) -> Instances:
        return detect(world if t in (1, 3, 4, 5) else lambda _: {})(t)

    settings = replace(NOW, min_hits=3)
    assert ids(follow(world, 8, ["cat"], found, settings=settings)) == [[]] * 5 + [[0]] * 3
    late = TrackSettings(hotstart_delay=4, hotstart_unmatched=4, hotstart_duplicates=4, min_hits=3)
    assert ids(follow(world, 8, ["cat"], found, settings=late)) == [[]] * 3 + [[0]] * 5


def test_hide_unmatched() -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 20)}

    def found(t: int) -> Instances:
        return detect(world if t == 0 or t > 5 else lambda _: {})(t)

    settings = replace(NOW, keep_alive_init=3, keep_alive_max=3, hide_unmatched=True)
    assert ids(follow(world, 9, ["cat"], found, settings=settings)) == (
        [[0]] * 3 + [[]] * 4 + [[0]] * 2
    )


@pytest.mark.parametrize(
    ("delay", "found_on", "shown_on"),
    [
        (0, (0, 1, 2, 6, 7, 8), (0, 1, 2, 3, 7, 8)),  # only the frames before count
        (6, (0, 1, 2, 6, 7, 8), (0, 1, 2, 6, 7, 8)),
        (6, (0, 1, 2, 4, 5, 6, 7, 8), (0, 1, 2, 3, 4, 5, 6, 7, 8)),  # one miss does not hide
        (6, (0,), ()),
        (6, (0, 8), ()),
    ],
    ids=["not delayed", "a gap", "one miss", "a false detection", "two of them"],
)
def test_detections_around_a_frame_decide_whether_an_object_is_shown(
    delay: int, found_on: tuple[int, ...], shown_on: tuple[int, ...]
) -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 20)}

    def found(t: int) -> Instances:
        return detect(world if t in found_on else lambda _: {})(t)

    settings = replace(NOW, confirm_window=2)
    if delay:
        settings = replace(
            settings, hotstart_delay=delay, hotstart_unmatched=delay, hotstart_duplicates=delay
        )
    out = ids(follow(world, 9, ["cat"], found, settings=settings))
    assert tuple(t for t, shown in enumerate(out) if shown) == shown_on


def test_a_confirming_score_is_that_of_the_detection() -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 20)}

    for score, shown in ((0.6, True), (0.4, False)):
        settings = replace(NOW, confirm_window=3, detection_threshold=0.2)
        out = follow(world, 5, ["cat"], detect(world, score), settings=settings)
        assert ids(out) == [[0] if shown else []] * 5


def test_frames_without_the_detector_do_not_speak_against_an_object() -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 20)}

    settings = replace(NOW, confirm_window=4)
    assert ids(follow(world, 9, ["cat"], settings=settings, detect_every=3)) == [[0]] * 9


def test_specks_of_a_covered_object_are_not_shown() -> None:
    # The large one covers all of the small one but a cell.
    small, large = at(10, 20), at(8, 18, 12, 20) & ~at(19, 29, 1, 1)

    def world(t: int) -> dict[str, Array]:
        return {"cat 0": large, "cat 1": small}

    for least, shown in ((0.0, [0, 1]), (0.1, [0])):
        settings = replace(NOW, least_left=least, occlusion_iou=0.0, match_iou=1.0)
        assert ids(follow(world, 1, ["cat"], settings=settings)) == [shown]


HIDING = [
    {"hide_unmatched": True, "keep_alive_init": 1, "keep_alive_max": 1},
    {"confirm_window": 1},
]


@pytest.mark.parametrize("hiding", HIDING, ids=["keep-alive", "detections around"])
def test_what_a_person_corrected_is_never_hidden(hiding: dict[str, Any]) -> None:
    def world(t: int) -> dict[str, Array]:
        return {"cat 0": at(10, 20), "cat 1": at(40, 20)}

    def found(t: int) -> Instances:
        return detect(world if t == 0 else lambda _: {})(t)

    settings = replace(NOW, **hiding)
    tracker = ConceptTracker(ScriptedModel(found), "cat", tracker=Oracle(world), settings=settings)
    first, *rest = frames(5)
    tracker.step(first)
    tracker.add_object(mask=block(40, 20, 10, 10, (60, 80)), track_id=1)
    out = ids([out for frame in rest for out in tracker.step(frame)])
    assert out[-2:] == [[1]] * 2 and all(1 in shown for shown in out)
