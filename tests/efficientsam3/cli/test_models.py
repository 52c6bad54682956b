"""`efficientsam3 models`, `convert` and `benchmark`, with tiny untrained models."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import efficientsam3 as es3
from efficientsam3.checkpoints import assemble, save
from efficientsam3.cli import models
from efficientsam3.config import TEXTS, VISIONS, ModelConfig, TextConfig, VitConfig
from efficientsam3.export import backends

from .conftest import run, run_refused


def test_models_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "cached_models", lambda: ["efficientsam3-tinyvit-11m"])
    lines = run("models").stdout.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[1 : 1 + len(es3.list_models())]}
    assert list(rows) == es3.list_models()
    row = rows["efficientsam3-tinyvit-11m"]
    assert row[1:5] == ["tinyvit-11m", "mobileclip-s0", "16", "123"]
    assert row[5] == "c?e?mi?v?" and row[-1] == "here"
    assert rows["sam3"][-1] == "gated"
    assert rows["efficientsam3-tinyvit-5m"][-1] == "hub"


def test_models_in_a_narrow_terminal_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(models, "output_console", lambda: Console(width=80))
    lines = run("models").stdout.splitlines()
    assert lines[0 : 2 * len(es3.list_models()) : 2] == es3.list_models()
    assert lines[1] == (
        "  efficientvit-b0, mobileclip-s0, 16 tokens, 126 M, cemiv, Apache-2.0 and SAM License, hub"
    )


def test_models_as_json() -> None:
    rows = json.loads(run("models", "--json").stdout)
    assert [row["name"] for row in rows] == es3.list_models()
    sam3 = next(row for row in rows if row["name"] == "sam3")
    assert sam3["gated"] and "Ask Meta for access" in sam3["how_to_get_access"]
    assert {"vision", "text", "context", "abilities", "uncertain", "license", "cached"} <= set(sam3)


@dataclass(frozen=True)
class Tiny(ModelConfig):
    """The numbers of ``tiny_config`` for encoders by name."""

    resolution: int = 112
    grid: int = 8
    trunk_width: int = 32
    width: int = 16
    heads: int = 2
    hidden: int = 32
    geometry_layers: int = 1
    fusion_layers: int = 2
    decoder_layers: int = 2
    queries: int = 12


@pytest.fixture
def tiny_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in upstream's layout, of encoders that are SAM3's and MobileCLIP-S0's by name."""
    vit = VitConfig(width=32, depth=2, heads=2, hidden=48, window=4, everywhere=(1,))
    monkeypatch.setitem(VISIONS, "sam3", vit)
    text = TextConfig("mobileclip-mixer", 32, 3, 2, vocabulary=49408)
    monkeypatch.setitem(TEXTS, "mobileclip-s0", text)
    monkeypatch.setattr(assemble, "ModelConfig", Tiny)
    path = tmp_path / "upstream.pt"
    save.save_untrained("sam3-litetext-s0-16", path)
    return path


@pytest.mark.slow
def test_convert_there_and_back_is_bitwise_the_same(tiny_upstream: Path, tmp_path: Path) -> None:
    folder, back = tmp_path / "folder", tmp_path / "back.pth"
    there = run("convert", tiny_upstream, folder)
    assert "image encoder" in there.stdout and "mobileclip-s0, context 16" in there.stdout
    assert "can: concepts, exemplars, masks, interactive, video" in there.stdout
    run("convert", folder, back)
    first, second = (torch.load(path)["model"] for path in (tiny_upstream, back))
    assert first.keys() == second.keys() and len(first) > 200
    for key, value in first.items():
        assert value.dtype == second[key].dtype and torch.equal(value, second[key]), key
    again = tmp_path / "again"
    run("convert", back, again, "--model", "sam3-litetext-s0-16")
    files = [(f / "model.safetensors").read_bytes() for f in (folder, again)]
    assert files[0] == files[1]
    assert json.loads((again / "config.json").read_text())["name"] == "sam3-litetext-s0-16"
    assert json.loads((folder / "config.json").read_text())["name"] == "upstream"


