"""The memory tracker: what frames read and remember, independent of other objects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import efficientsam3 as es3
from efficientsam3.config import tiny_config
from efficientsam3.errors import TrackError
from efficientsam3.video.memory_bank import MemoryBank
from efficientsam3.video.memory_tracker import MemoryTracker
from efficientsam3.video.settings import MemorySettings
from efficientsam3.video.types import (
    NO_OBJECT,
    MemoryEntry,
    MemoryRead,
    TrackerFeatures,
    TrackerOutput,
)

from ...conftest import tiny_model

Picture = npt.NDArray[np.uint8]


def pictures(count: int, seed: int = 0) -> list[Picture]:
    """Noise with other colors in each quarter and each frame."""
    rng = np.random.default_rng(seed)
    out = rng.integers(0, 90, (count, 48, 64, 3))
    for picture in out:
        for rows in (slice(0, 24), slice(24, 48)):
            for columns in (slice(0, 32), slice(32, 64)):
                picture[rows, columns] += rng.integers(0, 160, 3)
    return list(out.astype(np.uint8))


def box_masks(*boxes: tuple[int, int, int, int]) -> Tensor:
    """(N, 48, 64) bool masks of x0, y0, x1, y1 boxes."""
    out = torch.zeros(len(boxes), 48, 64, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(out, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return out


LEFT, RIGHT, TALL = (4, 8, 24, 30), (36, 10, 60, 40), (20, 2, 34, 46)


@pytest.fixture(scope="module")
def frames(tiny: es3.ImageModel) -> list[TrackerFeatures]:
    tracker = MemoryTracker(tiny)
    return [tracker.read(p) for p in pictures(10)]


@pytest.fixture
def tracker(tiny: es3.ImageModel) -> Iterator[MemoryTracker]:
    yield MemoryTracker(tiny)


def step(tracker: MemoryTracker, frame: int, features: TrackerFeatures) -> TrackerOutput:
    found = tracker.propagate(frame, features)
    tracker.remember(frame, features, found)
    return found


def close(a: TrackerOutput, b: TrackerOutput, tolerance: float = 1e-4) -> None:
    assert a.ids == b.ids
    for ours, theirs in zip(a[1:], b[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# One batch for all objects ------------------------------------------------------------------


@pytest.mark.parametrize("selection", [True, False])
def test_an_object_is_tracked_alike_alone_and_with_others(
    tiny: es3.ImageModel, frames: list[TrackerFeatures], selection: bool
) -> None:
    """Objects that begin on different frames share batches, and do not affect each other."""
    settings = MemorySettings(memory_selection=selection)
    begin = {7: (0, LEFT), 3: (2, RIGHT), 5: (2, TALL)}

    def run(wanted: list[int]) -> list[TrackerOutput]:
        tracker, results = MemoryTracker(tiny, settings), []
        for t, features in enumerate(frames[:6]):
            results.append(step(tracker, t, features))
            for id in wanted:
                if begin[id][0] == t:
                    tracker.add_masks(t, features, [id], box_masks(begin[id][1]))
        return results

    together = run([7, 3, 5])
    assert [s.ids for s in together] == [[], [7], [7], [7, 3, 5], [7, 3, 5], [7, 3, 5]]
    for id in begin:
        alone = run([id])
        for all_of_them, one in zip(together, alone, strict=True):
            if one.ids:
                close(all_of_them.take([all_of_them.ids.index(id)]), one)


def test_the_batch_size_changes_no_result(
    tiny: es3.ImageModel, frames: list[TrackerFeatures]
) -> None:
    masks = torch.cat([box_masks(LEFT, RIGHT, TALL), box_masks(RIGHT, LEFT) & box_masks(TALL)])
    results = []
    for chunk in (100, 2):
        tracker = MemoryTracker(tiny)
        tracker._batch = chunk
        given = tracker.add_masks(0, frames[0], range(5), masks)
        step(tracker, 1, frames[1])
        results.append((given, tracker.propagate(2, frames[2])))
    for complete, parts in zip(*results, strict=True):
        close(complete, parts)


def test_memory_changes_later_frames(tracker: MemoryTracker, frames: list[TrackerFeatures]) -> None:
    tracker.add_masks(0, frames[0], [0, 1], box_masks(LEFT, RIGHT))
    found = tracker.propagate(1, frames[1])
    assert found.logits.shape == (2, 32, 32)
    assert found.presence.shape == found.quality.shape == (2,)
    assert found.pointers.shape == (2, 16)
    assert not torch.allclose(found.logits[0], found.logits[1], atol=0.1)
    again = tracker.propagate(1, frames[1])
    close(found, again, 0)  # nothing was remembered
    before = tracker.propagate(2, frames[2])
    tracker.remember(1, frames[1], found)
    after = tracker.propagate(2, frames[2])
    assert not torch.allclose(before.logits, after.logits, atol=1e-3)


def test_some_objects_are_propagated(tracker: MemoryTracker, frames: list[TrackerFeatures]) -> None:
    tracker.add_masks(0, frames[0], [4, 9], box_masks(LEFT, RIGHT))
    both = tracker.propagate(1, frames[1])
    close(both.take([1]), tracker.propagate(1, frames[1], ids=[9]))
    tracker.remove(4)
    assert tracker.ids == [9]
    close(both.take([1]), tracker.propagate(1, frames[1]))
    with pytest.raises(TrackError, match="no object 4"):
        tracker.remove([4])


def test_an_absent_object_has_no_mask(tiny: es3.ImageModel, frames: list[TrackerFeatures]) -> None:
    tracker = MemoryTracker(tiny)
    tracker.add_masks(0, frames[0], [0], box_masks(LEFT))
    head = tracker._parts.head.masks.pred_obj_score_head.layers[-1]
    before = head.bias.clone()
    try:
        with torch.no_grad():
            head.bias -= 100
        absent = step(tracker, 1, frames[1])
        after = tracker.propagate(2, frames[2])
    finally:
        head.bias = torch.nn.Parameter(before, requires_grad=False)
    assert absent.presence.item() < -50
    assert (absent.logits == NO_OBJECT).all()
    assert torch.equal(absent.pointers, tracker._parts.memory.no_object_pointer)
    assert tracker._banks[0].tracked[1].score == 0
    assert (after.logits == NO_OBJECT).all()


def test_an_empty_mask_gives_an_absent_object(
    tracker: MemoryTracker, frames: list[TrackerFeatures]
) -> None:
    given = tracker.add_masks(0, frames[0], [0, 1], box_masks((0, 0, 0, 0), LEFT))
    assert given.presence.tolist() == [-10, 10]
    assert torch.equal(given.pointers[:1], tracker._parts.memory.no_object_pointer)
    assert (given.logits[0] == NO_OBJECT).all()
    assert (given.logits[1] > 0).float().mean().item() == pytest.approx(20 * 22 / 48 / 64, rel=0.1)


def test_where_given_masks_overlap_the_last_is_remembered(
    tiny: es3.ImageModel, frames: list[TrackerFeatures]
) -> None:
    first, last = box_masks((4, 8, 40, 30)), box_masks((20, 8, 60, 30))
    together, apart = MemoryTracker(tiny), MemoryTracker(tiny)
    together.add_masks(0, frames[0], [0, 1], torch.cat([first, last]))
    apart.add_masks(0, frames[0], [0], first & ~last)
    apart.add_masks(0, frames[0], [1], last)
    for id in (0, 1):
        ours, theirs = (t._banks[id].conditioning[0].tokens for t in (together, apart))
        torch.testing.assert_close(ours, theirs)


# Points ---------------------------------------------------------------------------------------


def test_clicks_begin_and_correct_an_object(
    tracker: MemoryTracker, frames: list[TrackerFeatures]
) -> None:
    xy, on = torch.tensor([[0.3, 0.4]]), torch.tensor([1])
    clicked = tracker.add_points(0, frames[0], 2, xy, on)
    assert tracker.conditioned(2) == [0]
    twice = tracker.add_points(
        0, frames[0], 2, torch.tensor([[0.3, 0.4], [0.8, 0.8]]), torch.tensor([1, 0]),
        previous=clicked.logits[0],
    )  # fmt: skip
    assert not torch.allclose(clicked.logits, twice.logits, atol=1e-2)
    found = step(tracker, 1, frames[1])
    assert list(tracker._banks[2].tracked) == [1]
    tracker.add_points(1, frames[1], 2, xy, on, previous=found.logits[0])
    assert tracker.conditioned(2) == [0, 1]
    assert not tracker._banks[2].tracked, "a corrected frame is no longer a tracked one"
    tracker.release(1, 2)
    assert tracker.conditioned(2) == [0]
    tracker.release(0, 2)
    assert tracker.ids == []


def test_points_equal_those_of_the_image_model(
    tiny: es3.ImageModel, tracker: MemoryTracker
) -> None:
    picture = pictures(1)[0]
    boxed = tiny.segment_objects(picture, boxes=[[8, 6, 40, 36]])
    corners = torch.tensor([[8 / 64, 6 / 48], [40 / 64, 36 / 48]])
    features = tracker.read(picture)
    ours = tracker.add_points(0, features, 0, corners, torch.tensor([2, 3]))
    assert boxed.low_res is not None
    theirs = torch.from_numpy(boxed.low_res[0]).clamp(-32, 32)
    torch.testing.assert_close(ours.logits.clamp(-32, 32), theirs, rtol=1e-4, atol=1e-4)
    assert ours.quality.item() == pytest.approx(float(boxed.scores[0]), abs=1e-4)


def test_encoded_and_plain_images_have_the_same_features(
    tiny: es3.ImageModel, tracker: MemoryTracker
) -> None:
    picture = pictures(1)[0]
    bare, shared = tracker.read(picture), tracker.read(tiny.encode(picture))
    assert bare.size == shared.size == (48, 64)
    for ours, theirs in zip(bare.image, shared.image, strict=True):
        torch.testing.assert_close(ours, theirs)


# Memory ---------------------------------------------------------------------------------------


def test_remember_keeps_conditioning_frames(
    tracker: MemoryTracker, frames: list[TrackerFeatures]
) -> None:
    tracker.add_masks(0, frames[0], [0], box_masks(LEFT))
    found = tracker.propagate(1, frames[1])
    tracker.add_masks(1, frames[1], [0], box_masks(TALL))
    given = tracker._banks[0].conditioning[1].tokens
    tracker.remember(1, frames[1], found)
    assert tracker._banks[0].conditioning[1].tokens is given
    assert not tracker._banks[0].tracked
    tracker.remember(1, frames[1], found, overwrite=True)
    assert not torch.equal(tracker._banks[0].conditioning[1].tokens, given)


def test_remember_takes_corrected_masks_and_presence(
    tracker: MemoryTracker, frames: list[TrackerFeatures]
) -> None:
    tracker.add_masks(0, frames[0], [0, 1], box_masks(LEFT, RIGHT))
    found = tracker.propagate(1, frames[1])
    tracker.remember(1, frames[1], found)
    plain = [tracker._banks[i].tracked[1].tokens for i in (0, 1)]
    tracker.remember(1, frames[1], found, present=torch.tensor([True, False]))
    shifted = tracker._banks[1].tracked[1].tokens - plain[1]
    torch.testing.assert_close(shifted, tracker._parts.memory.no_object.expand_as(shifted))
    tracker.remember(1, frames[1], found._replace(logits=found.logits.flip(0)))
    assert not torch.allclose(tracker._banks[0].tracked[1].tokens, plain[0], atol=1e-3)


@pytest.mark.parametrize("selection", [True, False])
@pytest.mark.parametrize("encoded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_is_flat_over_a_thousand_frames(
    tiny: es3.ImageModel,
    frames: list[TrackerFeatures],
    selection: bool,
    encoded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without and with the memory encoder, which takes most time and keeps no memory."""
    tracker = MemoryTracker(tiny, MemorySettings(memory_selection=selection))
    tracker.add_masks(0, frames[0], [0, 1], box_masks(LEFT, RIGHT))
    found = tracker.propagate(1, frames[1])._replace(presence=torch.tensor([4.0, 4.0]))
    if not encoded:
        monkeypatch.setattr(tracker, "_encode", lambda *_, **__: torch.zeros(2, 64, 4))
    sizes = []
    for t in range(1, 1001):
        tracker.remember(t, frames[t % 10], found)
        if t % 50 == 0:  # detections are given again
            tracker.add_masks(t, frames[t % 10], [0, 1], box_masks(LEFT, RIGHT))
        sizes.append(tracker.nbytes)
    assert max(sizes[400:]) == max(sizes[200:400]) > 0
    one = 64 * 4 * 4  # tokens of a frame, an object
    assert max(sizes) < 2 * ((4 + 7) * one + (4 + 16) * 16 * 4 + 1)


