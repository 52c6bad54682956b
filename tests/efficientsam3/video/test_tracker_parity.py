"""Parity with upstream's tracker on ten frames: memories, attention, masks and pointers.

``../../parity/README.md`` says how the numbers were made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

import efficientsam3 as es3
from efficientsam3.build import build
from efficientsam3.checkpoints import layout
from efficientsam3.config import tiny_config
from efficientsam3.types import BOTTOM_RIGHT, TOP_LEFT
from efficientsam3.video.memory_tracker import MemoryTracker
from efficientsam3.video.settings import MemorySettings
from efficientsam3.video.types import NO_OBJECT, MemoryRead, TrackerFeatures, TrackerOutput

from ...parity.upstream import HERE, groups, released_keys, values
from ..test_parity import photo

TOLERANCE = 5e-4
FRAMES = 10

Golden = dict[str, npt.NDArray[Any]]


def tracker_weights(presence: float) -> dict[str, Tensor]:
    """Upstream's seeded weights of a tracker, with our names.

    presence: added to a bias, so that the object is there on some frames and not on others.
    """
    keys = {k: v for k, v in groups()["3.0"].items() if k.startswith("tracker.")}
    ours = layout.to_ours("tinyvit-5m", "mobileclip-s0")
    weights = {ours(layout.canonical(k)) or k: v for k, v in values(keys).items()}
    weights["interactive.masks.pred_obj_score_head.layers.2.bias"] += presence
    return weights


def check(golden: Golden, name: str, frame: int, **ours: Tensor) -> None:
    """Compare tensors with the golden values ``<name>_<frame>_<key>``."""
    for key, value in ours.items():
        theirs = golden[f"{name}_{frame}_{key}"]
        np.testing.assert_allclose(
            value.numpy(), theirs, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{name} {frame} {key}"
        )


class Replay:
    """A tracker with the calls of upstream's, compared with it at each step."""

    def __init__(self, model: es3.ImageModel, golden: Golden, settings: MemorySettings) -> None:
        self.tracker = MemoryTracker(model, settings)
        self.seen: dict[int, Tensor] = {}
        find = self.tracker._predict

        def noted(
            features: TrackerFeatures, ids: list[int], readings: list[MemoryRead]
        ) -> TrackerOutput:
            look = self.tracker.attend
            attended: list[Tensor] = []

            def once(*asked: Any) -> Tensor:
                attended.append(look(*asked))
                return attended[0]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(self.tracker, "attend", once)
                found = find(features, ids, readings)
            self.seen |= dict(zip(ids, attended[0].flatten(2).transpose(1, 2), strict=True))
            return found

        self.tracker._predict = noted  # type: ignore[method-assign]
        self.golden = golden
        self.every = golden_step(model.config.grid)

    def check(self, name: str, row: int, frame: int, found: TrackerOutput) -> None:
        """Compare the output and the memory of an object on a frame."""
        bank = self.tracker._banks[found.ids[row]]
        given = frame in bank.conditioning
        entry = bank.conditioning[frame] if given else bank.tracked[frame]
        assert entry.tokens is not None
        quality = {}
        if not given and self.tracker.settings.memory_selection:  # else upstream does not keep it
            quality["quality"] = found.quality[row : row + 1]
        low = found.logits[row, ::8, ::8]
        if given:  # upstream has another logit for a given object
            low = low.clamp(NO_OBJECT, -NO_OBJECT)
        check(
            self.golden,
            name,
            frame,
            memory=entry.tokens[:: self.every],
            low=low,
            pointer=entry.pointer,
            presence=found.presence[row : row + 1],
            **quality,
        )

    def step(
        self,
        frame: int,
        features: TrackerFeatures,
        names: dict[int, str],
        reverse: bool = False,
    ) -> TrackerOutput:
        """One frame, for objects by their names in the golden values."""
        self.seen.clear()
        found = self.tracker.propagate(frame, features, ids=list(names), reverse=reverse)
        self.tracker.remember(frame, features, found)
        for row, (id, name) in enumerate(names.items()):
            self.check(name, row, frame, found)
            seen = self.seen[id][:: self.every, ::4]
            check(self.golden, name, frame, attention=seen)
        return found


def golden_step(grid: int) -> int:
    """The stride of the tokens in the golden values: about twelve a frame."""
    return grid * grid // 12


# Small: ten frames of seeded features on a grid of 16 ---------------------------------------


