"""Results: the masks that they hold compactly, and what can be asked of them."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

import efficientsam3 as es3
from efficientsam3.types import BitPatch, Instances, LogitPatch, join

Array = npt.NDArray[Any]


def blobs(seed: int, height: int, width: int) -> Array:
    """Smooth logits with a few islands, some of them at the border."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(-0.7, 1, (1, 1, height // 4 + 1, width // 4 + 1)))
    dense = F.interpolate(coarse, (height, width), mode="bilinear")[0, 0]
    return (dense + 0.1 * torch.from_numpy(rng.normal(size=dense.shape))).float().numpy()


def enlarged(logits: Array, size: tuple[int, int]) -> Array:
    """The mask that upstream would make: all logits enlarged, then compared with 0."""
    dense = F.interpolate(torch.from_numpy(logits)[None, None], size, mode="bilinear")
    return (dense[0, 0] > 0).numpy()


def instances(n: int = 4, size: tuple[int, int] = (30, 40), **changes: Any) -> Instances:
    rng = np.random.default_rng(n)
    low, high = np.sort(rng.uniform(0, 1, (2, n, 2)), axis=0)
    fields: dict[str, Any] = {
        "boxes": (np.concatenate([low, high], 1) * [40, 30, 40, 30]).astype(np.float32),
        "scores": np.linspace(0.9, 0.1, n, dtype=np.float32),
        "presence": np.full(n, 0.95, np.float32),
        "labels": [("bus", "person")[i % 2] for i in range(n)],
        "size": size,
        "patches": [LogitPatch.cut(blobs(i, 12, 12)) for i in range(n)],
        "concepts": ("bus", "person", "zebra"),
        "concept_presence": {"bus": 0.95, "person": 0.95, "zebra": 0.01},
        "track_ids": np.arange(n) + 100,
    }
    return Instances(**{**fields, **changes})


# Masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(24, 24), (48, 48), (61, 37), (7, 300), (1, 1), (23, 25), (5, 5), (240, 3)], ids=str
)
@pytest.mark.parametrize("seed", range(6))
def test_a_compact_mask_is_that_of_all_logits(seed: int, size: tuple[int, int]) -> None:
    logits = blobs(seed, 24, 24)
    expected = enlarged(logits, size)
    pixels, (x0, y0, x1, y1) = LogitPatch.cut(logits).crop(size)
    dense = np.zeros(size, bool)
    dense[y0:y1, x0:x1] = pixels
    # A value of nearly 0 may fall to either side.
    assert (dense != expected).mean() < 1e-3
    assert expected.any() or not dense.any()
    if pixels.size:
        assert pixels.shape == (y1 - y0, x1 - x0)
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert edge.any(), "the crop is not tight"


@pytest.mark.parametrize("cell", [(0, 0), (0, 7), (7, 7), (3, 4)])
def test_one_cell_alone(cell: tuple[int, int]) -> None:
    logits = np.full((8, 8), -1, np.float32)
    logits[cell] = 3
    patch = LogitPatch.cut(logits)
    assert patch.logits.size <= 9
    for size in ((8, 8), (64, 80), (33, 5)):
        pixels, (x0, y0, x1, y1) = patch.crop(size)
        dense = np.zeros(size, bool)
        dense[y0:y1, x0:x1] = pixels
        assert (dense == enlarged(logits, size)).all()


def test_masks_without_a_pixel_and_without_an_end() -> None:
    empty = instances(1, patches=[LogitPatch.cut(np.full((8, 8), -1.0, np.float32))])
    assert empty.crop(0)[0].shape == (0, 0)
    assert empty.crop(0)[1] == (0, 0, 0, 0)
    assert not empty.masks.any()
    full = instances(1, patches=[LogitPatch.cut(np.full((8, 8), 1.0, np.float32))])
    assert full.crop(0)[1] == (0, 0, 40, 30)
    assert full.masks.all()


def test_a_compact_mask_takes_the_memory_of_its_own_cells() -> None:
    logits = np.full((288, 288), -1, np.float32)
    logits[100:110, 20:40] = 1
    patch = LogitPatch.cut(logits)
    assert patch.logits.shape == (12, 22)
    assert patch.logits.base is None, "a view would keep all cells in memory"


def test_masks_of_pixels() -> None:
    mask = np.zeros((30, 40), bool)
    mask[3:9, 5:20] = True
    mask[4, 7] = False
    found = instances(1, patches=[BitPatch.cut(mask)])
    assert (found.mask(0) == mask).all()
    assert found.crop(0)[1] == (5, 3, 20, 9)
    nothing = instances(1, patches=[BitPatch.cut(np.zeros((30, 40), bool))])
    assert not nothing.masks.any()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize("size", [(30, 40), (1, 1), (97, 61)], ids=str)
def test_dense_masks_crops_and_run_lengths_agree(size: tuple[int, int]) -> None:
    from pycocotools import mask as coco

    found = instances(5, size)
    assert found.masks.shape == (5, *size)
    assert found.masks.dtype == bool
    for i, rle in enumerate(found.rles):
        expected = coco.encode(np.asfortranarray(found.mask(i), np.uint8))
        assert rle == {"size": list(size), "counts": expected["counts"].decode()}
        assert (coco.decode(rle) == found.masks[i]).all()
        pixels, (x0, y0, x1, y1) = found.crop(i)
        assert (found.mask(i)[y0:y1, x0:x1] == pixels).all()
        assert found.mask(i).sum() == pixels.sum()


