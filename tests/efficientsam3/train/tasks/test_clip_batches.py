"""Batches of clips: their objects, lengths, prompts and boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efficientsam3.config import tiny_config
from efficientsam3.errors import DataError
from efficientsam3.train.errors import SettingsError
from efficientsam3.train.tasks.clip_batches import (
    PROMPTS,
    ClipBatch,
    ClipBatches,
    ClipSettings,
    first_prompt,
)
from efficientsam3.types import BOTTOM_RIGHT, TOP_LEFT

from ..clips import Moving


def made(number: int = 0, count: int = 2, longest: int = 12, **settings: object) -> ClipBatch:
    batches = ClipBatches(Moving(count, longest), tiny_config(), ClipSettings(**settings))  # type: ignore[arg-type]
    return batches(number, np.random.default_rng((0, number)))


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shapes_of_a_batch() -> None:
    batch = made(frames=(4,), batch=2, objects=3)
    assert batch.pixels.shape == (2, 4, 3, 112, 112)
    assert batch.clips.tolist() == [0, 0, 1, 1]
    assert batch.masks.shape == (4, 4, 32, 32) and batch.masks.dtype == torch.bool
    assert batch.masks[:, 0].flatten(1).any(1).all()
    assert len(made(objects=1).clips) == 1


def test_batches_depend_on_nothing_but_their_number() -> None:
    again = made(3), made(3)
    assert torch.equal(again[0].pixels, again[1].pixels)
    assert again[0][3:] == again[1][3:]
    assert len({made(n).seed for n in range(4)}) == 4


def test_clips_become_longer() -> None:
    settings = {"frames": (2, 4, 6), "growth": 5}
    lengths = [made(n, **settings).masks.shape[1] for n in (0, 4, 5, 9, 10, 99)]
    assert lengths == [2, 2, 4, 4, 6, 6]


def test_prompts_and_corrections_are_drawn() -> None:
    found = [made(n, frames=(4,), clicks=2, corrected=2) for n in range(60)]
    assert {b.prompt for b in found} == set(PROMPTS)
    assert {b.clicks for b in found} == {0, 1, 2}
    assert {len(b.corrected) for b in found} == {0, 1, 2}
    assert {t for b in found for t in b.corrected} == {1, 2, 3}  # the first has a prompt of its own
    assert {b.forced for b in found} == {False, True}
    assert {made(n, mask=1, click=0, box=0).prompt for n in range(8)} == {"mask"}


def test_clips_are_reversed() -> None:
    ahead = made(backwards=0.0, count=1, frames=(3,))
    back = made(backwards=1.0, count=1, frames=(3,))
    assert torch.equal(ahead.pixels.flip(1), back.pixels)


def test_objects_are_visible_on_the_first_frame() -> None:
    # The first square has left by the last of 16 frames, so reversed clips have the second alone.
    batch = made(backwards=1.0, count=1, longest=16, frames=(16,))
    assert batch.clips.tolist() == [0]
    assert not batch.masks[0, 0].any(1)[:16].any()  # the lower one
    with pytest.raises(DataError, match="none has 6 frames with an object visible"):
        made(longest=4, frames=(6,))


def test_boxes_are_around_their_objects() -> None:
    batch = made(frames=(2,), box=1, click=0, mask=0)
    exact = ClipSettings(box_noise=0)
    xy, labels = first_prompt(batch, exact, drawn())
    assert labels.tolist() == [[TOP_LEFT, BOTTOM_RIGHT]] * 2
    for mask, corners in zip(batch.masks[:, 0], (xy * 32).round().int().tolist(), strict=True):
        (x0, y0), (x1, y1) = corners
        assert mask[y0:y1, x0:x1].all() and mask.sum() == (y1 - y0) * (x1 - x0)
    moved = torch.cat([first_prompt(batch, ClipSettings(), drawn(s))[0] - xy for s in range(50)])
    assert 0 < moved.abs().max() <= 20 / 1008 + 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"click": 0, "box": 0, "mask": 0}, "click is 0; it must be above 0 if box and mask are 0"),
        ({"frames": (4, 0)}, r"frames is \(4, 0\); it must be numbers of at least 1"),
        ({"frames": ()}, r"frames is \(\); it must be numbers of at least 1"),
        ({"objects": 0}, "objects is 0; it must be at least 1"),
        ({"clicks": -1}, "clicks is -1; it must be 0 or more"),
        ({"forced": 1.5}, "forced is 1.5; it must be from 0 to 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ClipSettings(**settings)  # type: ignore[arg-type]
