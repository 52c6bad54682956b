"""SAM3.1's tracker: buckets, objects that a person points at, and whole clips."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import efficientsam3 as es3
from efficientsam3.config import MULTIPLEX_PARTS, tiny_config, tiny_late_config
from efficientsam3.errors import TrackError
from efficientsam3.variants import ABILITIES
from efficientsam3.video.interactive import InteractiveTracker
from efficientsam3.video.masklet_tracker import MaskletTracker
from efficientsam3.video.memory_tracker import MemoryTracker
from efficientsam3.video.multiplex_tracker import MultiplexTracker, make_tracker

from ...conftest import tiny_model
from ...parity.upstream import released_keys, values
from .test_memory_tracker import box_masks, pictures

Picture = npt.NDArray[np.uint8]

LEFT, RIGHT = (4, 8, 24, 30), (36, 10, 60, 40)


@pytest.fixture(scope="module")
def model() -> es3.ImageModel:
    """A tiny model of SAM3.1, whose random weights see objects on some frames."""
    config = tiny_config(parts=("geometry", "masks", *MULTIPLEX_PARTS), scales=(4.0, 2.0, 1.0))
    return tiny_model(config=config)


@pytest.fixture(scope="module")
def clip() -> list[Picture]:
    return pictures(6)


def used(tracker: MultiplexTracker) -> list[int]:
    """Objects of each bucket."""
    return [len(bucket.used) for bucket in tracker._buckets]


def boxes(count: int) -> torch.Tensor:
    return box_masks(*((2 * i, i, 2 * i + 9, i + 9) for i in range(count)))


def test_the_tracker_is_that_of_the_release(model: es3.ImageModel, tiny: es3.ImageModel) -> None:
    assert {"interactive", "video"} <= model.abilities
    assert type(make_tracker(model)) is MultiplexTracker
    assert type(make_tracker(tiny)) is MemoryTracker
    assert make_tracker(model).settings.memory_selection is False
    assert make_tracker(tiny).settings.memory_selection is True
    without = model.config.without("propagation_neck")
    assert "video" not in without.abilities
    assert "third neck" in str(without.lacks("video", "this"))


@pytest.mark.slow
def test_buckets_are_filled_in_order(model: es3.ImageModel, clip: list[Picture]) -> None:
    tracker = MultiplexTracker(model)
    first = tracker.read(clip[0])
    tracker.add_masks(0, first, list(range(18)), boxes(18), "cat")
    tracker.add_masks(0, first, [30, 31], boxes(2), "dog")
    assert used(tracker) == [16, 2, 2], "each concept has buckets of its own"
    second = tracker.read(clip[1])
    found = tracker.propagate(1, second)
    assert found.ids == [*range(18), 30, 31]
    assert found.logits.shape == (20, 32, 32)
    tracker.remember(1, second, found)
    tracker.add_masks(1, second, [40, 41], boxes(2), "cat")
    tracker.add_masks(1, second, list(range(50, 63)), boxes(13), "cat")
    assert used(tracker) == [16, 4, 2, 13], "thirteen do not fit into twelve slots"
    tracker.remove(list(range(16)))
    assert used(tracker) == [4, 2, 13], "an empty bucket is dropped"
    third = tracker.read(clip[2])
    tracker.remember(2, third, tracker.propagate(2, third))
    tracker.add_masks(2, third, list(range(70, 74)), boxes(4), "cat")
    assert used(tracker) == [8, 2, 13], "the fullest group that has room is filled"
    with pytest.raises(TrackError, match="no object 3 is tracked"):
        tracker.propagate(2, third, ids=[3])


@pytest.mark.slow
def test_an_object_does_not_depend_on_other_buckets(
    model: es3.ImageModel, clip: list[Picture]
) -> None:
    alone, together = MultiplexTracker(model), MultiplexTracker(model)
    together.add_masks(0, together.read(clip[0]), [7, 8], boxes(2), "dog")
    for tracker in (alone, together):
        tracker.add_masks(0, tracker.read(clip[0]), [1, 2, 3], boxes(3), "cat")
    for t in range(1, 5):
        results = []
        for tracker in (alone, together):
            features = tracker.read(clip[t])
            found = tracker.propagate(t, features)
            tracker.remember(t, features, found)
            rows = [found.ids.index(id) for id in (1, 2, 3)]
            results.append(found.take(rows))
        torch.testing.assert_close(results[0].logits, results[1].logits)
        torch.testing.assert_close(results[0].pointers, results[1].pointers)


@pytest.mark.slow
def test_memory_is_bounded_and_shared(model: es3.ImageModel, clip: list[Picture]) -> None:
    sizes = []
    for count in (1, 16, 17):
        tracker = MultiplexTracker(model)
        tracker.add_masks(0, tracker.read(clip[0]), list(range(count)), boxes(count), "cat")
        for t in range(1, 24):
            features = tracker.read(clip[t % 6])
            tracker.remember(t, features, tracker.propagate(t, features))
            if t == 20:
                full = tracker.nbytes
        assert tracker.nbytes == full
        sizes.append(full)
    assert sizes[1] == sizes[0] and sizes[2] > sizes[1]


@pytest.mark.slow
def test_trackers_survive_pickling(model: es3.ImageModel, clip: list[Picture]) -> None:
    tracker = MultiplexTracker(model)
    tracker.add_masks(0, tracker.read(clip[0]), [0, 1], boxes(2), "cat")
    again = pickle.loads(pickle.dumps(tracker))
    features = tracker.read(clip[1])
    expected = tracker.propagate(1, features)
    torch.testing.assert_close(again.propagate(1, again.read(clip[1])).logits, expected.logits)


# Objects that a person points at ----------------------------------------------------------------


@pytest.mark.slow
def test_prompts_on_any_frame_in_both_directions(
    model: es3.ImageModel, clip: list[Picture]
) -> None:
    tracker = InteractiveTracker(model, clip)
    assert isinstance(tracker.engine, MultiplexTracker)
    tracker.add_points(1, 5, [[12, 16]])
    tracker.add_box(2, 3, RIGHT)
    tracker.add_mask(2, 4, box_masks(LEFT)[0].numpy())
    assert used(tracker.engine) == [1, 1, 1], "each has a bucket of its own"
    run = list(tracker.propagate("both"))
    assert [f.index for f in run] == [1, 2, 3, 4, 5, 1, 0]
    assert tracker.engine.conditioned(3) == [2]
    tracker.add_points(4, 3, [[40, 20]], [0])
    assert tracker.prompted(3) == tracker.engine.conditioned(3) == [2, 4]
    tracker.remove_prompt(4, 3)
    tracker.remove_object(4)
    assert tracker.engine.ids == [5, 3]


@pytest.mark.slow
def test_an_object_that_is_corrected_leaves_its_bucket(
    model: es3.ImageModel, clip: list[Picture]
) -> None:
    settings = es3.TrackSettings.of(model, hotstart_delay=0, max_age=0)
    masklets = MaskletTracker(make_tracker(model), settings)
    engine = masklets.engine
    assert isinstance(engine, MultiplexTracker)
    masklets.step(0, clip[0], None, ["cat"])
    for id in (0, 1):
        masklets.tracks.begin(id, "cat", 0.9, 0)
    masklets._next_id = 2
    engine.add_masks(0, masklets._features, [0, 1], box_masks(LEFT, RIGHT), "cat")
    masklets.step(1, clip[1], None, ["cat"])
    masklets.add_points(0, "cat", np.array([[0.2, 0.3]]), np.array([1]))
    assert used(engine) == [1, 1]
    assert engine.ids == [0, 1], "the order stays"
    assert engine.conditioned(0) == [1] and engine.conditioned(1) == [0]
    id, _ = masklets.add_mask(None, "cat", box_masks(LEFT)[0].numpy())
    assert used(engine) == [1, 1, 1] and id == 2
    masklets.step(2, clip[2], None, ["cat"])


# Whole clips -------------------------------------------------------------------------------------


def test_settings_are_those_of_the_release(model: es3.ImageModel, tiny: es3.ImageModel) -> None:
    assert es3.TrackSettings.of(tiny) == es3.TrackSettings.of(None) == es3.TrackSettings()
    late = es3.TrackSettings.of(tiny_model(config=tiny_late_config()))
    assert late.confirm_window and late.least_left and not late.hide_unmatched
    assert late.iou.shape_iou > es3.TrackSettings().iou.shape_iou
    changed = es3.TrackSettings.of(tiny_model(config=tiny_late_config()), confirm_window=0)
    assert not changed.confirm_window and changed.least_left
    later = es3.TrackSettings.of(model, max_objects=50)
    assert (later.detection_threshold, later.new_track_threshold) == (0.4, 0.65)
    assert (later.overlap_metric, later.nms, later.rules) == ("iom", 0.1, "sam3.1")
    assert (later.recondition_every, later.recondition_iou, later.min_hits) == (16, 0.5, 3)
    assert later.max_objects == 50
    with pytest.raises(TrackError, match=r"rules are 'sam3' or 'sam3.1'; got '3.1'"):
        es3.TrackSettings(rules="3.1")


@pytest.mark.slow
def test_a_saved_model_tracks_a_concept_and_a_shown_object(
    model: es3.ImageModel, clip: list[Picture], tmp_path: Path
) -> None:
    model.save(tmp_path / "saved")
    again = es3.load(tmp_path / "saved", device="cpu", dtype="float32")
    low = {"detection_threshold": 0.0, "new_track_threshold": 0.0, "border_margin": 0.0}
    settings = es3.TrackSettings.of(again, min_hits=0, cuts=None, **low)
    tracker = es3.ConceptTracker(again, ["cat"], settings=settings)
    assert tracker.tracker == "memory" and isinstance(tracker._masklets.engine, MultiplexTracker)
    shown = [es3.ObjectPrompt(2, mask=box_masks(LEFT)[0].numpy(), label="hare")]
    run = list(es3.track(again, clip, ["cat"], objects=shown, settings=settings))
    assert [frame.index for frame in run] == list(range(6))
    assert "hare" in run[2].instances.labels
    assert any("cat" in frame.instances.labels for frame in run)


@pytest.mark.slow
def test_half_precision_gives_nearly_the_same(model: es3.ImageModel, clip: list[Picture]) -> None:
    half = tiny_model(config=model.config, dtype="bfloat16")
    results = []
    for one in (model, half):
        tracker = MultiplexTracker(one)
        tracker.add_masks(0, tracker.read(clip[0]), list(range(4)), boxes(4), "cat")
        features = tracker.read(clip[1])
        found = tracker.propagate(1, features)
        tracker.remember(1, features, found)
        results.append(found)
    assert half.net.part("multiplex").attention.layers[0].linear1.weight.dtype == torch.bfloat16
    torch.testing.assert_close(results[1].presence, results[0].presence, rtol=0.1, atol=0.1)
    torch.testing.assert_close(results[1].quality, results[0].quality, rtol=0.1, atol=0.1)


@pytest.mark.slow
@pytest.mark.xdist_group("full-size models")
def test_a_released_layout_loads_strictly_and_tracks(tmp_path: Path, clip: list[Picture]) -> None:
    """The file of a SAM3.1 student, at full size, with seeded weights."""
    keys = released_keys("tinyvit-5m", "mobileclip-s0", 16, "3.1")
    torch.save({"model": values(keys)}, tmp_path / "model.pt")
    model = es3.load(
        "efficientsam3-tinyvit-5m", tmp_path / "model.pt", device="cpu", dtype="float32"
    )
    assert model.config.multiplexed and model.abilities == set(ABILITIES)
    given = [LEFT, RIGHT]
    shown = [es3.ObjectPrompt(0, mask=m.numpy(), label="hare") for m in box_masks(*given)]
    settings = es3.TrackSettings.of(model, hotstart_delay=0)
    run = list(es3.track(model, clip[:3], objects=shown, settings=settings))
    assert [frame.index for frame in run] == [0, 1, 2]
    assert run[0].instances.labels == ["hare", "hare"]
    lost = {k: v for k, v in values(keys).items() if "output_valid_embed" not in k}
    torch.save({"model": lost}, tmp_path / "cut.pt")
    with pytest.raises(es3.CheckpointError, match=r"only part of the SAM3.1 tracker: 1 of"):
        es3.load("efficientsam3-tinyvit-5m", tmp_path / "cut.pt")
