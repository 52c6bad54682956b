"""Saved models, conversion to upstream's layout, and untrained weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import efficientsam3 as es3
from efficientsam3.checkpoints import save
from efficientsam3.config import ModelConfig, tiny_config

from ...parity.upstream import placeholders
from .conftest import (
    NAME,
    State,
    load,
    released,
    value_of,
    write,
)

# Our own format ------------------------------------------------------------------------------


def tiny_model(seed: int = 0, **changes: Any) -> es3.ImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = tiny_config(**changes)
        return es3.ImageModel.from_config(config, "tiny", device="cpu", dtype="float32")


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(v.view(-1).view(torch.uint8), theirs[k].view(-1).view(torch.uint8))
        for k, v in ours.items()
    )


def test_saved_and_loaded_again_it_is_the_same_model(tiny: es3.ImageModel, tmp_path: Path) -> None:
    tiny.save(tmp_path / "new" / "folder")
    again = es3.load(tmp_path / "new" / "folder", device="cpu", dtype="float32")
    assert (again.name, again.config) == (tiny.name, tiny.config)
    assert same_bits(again.learned(), tiny.learned())
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    a, b = (m.ground(m.preprocess(image), ["bus"]) for m in (tiny, again))
    torch.testing.assert_close(a.masks, b.masks, rtol=0, atol=1e-3)
    assert {p.name for p in (tmp_path / "new" / "folder").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_a_reduced_model_is_saved_reduced(tmp_path: Path) -> None:
    model = tiny_model(parts=("geometry",))
    model.save(tmp_path)
    again = es3.load(tmp_path, device="cpu", dtype="float32")
    assert again.abilities == {"concepts", "exemplars"}
    assert again.config == model.config
    assert tiny_config().without("masks", "memory").parts == (
        "geometry",
        "interactive",
        "interactive_neck",
    )


@pytest.mark.slow
def test_an_upstream_file_becomes_a_folder_and_a_file_again(state: State, tmp_path: Path) -> None:
    for release in ("3.0", "3.1"):
        source = placeholders(released(release))
        config, net = load(write(tmp_path / "source.pt", source))
        save.save_upstream(tmp_path / "target.pt", config, net)
        written = torch.load(tmp_path / "target.pt", weights_only=True)["model"]
        assert written.keys() == source.keys()
        for key, value in written.items():
            if "num_batches" not in key:
                assert value.shape == source[key].shape
                assert value[(0,) * value.ndim] == value_of(key)


def test_a_model_that_upstream_has_not(tiny: es3.ImageModel, tmp_path: Path) -> None:
    with pytest.raises(es3.CheckpointError, match="own format instead"):
        save.save_upstream(tmp_path / "file.pt", tiny.config, tiny.learned())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_model(tiny: es3.ImageModel, tmp_path: Path) -> None:
    with pytest.raises(es3.WeightsNotFoundError, match=r"no config\.json"):
        es3.load(tmp_path)
    tiny.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(es3.WeightsNotFoundError, match=r"model\.safetensors"):
        es3.load(tmp_path)


@pytest.mark.parametrize("argument", ["checkpoint", "text", "context", "base"])
def test_a_saved_model_is_whole_as_it_is(
    tiny: es3.ImageModel, tmp_path: Path, argument: str
) -> None:
    tiny.save(tmp_path)
    with pytest.raises(ValueError, match=f"{argument}= goes with a name of list_models"):
        es3.load(tmp_path, **{argument: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: text.replace('"model"', '"modell"'),
        lambda text: text.replace('"queries"', '"querys"'),
        lambda text: text.replace('"context": 16', '"context": 1'),
        lambda text: text.replace('"geometry"', '"geometrie"'),
        lambda text: "\0\xff",
    ],
    ids=["cut", "empty", "list", "null", "no-model", "field", "context", "part", "binary"],
)
def test_a_damaged_configuration(
    tiny: es3.ImageModel, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    tiny.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(damage(path.read_text()), encoding="latin-1")
    with pytest.raises(es3.CheckpointError) as caught:
        es3.load(tmp_path)
    assert str(path) in str(caught.value)


def test_a_newer_format(tiny: es3.ImageModel, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(es3.CheckpointError, match=r"format 99.*Update efficientsam3"):
        es3.load(tmp_path)


def test_weights_of_another_size_beside_a_configuration(
    tiny: es3.ImageModel, tmp_path: Path
) -> None:
    tiny.save(tmp_path)
    other = replace(tiny.config, queries=20)
    content = {"format": 1, "name": "tiny", "model": other.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(es3.CheckpointError, match=r"query_embed\.weight is \(12, 16\).*\(20, 16\)"):
        es3.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("breaks", ["weights", "config"])
def test_a_write_that_fails_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    old = tiny_model(seed=0)
    old.save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args: Any, **kwargs: Any) -> None:
        path = args[0] if breaks == "config" else args[1]
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    if breaks == "weights":
        monkeypatch.setattr(save, "save_file", full)
    else:
        monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(es3.CheckpointError, match="No space left"):
        old.save(tmp_path)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert same_bits(es3.load(tmp_path, device="cpu").learned(), old.learned())


@pytest.mark.slow
def test_a_loaded_model_survives_a_new_one_in_its_place(tmp_path: Path) -> None:
    first, second = tiny_model(seed=1), tiny_model(seed=2)
    first.save(tmp_path)
    loaded = es3.load(tmp_path, device="cpu", dtype="float32")
    pixels = loaded.preprocess(np.zeros((8, 8, 3), np.uint8))
    before = loaded.ground(pixels, ["bus"])
    second.save(tmp_path)
    after = loaded.ground(pixels, ["bus"])
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.masks, before.masks)
    assert same_bits(es3.load(tmp_path, device="cpu").learned(), second.learned())


@pytest.mark.parametrize("parts", [tiny_config().parts, ("geometry",)])
def test_configuration_survives_json(parts: tuple[str, ...]) -> None:
    for config in (tiny_config(parts=parts), ModelConfig("sam3", "mobileclip-s1", 77, parts)):
        read = json.loads(json.dumps(config.to_dict()))
        assert ModelConfig.from_dict(read) == config


# Untrained weights ---------------------------------------------------------------------------


@pytest.mark.slow
def test_untrained_weights_of_a_row_load_as_that_row(tmp_path: Path) -> None:
    paths = [save.save_untrained(NAME, tmp_path / f"{i}.pt") for i in range(2)]
    a, b = (torch.load(p, weights_only=True, mmap=True)["model"] for p in paths)
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    assert a.keys() == placeholders(released("3.1")).keys()
    model = es3.load(NAME, checkpoint=paths[0], device="cpu")
    assert model.abilities >= {"concepts", "exemplars", "masks", "interactive"}
    out = model.segment(np.zeros((30, 40, 3), np.uint8), ["bus"], threshold=0.0, max_instances=5)
    assert len(out) == 5
    assert any(out.mask(i).any() for i in range(5)), "noise, but with shapes in it"
