"""Stage 2's recipes from clips to merged models, with tiny models and a step a stage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

import efficientsam3 as es3
from efficientsam3.build import MemoryConfig
from efficientsam3.distill.data.clip import StickerClips
from efficientsam3.distill.errors import DataError
from efficientsam3.distill.recipe import Asked, Run, find_recipe, run_recipe
from efficientsam3.distill.recipes import stage2, stickers, stickers_video
from efficientsam3.scenes.compose import World
from efficientsam3.scenes.concepts import SPLITS
from efficientsam3.weights import load_folder, read_state, save_folder

from ...scenes.conftest import bake
from ..clips import Moving, tiny_tracker

QUICK = {"loop.accelerator": "cpu", "loop.precision": "32-true", "workers": "0"}


@pytest.fixture
def sav(tmp_path: Path) -> Path:
    """Four videos of eight annotated frames, extracted."""
    root = tmp_path / "sav"
    for index in range(4):
        key = f"sav_{index:06d}"
        folder = root / "extracted_frames" / key
        folder.mkdir(parents=True)
        clip = Moving(8).cut(index, 8, np.random.default_rng(0))
        rows = []
        for t, (image, masks) in enumerate(zip(clip.images, clip.masks, strict=True)):
            Image.fromarray(image).save(folder / f"{4 * t:05d}.jpg", quality=90)
            rles = [coco.encode(np.asfortranarray(m, np.uint8)) for m in masks]
            rows.append([{**r, "counts": r["counts"].decode()} for r in rles])
        content = {"video_height": 60.0, "video_width": 80.0, "masklet": rows}
        (root / f"{key}_manual.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    config, net = tiny_tracker()
    save_folder(tmp_path / "teacher", "tiny", config, net)
    return tmp_path / "teacher"


def test_a_perceiver_memory_for_a_whole_model(sav: Path, teacher: Path, tmp_path: Path) -> None:
    words = {
        "teacher": str(teacher),
        "sav": str(sav),
        "latents": "3",
        "cells": "2",
        "length": "2,3",
        "held_out": "1",
        **QUICK,
    }
    recipe = find_recipe("stage2")
    record = run_recipe(recipe, tmp_path / "run", Asked(steps=1, words=words))
    assert set(record["stages"]["distil"]["figures"]) == {"J", "J_click", "presence"}
    name, config, net = load_folder(tmp_path / "run" / "merge" / "model")
    assert name == "tiny-perceiver"
    assert config.memory == MemoryConfig(2, 3, 2)
    trained = read_state(tmp_path / "run" / "distil" / "weights.safetensors")
    before = read_state(teacher / "model.safetensors")
    for key, value in net.state_dict().items():
        assert torch.equal(value, trained[key]), key
        if not key.startswith("memory."):
            assert torch.equal(value, before[key]), key


def test_a_student_with_another_image_encoder(sav: Path, teacher: Path, tmp_path: Path) -> None:
    """It has no tracker: it gets the teacher's, with a Perceiver."""
    config, _ = tiny_tracker()
    other = dataclasses.replace(config.vision, depth=1, everywhere=(0,))  # type: ignore[type-var]
    small, net = tiny_tracker(vision=other, parts=("geometry", "masks"))
    save_folder(tmp_path / "student", "small", small, net)
    options = stage2.Options(
        str(teacher), str(tmp_path / "student"), str(sav), latents=0, cells=4, held_out=1, workers=0
    )
    task, settings = stage2.distil(Run(stage2.RECIPE, tmp_path, "distil", options))
    assert task.config.vision == other and task.config.memory.cells == 4
    assert task.config.parts == config.parts
    assert settings.parts == ("memory",)
    assert torch.equal(
        task.module.state_dict()["interactive_neck.levels.0.mix.weight"],
        read_state(teacher / "model.safetensors")["interactive_neck.levels.0.mix.weight"],
    )
    task.freeze(settings)
    task.start(torch.device("cpu"))
    assert task.loss(task.module, next(task.batches(0, 0, 1)))["loss"].isfinite()