@pytest.mark.parametrize(
    "pattern",
    [
        np.ones((4, 5), bool),
        np.zeros((4, 5), bool),
        np.indices((4, 5)).sum(0) % 2 == 0,
        np.array([[0, 0, 1], [0, 0, 1]], bool),
        np.array([[1, 0, 1], [1, 1, 1]], bool),
        np.array([[0, 1, 0], [1, 1, 0]], bool),
    ],
    ids=["full", "empty", "checks", "last column", "wrap", "foot"],
)
def test_run_lengths_of_masks_that_touch_the_edges(pattern: Array) -> None:
    from pycocotools import mask as coco

    found = instances(1, pattern.shape, patches=[BitPatch.cut(pattern)])
    (rle,) = found.rles
    assert rle["counts"] == coco.encode(np.asfortranarray(pattern, np.uint8))["counts"].decode()


def test_boxes_without_masks_say_why() -> None:
    found = instances(2, patches=None)
    asks = (lambda: found.masks, lambda: found.mask(0), lambda: found.crop(0), lambda: found.rles)
    for ask in asks:
        with pytest.raises(es3.MissingAbilityError, match="no mask head"):
            ask()
    assert len(found[:1]) == 1
    assert found[:1].patches is None


# Choosing ------------------------------------------------------------------------------------


def same(a: Instances, b: Instances) -> bool:
    assert a.track_ids is not None
    assert b.track_ids is not None
    return (
        a.labels == b.labels
        and (a.boxes == b.boxes).all()
        and (a.scores == b.scores).all()
        and (a.track_ids == b.track_ids).all()
        and (a.masks == b.masks).all()
        and (a.size, a.concepts, a.concept_presence) == (b.size, b.concepts, b.concept_presence)
    )


def test_choosing_by_index_slice_list_and_bools() -> None:
    found = instances(4)
    assert same(found[[1, 3]], found[np.array([False, True, False, True])])
    assert same(found[[1, 3]], found[[False, True, False, True]])
    assert same(found[1:], found[[1, 2, 3]])
    assert same(found[::-1], found[[3, 2, 1, 0]])
    assert same(found[2], found[2:3])
    assert same(found[-1], found[3])
    assert same(found[np.int64(2)], found[2])
    assert found[[1, 3]].labels == ["person", "person"]
    assert found[[1, 3]].concepts == ("bus", "person", "zebra")
    assert (found[[3, 1]].scores == found.scores[[3, 1]]).all()
    assert [part.labels for part in found] == [["bus"], ["person"], ["bus"], ["person"]]
    for outside in (4, -5, [0, 4]):
        with pytest.raises(IndexError):
            found[outside]
    with pytest.raises(IndexError):
        found[[True, False]]


def test_choosing_nothing() -> None:
    for found in (instances(4), instances(0)):
        for index in ([], slice(0, 0), np.zeros(len(found), bool), np.array([])):
            nothing = found[index]
            assert len(nothing) == 0
            assert nothing.boxes.shape == (0, 4)
            assert nothing.scores.shape == (0,)
            assert nothing.masks.shape == (0, 30, 40)
            assert nothing.rles == []
            assert nothing.concept_presence == found.concept_presence
    assert list(instances(0)) == []


def test_above_a_threshold() -> None:
    found = instances(5)  # 0.9, 0.7, 0.5, 0.3, 0.1
    assert len(found.above(0.0)) == 5
    assert (found.above(0.6).scores > 0.6).all()
    assert len(found.above(0.6)) == 2
    assert len(found.above(float(found.scores[1]))) == 1, "more than, not at least"
    assert len(found.above(1.0)) == 0


def test_low_resolution_logits_follow_their_instance() -> None:
    low = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    found = instances(4, low_res=low)
    chosen = found[[2, 0]].low_res
    assert chosen is not None
    assert chosen.ravel().tolist() == [2, 0]


def test_answers_are_joined_in_order() -> None:
    a, b = instances(2), instances(3, concepts=("cat",), concept_presence={"cat": 0.3})
    both = join([a, b])
    assert both.labels == a.labels + b.labels
    assert both.concepts == ("bus", "person", "zebra", "cat")
    assert both.concept_presence["cat"] == 0.3
    assert (both.masks == np.concatenate([a.masks, b.masks])).all()
    assert (both.scores == np.concatenate([a.scores, b.scores])).all()


# The dataclass -------------------------------------------------------------------------------


def test_results_cannot_be_changed_and_can_be_sent_away() -> None:
    found = instances(3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.labels = []  # type: ignore[misc]
    assert same(pickle.loads(pickle.dumps(found)), found)


def test_repr_counts_what_was_asked_for() -> None:
    assert repr(instances(3)) == "Instances(2 'bus', 1 'person', 0 'zebra'; image 40 x 30)"
    empty = instances(0, concepts=(), concept_presence={})
    assert repr(empty) == "Instances(nothing; image 40 x 30)"


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": np.zeros((3, 4), np.float32)},
        {"boxes": np.zeros((4, 5), np.float32)},
        {"scores": np.zeros((4, 1), np.float32)},
        {"presence": np.zeros(3, np.float32)},
        {"track_ids": np.zeros(5, np.int64)},
        {"patches": []},
    ],
    ids=str,
)
def test_fields_of_different_lengths(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="4 labels"):
        instances(4, **change)


@pytest.mark.parametrize(
    "error",
    [
        es3.ImageError,
        es3.PromptError,
        es3.CheckpointError,
        es3.MissingAbilityError,
        es3.WeightsNotFoundError,
    ],
)
def test_errors_cross_process_borders(error: type[Exception]) -> None:
    again = pickle.loads(pickle.dumps(error("what; the rule; the way out")))
    assert type(again) is error
    assert str(again) == "what; the rule; the way out"
