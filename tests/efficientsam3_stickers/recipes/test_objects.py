"""The recipe of late fusion: every stage with a step, on the stickers of the tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import efficientsam3 as es3
from efficientsam3.build import build
from efficientsam3.checkpoints.read import read_state
from efficientsam3.config import LateConfig, tiny_config, tiny_late_config
from efficientsam3.train.merge import load_model, save_model
from efficientsam3.train.recipe import run_recipe
from efficientsam3_stickers.recipes import objects
from efficientsam3_stickers.recipes.object_models import ADDED, objects_config
from efficientsam3_stickers.recipes.objects import RECIPE

from ..conftest import bake_shapes

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


SCORES = {
    "batch": "2",
    "backgrounds": "4",
    "scored": "4",
    "score_steps": "20",
    "calibration": "2",
}
"""Options with which scores are learned in seconds."""


@pytest.fixture(autouse=True)
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stickers of a few shapes instead of the art that is downloaded."""
    monkeypatch.setenv("EFFICIENTSAM3_CACHE", str(tmp_path / "cache"))
    bake_shapes(tmp_path / "cache" / "scenes")


@pytest.mark.slow
def test_stages_end_in_a_model_and_can_be_extended(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 384)).astype(np.float16)
    texts = [f"word {i}" for i in range(30)]
    np.savez(tmp_path / "phrases.npz", texts=texts, vectors=vectors, counts=[10, 10, 10])
    small = {
        **SCORES,
        "resolution": "64",
        "final_resolution": "96",
        "workers": "0",
        "validate": "false",
        "teacher": "0",
    }
    first = run_recipe(RECIPE, tmp_path, stages=["text", "objects"], steps=1, overrides=small)
    assert first["stages"]["objects"]["steps"] == 1
    model = es3.load(str(tmp_path / "objects" / "model"), device="cpu")
    assert model.config.late is not None and model.abilities >= {"concepts", "exemplars", "masks"}
    again = {**small, "start": str(tmp_path / "objects" / "weights.safetensors")}
    second = run_recipe(RECIPE, tmp_path / "again", stages=["objects"], steps=1, overrides=again)
    assert set(second["stages"]) == {"objects"}
    wrong = {**again, "start": str(tmp_path / "text" / "weights.safetensors")}
    with pytest.raises(es3.CheckpointError, match="is not of a run of stickers-objects"):
        run_recipe(RECIPE, tmp_path / "wrong", stages=["objects"], steps=1, overrides=wrong)
    last = run_recipe(RECIPE, tmp_path, steps=1, overrides=small)
    assert set(last["stages"]) == {"text", "objects", "finer", "calibrate"}
    finer = es3.load(str(tmp_path / "finer" / "model"), device="cpu")
    assert finer.config.resolution == 96
    late, added = finer.config.late, set(finer.net.state_dict()) - set(model.net.state_dict())
    assert late is not None and late.windows and late.refinement and late.coarse
    assert not model.config.late.windows
    assert all(any(name.startswith(part) for name in added) for part in ADDED)
    assert all(name.startswith(ADDED) for name in added)
    assert finer.segment(np.zeros((50, 60, 3), np.uint8), "red apple").size == (50, 60)
    scored = es3.load(str(tmp_path / "calibrate" / "model"), device="cpu")
    assert scored.config.late is not None and scored.config.late.rescoring
    before, after = finer.net.state_dict(), scored.net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    new = {name for name in after if name not in before}
    assert new and all(name.startswith("decoder.rescorer.") for name in new)


@pytest.mark.slow
def test_a_saved_model_is_trained_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tiny_late_config()
    plain = tiny_late_config(late=LateConfig(1, 1, 1, (8, 16), 16), parts=("geometry", "masks"))
    monkeypatch.setattr(objects, "objects_config", lambda resolution: plain)
    save_model(tmp_path / "saved", "saved", saved, build(saved))
    options = {**SCORES, "workers": "0", "validate": "false", "model": str(tmp_path / "saved")}
    options["kept"] = "0.25"
    run_recipe(RECIPE, tmp_path / "run", stages=["finer"], steps=1, overrides=options)
    before, after = (
        load_model(tmp_path / folder)[2].state_dict() for folder in ("saved", "run/finer/model")
    )
    assert set(after) == {name for name in before if "rescorer" not in name}
    trained = {*build(plain).state_dict(), *(name for name in before if name.startswith(ADDED))}
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved < trained and len(moved) > len(trained) / 2
    old, new = (
        torch.cat([state[n].flatten().float() for n in trained]) for state in (before, after)
    )
    assert torch.cosine_similarity(old, new, dim=0) > 0.9, "training went on from the saved model"
    assert any(name.startswith(ADDED) for name in moved)
    alone = read_state(tmp_path / "run" / "finer" / "weights.safetensors")
    for name in (n for n in moved if after[n].is_floating_point()):
        mean = 0.75 * alone[name] + 0.25 * before[name]
        torch.testing.assert_close(after[name].float(), mean, rtol=1e-2, atol=1e-3)
    run_recipe(RECIPE, tmp_path / "run", stages=["calibrate"], overrides=options)
    scored = load_model(tmp_path / "run" / "calibrate" / "model")[2].state_dict()
    assert all(torch.equal(scored[name], after[name]) for name in moved)
    assert set(scored) == set(before)
    monkeypatch.setattr(objects, "objects_config", objects_config)
    with pytest.raises(es3.CheckpointError, match="stickers-objects: they differ"):
        run_recipe(RECIPE, tmp_path / "wrong", stages=["finer"], steps=1, overrides=options)


@pytest.mark.slow
def test_scores_are_learned_for_a_model_that_tracks_and_it_still_does(tmp_path: Path) -> None:
    config = tiny_late_config(late=LateConfig(1, 1, 1, (8, 16), 16))
    save_model(tmp_path / "tracks", "tracks", config, build(config))
    options = {**SCORES, "model": str(tmp_path / "tracks")}
    run_recipe(RECIPE, tmp_path / "run", stages=["calibrate"], overrides=options)
    model = es3.load(str(tmp_path / "run" / "calibrate" / "model"), device="cpu")
    assert "video" in model.abilities
    before, after = json.loads((tmp_path / "run" / "calibrate" / "calibration.json").read_text())[
        "score_losses"
    ]
    assert after < before
    early = tiny_config()
    save_model(tmp_path / "early", "early", early, build(early))
    options["model"] = str(tmp_path / "early")
    with pytest.raises(es3.CheckpointError, match="no late fusion"):
        run_recipe(RECIPE, tmp_path / "other", stages=["calibrate"], overrides=options)
    options["scored"] = "-3"
    with pytest.raises(es3.EfficientSam3Error, match="scored is -3; it must be 0 or more"):
        run_recipe(RECIPE, tmp_path / "wrong", stages=["calibrate"], overrides=options)
