"""Parameter groups with their learning rates, and the running average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efficientsam3.build import build
from efficientsam3.config import tiny_config
from efficientsam3.train.errors import SettingsError
from efficientsam3.train.optim import (
    Ema,
    freeze_except,
    layer_numbers,
    load_named_state,
    named_state,
    parameter_groups,
)
from efficientsam3.train.settings import LoopSettings


def by_name(module: nn.Module, settings: LoopSettings) -> dict[str, tuple[float, float]]:
    """Name -> (weight decay, scale)."""
    groups = parameter_groups(module, settings)
    weights = dict(module.named_parameters())
    out = {}
    for group in groups:
        for name, weight in zip(group["names"], group["params"], strict=True):
            assert weights[name] is weight
            out[name] = (group["weight_decay"], group["scale"])
    return out


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return build(tiny_config(), "meta")


def test_vectors_and_named_pieces_have_no_decay(net: nn.Module) -> None:
    found = by_name(net, LoopSettings(steps=1, weight_decay=0.1, no_decay=("embedding",)))
    assert len(found) == len(list(net.parameters()))
    assert found["trunk.blocks.0.attn.qkv.weight"] == (0.1, 1)
    assert found["trunk.blocks.0.attn.qkv.bias"] == (0, 1)
    assert found["text.embedding.weight"] == (0, 1)


def test_the_longest_prefix_scales(net: nn.Module) -> None:
    scales = {"trunk": 0.5, "trunk.blocks.1": 0.25, "text": 0.0}
    found = by_name(net, LoopSettings(steps=1, scales=scales))
    assert found["trunk.blocks.0.norm1.weight"][1] == 0.5
    assert found["trunk.blocks.1.norm1.weight"][1] == 0.25
    assert {v[1] for k, v in found.items() if k.startswith("text.")} == {0}
    assert {v[1] for k, v in found.items() if k.startswith("decoder.")} == {1}


def test_layers_of_a_plain_trunk(net: nn.Module) -> None:
    found = by_name(net, LoopSettings(steps=1, layer_decay={"trunk": 0.5}))
    assert found["trunk.patch_embed.proj.weight"][1] == 0.5**3
    assert found["trunk.pos_embed"][1] == 0.5**3
    assert found["trunk.blocks.0.mlp.fc1.weight"][1] == 0.5**2
    assert found["trunk.blocks.1.mlp.fc1.weight"][1] == 0.5
    assert {v[1] for k, v in found.items() if not k.startswith("trunk")} == {1}


def test_layers_of_a_text_encoder(net: nn.Module) -> None:
    found = by_name(net, LoopSettings(steps=1, layer_decay={"text": 0.5}))
    last = max(int(k.split(".")[2]) for k in found if k.startswith("text.blocks"))
    assert found["text.positions"][1] == found["text.embedding.weight"][1] == 0.5 ** (last + 2)
    assert found["text.projector.weight"][1] == found["text.norm.weight"][1] == 1
    assert found[f"text.blocks.{last}.scale"][1] == 0.5


@pytest.mark.parametrize("encoder", ["tinyvit-5m", "repvit-m0.9", "efficientvit-b0"])
def test_layers_of_a_timm_trunk_rise_with_depth(encoder: str) -> None:
    trunk = build(tiny_config(vision=encoder), "meta").trunk
    names = [f"trunk.{n}" for n, _ in trunk.named_parameters()]
    found, last = layer_numbers(names, "trunk")
    first = [v for k, v in found.items() if ".stem." in k or ".patch_embed." in k]
    assert first and set(first) == {0}
    assert {v for k, v in found.items() if k.startswith("trunk.head")} == {last}
    inner = [found[n] for n in names if ".stages." in n]
    assert set(found.values()) == set(range(last + 1))
    stages = [int(n.split(".stages.")[1].split(".")[0]) for n in names if ".stages." in n]
    for stage in range(max(stages)):
        here = max(d for d, s in zip(inner, stages, strict=True) if s == stage)
        assert here < min(d for d, s in zip(inner, stages, strict=True) if s == stage + 1)


def test_only_named_parts_train() -> None:
    net = build(tiny_config(), "meta")
    net.neck.requires_grad_(False)
    freeze_except(net, ("trunk.blocks.1", "neck", "text"))
    training = {n for n, p in net.named_parameters() if p.requires_grad}
    assert training
    assert {n.split(".")[0] for n in training} == {"trunk", "text"}  # the neck was frozen before
    assert all(n.startswith(("trunk.blocks.1.", "text.")) for n in training)
    assert set(by_name(net, LoopSettings(steps=1))) == training


@pytest.mark.parametrize("setting", ["parts", "scales", "layer_decay"])
def test_unknown_parts_are_named(setting: str, net: nn.Module) -> None:
    with pytest.raises(SettingsError, match=rf"{setting} names 'trunks'.*has: .*trunk, neck"):
        if setting == "parts":
            freeze_except(net, ("trunks",))
        else:
            parameter_groups(net, LoopSettings(steps=1, **{setting: {"trunks": 1.0}}))


def test_state_goes_by_name_into_other_groups() -> None:
    def make(order: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        groups = [{"params": [module.weight], "lr": 0.1}, {"params": [module.bias], "lr": 0.2}]
        return module, torch.optim.AdamW(groups if order else groups[::-1], fused=True)

    module, optimizer = make(True)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    other, second = make(False)
    load_named_state(other, second, named_state(module, optimizer))
    for name in ("weight", "bias"):
        state = optimizer.state[getattr(module, name)]
        again = second.state[getattr(other, name)]
        assert {k: v.tolist() for k, v in state.items()} == {
            k: v.tolist() for k, v in again.items()
        }
    assert [g["lr"] for g in second.param_groups] == [0.2, 0.1]


def test_average_is_applied_for_a_while_or_for_good() -> None:
    weight, count = torch.zeros(3), torch.tensor(2)
    ema = Ema({"w": weight, "n": count}, 0.5)
    weight += 1
    ema.update(100)
    with pytest.raises(RuntimeError), ema.applied():
        assert weight.tolist() == [0.5] * 3 and int(count) == 2
        raise RuntimeError
    assert weight.tolist() == [1] * 3
    ema.copy_to_weights()
    assert weight.tolist() == [0.5] * 3
