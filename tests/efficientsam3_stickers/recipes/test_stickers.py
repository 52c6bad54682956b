"""The recipe of the packaged model: all stages with a step each, on the stickers of the tests."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import efficientsam3 as es3
from efficientsam3.checkpoints.read import read_state
from efficientsam3.train.recipe import find_recipe, run_recipe
from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.recipes import common, stickers

from ..conftest import bake_shapes


@pytest.fixture
def baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StickerArt:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    monkeypatch.setenv("EFFICIENTSAM3_CACHE", str(tmp_path / "cache"))
    return bake_shapes(tmp_path / "cache" / "scenes")


def test_concepts_are_those_of_the_subgroups(baked: StickerArt) -> None:
    names = common.recipe_concepts(baked, "train")
    assert names and set(names) <= set(baked.concept_names("seen"))
    assert all(baked.concepts[n].subgroup.startswith(common.SUBGROUPS) for n in names)


def test_the_text_encoder_learns_all_phrases_of_scenes(baked: StickerArt) -> None:
    phrases = set(stickers.recipe_phrases())
    samples = common.scene_samples(84, backgrounds=2)
    found = {q.phrase for n in range(20) for q in samples[n].queries if q.objects}
    assert found and found <= phrases


def test_tiled_images_take_turns_with_scenes(baked: StickerArt) -> None:
    samples = common.scene_samples(84, tiles=(1, 0), backgrounds=4)
    assert [len(samples[number]) for number in (0, 2, 4)] == [1, 1, 1]
    free = common.recipe_generator(84, backgrounds=2).scene(1)
    assert samples[3].image.tobytes() == free.image.tobytes()


def test_teacher_and_student_share_their_heads() -> None:
    teacher, student = common.teacher_config(), common.student_config()
    same = dataclasses.replace(student, vision=teacher.vision, text=teacher.text)
    assert same == teacher


def test_weights_of_another_model_are_an_error(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    save_file({"weight": net.weight.detach()}, tmp_path / "weights.safetensors")
    with pytest.raises(es3.CheckpointError, match=r"another model: \['bias'\]"):
        common.load_weights(net, tmp_path / "weights.safetensors")  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_stage_runs_and_saves_models(baked: StickerArt, tmp_path: Path) -> None:
    recipe = find_recipe("stickers")
    words = {"resolution": "84", "batch": "2", "held_out": "1", "backgrounds": "12", "workers": "0"}
    words |= {
        "final_resolution": "168",
        "calibration": "3",
        "longer.warmup": "0",
        "finer.warmup": "0",
    }
    record = run_recipe(recipe, tmp_path / "run", steps=1, overrides=words)
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
    result = json.loads((tmp_path / "run" / "calibrate" / "calibration.json").read_text())
    last = "decoder.presence_token_head.layers.2.bias"
    for key, weight in read["calibrate"].items():
        before = read["finer"][key]
        torch.testing.assert_close(weight, before + result["shift"] if key == last else before)
