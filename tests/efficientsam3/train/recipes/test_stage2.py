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

from efficientsam3.checkpoints.assemble import load_folder
from efficientsam3.checkpoints.read import read_state
from efficientsam3.checkpoints.save import save_folder
from efficientsam3.config import MemoryConfig
from efficientsam3.errors import CheckpointError, DataError
from efficientsam3.train.logs import Progress
from efficientsam3.train.recipe import Run, Stage, find_recipe, run_recipe
from efficientsam3.train.recipes import stage2

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


@pytest.mark.slow
def test_a_perceiver_memory_for_a_whole_model(sav: Path, teacher: Path, tmp_path: Path) -> None:
    overrides = {
        "teacher": str(teacher),
        "sav": str(sav),
        "latents": "3",
        "cells": "2",
        "length": "2,3",
        "held_out": "1",
        **QUICK,
    }
    recipe = find_recipe("stage2")
    record = run_recipe(recipe, tmp_path / "run", steps=1, overrides=overrides)
    assert set(record["stages"]["distil"]["metrics"]) == {"J", "J_click", "presence"}
    name, config, net = load_folder(tmp_path / "run" / "merge" / "model")
    assert name == "tiny-perceiver"
    assert config.memory == MemoryConfig(2, 3, 2)
    trained = read_state(tmp_path / "run" / "distil" / "weights.safetensors")
    before = read_state(teacher / "model.safetensors")
    for key, value in net.state_dict().items():
        assert torch.equal(value, trained[key]), key
        if not key.startswith("memory."):
            assert torch.equal(value, before[key]), key


@pytest.mark.slow
def test_a_run_is_not_continued_with_other_videos_without_a_word(
    sav: Path, teacher: Path, tmp_path: Path
) -> None:
    given = {"teacher": str(teacher), "sav": str(sav), "latents": "3", "cells": "2", **QUICK}
    given |= {"length": "2", "held_out": "1", "loop.save_every": "1", "loop.log_every": "1"}
    recipe, folder = find_recipe("stage2"), tmp_path / "run"

    def stop(stage: Stage, progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, folder, steps=3, overrides=given, on_progress=stop)
    for path in sav.rglob("*.jpg"):
        with Image.open(path) as image:
            turned = image.rotate(180)
        turned.save(path)
    with pytest.raises(CheckpointError, match=r"task\.data\.digest was .* --accept-changes"):
        run_recipe(recipe, folder, steps=3, overrides=given)
    record = run_recipe(recipe, folder, steps=3, overrides=given, accept_changes=True)
    assert record["stages"]["distil"]["done"]


def test_a_student_with_another_image_encoder(sav: Path, teacher: Path, tmp_path: Path) -> None:
    """It has no tracker: it gets the teacher's, with a Perceiver."""
    config, _ = tiny_tracker()
    other = dataclasses.replace(config.vision, depth=1, everywhere=(0,))  # type: ignore[type-var]
    small, net = tiny_tracker(vision=other, parts=("geometry", "masks"))
    save_folder(tmp_path / "student", "small", small, net)
    options = stage2.Options(
        str(teacher), str(tmp_path / "student"), str(sav), latents=0, cells=4, held_out=1, workers=0
    )
    task, settings = stage2.distill_memory(Run(stage2.RECIPE, tmp_path, "distil", options))
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


def test_missing_options_are_named(sav: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--set sav=FOLDER"):
        run_recipe(stage2.RECIPE, tmp_path / "a")
    both = {"teacher": str(teacher), "sav": str(sav)}
    with pytest.raises(DataError, match="have 4 videos, and 64 are to be held out"):
        run_recipe(stage2.RECIPE, tmp_path / "b", overrides={**both, "cells": "4"})
    with pytest.raises(ValueError, match=r"18 cells a side .* do not divide a grid of 8"):
        run_recipe(stage2.RECIPE, tmp_path / "c", overrides=both)
    config, net = tiny_tracker(memory=MemoryConfig(2, 3, 2))
    save_folder(tmp_path / "perceiver", "tiny", config, net)
    with pytest.raises(DataError, match="has a Perceiver memory; the teacher is"):
        both["teacher"] = str(tmp_path / "perceiver")
        run_recipe(stage2.RECIPE, tmp_path / "d", overrides=both)
