"""The Perceiver memory against the same mathematics written plainly, cell by cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import efficientsam3 as es3
from efficientsam3.build import build
from efficientsam3.checkpoints.assemble import load_folder, load_upstream
from efficientsam3.checkpoints.save import save_folder, save_upstream
from efficientsam3.config import MemoryConfig, ModelConfig, tiny_config
from efficientsam3.errors import CheckpointError
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.memory import Memory
from efficientsam3.nn.perceiver import Perceiver, PerceiverLayer
from efficientsam3.nn.positions import encode_grid
from efficientsam3.predictor import ImageModel
from efficientsam3.train.merge import PartialCheckpoint, merge
from efficientsam3.video.memory_tracker import MemoryTracker

from ..train.conftest import scale_matrices

PERCEIVED = MemoryConfig(depth=2, latents=5, cells=4)


def net_of(memory: MemoryConfig = PERCEIVED, seed: int = 0) -> tuple[ModelConfig, Detector]:
    config = tiny_config(memory=memory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(config)
        scale_matrices(net)
    return config, net.eval()


# The resampler --------------------------------------------------------------------------------


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias  # type: ignore[operator]


def plain_layer(layer: PerceiverLayer, latents: Tensor, x: Tensor, places: Tensor | None) -> Tensor:
    """One layer on (L, C) latents and (N, C) tokens."""

    def attend(part: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = []
        for one in q:
            weights = torch.stack([(one * key).sum() / len(one) ** 0.5 for key in k]).softmax(0)
            rows.append((weights[:, None] * v).sum(0))
        return torch.stack(rows) @ part.out.weight.T

    def feed(part: nn.Module, value: Tensor) -> Tensor:
        inside = F.gelu(normed(part.norm, value) @ part.widen.weight.T)
        return inside @ part.narrow.weight.T

    width = latents.shape[1]
    q = normed(layer.look.norm, latents) @ layer.look.q.weight.T
    k, v = (normed(layer.look.norm_tokens, x) @ layer.look.kv.weight.T).split(width, 1)  # type: ignore[arg-type]
    if places is not None:
        k, v = k + places, v + places
    latents = latents + attend(layer.look, q, k, v)
    latents = latents + feed(layer.feed, latents)
    own = normed(layer.mix.norm, latents)
    k, v = (own @ layer.mix.kv.weight.T).split(width, 1)
    latents = latents + attend(layer.mix, own @ layer.mix.q.weight.T, k, v)
    return latents + feed(layer.mix_feed, latents)


def plain(perceiver: Perceiver, x: Tensor, places: Tensor, side: int) -> Tensor:
    """(N, C) tokens of a side x side map -> (T, C)."""
    out = []
    if perceiver.latents is not None:
        latents = perceiver.latents
        for layer in perceiver.layers:
            latents = plain_layer(layer, latents, x, places)
        out.append(latents)
    if perceiver.latents_2d is not None:
        window = side // perceiver.cells
        grid = x.view(side, side, -1)
        for number, latent in enumerate(perceiver.latents_2d):
            row, column = divmod(number, perceiver.cells)
            seen = grid[row * window :, column * window :][:window, :window].reshape(window**2, -1)
            one = latent[None]
            for layer in perceiver.layers:
                one = plain_layer(layer, one, seen, None)
            out.append(one)
    return normed(perceiver.norm, torch.cat(out))


@pytest.mark.parametrize(("latents", "cells"), [(5, 4), (0, 2), (3, 0)])
def test_tokens_are_those_of_the_plain_mathematics(latents: int, cells: int) -> None:
    torch.manual_seed(0)
    perceiver = Perceiver(8, latents, cells)
    scale_matrices(perceiver)
    x, places = torch.randn(3, 64, 8), torch.randn(64, 8)
    got = perceiver(x, places)
    assert got.shape == (3, latents + cells**2, 8)
    want = torch.stack([plain(perceiver, one, places, 8) for one in x])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_each_placed_token_sees_its_window_alone() -> None:
    torch.manual_seed(0)
    perceiver = Perceiver(8, 2, 4)
    x, places = torch.randn(1, 144, 8), torch.randn(144, 8)
    changed = x.clone()
    changed[0, 4 * 12 + 10] += torch.randn(8)  # row 4, column 10 of 12: window (1, 3) of 4 x 4
    moved = (perceiver(x, places) - perceiver(changed, places)).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [0, 1, 2 + 4 + 3]


# In the memory --------------------------------------------------------------------------------


def test_places_of_perceived_tokens() -> None:
    """Tokens on the grid turn as the middle of their window does; the others do not turn."""
    _, net = net_of(MemoryConfig(latents=3, cells=4))
    memory: Memory = net.part("memory")
    turns = memory.rotary_tables()
    assert turns.token_cos is not None and turns.token_sin is not None
    assert turns.token_cos.shape == (3 + 16, 8)
    assert bool((turns.token_cos[:3] == 1).all()) and not turns.token_sin[:3].any()
    token = torch.complex(turns.token_cos, turns.token_sin)[3:].view(4, 4, -1)
    cells = torch.complex(turns.cos, turns.sin).view(8, 8, -1)
    # The middle of two cells' angles, corner to corner: their product is its square.
    torch.testing.assert_close(token[1, 2] ** 2, cells[2, 4] * cells[3, 5])
    assert not memory.token_places[:3].any()
    torch.testing.assert_close(memory.token_places[3:], encode_grid(4, 4, 4, torch.device("cpu")))


def test_attention_to_perceived_tokens_is_the_slow_one() -> None:
    """Against an attention that turns each token by itself and reads frame after frame."""
    _, net = net_of()
    memory: Memory = net.part("memory")
    torch.manual_seed(1)
    width, narrow, tokens, frames = 16, 4, 5 + 16, 2
    features = torch.randn(1, width, 8, 8)
    remembered = torch.randn(2, frames, tokens, narrow)
    when = torch.tensor([[0, 1], [0, 3]])
    pointers, ages = torch.randn(2, 3, width), torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.1, 0.2]])
    with torch.inference_mode():
        given = memory.gather(remembered, when, pointers, ages)
        got = memory.recall(memory.look(features), given)

    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)

    def attend(part: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.T / width**0.5).softmax(-1)
        return (weights @ v) @ part.out_proj.weight.T + part.out_proj.bias

    def project(layer: nn.Module, x: Tensor) -> Tensor:
        return x @ layer.weight.T + layer.bias  # type: ignore[no-any-return, operator]

    turns = memory.rotary_tables()
    placed = [encode_grid(4, 4, narrow, torch.device("cpu"))[n] for n in range(16)]
    with torch.no_grad():
        for row in range(2):
            keys, values = [], []
            for frame in range(frames):
                since = memory.frame_positions[int(when[row, frame]) - 1].flatten()
                for n in range(tokens):
                    place = torch.zeros(narrow) if n < 5 else placed[n - 5]
                    keys.append(remembered[row, frame, n] + place + since)
                    values.append(remembered[row, frame, n])
            cut = given.keys[row, frames * tokens :]  # pointers are tested with the full memory
            assert len(cut) == 3 * width // narrow
            keys += list(cut)
            values += list(given.values[row, frames * tokens :])
            x = features[0].flatten(1).T + 0.1 * memory.image_places
            for layer in memory.attention.layers:
                own = normed(layer.norm1, x)
                part = layer.self_attn
                q, k = (
                    turned(project(p, own), turns.cos, turns.sin)
                    for p in (part.q_proj, part.k_proj)
                )
                x = x + attend(part, q, k, project(part.v_proj, own))
                part = layer.cross_attn_image
                q = turned(project(part.q_proj, normed(layer.norm2, x)), turns.cos, turns.sin)
                spun = []
                for n, key in enumerate(project(part.k_proj, torch.stack(keys))):
                    slot = n % tokens
                    if n < frames * tokens and slot >= 5:
                        key = turned(key[None], turns.token_cos[slot], turns.token_sin[slot])[0]  # type: ignore[index]
                    spun.append(key)
                v = project(part.v_proj, torch.stack(values))
                x = x + attend(part, q, torch.stack(spun), v)
                x = x + project(
                    layer.linear2, project(layer.linear1, normed(layer.norm3, x)).relu()
                )
            want = normed(memory.attention.norm, x).T.view(width, 8, 8)
            torch.testing.assert_close(got[row], want, rtol=1e-3, atol=1e-3)


def test_the_absent_are_perceived_as_such() -> None:
    _, net = net_of()
    memory: Memory = net.part("memory")
    with torch.no_grad():
        memory.no_object.copy_(torch.tensor([[0.5, -0.5, 1.0, 0.0]]))  # norms take a shift out
        features, masks = torch.randn(1, 16, 8, 8), torch.rand(1, 1, 128, 128)
        projected = memory.encoder.project(features)
        there, away = (
            memory.tokens(projected, masks, torch.tensor([present])) for present in (True, False)
        )
    assert there.shape == (1, 21, 4)
    assert not torch.allclose(there, away, atol=1e-3)


# In a model -------------------------------------------------------------------------------------


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(count)]


def test_the_tracker_keeps_perceived_tokens() -> None:
    def run(memory: MemoryConfig, dtype: str = "float32") -> MemoryTracker:
        config, net = net_of(memory)
        model = ImageModel("tiny", config, lambda: net, device="cpu", dtype=dtype)
        tracker = MemoryTracker(model)
        masks = torch.zeros(2, 48, 64, dtype=torch.bool)
        masks[0, 8:30, 4:24] = masks[1, 10:40, 36:60] = True
        for t, picture in enumerate(pictures(4)):
            features = tracker.read(picture)
            if t == 0:
                tracker.add_masks(0, features, [3, 5], masks)
                continue
            found = tracker.propagate(t, features)
            assert found.ids == [3, 5] and bool(found.logits.isfinite().all())
            tracker.remember(t, features, found)
        return tracker

    perceived, full = run(PERCEIVED), run(MemoryConfig(depth=2))
    # 4 frames of 2 objects: 21 instead of 64 tokens of 4 channels; pointers are the same.
    assert full.nbytes - perceived.nbytes == 4 * 2 * (64 - 21) * 4 * 4
    assert run(PERCEIVED, "bfloat16").nbytes < perceived.nbytes


def test_a_grid_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 cells a side .* grid of 8; these do: 2, 4"):
        tiny_config(memory=MemoryConfig(cells=3))
    with pytest.raises(ValueError, match="1 or more layers"):
        MemoryConfig(depth=0)
    for cells in (9, 12, 18):
        ModelConfig("sam3", "sam3", 32, memory=MemoryConfig(2, 256, cells))


@pytest.mark.slow
def test_folders_keep_it(tmp_path: Path) -> None:
    config, net = net_of()
    save_folder(tmp_path, "tiny", config, net)
    _, loaded_config, loaded = load_folder(tmp_path)
    assert loaded_config == config
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    model = es3.load(str(tmp_path))
    assert "video" in model.abilities
    assert model.config.memory == PERCEIVED


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    config, net = net_of()
    lost = net.part("memory").perceiver
    del lost.layers[1].feed.widen
    save_folder(tmp_path, "tiny", config, net)
    with pytest.raises(CheckpointError, match=r"memory\.perceiver\.layers\.1\.feed\.widen\.weight"):
        load_folder(tmp_path)


def test_no_weight_is_lost_in_a_model_of_another_memory(tmp_path: Path) -> None:
    config, net = net_of()
    with pytest.raises(CheckpointError, match=r"weights that a model of .* has not"):
        save_folder(tmp_path, "tiny", tiny_config(memory=MemoryConfig(2)), net)
        load_folder(tmp_path)
    assert config.memory == PERCEIVED


@pytest.mark.slow
def test_merged_whole(tmp_path: Path) -> None:
    """The base has SAM3's memory; the part brings its own, with its numbers."""
    base_config, base = net_of(MemoryConfig(), seed=1)
    config, net = net_of()
    PartialCheckpoint.of(config, net, ["memory"]).save(tmp_path / "part.safetensors")
    merged_config, merged = merge(
        base_config, base, PartialCheckpoint.load(tmp_path / "part.safetensors")
    )
    assert merged_config == config
    for key, value in merged.state_dict().items():
        source = net if key.startswith("memory.") else base
        assert torch.equal(value, source.state_dict()[key]), key


def test_parts_that_the_base_lacks_are_added() -> None:
    base_config = tiny_config(parts=("geometry", "masks"))
    base = build(base_config).eval()
    config, net = net_of()
    part = PartialCheckpoint.of(config, net, ["memory", "interactive", "interactive_neck"])
    merged_config, merged = merge(base_config, base, part)
    assert merged_config == config
    assert merged.state_dict().keys() == net.state_dict().keys()
    other = tiny_config(width=32, parts=("geometry", "masks"))
    with pytest.raises(CheckpointError, match="width"):
        merge(other, build(other).eval(), part)


@pytest.mark.slow
def test_upstreams_layout_there_and_back(tmp_path: Path) -> None:
    config = ModelConfig(
        "efficientvit-b0",
        "mobileclip-s0",
        16,
        ("geometry", "masks", "interactive", "interactive_neck", "memory"),
        memory=MemoryConfig(2, 64, 12),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(config).eval()
    save_upstream(tmp_path / "model.pt", config, net)
    again_config, again = load_upstream(tmp_path / "model.pt")
    assert again_config == config
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