def test_what_is_not_said(sav: Path, teacher: Path, tmp_path: Path) -> None:
    def asked(**words: str) -> Asked:
        return Asked(words={**words, "workers": "0"})

    with pytest.raises(DataError, match="--set sav=FOLDER"):
        run_recipe(stage2.RECIPE, tmp_path / "a", asked())
    both = {"teacher": str(teacher), "sav": str(sav)}
    with pytest.raises(DataError, match="have 4 videos, and 64 are to be held out"):
        run_recipe(stage2.RECIPE, tmp_path / "b", asked(**both, cells="4"))
    with pytest.raises(ValueError, match=r"18 cells a side .* do not divide a grid of 8"):
        run_recipe(stage2.RECIPE, tmp_path / "c", asked(**both))
    config, net = tiny_tracker(memory=MemoryConfig(2, 3, 2))
    save_folder(tmp_path / "perceiver", "tiny", config, net)
    with pytest.raises(DataError, match="has a Perceiver memory; the teacher is"):
        both["teacher"] = str(tmp_path / "perceiver")
        run_recipe(stage2.RECIPE, tmp_path / "d", asked(**both))
    with pytest.raises(DataError, match="--set model=FOLDER"):
        run_recipe(stickers_video.RECIPE, tmp_path / "e", asked())


# The embedded model -------------------------------------------------------------------------------


@pytest.fixture
def image_model(tmp_path: Path) -> Path:
    """A model that does not track."""
    config, net = tiny_tracker(parts=("geometry", "masks"), scales=(4, 2, 1))
    save_folder(tmp_path / "image", "stickers", config, net)
    return tmp_path / "image"


def test_the_tracker_begins_behind_the_image_model(image_model: Path) -> None:
    config, net = stickers_video.beginner(stickers_video.Options(str(image_model)))
    assert config.parts == ("geometry", "masks", "interactive", "interactive_neck", "memory")
    state = read_state(image_model / "model.safetensors")
    for key, value in net.state_dict().items():
        source = key.replace("interactive_neck.", "neck.")
        if source in state:
            assert torch.equal(value, state[source]), key
        else:
            assert key.startswith(("interactive.", "memory.")), key
    assert net.part("memory").no_object.std() > 0
    again = stickers_video.beginner(stickers_video.Options(str(image_model)))[1]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_the_embedded_model_learns_to_track(
    image_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    art = bake(tmp_path / "art")

    def clips(o: stickers_video.Options, config: object, split: str) -> StickerClips:
        return StickerClips(World(art, SPLITS[split], 112, grounds=2), length=6)

    monkeypatch.setattr(stickers_video, "clips", clips)

    def world(o: object, split: str = "train", tiles: int = 0) -> World:
        return World(art, SPLITS[split], 112, tiles=tiles, grounds=2)

    monkeypatch.setattr(stickers, "world", world)
    words = {
        "model": str(image_model),
        "held_out": "1",
        "stills": "2",
        "length": "2,3",
        "latents": "3",
        "cells": "4",
        **QUICK,
    }
    record = run_recipe(
        find_recipe("stickers-video"), tmp_path / "run", Asked(steps=1, words=words)
    )
    assert [entry["done"] for entry in record["stages"].values()] == [True, True, True]
    clicked = read_state(tmp_path / "run" / "clicks" / "weights.safetensors")
    _, full, trained = load_folder(tmp_path / "run" / "memory" / "model")
    name, small, net = load_folder(tmp_path / "run" / "perceiver" / "model")
    assert name == "efficientsam3-stickers-perceiver"
    assert (full.memory, small.memory) == (
        MemoryConfig(4, adopt=0.1),
        MemoryConfig(2, 3, 4, adopt=0.1),
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
    untaught = stickers_video.beginner(stickers_video.Options(str(image_model)))[1].state_dict()
    learned = {k for k, v in clicked.items() if not torch.equal(v, untaught[k])}
    mine = ("interactive.", "interactive_neck.levels.2.", "memory.mask_downsample.")
    assert all(k.startswith(mine) for k in learned)
    assert any(k.startswith("interactive.masks.") for k in learned)
    for key, value in net.state_dict().items():  # behind the same head and pyramid
        if not key.startswith("memory."):
            assert torch.equal(value, trained.state_dict()[key]), key
    model = es3.load(str(tmp_path / "run" / "perceiver" / "model"), device="cpu")
    assert "video" in model.abilities
