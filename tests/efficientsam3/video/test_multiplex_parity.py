"""Parity with upstream's SAM3.1 tracker on ten frames: memories, attention, masks and pointers.

``../../parity/README.md`` says how the numbers were made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import efficientsam3 as es3
from efficientsam3.build import build
from efficientsam3.checkpoints import layout
from efficientsam3.config import MULTIPLEX_PARTS, tiny_config
from efficientsam3.types import BOTTOM_RIGHT, TOP_LEFT
from efficientsam3.video.multiplex_tracker import MultiplexTracker
from efficientsam3.video.settings import MemorySettings
from efficientsam3.video.types import NO_OBJECT, MemoryRead, TrackerFeatures, TrackerOutput

from ...parity.upstream import HERE, groups, values

pytestmark = [pytest.mark.slow]

TOLERANCE = 2e-3
GRID, FRAMES, SIZE = 16, 10, (60, 80)

CLICKS = torch.tensor([[0.3, 0.4], [0.8, 0.7]]), torch.tensor([1, 0])

Golden = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return dict(np.load(HERE / "multiplex_grid16.npz"))


@pytest.fixture(scope="module")
def model() -> es3.ImageModel:
    """Upstream's seeded weights; objects are there on some frames and not on others."""
    config = tiny_config(
        width=256, heads=8, hidden=2048, grid=GRID, resolution=14 * GRID, fusion_layers=1,
        decoder_layers=1, parts=MULTIPLEX_PARTS,
    )  # fmt: skip
    keys = {k: v for k, v in groups()["3.1"].items() if k.startswith("tracker.")}
    ours = layout.to_ours("tinyvit-5m", "mobileclip-s0", "3.1")
    weights = {ours(layout.canonical(k)) or k: v for k, v in values(keys).items()}
    weights["multiplex.masks.pred_obj_score_head.layers.2.bias"] += 0.3
    weights["interactive.masks.pred_obj_score_head.layers.2.bias"] += 0.5
    net = build(config).eval().requires_grad_(False)
    lost = net.load_state_dict(weights, strict=False)
    assert not lost.unexpected_keys
    assert not [k for k in lost.missing_keys if k.startswith(("interactive.", "multiplex."))]
    return es3.ImageModel("tracker", config, lambda: net, device="cpu", dtype="float32")


def normal(scale: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 256, scale * GRID, scale * GRID, generator=generator)


@pytest.fixture(scope="module")
def features(model: es3.ImageModel) -> list[TrackerFeatures]:
    net = model.learned()

    def read(offset: int, seed: int, frame: int, head: str) -> Any:
        fine, middle, coarse = (
            normal(s, offset + s) + 0.5 * normal(s, seed + 100 * s + frame) for s in (4, 2, 1)
        )
        masks = net.part(head).masks
        seen = net.part("interactive").read_frame(fine, middle, coarse)
        return seen._replace(middle=masks.conv_s1(middle), fine=masks.conv_s0(fine))

    with torch.inference_mode():
        return [
            TrackerFeatures(
                read(0, 0, t, "multiplex"), SIZE, prompted=read(1000, 5000, t, "interactive")
            )
            for t in range(FRAMES)
        ]


class Replay:
    """A tracker that is compared with upstream's at each step."""

    def __init__(self, model: es3.ImageModel, golden: Golden, settings: MemorySettings) -> None:
        self.tracker = MultiplexTracker(model, settings)
        self.golden = golden
        self.seen: list[Tensor] = []
        look = self.tracker.attend

        def noted(features: TrackerFeatures, reads: list[MemoryRead]) -> Tensor:
            self.seen.append(look(features, reads))
            return self.seen[-1]

        self.tracker.attend = noted  # type: ignore[method-assign]

    def compare(self, name: str, **ours: Tensor) -> None:
        for key, value in ours.items():
            theirs = self.golden[f"{name}_{key}"]
            assert value.shape == theirs.shape, f"{name} {key}"
            np.testing.assert_allclose(
                value.numpy(), theirs, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{name} {key}"
            )

    def propagate(
        self, name: str, frame: int, features: TrackerFeatures, **options: Any
    ) -> TrackerOutput:
        self.seen.clear()
        found = self.tracker.propagate(frame, features, **options)
        order = np.argsort(found.ids, kind="stable").tolist()
        attended = torch.cat(self.seen).flatten(2).transpose(1, 2)[:, ::21, ::16]
        ordered = found.take(order)
        self.compare(
            name,
            attention=attended,
            low=ordered.logits[:, ::8, ::8],
            presence=ordered.presence,
            quality=ordered.quality,
        )
        return found

    def memories(self, name: str, frame: int) -> None:
        entries = [bucket.bank.entry(frame) for bucket in self.tracker._buckets]
        kept = [entry for entry in entries if entry is not None and entry.tokens is not None]
        self.compare(
            name,
            memory=torch.stack([entry.tokens[::21, ::16] for entry in kept]),
            pointer=torch.stack([entry.pointer[:, ::16] for entry in kept]),
        )