def test_entries_do_not_share_storage_with_larger_tensors(
    tracker: MemoryTracker, frames: list[TrackerFeatures]
) -> None:
    """A view of a batch would keep all objects of the batch alive."""
    tracker.add_masks(0, frames[0], list(range(6)), box_masks(*[LEFT] * 6))
    step(tracker, 1, frames[1])
    for entries in (tracker._banks[2].conditioning, tracker._banks[2].tracked):
        for entry in entries.values():
            assert entry.nbytes == 64 * 4 * 4 + 16 * 4


# The bank -------------------------------------------------------------------------------------


def marked(value: int, score: float = 1.0) -> MemoryEntry:
    return MemoryEntry(torch.full((1, 1), value), torch.full((1,), value), score)


def numbers(reading: MemoryRead) -> dict[str, object]:
    return {
        "read": sorted((w, int(t)) for w, t in zip(reading.positions, reading.tokens, strict=True)),
        "pointed": sorted((a, int(p)) for a, p in zip(reading.ages, reading.pointers, strict=True)),
    }


def test_a_frame_reads_six_tracked_and_all_conditioning_frames() -> None:
    bank = MemoryBank(MemorySettings(memory_selection=False), 7)
    bank.condition(0, marked(0))
    for t in range(1, 30):
        bank.remember(t, marked(t))
    results = numbers(bank.read(30))
    assert results["read"] == [(0, 0), (1, 29), (2, 28), (3, 27), (4, 26), (5, 25), (6, 24)]
    assert results["pointed"] == [(a, 30 - a) for a in range(1, 16)] + [(30, 0)]


