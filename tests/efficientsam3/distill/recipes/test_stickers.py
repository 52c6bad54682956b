"""The recipe of the embedded model, all stages, a step each, on art of our own making."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import efficientsam3 as es3
from efficientsam3.distill.recipe import Asked, find_recipe, run_recipe
from efficientsam3.distill.recipes import stickers
from efficientsam3.distill.recipes.stickers import Options, student_config, teacher_config
from efficientsam3.scenes.art import Art
from efficientsam3.weights import read_state

from ...scenes.conftest import bake

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


@pytest.fixture
def art(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Art:
    monkeypatch.setenv("EFFICIENTSAM3_CACHE", str(tmp_path / "cache"))
    return bake(tmp_path / "cache" / "scenes")


def test_it_is_about_things_of_its_subgroups(art: Art) -> None:
    names = stickers.things(art, "train")
    assert names and set(names) <= set(art.names("seen"))
    assert all(art.concepts[n].subgroup.startswith(stickers.SUBGROUPS) for n in names)


def test_phrases_are_all_that_scenes_ask(art: Art) -> None:
    o = Options(resolution=84, grounds=2)
    said = set(stickers.phrases(o))
    draw = stickers.scenes(o, "train")
    asked = {q.phrase for n in range(20) for q in draw(n).queries if q.objects}
    assert asked and asked <= said


def test_teacher_and_student_share_their_heads() -> None:
    teacher, student = teacher_config(Options()), student_config(Options())
    same = dataclasses.replace(student, vision=teacher.vision, text=teacher.text)
    assert same == teacher


@pytest.mark.slow
def test_every_stage_runs_and_leaves_models(art: Art, tmp_path: Path) -> None:
    recipe = find_recipe("stickers")
    words = {"resolution": "84", "batch": "2", "held_out": "1", "grounds": "12"}
    words |= {"fine": "168", "calibration": "3", "longer.warmup": "0", "finer.warmup": "0"}
    record = run_recipe(recipe, tmp_path / "run", Asked(steps=1, words=words))
    assert [name for name, entry in record["stages"].items() if entry["done"]] == [
        stage.name for stage in recipe.stages
    ]
    image = np.zeros((60, 80, 3), np.uint8)
    for stage in ("teacher", "student", "longer", "finer", "calibrate", "alone"):
        model = es3.load(str(tmp_path / "run" / stage / "model"), device="cpu")
        assert model.config.resolution == (168 if stage in ("finer", "calibrate") else 84)
        assert model.abilities == {"concepts", "exemplars", "masks"}
        assert model.segment(image, ["dog"]).size == (60, 80)
    read = {
        stage: read_state(tmp_path / "run" / stage / file)
        for stage, file in (
            ("student", "weights.safetensors"),
            ("longer", "weights.safetensors"),
            ("finer", "weights.safetensors"),
            ("calibrate", "model/model.safetensors"),
        )
    }

    def moved(before: str, after: str) -> set[str]:
        """Parts that a stage has changed."""
        pairs = ((key, weight, read[after][key]) for key, weight in read[before].items())
        return {key.split(".")[0] for key, old, new in pairs if not torch.equal(old, new)}

    assert {"neck", "text", "decoder"} <= moved("student", "longer")
    assert "trunk" not in moved("student", "longer")
    assert {"trunk", "neck", "text", "decoder"} <= moved("longer", "finer")
    told = json.loads((tmp_path / "run" / "calibrate" / "calibration.json").read_text())
    last = "decoder.presence_token_head.layers.2.bias"
    for key, weight in read["calibrate"].items():
        before = read["finer"][key]
        torch.testing.assert_close(weight, before + told["shift"] if key == last else before)
