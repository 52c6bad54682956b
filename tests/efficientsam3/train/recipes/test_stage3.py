"""Stage 3's recipe from files to a merged model, with a tiny model and few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from efficientsam3.checkpoints.assemble import load_folder
from efficientsam3.checkpoints.save import save_folder
from efficientsam3.errors import CheckpointError, DataError
from efficientsam3.train.errors import SettingsError
from efficientsam3.train.logs import Progress
from efficientsam3.train.merge import PartialCheckpoint
from efficientsam3.train.recipe import Run, Stage, find_recipe, run_recipe
from efficientsam3.train.recipes.stage3 import PART_FILE, RECIPE, Options, tune
from efficientsam3.variants import UnknownModelError

from ..conftest import Shapes, tiny_net


@pytest.fixture
def overrides(tmp_path: Path) -> dict[str, str]:
    """A tiny model, and six images in SA-Co's format."""
    config, net = tiny_net()
    save_folder(tmp_path / "model", "tiny", config, net)
    source, pairs, found = Shapes(6), [], []
    (tmp_path / "images").mkdir()
    for i in range(len(source)):
        sample = source[i]
        height, width = sample.size
        Image.fromarray(sample.image).save(tmp_path / "images" / f"{i}.png")
        for query in sample.queries:
            number = len(pairs)
            size = {"height": height, "width": width}
            pairs.append(
                {"id": number, "file_name": f"{i}.png", "text_input": query.phrase, **size}
            )
            for n in query.objects:
                rle = coco.encode(np.asfortranarray(sample.mask(n), np.uint8))
                x0, y0, x1, y1 = sample.boxes[n].tolist()
                found.append(
                    {
                        "id": len(found),
                        "image_id": number,
                        "bbox": [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
                        "segmentation": {**rle, "counts": rle["counts"].decode()},
                    }
                )
    (tmp_path / "gold.json").write_text(json.dumps({"images": pairs, "annotations": found}))
    return {
        "model": str(tmp_path / "model"),
        "saco": str(tmp_path / "gold.json"),
        "saco_images": str(tmp_path / "images"),
        "held_out": "2",
        "prompts": "2",
        "workers": "0",
        "loop.accelerator": "cpu",
        "loop.precision": "32-true",
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_folder(folder)[2].state_dict()


@pytest.mark.slow
def test_from_files_to_a_merged_model(overrides: dict[str, str], tmp_path: Path) -> None:
    given = {**overrides, "teacher": overrides["model"], "tune.picture_every": "1"}
    assert find_recipe("stage3") is RECIPE
    folder = tmp_path / "run"
    record = run_recipe(RECIPE, folder, steps=2, overrides=given)
    assert [s["done"] for s in record["stages"].values()] == [True, True]
    assert {"cgF1", "pmF1", "IL_MCC"} <= set(record["stages"]["tune"]["metrics"])
    assert "features" in (folder / "tune" / "log.csv").read_text().splitlines()[0]
    assert list((folder / "tune" / "pictures").iterdir())
    part = PartialCheckpoint.load(folder / "tune" / PART_FILE)
    assert set(part.prefixes) == {"trunk.", "neck."}
    before, after = weights(tmp_path / "model"), weights(folder / "merge" / "model")
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in moved} == {"trunk", "neck"}
    assert all(torch.equal(v, after[k]) for k, v in part.state.items())
    assert load_folder(folder / "merge" / "model")[0] == "tiny-tuned"
    # What is there is not done again.
    again = run_recipe(RECIPE, folder, steps=2, overrides=given)
    assert again["stages"]["tune"]["metrics"] == record["stages"]["tune"]["metrics"]


@pytest.mark.slow
def test_a_run_is_not_continued_with_other_data_without_a_word(
    overrides: dict[str, str], tmp_path: Path
) -> None:
    given = {**overrides, "loop.save_every": "1", "loop.log_every": "1"}

    def stop(stage: Stage, progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(RECIPE, tmp_path / "run", steps=3, overrides=given, on_progress=stop)
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as image:
            turned = image.rotate(180)
        turned.save(path)
    with pytest.raises(CheckpointError, match=r"task\.data\.digest was .* --accept-changes"):
        run_recipe(RECIPE, tmp_path / "run", steps=3, overrides=given)
    record = run_recipe(RECIPE, tmp_path / "run", steps=3, overrides=given, accept_changes=True)
    assert record["stages"]["tune"]["done"]


def test_other_parts_and_a_teacher_of_maps(overrides: dict[str, str], tmp_path: Path) -> None:
    given = {**overrides, "parts": "scoring,decoder.presence_token_head", "level": "map"}
    given |= {"teacher": overrides["model"], "form": "l2", "tune.scales.scoring": "0.5"}
    run_recipe(RECIPE, tmp_path / "run", steps=1, overrides=given)
    part = PartialCheckpoint.load(tmp_path / "run" / "tune" / PART_FILE)
    assert set(part.prefixes) == {"scoring.", "decoder.presence_token_head."}


def of(**options: Any) -> Run:
    return Run(RECIPE, Path("unused"), "tune", Options(**options))


def test_defaults_are_upstreams(overrides: dict[str, str]) -> None:
    given = {k: overrides[k] for k in ("model", "saco_images")}
    made = tune(of(**given, saco=(overrides["saco"],), held_out=2, epochs=100))
    assert made is not None
    task, settings = made
    assert settings.parts == ("trunk", "neck")
    assert settings.clip == 0.1
    assert settings.precision == "bf16-mixed"
    assert settings.schedule == "inverse-sqrt"
    assert (settings.steps, settings.warmup, settings.cooldown) == (200, 20, 20)
    task.freeze(settings)
    groups = task.parameter_groups(settings)
    last = [g for g in groups if any(n.startswith("neck.") for n in g["names"])]
    assert {round(g["scale"] * settings.lr, 9) for g in last} == {2.5e-5}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.1}
    trunk = {g["scale"] for g in groups if any(n.startswith("trunk.") for n in g["names"])}
    # The position table and the patches come before two blocks.
    assert min(trunk) * settings.lr == pytest.approx(2.5e-5 * 0.9**3)


def test_missing_options_are_named(overrides: dict[str, str]) -> None:
    model, images = overrides["model"], overrides["saco_images"]
    with pytest.raises(DataError, match=r"model is not set.*--set model=NAME"):
        tune(of())
    with pytest.raises(UnknownModelError, match="efficientsam3-tinyvit"):
        tune(of(model="efficientsam3-tinyvit-12m"))
    with pytest.raises(DataError, match="no data to learn from: add --set saco"):
        tune(of(model=model))
    with pytest.raises(DataError, match="--set coco_images=FOLDER"):
        tune(of(model=model, coco="a.json"))
    with pytest.raises(DataError, match="have 6 images, and 256 are to be held out"):
        tune(of(model=model, saco=(overrides["saco"],), saco_images=images))
    with pytest.raises(SettingsError, match="level is 'trunk'; known: pyramid, map"):
        tune(
            of(
                model=model,
                saco=(overrides["saco"],),
                saco_images=images,
                held_out=2,
                level="trunk",
            )
        )
