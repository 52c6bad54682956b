"""Clips drawn and prompted: which objects, how long, where clicks and boxes lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientsam3.build import tiny_config
from efficientsam3.distill.clip_batches import (
    PROMPTS,
    ClipBatch,
    ClipBatches,
    ClipSettings,
    error_clicks,
    first_prompt,
    overlap,
    small_strip,
)
from efficientsam3.distill.errors import DataError
from efficientsam3.nn.interactive import BOTTOM_RIGHT, NOT_A_POINT, TOP_LEFT

from .clips import Moving


def made(number: int = 0, count: int = 2, longest: int = 12, **settings: object) -> ClipBatch:
    batches = ClipBatches(Moving(count, longest), tiny_config(), ClipSettings(**settings))  # type: ignore[arg-type]
    return batches(number, np.random.default_rng((0, number)))


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shapes() -> None:
    batch = made(frames=(4,), batch=2, objects=3)
    assert batch.pixels.shape == (2, 4, 3, 112, 112)
    assert batch.clips.tolist() == [0, 0, 1, 1]
    assert batch.masks.shape == (4, 4, 32, 32) and batch.masks.dtype == torch.bool
    assert batch.masks[:, 0].flatten(1).any(1).all()
    assert len(made(objects=1).clips) == 1


def test_batches_depend_on_their_number_alone() -> None:
    again = made(3), made(3)
    assert torch.equal(again[0].pixels, again[1].pixels)
    assert again[0][3:] == again[1][3:]
    assert len({made(n).seed for n in range(4)}) == 4


def test_clips_grow() -> None:
    settings = {"frames": (2, 4, 6), "growth": 5}
    lengths = [made(n, **settings).masks.shape[1] for n in (0, 4, 5, 9, 10, 99)]
    assert lengths == [2, 2, 4, 4, 6, 6]


def test_prompts_and_corrections_are_drawn() -> None:
    found = [made(n, frames=(4,), clicks=2, corrected=2) for n in range(60)]
    assert {b.prompt for b in found} == set(PROMPTS)
    assert {b.clicks for b in found} == {0, 1, 2}
    assert {len(b.corrected) for b in found} == {0, 1, 2}
    assert {t for b in found for t in b.corrected} == {1, 2, 3}  # the first has its own
    assert {b.forced for b in found} == {False, True}
    assert {made(n, mask=1, click=0, box=0).prompt for n in range(8)} == {"mask"}


def test_half_go_backwards() -> None:
    ahead = made(backwards=0.0, count=1, frames=(3,))
    back = made(backwards=1.0, count=1, frames=(3,))
    assert torch.equal(ahead.pixels.flip(1), back.pixels)


def test_objects_are_in_sight_at_first() -> None:
    # On the last of 16 frames the first square has left; backwards, the second alone is taken.
    batch = made(backwards=1.0, count=1, longest=16, frames=(16,))
    assert batch.clips.tolist() == [0]
    assert not batch.masks[0, 0].any(1)[:16].any()  # the lower one
    with pytest.raises(DataError, match="none has 6 frames with an object"):
        made(longest=4, frames=(6,))


def test_clicks_lie_where_it_is_wrong() -> None:
    truth = torch.zeros(4, 6, 8, dtype=torch.bool)
    said = truth.clone()
    truth[0, 2, 3] = True  # missed
    said[1, 4, 5] = True  # added
    truth[2, 1, 1:3] = said[2, 1, 1:3] = True  # right
    xy, labels = error_clicks(truth, said, drawn())
    assert xy.shape == (4, 1, 2)
    assert labels[:, 0].tolist() == [1, 0, 1, NOT_A_POINT]
    assert xy[0, 0].tolist() == pytest.approx([3.5 / 8, 2.5 / 6])
    assert xy[1, 0].tolist() == pytest.approx([5.5 / 8, 4.5 / 6])
    places = {tuple(error_clicks(truth, said, drawn(s))[0][2, 0].tolist()) for s in range(20)}
    assert len(places) == 2


def test_boxes_are_around_their_objects() -> None:
    batch = made(frames=(2,), box=1, click=0, mask=0)
    exact = ClipSettings(jitter=0)
    xy, labels = first_prompt(batch, exact, drawn())
    assert labels.tolist() == [[TOP_LEFT, BOTTOM_RIGHT]] * 2
    for mask, corners in zip(batch.masks[:, 0], (xy * 32).round().int().tolist(), strict=True):
        (x0, y0), (x1, y1) = corners
        assert mask[y0:y1, x0:x1].all() and mask.sum() == (y1 - y0) * (x1 - x0)
    moved = torch.cat([first_prompt(batch, ClipSettings(), drawn(s))[0] - xy for s in range(50)])
    assert 0 < moved.abs().max() <= 20 / 1008 + 1e-6


def test_overlap_of_nothing_with_nothing() -> None:
    a, b = torch.zeros(3, 4, 4, dtype=torch.bool), torch.zeros(3, 4, 4, dtype=torch.bool)
    a[0, :2] = b[0, 1:3] = True
    a[1, 0] = True
    assert overlap(a, b).tolist() == pytest.approx([1 / 3, 0, 1])


def test_a_strip_to_look_at() -> None:
    batch = made(count=1, frames=(3,), backwards=0.0)
    truth = batch.masks.any(0)
    strip = small_strip(batch.pixels[0], truth, truth, side=64)
    assert strip.shape == (64, 3 * 64, 3) and strip.dtype == np.uint8
    assert (strip[18, 12] > strip[2, 2]).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"click": 0, "box": 0, "mask": 0}, "shares of clicks"),
        ({"frames": (4, 0)}, "a frame or more"),
        ({"objects": 0}, "at least 1"),
        ({"forced": 1.5}, "from 0 to 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClipSettings(**settings)  # type: ignore[arg-type]
