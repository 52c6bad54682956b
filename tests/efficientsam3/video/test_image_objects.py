"""Tracked objects take the masks of objects that the image encoder finds on the frame."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam3.config import MemoryConfig, ModelConfig, tiny_config, tiny_late_config
from efficientsam3.predictor import ImageModel
from efficientsam3.types import Array
from efficientsam3.video.image_objects import ImageObjects
from efficientsam3.video.interactive import InteractiveTracker
from efficientsam3.video.memory_tracker import MemoryTracker
from efficientsam3.video.types import FoundObjects, TrackerFeatures, TrackerOutput

from ...conftest import tiny_model
from .scripted import block

SIZE = (24, 24)


def logits(*masks: Array, height: float = 4.0) -> Tensor:
    return torch.from_numpy(np.where(np.stack(masks), height, -height)).float()


def output(*masks: Array) -> TrackerOutput:
    n = len(masks)
    return TrackerOutput(
        list(range(n)), logits(*masks), torch.ones(n), torch.ones(n), torch.ones(n, 3)
    )


def scripted_parts(found: FoundObjects, least: float = 0.5) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(memory=MemoryConfig(adopt_object_iou=least)),
        find_objects=lambda encoded: found,
    )


def frame_features() -> TrackerFeatures:
    return TrackerFeatures(None, SIZE, encoded="frame")  # type: ignore[arg-type]


def adopt(tracked: TrackerOutput, found: FoundObjects, least: float = 0.5) -> Tensor:
    features = frame_features()
    out = ImageObjects().adopt(0, scripted_parts(found, least), features, tracked)
    assert out.ids == tracked.ids
    return out.logits


BOX = block(4, 4, 10, 10, SIZE)


def test_the_most_similar_mask_is_taken() -> None:
    near, nearer = block(6, 4, 10, 10, SIZE), block(5, 4, 10, 10, SIZE)
    found = FoundObjects(logits(near, nearer, height=7.0), torch.tensor([0.9, 0.9]))
    assert torch.equal(adopt(output(BOX), found), logits(nearer, height=7.0))


@pytest.mark.parametrize("top", [7, 12])
def test_an_object_of_the_frame_goes_to_one_tracked_object(top: int) -> None:
    other = block(top, 4, 10, 10, SIZE)
    found = FoundObjects(logits(block(5, 4, 10, 10, SIZE)), torch.tensor([0.9]))
    taken = adopt(output(BOX, other), found)
    assert torch.equal(taken[0], found.logits[0])
    left = other & ~(found.logits[0] > 0).numpy()
    assert left.sum() == (20 if top == 7 else 70)
    wanted = left if top == 12 else np.zeros(SIZE, bool)
    assert np.array_equal((taken[1] > 0).numpy(), wanted)


@pytest.mark.parametrize(
    ("mask", "least"),
    [
        (block(14, 4, 10, 10, SIZE), 0.5),
        (block(9, 4, 10, 10, SIZE), 0.5),
        (block(5, 4, 10, 10, SIZE), 0.9),
    ],
    ids=["elsewhere", "too far", "a higher limit"],
)
def test_a_mask_stays_without_an_object_in_its_place(mask: Array, least: float) -> None:
    found = FoundObjects(logits(mask, height=7.0), torch.tensor([0.9]))
    assert torch.equal(adopt(output(BOX), found, least), logits(BOX))


def test_an_absent_object_takes_no_mask() -> None:
    found = FoundObjects(logits(BOX, height=7.0), torch.tensor([0.9]))
    absent = output(np.zeros(SIZE, bool))
    assert torch.equal(adopt(absent, found), absent.logits)


def test_only_models_with_late_fusion_and_masks_find_objects() -> None:
    adopts = MemoryConfig(adopt_object_iou=0.5)
    for make in (
        lambda: tiny_config(memory=adopts),
        lambda: tiny_late_config(memory=adopts, parts=("geometry",)),
    ):
        with pytest.raises(ValueError, match="adopt_object_iou needs late fusion and masks"):
            make()
    with pytest.raises(ValueError, match=r"adopt_object_iou is an IoU between 0 and 1; got 2"):
        MemoryConfig(adopt_object_iou=2)


def test_an_object_is_followed_by_motion_where_the_memory_draws_elsewhere() -> None:
    objects = ImageObjects()
    away = block(16, 16, 6, 6, SIZE)
    for t in range(6):
        there = block(4, 2 + 2 * t, 8, 8, SIZE)
        other = block(14, 2 + 2 * t, 8, 8, SIZE)
        found = FoundObjects(logits(other, there, height=7.0), torch.tensor([0.9, 0.9]))
        given = scripted_parts(found), frame_features()
        if not t:
            objects.note(0, *given, output(there))
            continue
        shown = objects.adopt(t, *given, output(away)).logits
        assert torch.equal(shown, logits(there, height=7.0)), t


def test_motion_goes_on_over_skipped_frames_and_backward() -> None:
    objects = ImageObjects()
    found = FoundObjects(logits(BOX, height=7.0), torch.tensor([0.9]))
    objects.note(0, scripted_parts(found), frame_features(), output(BOX))
    away = output(block(16, 16, 6, 6, SIZE))
    for frame in (1, 3, 2):
        shown = objects.adopt(frame, scripted_parts(found), frame_features(), away).logits
        assert torch.equal(shown, found.logits), frame


def test_an_object_that_the_memory_lost_is_shown_where_it_is() -> None:
    objects = ImageObjects()
    found = FoundObjects(logits(BOX, height=7.0), torch.tensor([0.9]))
    objects.note(0, scripted_parts(found), frame_features(), output(BOX))
    lost = output(np.zeros(SIZE, bool))
    lost = lost._replace(presence=-lost.presence)
    shown = objects.adopt(1, scripted_parts(found), frame_features(), lost)
    assert torch.equal(shown.logits, found.logits) and shown.presence[0] > 0


def test_a_mask_on_an_object_of_another_track_is_dropped() -> None:
    objects, other = ImageObjects(), block(14, 14, 8, 8, SIZE)
    looks = torch.eye(2)
    both = FoundObjects(logits(BOX, other, height=7.0), torch.tensor([0.9, 0.9]), looks)
    objects.note(0, scripted_parts(both), frame_features(), output(BOX, other))
    left = FoundObjects(both.logits[1:], both.scores[1:], looks[1:])
    drifted = output(other, other)
    shown = objects.adopt(1, scripted_parts(left), frame_features(), drifted)
    assert not (shown.logits[0] > 0).any() and shown.presence[0] < 0
    assert torch.equal(shown.logits[1], both.logits[1]) and shown.presence[1] > 0


@pytest.mark.parametrize("known", [True, False], ids=["an object before", "never an object"])
def test_a_mask_on_nothing_is_dropped_if_the_frame_showed_the_object_before(known: bool) -> None:
    objects, other = ImageObjects(), block(14, 14, 8, 8, SIZE)
    looks = torch.eye(2)
    both = FoundObjects(logits(BOX, other, height=7.0), torch.tensor([0.9, 0.9]), looks)
    without = FoundObjects(both.logits[1:], both.scores[1:], looks[1:])
    first = both if known else without
    objects.note(0, scripted_parts(first), frame_features(), output(BOX))
    shown = objects.adopt(1, scripted_parts(without), frame_features(), output(BOX))
    assert bool((shown.logits[0] > 0).any()) is not known
    assert bool(shown.presence[0] > 0) is not known


@pytest.mark.parametrize("likely", [True, False])
def test_an_unlikely_object_does_not_continue_one_that_the_memory_does_not_find(
    likely: bool,
) -> None:
    objects = ImageObjects()
    found = FoundObjects(logits(BOX, height=7.0), torch.tensor([0.9]))
    objects.note(0, scripted_parts(found), frame_features(), output(BOX))
    found = found._replace(scores=torch.tensor([0.9 if likely else 0.2]))
    lost = output(np.zeros(SIZE, bool))
    lost = lost._replace(presence=-lost.presence)
    shown = objects.adopt(1, scripted_parts(found), frame_features(), lost)
    assert bool((shown.logits > 0).any()) is likely and bool(shown.presence[0] > 0) is likely


PART = block(4, 4, 4, 4, SIZE)
"""A part of the box, which the frame shows as an object, too."""


def two_phrases(objects: ImageObjects, found: FoundObjects) -> None:
    """Begin two objects with one mask, one after the other, as two phrases do."""
    for id in range(2):
        given = output(BOX)._replace(ids=[id])
        objects.note(0, scripted_parts(found), frame_features(), given)


def test_two_phrases_of_one_object_are_both_where_it_is() -> None:
    objects = ImageObjects()
    two_phrases(objects, FoundObjects(logits(BOX, PART, height=7.0), torch.tensor([0.9, 0.35])))
    moved = block(5, 6, 10, 10, SIZE), block(5, 6, 4, 4, SIZE)
    found = FoundObjects(logits(*moved, height=7.0), torch.tensor([0.9, 0.35]))
    shown = objects.adopt(1, scripted_parts(found), frame_features(), output(BOX, BOX))
    assert torch.equal(shown.logits, found.logits[[0, 0]]), "not one of them on the part"


def test_an_object_that_begins_on_a_later_frame_is_the_same_thing_as_a_tracked_one() -> None:
    objects = ImageObjects()
    found = FoundObjects(logits(BOX, PART, height=7.0), torch.tensor([0.9, 0.35]))
    parts, first = scripted_parts(found), output(BOX)
    objects.note(0, parts, frame_features(), first)
    objects.adopt(1, parts, frame_features(), first)
    objects.note(1, parts, frame_features(), first._replace(ids=[1]))
    shown = objects.adopt(2, parts, frame_features(), output(BOX, PART))
    assert torch.equal(shown.logits, found.logits[[0, 0]])


@pytest.mark.parametrize("corrected", [0, 1])
def test_what_a_person_draws_apart_is_two_objects_again(corrected: int) -> None:
    objects, other = ImageObjects(), block(14, 14, 8, 8, SIZE)
    looks = torch.eye(2)
    found = FoundObjects(logits(BOX, other, height=7.0), torch.tensor([0.9, 0.9]), looks)
    given = scripted_parts(found)
    two_phrases(objects, found)
    objects.adopt(1, given, frame_features(), output(BOX, BOX))
    drawn = [(other, BOX), (BOX, other)][corrected]
    objects.note(1, given, frame_features(), output(*drawn))
    shown = objects.adopt(2, given, frame_features(), output(BOX, BOX))
    assert torch.equal(shown.logits, found.logits[[1, 0]] if corrected == 0 else found.logits)


def test_two_phrases_of_one_object_move_together() -> None:
    objects, moved = ImageObjects(), block(14, 14, 8, 8, SIZE)
    found = FoundObjects(logits(BOX, height=7.0), torch.tensor([0.9]))
    two_phrases(objects, found)
    found = FoundObjects(logits(moved, PART, height=7.0), torch.tensor([0.9, 0.35]))
    parts = scripted_parts(found)
    objects.adopt(1, parts, frame_features(), output(BOX, BOX))
    objects.note(1, parts, frame_features(), output(moved, moved))  # both take a detection's mask
    shown = objects.adopt(2, parts, frame_features(), output(PART, PART))
    assert torch.equal(shown.logits, found.logits[[0, 0]])


def test_equal_masks_that_are_given_at_once_are_one_thing() -> None:
    objects = ImageObjects()
    found = FoundObjects(logits(BOX, PART, height=7.0), torch.tensor([0.9, 0.35]))
    parts = scripted_parts(found)
    objects.note(0, parts, frame_features(), output(BOX, BOX, BOX))
    shown = objects.adopt(1, parts, frame_features(), output(BOX, PART, PART))
    assert torch.equal(shown.logits, found.logits[[0, 0, 0]])


@pytest.mark.parametrize("forgotten", [0, 1])
def test_one_of_two_phrases_of_an_object_is_forgotten(forgotten: int) -> None:
    objects = ImageObjects()
    found = FoundObjects(logits(BOX, height=7.0), torch.tensor([0.9]))
    two_phrases(objects, found)
    objects.forget(forgotten)
    away = output(block(16, 16, 6, 6, SIZE))._replace(ids=[1 - forgotten])
    shown = objects.adopt(1, scripted_parts(found), frame_features(), away).logits
    assert torch.equal(shown, found.logits)


def test_objects_that_come_to_have_one_mask_are_still_two() -> None:
    objects, other = ImageObjects(), block(14, 14, 8, 8, SIZE)
    looks = torch.eye(2)
    both = FoundObjects(logits(BOX, other, height=7.0), torch.tensor([0.9, 0.9]), looks)
    objects.note(0, scripted_parts(both), frame_features(), output(BOX, other))
    left = FoundObjects(both.logits[:1], both.scores[:1], looks[:1])
    objects.note(1, scripted_parts(left), frame_features(), output(BOX, BOX))
    shown = objects.adopt(2, scripted_parts(left), frame_features(), output(BOX, BOX))
    assert (shown.logits > 0).flatten(1).any(1).tolist() == [True, False]


def test_forgotten_objects_are_not_followed() -> None:
    objects = ImageObjects()
    found = FoundObjects(logits(BOX, height=7.0), torch.tensor([0.9]))
    objects.note(0, scripted_parts(found), frame_features(), output(BOX))
    objects.forget(0)
    away = output(block(16, 16, 6, 6, SIZE))
    shown = objects.adopt(1, scripted_parts(found), frame_features(), away).logits
    assert torch.equal(shown, away.logits)


# With a model ----------------------------------------------------------------------------------


def picture() -> Array:
    return np.random.default_rng(0).integers(0, 255, (72, 96, 3)).astype(np.uint8)


def model_that_adopts(least: float) -> ImageModel:
    config: ModelConfig = tiny_late_config(memory=MemoryConfig(adopt_object_iou=least))
    return tiny_model(config=config)


@pytest.fixture(scope="module")
def model() -> ImageModel:
    return model_that_adopts(0.01)


def test_a_tracked_mask_is_one_of_the_frame_s_objects(model: ImageModel) -> None:
    engine = MemoryTracker(model)
    first, second = (engine.read(picture()) for _ in range(2))
    engine.add_masks(0, first, [5], torch.ones(1, 72, 96, dtype=torch.bool))
    shown = engine.propagate(1, second)
    assert second.found is not None
    assert any(torch.equal(shown.logits[0], one) for one in second.found.logits)


def test_encoded_frames_are_read_as_pictures_are(model: ImageModel) -> None:
    def track(image: Any) -> Tensor:
        engine = MemoryTracker(model)
        features = engine.read(image)
        engine.add_masks(0, features, [5], torch.ones(1, 72, 96, dtype=torch.bool))
        return engine.propagate(1, features).logits

    assert torch.equal(track(picture()), track(model.encode(picture())))


def test_without_adoption_nothing_more_is_computed() -> None:
    engine = MemoryTracker(model_that_adopts(0.0))
    features = engine.read(picture())
    engine.add_masks(0, features, [5], torch.ones(1, 72, 96, dtype=torch.bool))
    engine.propagate(1, features)
    assert features.encoded is None and features.found is None


def test_clicked_objects_adopt_too(model: ImageModel) -> None:
    def second(one: ImageModel) -> Array:
        tracker = InteractiveTracker(one, [picture()] * 2, cuts=None)
        tracker.add_mask(0, 1, np.ones((72, 96), bool))
        shown = list(tracker.propagate())[1].instances
        return shown.mask(0) if len(shown) else np.zeros((72, 96), bool)

    assert not np.array_equal(second(model), second(model_that_adopts(0.0)))


def test_a_mask_that_is_decided_later_counts_more_than_motion() -> None:
    left, right = block(4, 2, 8, 8, SIZE), block(4, 14, 8, 8, SIZE)
    found = FoundObjects(logits(left, right, height=7.0), torch.tensor([0.9, 0.9]))
    parts, objects = scripted_parts(found), ImageObjects()
    first = objects.adopt(0, parts, frame_features(), output(left))
    assert torch.equal(first.logits[0], found.logits[0])
    objects.note(0, parts, frame_features(), output(right))  # a person or a detection corrects it
    later = objects.adopt(1, parts, frame_features(), output(left))  # the memory does not
    assert torch.equal(later.logits[0], found.logits[1])
