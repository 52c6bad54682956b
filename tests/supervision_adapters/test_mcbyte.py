"""McByte with our mask generator and propagator, on a tiny model with a memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import efficientsam3 as es3
from efficientsam3.config import tiny_config
from supervision_adapters import AdapterError

from ..conftest import tiny_model
from .conftest import shapes
from .test_tracking import disc

base = pytest.importorskip("trackers.core.mcbyte.masks.base", reason="needs the extra `trackers`")

from supervision_adapters.mcbyte import MaskGenerator, MaskPropagator, build_mcbyte  # noqa: E402


def tracklet(id: int, box: Any) -> Any:
    return base.TrackletSnapshot(tracker_id=id, xyxy=np.array(box, np.float32))


def test_masks_for_tracklets(tiny: es3.ImageModel, photo: Any) -> None:
    boxes = [[2, 3, 40, 30], [20, 10, 60, 44]]
    out = MaskGenerator(tiny).generate(photo, [tracklet(7, boxes[0]), tracklet(3, boxes[1])])
    said = tiny.segment_objects(photo, boxes=boxes)
    assert np.array_equal(out.masks, said.masks)
    assert out.tracklet_mask_dict == {7: 0, 3: 1}
    assert set(out.mask_avg_prob_dict) == {7, 3}
    assert MaskGenerator(tiny).generate(photo, []).masks.shape == (0, 48, 64)


def some(ids: list[int]) -> Any:
    masks = shapes()[: len(ids)]
    return base.MaskOutput(masks, {id: row for row, id in enumerate(ids)}, None)


def test_masks_are_carried_on(tiny: es3.ImageModel, photo: Any) -> None:
    """As by the core's memory tracker, asked directly."""
    from efficientsam3.video.memory_tracker import MemoryTracker

    propagator, core = MaskPropagator(tiny), MemoryTracker(tiny)
    propagator.initialize(photo, some([7, 3]))
    import torch

    core.add_masks(0, core.read(photo), [7, 3], torch.from_numpy(shapes()[:2]))
    for number in range(1, 4):
        frame = np.roll(photo, number, 1)
        out = propagator.propagate(frame)
        features = core.read(frame)
        expected = core.propagate(number, features)
        core.remember(number, features, expected)
        assert out.masks.shape == (2, 48, 64) and out.masks.dtype == bool
        assert out.tracklet_mask_dict == {7: 0, 3: 1}
        assert np.array_equal(
            out.masks.any((1, 2)), (expected.logits > 0).flatten(1).any(1).numpy()
        )
        assert all(0 <= p <= 1 for p in out.mask_avg_prob_dict.values())
        assert {i for i in (7, 3) if out.masks[out.tracklet_mask_dict[i]].any()} == set(
            propagator.masks
        )


def test_objects_come_and_go(tiny: es3.ImageModel, photo: Any) -> None:
    propagator = MaskPropagator(tiny)
    assert propagator.propagate(photo) is None
    propagator.initialize(photo, base.MaskOutput(None, {}, None))
    assert propagator.propagate(photo) is None
    propagator.initialize(photo, some([1]))
    propagator.propagate(photo)
    propagator.add_masks(photo, some([5, 6]))
    assert list(propagator.propagate(photo).tracklet_mask_dict) == [1, 5, 6]
    propagator.remove_masks([1, 99])
    assert list(propagator.propagate(photo).tracklet_mask_dict) == [5, 6]
    held = propagator.nbytes
    for _ in range(20):
        propagator.propagate(photo)
    held = propagator.nbytes
    for _ in range(8):
        propagator.propagate(photo)
    assert propagator.nbytes == held > 0, "memory is not constant"
    with pytest.raises(AdapterError, match="pass masks of this frame"):
        propagator.add_masks(photo[:20], some([8]))
    propagator.reset()
    assert propagator.propagate(photo) is None and propagator.masks == {}


def test_mcbyte_runs_on_it(tiny: es3.ImageModel, photo: Any) -> None:
    tracker = build_mcbyte(tiny, minimum_consecutive_frames=1)
    propagator = tracker.mask_manager.mask_propagator
    for turn in range(2):
        for i in range(6):
            detections = disc(12 + 2 * i)
            detections.confidence = np.array([0.95], np.float32)
            out = tracker.update(detections, np.roll(photo, i, 1))
        assert out.tracker_id.tolist() == [0], f"turn {turn}"
        assert len(propagator._tracker.ids) == 1, "no mask was carried on"
        tracker.reset()
        assert propagator._tracker.ids == []


def test_weights_without_a_memory_say_so() -> None:
    without = tiny_model(config=tiny_config(parts=("geometry", "masks")))
    with pytest.raises(es3.MissingAbilityError):
        build_mcbyte(without)