def test_other_conditioning_frames_are_read_as_tracked_ones() -> None:
    bank = MemoryBank(MemorySettings(memory_selection=False, bidirectional=True), 7)
    for t in (0, 1, 2, 3, 5, 9):
        bank.condition(t, marked(t))
    bank.remember(4, marked(4))
    results = numbers(bank.read(6))
    # 5 is before, 9 is after, then 3 and 2 are nearest (9 is as far as 3).
    assert results["read"] == [(0, 2), (0, 3), (0, 5), (0, 9), (2, 4), (5, 1), (6, 0)]
    assert results["pointed"] == [(1, 5), (2, 4), (3, 3), (4, 2), (5, 1), (6, 0)]


def test_reading_backward_in_time() -> None:
    bank = MemoryBank(MemorySettings(memory_selection=False, bidirectional=True), 7)
    bank.condition(20, marked(20))
    bank.condition(5, marked(5))
    for t in (19, 18, 17):
        bank.remember(t, marked(t))
    results = numbers(bank.read(16, reverse=True))
    assert results["read"] == [(0, 5), (0, 20), (1, 17), (2, 18), (3, 19)]
    assert results["pointed"] == [(1, 17), (2, 18), (3, 19), (4, 20)], "5 is still to come"


def test_memory_selection_reads_frames_with_a_good_score() -> None:
    bank = MemoryBank(MemorySettings(memory_selection=True), 7)
    bank.condition(0, marked(0))
    for t in range(1, 41):
        bank.remember(t, marked(t, 0.9 if t % 4 == 0 else 0.001))
    results = numbers(bank.read(41))
    assert results["read"] == [(0, 0), (1, 40), (2, 36), (3, 32), (4, 28), (5, 24), (6, 20)]
    # ages are ranks; the furthest of the ten is left out
    assert results["pointed"] == [*((r, 44 - 4 * r) for r in range(1, 10)), (41, 0)]
    bank.remember(41, marked(41, 0.0))
    assert numbers(bank.read(42))["read"] == [
        (0, 0), (1, 41), (2, 40), (3, 36), (4, 32), (5, 28), (6, 24)
    ]  # fmt: skip  # the previous frame is always read


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("selection", [True, False])
def test_dropped_entries_are_never_read(selection: bool, reverse: bool) -> None:
    """Compared with a bank that keeps all, on 120 frames with absences and new prompts."""

    class KeepsAll(MemoryBank):
        def _drop_unreadable(self, now: int) -> None:
            pass

    settings = MemorySettings(memory_selection=selection)
    bank, everything = MemoryBank(settings, 7), KeepsAll(settings, 7)
    rng = np.random.default_rng(0)
    sign = -1 if reverse else 1
    order = [500 + sign * t for t in range(120)]
    for b in (bank, everything):
        b.condition(order[0], marked(order[0]))
    for t in order[1:]:
        ours, theirs = (numbers(b.read(t, reverse=reverse)) for b in (bank, everything))
        assert ours == theirs, t
        absent = (t // 20) % 2
        score = 0.0 if absent or rng.random() < 0.2 else float(rng.random())
        given = rng.random() < (0.5 if t % 30 < 8 else 0.05)
        for b in (bank, everything):
            if given:
                b.condition(t, marked(t))
            else:
                b.remember(t, marked(t, score))
    assert bank.nbytes < everything.nbytes


# Number formats -------------------------------------------------------------------------------


def test_bfloat16_is_close_to_float32(frames: list[TrackerFeatures]) -> None:
    shown = pictures(4)
    results = []
    for dtype in ("float32", "bfloat16"):
        tracker = MemoryTracker(tiny_model(dtype=dtype))
        tracker.add_masks(0, tracker.read(shown[0]), [0], box_masks(LEFT))
        for t in (1, 2, 3):
            found = step(tracker, t, tracker.read(shown[t]))
        assert tracker._banks[0].tracked[3].tokens.dtype == getattr(torch, dtype)
        results.append(found)
    exact, rounded = results
    agree = ((exact.logits > 0) == (rounded.logits > 0)).float().mean().item()
    assert agree > 0.95
    assert rounded.logits.dtype == torch.float32


def test_attention_with_narrow_values_equals_full_attention(
    tracker: MemoryTracker, frames: list[TrackerFeatures]
) -> None:
    """On a CPU some products are skipped, which changes nothing; training computes all."""
    memory = tracker._parts.memory
    layer = memory.attention.layers[0].cross_attn_image
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    remembered = memory.gather(
        normal(2, 3, 64, 4),
        torch.tensor([[0, 2, 1], [0, 0, 1]]),
        normal(2, 5, 16),
        torch.rand(2, 5, generator=generator),
        torch.tensor([[True] * 5, [True, True, True, False, False]]),
    )
    assert remembered.keys.shape == remembered.values.shape == (2, 3 * 64 + 5 * 4, 4)
    x = normal(1, 64, 16)
    with torch.inference_mode():
        spared = layer.recall(x, remembered, memory.rotary_tables())
    plain = layer.recall(x.clone().requires_grad_(), remembered, memory.rotary_tables())
    torch.testing.assert_close(spared, plain.detach(), rtol=1e-4, atol=1e-5)


# Errors ---------------------------------------------------------------------------------------


def test_errors_name_the_value_and_the_rule(
    tracker: MemoryTracker, frames: list[TrackerFeatures]
) -> None:
    with pytest.raises(TrackError, match=r"2 ids need \(2, h, w\) masks"):
        tracker.add_masks(0, frames[0], [0, 1], box_masks(LEFT))
    with pytest.raises(TrackError, match="given once a frame"):
        tracker.add_masks(0, frames[0], [1, 1], box_masks(LEFT, LEFT))
    with pytest.raises(TrackError, match=r"\(K, 2\) with \(K,\) labels"):
        tracker.add_points(0, frames[0], 0, torch.zeros(2, 2), torch.ones(1))
    with pytest.raises(TrackError, match="no object 3 is tracked; these are: none"):
        tracker.propagate(1, frames[1], ids=[3])
    with pytest.raises(TrackError, match="mask_size is 'input' or 'memory'"):
        MemorySettings(memory_mask_size="large")
    with pytest.raises(TrackError, match="pointers is a whole number from 2"):
        MemorySettings(max_object_pointers=1)


def test_weights_without_a_memory_are_an_error() -> None:
    bare = tiny_model(config=tiny_config(parts=("geometry", "masks")))
    with pytest.raises(es3.MissingAbilityError, match="no tracker"):
        MemoryTracker(bare)
