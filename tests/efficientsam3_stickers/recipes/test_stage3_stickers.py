"""Stage 3 with scenes of stickers among its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from efficientsam3.errors import DataError
from efficientsam3.train.recipe import Run
from efficientsam3.train.recipes import stage3
from efficientsam3_stickers.recipes.stage3_stickers import RECIPE, Options

from ..conftest import bake_shapes

pytest.importorskip("skimage")


def test_scenes_join_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTSAM3_CACHE", str(tmp_path / "cache"))
    bake_shapes(tmp_path / "cache" / "scenes")
    (scenes,) = Options(scenes=5, size=84).sources()
    assert len(scenes) == 5
    assert scenes[3].image.shape == (84, 84, 3)
    assert scenes[3].masks and scenes[3].queries
    assert Options(scenes=0).sources() == []


def test_it_is_stage3_with_other_data() -> None:
    assert RECIPE.stages == stage3.RECIPE.stages
    assert isinstance(RECIPE.options, stage3.Options)
    with pytest.raises(DataError, match="coco_images is not set"):
        Options(coco="a.json").sources()
    run = Run(RECIPE, Path("unused"), "tune", Options())
    with pytest.raises(DataError, match="model is not set"):
        stage3.tune(run)