def blocks(frame: int, ids: list[int]) -> Tensor:
    """Masks (N, 256, 256) bool of a detector, enlarged as a concept tracker does."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    logits = []
    for i in ids:
        cy, cx = (7 + 11 * i) % 53 + 5, (13 + 17 * i + 2 * frame) % 49 + 7
        logits.append(4 + i % 5 + 0.3 - torch.maximum((y - cy).abs(), (x - cx).abs()))
    return F.interpolate(torch.stack(logits)[:, None], (256, 256), mode="bilinear")[:, 0] > 0


@torch.inference_mode()
def test_36_objects_in_three_buckets(
    model: es3.ImageModel, features: list[TrackerFeatures], golden: Golden
) -> None:
    """Objects fill empty slots and begin buckets, are reconditioned, suppressed and removed."""
    replay = Replay(model, golden, MemorySettings(memory_mask_size="memory"))
    tracker = replay.tracker

    def add(frame: int, ids: list[int]) -> None:
        tracker.add_masks(frame, features[frame], ids, blocks(frame, ids), "thing")

    add(0, list(range(18)))
    assert [b.used for b in tracker._buckets] == [list(range(16)), [0, 1]]
    replay.memories("crowd_0", 0)
    for t in range(1, FRAMES):
        found = replay.propagate(f"crowd_{t}", t, features[t])
        if t == 4:
            add(4, [2, 17, 20])
        if t == 7:
            found.logits[found.ids.index(5)] = -10
        absent, present = shrunk(found.logits)
        logits = torch.where(absent[:, None, None], found.logits.clamp(max=-10), found.logits)
        tracker.remember(
            t, features[t], found._replace(logits=logits), present=present & ~absent, overwrite=True
        )
        new = {2: [18, 19, 20], 3: list(range(21, 34)), 6: [34, 35]}.get(t)
        if new:
            add(t, new)
        replay.memories(f"crowd_{t}", t)
        if t == 5:
            tracker.remove([0, 18, 22])
    assert [len(b.used) for b in tracker._buckets] == [15, 4, 14]


def shrunk(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Objects of which others leave little, and those with a pixel, as a concept tracker says."""
    from efficientsam3.masks.shrunk import find_shrunk

    absent, present = find_shrunk(logits.numpy(), 4, 0.3)
    return torch.from_numpy(absent), torch.from_numpy(present)


@torch.inference_mode()
def test_points_and_a_box(
    model: es3.ImageModel, features: list[TrackerFeatures], golden: Golden
) -> None:
    replay = Replay(model, golden, MemorySettings(bidirectional=True))
    tracker = replay.tracker
    corners = torch.tensor([[0.2, 0.3], [0.6, 0.8]]), torch.tensor([TOP_LEFT, BOTTOM_RIGHT])
    tracker.add_points(0, features[0], 1, *CLICKS)
    replay.memories("clicks_0", 0)
    outputs = {}
    for t in range(1, FRAMES):
        outputs[t] = replay.propagate(f"clicks_{t}", t, features[t])
        tracker.remember(t, features[t], outputs[t])
        if t == 3:
            tracker.add_points(3, features[3], 2, *corners)
        replay.memories(f"clicks_{t}", t)
    there = [p > 0 for found in outputs.values() for p in found.presence.tolist()]
    assert any(there)
    assert not all(there), "absence is not compared"


@torch.inference_mode()
def test_a_correction(
    model: es3.ImageModel, features: list[TrackerFeatures], golden: Golden
) -> None:
    """A point on a frame that was tracked segments anew, and the frame conditions later ones."""
    replay = Replay(model, golden, MemorySettings(bidirectional=True))
    tracker = replay.tracker
    tracker.add_points(0, features[0], 1, *CLICKS)
    for t in range(1, 6):
        found = tracker.propagate(t, features[t])
        tracker.remember(t, features[t], found)
    click = torch.tensor([[0.55, 0.45]]), torch.tensor([1])
    tracker.add_points(5, features[5], 1, *click, previous=found.logits[0])
    replay.memories("fix_5", 5)
    for t in range(6, FRAMES):
        found = replay.propagate(f"fix_{t}", t, features[t])
        tracker.remember(t, features[t], found)
        replay.memories(f"fix_{t}", t)


@torch.inference_mode()
def test_a_mask_backward(
    model: es3.ImageModel, features: list[TrackerFeatures], golden: Golden
) -> None:
    replay = Replay(model, golden, MemorySettings(bidirectional=True))
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[:, 10:40, 20:50] = True
    given = replay.tracker.add_masks(6, features[6], [3], mask)
    assert given.logits.abs().max() <= -NO_OBJECT
    replay.memories("back_6", 6)
    for t in range(5, -1, -1):
        found = replay.propagate(f"back_{t}", t, features[t], reverse=True)
        replay.tracker.remember(t, features[t], found)
        replay.memories(f"back_{t}", t)
