"""Objects take over the masks of detections where the memory draws poor masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam3.config import MemoryConfig
from efficientsam3.errors import TrackError
from efficientsam3.predictor import ImageModel
from efficientsam3.types import Array, Instances
from efficientsam3.video.association import associate
from efficientsam3.video.concept_tracker import ConceptTracker
from efficientsam3.video.memory_tracker import MemoryTracker
from efficientsam3.video.settings import TrackSettings
from efficientsam3.video.types import TrackedFrame

from ..train.clips import tiny_tracker
from .scripted import ScriptedMemory, ScriptedModel, block, frames, instances

GRID = (48, 64)
SIZE = (60, 80)
SHOWN = TrackSettings(hotstart_delay=0, adopt_detection_iou=0.1)


def at(y: int, x: int, high: int = 12, wide: int = 12) -> Array:
    return block(y, x, high, wide, GRID)


class Poor(ScriptedMemory):
    """Finds each object, in the order in which they began, and draws a third of it."""

    def __init__(self, drawn: Any = lambda t, id: at(20, 10 + t + 24 * id, 4, 12)) -> None:
        super().__init__()
        self.drawn = drawn
        self.kept: dict[tuple[int, int], Tensor] = {}

    def see(self, frame: int, id: int) -> tuple[Array, float]:
        return np.where(self.drawn(frame, id), 5.0, -5.0), 5.0

    def mask_to_logits(self, masks: Tensor) -> Tensor:
        rows, columns = (
            torch.arange(g) * n // g for g, n in zip(GRID, masks.shape[1:], strict=True)
        )
        return torch.where(masks[:, rows][:, :, columns], 10.0, -10.0)

    def remember(self, frame: int, features: Any, tracked: Any, **options: Any) -> None:
        super().remember(frame, features, tracked, **options)
        for id, logits in zip(tracked.ids, tracked.logits, strict=True):
            self.kept[frame, id] = logits


def two(t: int, logits: bool = True) -> Instances:
    """Two dogs that move."""
    masks = [at(20, 10 + t), at(20, 34 + t)]
    if not logits:
        masks = [block(25, round((x + t) * 1.25), 15, 15, SIZE) for x in (10, 34)]
    return instances(masks, "dog", 0.9, size=SIZE, logits=logits)


def follow(
    script: Any, count: int, settings: TrackSettings, memory: ScriptedMemory
) -> list[TrackedFrame]:
    tracker = ConceptTracker(ScriptedModel(script), "dog", tracker=memory, settings=settings)
    return [done for f in frames(count, SIZE) for done in tracker.step(f)] + tracker.flush()


def iou(a: Array, b: Array) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("logits", [True, False], ids=["logits", "pixels"])
def test_masks_are_the_detections_in_results_and_in_memory(logits: bool) -> None:
    memory = Poor()
    out = follow(lambda t: two(t, logits), 6, SHOWN, memory)
    for frame in out:
        found, shown = two(frame.index, logits), frame.instances
        assert shown.track_ids.tolist() == [0, 1]
        for row in range(2):
            assert iou(shown.mask(row), found.mask(row)) > 0.95
            if frame.index:
                kept = memory.kept[frame.index, row].numpy() > 0
                assert iou(kept, at(20, 10 + 24 * row + frame.index)) > 0.8
    poor = follow(two, 6, replace(SHOWN, adopt_detection_iou=0.0), Poor())
    assert iou(poor[3].instances.mask(0), two(3).mask(0)) < 0.5


def test_by_default_masks_are_those_of_the_memory() -> None:
    plain, none = (
        follow(two, 4, TrackSettings(hotstart_delay=0, adopt_detection_iou=adopt), Poor())
        for adopt in (None, 0.0)
    )
    for a, b in zip(plain, none, strict=True):
        assert a.instances.rles == b.instances.rles


def test_undetected_objects_have_the_mask_of_the_memory() -> None:
    out = follow(lambda t: two(t) if t != 3 else two(t)[:0], 5, SHOWN, Poor())
    assert out[3].instances.track_ids.tolist() == [0, 1]
    assert 0.2 < iou(out[3].instances.mask(0), two(3).mask(0)) < 0.5
    assert iou(out[4].instances.mask(0), two(4).mask(0)) > 0.95


def test_an_adopted_detection_confirms_the_object() -> None:
    """Its IoU of a third is below ``confirm_iou``; without adoption the object is removed."""
    settings = TrackSettings(
        hotstart_delay=6, hotstart_unmatched=3, hotstart_duplicates=6, adopt_detection_iou=0.1
    )
    assert follow(two, 8, settings, Poor())[0].instances.track_ids.tolist() == [0, 1]
    out = follow(two, 8, replace(settings, adopt_detection_iou=0.0), Poor())
    assert 0 not in out[0].instances.track_ids


def test_a_detection_is_adopted_by_one_object() -> None:
    """The memory draws the second object as the first; it keeps no pixel."""

    def both_here(t: int, id: int) -> Array:
        return at(20, 10 + t, 4, 12) if t > 1 else at(20, 10 + t + 24 * id, 4, 12)

    out = follow(lambda t: two(t) if t < 2 else two(t)[:1], 4, SHOWN, Poor(both_here))
    shown = out[3].instances
    assert shown.track_ids.tolist() == [0]
    assert iou(shown.mask(0), two(3).mask(0)) > 0.95


def test_the_assignment_has_the_largest_total_overlap() -> None:
    overlap = np.array([[0.6, 0.5, 0.0], [0.55, 0.05, 0.0]])
    scores, seen = np.full(2, 0.9), np.ones(3, bool)

    def own(adopt: float) -> dict[int, int]:
        return associate(overlap, scores, seen, TrackSettings(adopt_detection_iou=adopt)).adopted

    assert own(0.1) == {1: 0, 0: 1}
    assert own(0.52) == {0: 0}
    assert own(0.0) == {}


def test_adopt_detection_iou_is_between_0_and_1() -> None:
    with pytest.raises(TrackError, match=r"adopt_detection_iou is between 0 and 1; got 1.5"):
        TrackSettings(adopt_detection_iou=1.5)
    with pytest.raises(
        ValueError, match=r"adopt_detection_iou is an IoU between 0 and 1; got -0.5"
    ):
        MemoryConfig(adopt_detection_iou=-0.5)


@pytest.mark.parametrize("way", [lambda _: "memory", MemoryTracker], ids=["named", "given"])
def test_the_default_is_the_models(way: Any) -> None:
    config, net = tiny_tracker(memory=MemoryConfig(adopt_detection_iou=0.01))
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    there = instances([block(10, 10, 20, 20, (48, 64))], "dog", size=(48, 64))

    def second(settings: TrackSettings) -> Array:
        """The mask on the second frame."""
        model = ImageModel("tiny", config, lambda: net, device="cpu", dtype="float32")
        tracker = ConceptTracker(model, "dog", tracker=way(model), settings=settings)
        tracker.step(image, there)
        shown = tracker.step(image, there)[0].instances
        return shown.mask(0) if len(shown) else np.zeros((48, 64), bool)

    now = TrackSettings(hotstart_delay=0)
    assert np.array_equal(second(now), there.mask(0))
    assert not np.array_equal(second(replace(now, adopt_detection_iou=0.0)), there.mask(0))