@pytest.mark.slow
def test_convert_says_what_a_file_cannot_do(tiny_upstream: Path, tmp_path: Path) -> None:
    state = torch.load(tiny_upstream)["model"]
    parts = {k: v for k, v in state.items() if k.startswith("detector.") and "sam2" not in k}
    torch.save({"model": parts}, tmp_path / "less.pt")
    said = run("convert", tmp_path / "less.pt", tmp_path / "less").stdout
    assert "can: concepts, exemplars, masks\ncannot: interactive, video" in said
    whole = tmp_path / "whole.pt"
    base = ["--base", tiny_upstream, "--to", "upstream"]
    said = run("convert", tmp_path / "less.pt", whole, *base).stdout
    assert "can: concepts, exemplars, masks, interactive, video" in said
    assert torch.load(whole)["model"].keys() == state.keys()


def test_convert_overwrites_nothing_unasked(model: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    arguments = ["convert", model, tmp_path / "taken", "--to", "folder"]
    assert "exists already" in run_refused(*arguments)
    run(*arguments, "--overwrite")
    assert es3.load(tmp_path / "taken").name == "untrained"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{model}", "file"], "upstream's files end in .pt or .pth; got file"),
        (["file.pt", "other.pt"], "our layout is a folder, not a file; got other.pt"),
        (["nosuch.pt", "folder"], "there is no weight file at nosuch.pt"),
        (["tinyvit-99", "folder"], "unknown model 'tinyvit-99'"),
        (["{model}", "file.pt"], "upstream has no model of these encoders"),
        (["{model}", "file.pt", "--model", "sam3"], "go with upstream files"),
    ],
)
def test_convert_refuses(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in run_refused("convert", *(a.format(model=model) for a in arguments))
    assert not list(tmp_path.iterdir())


def test_benchmark(model: Path, photos: Path) -> None:
    arguments = [
        "benchmark",
        photos / "plain.jpg",
        "-m",
        model,
        "--repeat",
        1,
        "--dtype",
        "float32",
    ]
    lines = run(*arguments, "--parts").stdout.splitlines()
    first = {line.rsplit(maxsplit=1)[0] for line in lines[2:7]}
    assert first == {
        "preprocess",
        "encode, with preprocess",
        "first concept",
        "next concept",
        "image and first concept",
    }
    assert any(line.startswith("peak memory") for line in lines)
    assert any(line.startswith("fusion encoder") for line in lines)


@pytest.mark.slow
def test_benchmark_of_all_backends(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backends, "COMPARED", (("openvino", "float32"),))
    arguments = ["benchmark", photos / "plain.jpg", "-m", model, "--repeat", 1]
    lines = run(*arguments, "--dtype", "float32", "--all-backends").stdout.splitlines()
    names = ["PyTorch float32", "openvino float32"]
    assert [line[: len(name)] for line, name in zip(lines[1:3], names, strict=True)] == names
    assert lines[3].removeprefix("fastest here: ") in names
    (export,) = (tmp_path / "efficientsam3" / "exports").iterdir()
    assert (export / "manifest.json").is_file()
    assert "--parts" in run_refused(*arguments, "--all-backends", "--parts")


def test_benchmark_without_weights_takes_random_ones(
    tiny_upstream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def write(command: list[str], **_: Any) -> None:
        called.append(command[-2])
        Path(command[-1]).write_bytes(tiny_upstream.read_bytes())

    monkeypatch.setattr(subprocess, "run", write)
    monkeypatch.setattr(models, "cached_models", list)
    result = run("benchmark", "-m", "sam3-litetext-s0-16", "--repeat", 1)
    assert called == ["sam3-litetext-s0-16"]
    assert "timing random ones" in result.stderr
