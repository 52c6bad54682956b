"""The recipe of late fusion: every stage with a step, on the stickers of the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import efficientsam3 as es3
from efficientsam3.train.recipe import run_recipe
from efficientsam3_stickers.recipes.objects import RECIPE

from ..conftest import bake_shapes

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


@pytest.mark.slow
def test_stages_end_in_a_model_and_can_be_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFICIENTSAM3_CACHE", str(tmp_path / "cache"))
    bake_shapes(tmp_path / "cache" / "scenes")
    vectors = np.random.default_rng(0).normal(size=(30, 384)).astype(np.float16)
    texts = [f"word {i}" for i in range(30)]
    np.savez(tmp_path / "phrases.npz", texts=texts, vectors=vectors, counts=[10, 10, 10])
    small = {
        "resolution": "64",
        "final_resolution": "96",
        "batch": "2",
        "backgrounds": "4",
        "workers": "0",
        "validate": "false",
        "teacher": "0",
        "calibration": "2",
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
    assert finer.segment(np.zeros((50, 60, 3), np.uint8), "red apple").size == (50, 60)
