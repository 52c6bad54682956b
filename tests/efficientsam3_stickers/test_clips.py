"""Clips: objects keep their identity, and frames can be drawn in any order."""

from __future__ import annotations

import numpy as np
import pytest

from efficientsam3.errors import ArgumentError
from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.clips import Clip, make_clip
from efficientsam3_stickers.concepts import SPLITS
from efficientsam3_stickers.queries import LARGE, SMALL
from efficientsam3_stickers.scenes import SceneGenerator

FRAMES = 12


@pytest.fixture(scope="module")
def clips(generator: SceneGenerator) -> list[Clip]:
    return [make_clip(generator, seed, FRAMES) for seed in range(16)]


@pytest.fixture(scope="module")
def areas(clips: list[Clip]) -> list[np.ndarray]:
    """Visible pixels of each clip, (frames, objects)."""
    return [np.stack([frame.masks.sum((1, 2)) for frame in clip]) for clip in clips]


def test_equal_seeds_give_equal_clips(stickers: StickerArt, clips: list[Clip]) -> None:
    same = make_clip(SceneGenerator(stickers, SPLITS["train"], 96), 4, FRAMES)
    assert same.queries == clips[4].queries
    for one, other in zip(same, clips[4], strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.masks, other.masks)


def test_frames_can_be_drawn_in_any_order(clips: list[Clip]) -> None:
    backwards = [clips[0].frame(i).image for i in reversed(range(FRAMES))]
    for frame, image in zip(clips[0], reversed(backwards), strict=True):
        np.testing.assert_array_equal(frame.image, image)


def test_masks_are_disjoint_and_one_for_each_object(clips: list[Clip]) -> None:
    for clip in clips[:6]:
        assert len(clip) == FRAMES
        for frame in clip:
            assert frame.image.shape == (96, 96, 3)
            assert frame.masks.shape == (len(clip.objects), 96, 96)
            assert frame.masks.sum(0).max(initial=0) <= 1


def test_every_object_is_visible_in_some_frame(areas: list[np.ndarray]) -> None:
    assert all(found.any(0).all() for found in areas)


def test_objects_leave_and_come_back(areas: list[np.ndarray]) -> None:
    def returns(seen: np.ndarray) -> bool:
        at = np.flatnonzero(seen)
        return not seen[at[0] : at[-1]].all()

    assert sum(returns(column) for found in areas for column in found.T) >= 3


def test_objects_pass_behind_each_other(clips: list[Clip], areas: list[np.ndarray]) -> None:
    covered = 0
    for clip, found in zip(clips, areas, strict=True):
        inside = np.stack([((a.centers > 0.3) & (a.centers < 0.7)).all(1) for a in clip.objects], 1)
        covered += int((inside & (found < 0.5 * found.max(0))).any(0).sum())
    assert covered >= 3


def test_paths_are_smooth(clips: list[Clip]) -> None:
    for clip in clips:
        for actor in clip.objects:
            assert len(actor.centers) == len(actor.appearances) == FRAMES
            steps = np.diff(actor.centers, axis=0)
            assert np.abs(steps).max() < 0.6
            assert np.abs(np.diff(steps, axis=0)).max() < 0.35


def test_queries_hold_in_all_frames(clips: list[Clip]) -> None:
    kinds = set()
    for clip in clips:
        for query in clip.queries:
            kinds.add(query.kind)
            called = {i for i, a in enumerate(clip.objects) if a.concept.is_called(query.phrase)}
            if query.kind in ("name", "synonym", "category"):
                assert set(query.objects) == called
            if not query.objects:
                assert not called
            for i in query.objects:
                sides = [look.side for look in clip.objects[i].appearances]
                angles = [abs(look.angle) for look in clip.objects[i].appearances]
                assert not query.phrase.startswith("small ") or max(sides) <= SMALL
                assert not query.phrase.startswith("large ") or min(sides) >= LARGE
                assert not query.phrase.startswith("upside-down ") or min(angles) >= 150
    assert kinds >= {"name", "category", "near"}


def test_the_camera_stays_in_the_background(clips: list[Clip]) -> None:
    for clip in clips:
        assert clip.camera.min() >= 0
        assert (clip.camera + 96 <= clip.background.shape[0]).all()
    assert any(np.ptp(clip.camera) > 0 for clip in clips)


def test_a_missing_frame_is_an_error(clips: list[Clip]) -> None:
    for index in (-1, FRAMES):
        with pytest.raises(IndexError, match=f"frame {index} of a clip of {FRAMES}"):
            clips[0].frame(index)


def test_a_clip_has_at_least_two_frames(generator: SceneGenerator) -> None:
    with pytest.raises(ArgumentError, match="at least 2 frames; got frames=1"):
        make_clip(generator, 0, 1)
