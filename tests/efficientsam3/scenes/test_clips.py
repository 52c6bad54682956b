"""Clips: objects that keep their identity, and frames that can be drawn in any order."""

from __future__ import annotations

import numpy as np
import pytest

from efficientsam3.scenes.art import Art
from efficientsam3.scenes.clips import Clip, film, make_clip
from efficientsam3.scenes.compose import World
from efficientsam3.scenes.concepts import SPLITS
from efficientsam3.scenes.phrases import LARGE, SMALL

pytest.importorskip("skimage")
pytest.importorskip("sklearn")
FRAMES = 12


@pytest.fixture(scope="module")
def clips(world: World) -> list[Clip]:
    return [film(world, seed, FRAMES) for seed in range(16)]


@pytest.fixture(scope="module")
def areas(clips: list[Clip]) -> list[np.ndarray]:
    """Visible pixels of each clip, (frames, objects)."""
    return [np.stack([frame.masks.sum((1, 2)) for frame in clip]) for clip in clips]


def test_a_seed_is_one_clip(art: Art, world: World, clips: list[Clip]) -> None:
    again = make_clip(art, 4, SPLITS["train"], 96, FRAMES)
    assert again.queries == clips[4].queries
    for one, other in zip(again, clips[4], strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.masks, other.masks)


def test_frames_can_be_drawn_in_any_order(clips: list[Clip]) -> None:
    backwards = [clips[0].frame(i).image for i in reversed(range(FRAMES))]
    for frame, image in zip(clips[0], reversed(backwards), strict=True):
        np.testing.assert_array_equal(frame.image, image)


def test_masks_are_visible_parts_by_object(clips: list[Clip]) -> None:
    for clip in clips[:6]:
        assert len(clip) == FRAMES
        for frame in clip:
            assert frame.image.shape == (96, 96, 3)
            assert frame.masks.shape == (len(clip.actors), 96, 96)
            assert frame.masks.sum(0).max(initial=0) <= 1


def test_every_object_is_seen(areas: list[np.ndarray]) -> None:
    assert all(found.any(0).all() for found in areas)


def test_objects_leave_and_come_back(areas: list[np.ndarray]) -> None:
    def returns(seen: np.ndarray) -> bool:
        at = np.flatnonzero(seen)
        return not seen[at[0] : at[-1]].all()

    assert sum(returns(column) for found in areas for column in found.T) >= 3


def test_objects_pass_behind_each_other(clips: list[Clip], areas: list[np.ndarray]) -> None:
    covered = 0
    for clip, found in zip(clips, areas, strict=True):
        inside = np.stack([((a.centres > 0.3) & (a.centres < 0.7)).all(1) for a in clip.actors], 1)
        covered += int((inside & (found < 0.5 * found.max(0))).any(0).sum())
    assert covered >= 3


def test_paths_are_smooth(clips: list[Clip]) -> None:
    for clip in clips:
        for actor in clip.actors:
            assert len(actor.centres) == len(actor.looks) == FRAMES
            steps = np.diff(actor.centres, axis=0)
            assert np.abs(steps).max() < 0.6
            assert np.abs(np.diff(steps, axis=0)).max() < 0.35


def test_queries_hold_in_all_frames(clips: list[Clip]) -> None:
    kinds = set()
    for clip in clips:
        for query in clip.queries:
            kinds.add(query.kind)
            called = {i for i, a in enumerate(clip.actors) if a.concept.is_called(query.phrase)}
            if query.kind in ("name", "synonym", "category"):
                assert set(query.objects) == called
            if not query.objects:
                assert not called
            for i in query.objects:
                sides = [look.side for look in clip.actors[i].looks]
                angles = [abs(look.angle) for look in clip.actors[i].looks]
                assert not query.phrase.startswith("small ") or max(sides) <= SMALL
                assert not query.phrase.startswith("large ") or min(sides) >= LARGE
                assert not query.phrase.startswith("upside-down ") or min(angles) >= 150
    assert kinds >= {"name", "category", "near"}


def test_the_camera_stays_in_its_scenery(clips: list[Clip]) -> None:
    for clip in clips:
        assert clip.camera.min() >= 0
        assert (clip.camera + 96 <= clip.scenery.shape[0]).all()
    assert any(np.ptp(clip.camera) > 0 for clip in clips)


def test_a_frame_that_is_not_there(clips: list[Clip]) -> None:
    for index in (-1, FRAMES):
        with pytest.raises(IndexError, match=f"frame {index} of a clip of {FRAMES}"):
            clips[0].frame(index)


def test_a_clip_has_two_frames(world: World) -> None:
    with pytest.raises(ValueError, match="at least 2 frames; got 1"):
        film(world, 0, 1)