@pytest.fixture(scope="module")
def small() -> es3.ImageModel:
    grid = 16
    config = tiny_config(
        width=256, heads=8, hidden=2048, grid=grid, resolution=14 * grid, fusion_layers=1,
        decoder_layers=1, parts=("interactive", "interactive_neck", "memory"),
    )  # fmt: skip
    net = build(config).eval().requires_grad_(False)
    lost = net.load_state_dict(tracker_weights(presence=-0.43), strict=False)
    assert not lost.unexpected_keys
    assert not [k for k in lost.missing_keys if k.startswith(("interactive.", "memory."))]
    return es3.ImageModel("tracker", config, lambda: net, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def features(small: es3.ImageModel) -> list[TrackerFeatures]:
    grid = small.config.grid

    def normal(scale: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, 256, scale * grid, scale * grid, generator=generator)

    scene = {s: normal(s, s) for s in (4, 2, 1)}
    head = small.learned().part("interactive")
    out = []
    for t in range(FRAMES):
        levels = [scene[s] + 0.5 * normal(s, 100 * s + t) for s in scene]
        out.append(TrackerFeatures(head.read_frame(*levels), (60, 80)))
    return out


@pytest.fixture(scope="module")
def golden() -> Golden:
    return dict(np.load(HERE / "tracker_grid16.npz"))


def block(x0: int, y0: int, x1: int, y1: int) -> Tensor:
    mask = torch.zeros(1, 60, 80, dtype=torch.bool)
    mask[:, y0:y1, x0:x1] = True
    return mask


@pytest.mark.slow
@torch.inference_mode()
def test_two_objects_with_memory_selection_and_a_correction(
    small: es3.ImageModel, features: list[TrackerFeatures], golden: Golden
) -> None:
    """A mask on frame 0, points on another object on frame 3, a correction on frame 6."""
    replay = Replay(small, golden, MemorySettings())
    tracker = replay.tracker
    replay.check("long_a", 0, 0, tracker.add_masks(0, features[0], [1], block(20, 10, 50, 40)))
    outputs = {}
    for t in range(1, FRAMES):
        names = {1: "long_a"} | ({2: "long_b"} if t > 3 else {})
        outputs[t] = replay.step(t, features[t], names)
        if t == 3:
            clicks = torch.tensor([[0.3, 0.4], [0.8, 0.7]]), torch.tensor([1, 0])
            replay.check("long_b", 0, 3, tracker.add_points(3, features[3], 2, *clicks))
    there = [p > 0 for found in outputs.values() for p in found.presence.tolist()]
    assert any(there)
    assert not all(there), "absence is not compared"

    before = outputs[6].logits[outputs[6].ids.index(2)]
    click = torch.tensor([[0.55, 0.45]]), torch.tensor([1])
    corrected = tracker.add_points(6, features[6], 2, *click, previous=before)
    replay.check("long_c", 0, 6, corrected)
    for t in range(7, FRAMES):
        replay.step(t, features[t], {2: "long_c"})


@pytest.mark.slow
@torch.inference_mode()
def test_five_conditioning_frames_of_a_short_clip(
    small: es3.ImageModel, features: list[TrackerFeatures], golden: Golden
) -> None:
    """Four are read as conditioning frames, the fifth as tracked; some lie ahead."""
    settings = MemorySettings(
        memory_selection=False, bidirectional=True, max_object_pointers=FRAMES
    )
    replay = Replay(small, golden, settings)
    for t in (0, 2, 4, 5, 7):
        mask = block(20 + 2 * t, 10 + t, 50 + 2 * t, 40 + t)
        replay.check("short_a", 0, t, replay.tracker.add_masks(t, features[t], [1], mask))
    for t in (1, 3, 6, 8, 9):
        replay.step(t, features[t], {1: "short_a"})


@pytest.mark.slow
@torch.inference_mode()
def test_a_box_forward_and_backward(
    small: es3.ImageModel, features: list[TrackerFeatures], golden: Golden
) -> None:
    settings = MemorySettings(
        memory_selection=False, bidirectional=True, max_object_pointers=FRAMES
    )
    replay = Replay(small, golden, settings)
    corners = torch.tensor([[0.2, 0.3], [0.6, 0.8]]), torch.tensor([TOP_LEFT, BOTTOM_RIGHT])
    given = replay.tracker.add_points(6, features[6], 3, *corners)
    replay.check("short_b", 0, 6, given)
    for t in range(7, FRAMES):
        replay.step(t, features[t], {3: "short_b"})
    for t in range(5, -1, -1):
        replay.step(t, features[t], {3: "short_r"}, reverse=True)


# Full size: crops of a photograph, with the checkpoint of a student --------------------------


@pytest.fixture
def student(tmp_path: Path) -> es3.ImageModel:
    keys = released_keys("tinyvit-5m", "mobileclip-s0", 16)
    path = tmp_path / "model.pt"
    torch.save({"model": values(keys)}, path)
    return es3.load("efficientsam3-tinyvit-5m", path, device="cpu", dtype="float32")


def pan(image: Image.Image, t: int) -> npt.NDArray[np.uint8]:
    """640 x 480 pixels of a larger picture."""
    left, top = 10 * t, 200 + 6 * t
    return np.array(image.crop((left, top, left + 640, top + 480)))


@pytest.mark.slow
@pytest.mark.xdist_group("full-size models")
@torch.inference_mode()
def test_frames_of_a_photograph_at_full_size(student: es3.ImageModel) -> None:
    golden = dict(np.load(HERE / "tracker_tinyvit-5m.npz"))
    replay = Replay(student, golden, MemorySettings())
    tracker = replay.tracker
    with Image.open(photo("skimage/data/coffee.png")) as image:
        enlarged = image.convert("RGB").resize((1200, 800), Image.Resampling.BILINEAR)
    shown = [pan(enlarged, t) for t in range(8)]
    mask = torch.zeros(1, 480, 640, dtype=torch.bool)
    mask[:, 60:400, 300:520] = True
    clicks = torch.tensor([[0.15, 0.5], [0.6, 0.1]]), torch.tensor([1, 0])
    for t, picture in enumerate(shown):
        features = tracker.read(picture)
        if t == 0:
            replay.check("video_a", 0, 0, tracker.add_masks(0, features, [1], mask))
        else:
            replay.step(t, features, {1: "video_a"} | ({2: "video_b"} if t > 2 else {}))
        if t == 2:
            replay.check("video_b", 0, 2, tracker.add_points(2, features, 2, *clicks))
