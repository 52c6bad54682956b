"""The recipe that teaches the packaged model to track, with one step in each stage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import efficientsam3 as es3
from efficientsam3.build import build
from efficientsam3.checkpoints.assemble import load_folder
from efficientsam3.checkpoints.read import read_state
from efficientsam3.checkpoints.save import save_folder
from efficientsam3.config import MemoryConfig, tiny_late_config
from efficientsam3.errors import DataError
from efficientsam3.train.recipe import run_recipe
from efficientsam3_stickers.recipes import stickers_video

from ...efficientsam3.train.clips import tiny_tracker
from ..conftest import bake_shapes

ROOT = Path(__file__).parents[3]
QUICK = {"loop.accelerator": "cpu", "loop.precision": "32-true", "workers": "0"}


def test_a_missing_image_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--set model=FOLDER"):
        run_recipe(stickers_video.RECIPE, tmp_path, overrides=QUICK)


@pytest.fixture
def image_model(tmp_path: Path) -> Path:
    """The folder of a model without parts for tracking."""
    config, net = tiny_tracker(parts=("geometry", "masks"), scales=(4, 2, 1))
    save_folder(tmp_path / "image", "stickers", config, net)
    return tmp_path / "image"


def test_the_tracker_starts_with_the_model_of_images(image_model: Path) -> None:
    config, net = stickers_video.untrained_tracker(stickers_video.Options(str(image_model)))
    assert config.parts == ("geometry", "masks", "interactive", "interactive_neck", "memory")
    state = read_state(image_model / "model.safetensors")
    for key, value in net.state_dict().items():
        source = key.replace("interactive_neck.", "neck.")
        if source in state:
            assert torch.equal(value, state[source]), key
        else:
            assert key.startswith(("interactive.", "memory.")), key
    assert net.part("memory").no_object.std() > 0
    same = stickers_video.untrained_tracker(stickers_video.Options(str(image_model)))[1]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))


@pytest.mark.slow
def test_two_processes_with_other_prompts_in_each(image_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    bake_shapes(tmp_path / "cache" / "scenes")
    words = {"model": str(image_model), "held_out": "0", "stills": "1", **QUICK}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "efficientsam3"]
    command += ["distill", "--recipe", "stickers-video", "--stage", "clicks", "--steps", "6"]
    command += ["--out", str(tmp_path / "run")]
    command += [part for key, value in words.items() for part in ("--set", f"{key}={value}")]
    paths = os.pathsep.join([str(ROOT / "model"), str(ROOT)])
    cache = str(tmp_path / "cache")
    more = {"PYTHONPATH": paths, "EFFICIENTSAM3_CACHE": cache, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, env={**os.environ, **more}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "run" / "clicks" / "weights.safetensors").exists()


def test_a_trained_tracker_is_trained_on(image_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="keep_tracker needs a model that tracks"):
        stickers_video.trained_tracker(stickers_video.Options(str(image_model)))
    config, net = tiny_tracker(scales=(4, 2, 1))
    save_folder(tmp_path / "tracks", "stickers", config, net.half())
    options = stickers_video.Options(str(tmp_path / "tracks"))
    same, kept = stickers_video.trained_tracker(options)
    assert same == config
    for name, weight in kept.named_parameters():
        assert weight.requires_grad and weight.dtype == torch.float32, name
        assert torch.equal(weight, dict(net.named_parameters())[name].float()), name


@pytest.mark.slow
def test_a_model_with_late_fusion_gets_a_pyramid_of_all_stages(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_late_config(parts=("geometry", "masks"), scales=(4, 2, 1))
    made = build(config).eval()
    save_folder(tmp_path / "late", "stickers", config, made)
    options = stickers_video.Options(str(tmp_path / "late"))
    config, net = stickers_video.untrained_tracker(options)
    assert config.memory == MemoryConfig(4, adopt_detection_iou=0.1, adopt_object_iou=0.5)
    coarse = net.part("interactive_neck").levels[2][0].weight
    assert torch.equal(coarse, made.part("neck").levels[0][0].weight)
    assert stickers_video.head_parts(config) == ("interactive.", "interactive_neck")
    frame = net.read_frame(net.part("trunk")(torch.zeros(1, 3, 96, 96)))
    assert frame is not None


@pytest.mark.slow
def test_the_packaged_model_learns_to_track(
    image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    monkeypatch.setenv("EFFICIENTSAM3_CACHE", str(tmp_path / "cache"))
    bake_shapes(tmp_path / "cache" / "scenes")
    words = {
        "model": str(image_model),
        "held_out": "1",
        "stills": "2",
        "length": "2,3",
        "latents": "3",
        "cells": "4",
        **QUICK,
    }
    record = run_recipe(stickers_video.RECIPE, tmp_path / "run", steps=1, overrides=words)
    assert [entry["done"] for entry in record["stages"].values()] == [True, True, True]
    clicked = read_state(tmp_path / "run" / "clicks" / "weights.safetensors")
    _, full, trained = load_folder(tmp_path / "run" / "memory" / "model")
    name, small, net = load_folder(tmp_path / "run" / "perceiver" / "model")
    assert name == "efficientsam3-stickers-perceiver"
    assert (full.memory, small.memory) == (
        MemoryConfig(4, adopt_detection_iou=0.1),
        MemoryConfig(2, 3, 4, adopt_detection_iou=0.1),
    )
    before = read_state(image_model / "model.safetensors")
    changed = {
        k
        for k, v in trained.state_dict().items()
        if not torch.equal(v, before.get(k.replace("interactive_neck.", "neck."), v + 1))
    }
    parts = {".".join(k.split(".")[:3]) for k in changed if k.startswith("interactive_neck")}
    assert parts == {"interactive_neck.levels.2"}
    assert {k.split(".")[0] for k in changed} == {"interactive", "interactive_neck", "memory"}
    untrained = stickers_video.untrained_tracker(stickers_video.Options(str(image_model)))[
        1
    ].state_dict()
    learned = {k for k, v in clicked.items() if not torch.equal(v, untrained[k])}
    mine = ("interactive.", "interactive_neck.levels.2.", "memory.mask_downsample.")
    assert all(k.startswith(mine) for k in learned)
    assert any(k.startswith("interactive.masks.") for k in learned)
    for key, value in net.state_dict().items():  # head and pyramid are the same
        if not key.startswith("memory."):
            assert torch.equal(value, trained.state_dict()[key]), key
    model = es3.load(str(tmp_path / "run" / "perceiver" / "model"), device="cpu")
    assert "video" in model.abilities
    # The memory alone goes on from the model that now tracks.
    words |= {"model": str(tmp_path / "run" / "memory" / "model"), "keep_tracker": "true"}
    run_recipe(
        stickers_video.RECIPE, tmp_path / "more", stages=["memory"], steps=1, overrides=words
    )
    further = load_folder(tmp_path / "more" / "memory" / "model")[2].state_dict()
    was = trained.state_dict()
    moved = {k.split(".")[0] for k, v in further.items() if not torch.equal(v, was[k])}
    assert moved == {"interactive", "interactive_neck", "memory"}
    # A Perceiver memory goes on from its file, with the full memory of the same model.
    words["perceiver_start"] = str(tmp_path / "run" / "perceiver" / "weights.safetensors")
    run_recipe(
        stickers_video.RECIPE, tmp_path / "last", stages=["perceiver"], steps=1, overrides=words
    )
    last = load_folder(tmp_path / "last" / "perceiver" / "model")[2].part("memory")
    first = net.part("memory")
    old, new = (torch.cat([p.flatten() for p in part.parameters()]) for part in (first, last))
    assert torch.cosine_similarity(old, new, dim=0) > 0.99 and not torch.equal(old, new)
