"""Packages for Core ML: their inputs, outputs and shapes. They run on Apple's systems alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import efficientsam3 as es3
from efficientsam3.config import tiny_config, tiny_late_config
from efficientsam3.export import export_model

from ...conftest import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("exports")]


@pytest.fixture(scope="module", params=["early", pytest.param("late", marks=pytest.mark.long)])
def packages(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[es3.ImageModel, Path, Any]:
    pytest.importorskip("coremltools")
    model = tiny_model(config=tiny_late_config() if request.param == "late" else tiny_config())
    folder = tmp_path_factory.mktemp("coreml") / "tiny"
    return model, folder, export_model(model, folder, to="coreml", precision="float16")


def read(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from coremltools.models.utils import load_spec

        return load_spec(str(path))


def sizes(port: Any) -> list[int]:
    """Sizes of an input; -1 where it is free."""
    array = port.type.multiArrayType
    ranges = array.shapeRange.sizeRanges
    if not ranges:
        return list(array.shape)
    return [r.lowerBound if r.lowerBound == r.upperBound else -1 for r in ranges]


def test_packages_have_the_inputs_and_outputs_of_the_manifest(
    packages: tuple[es3.ImageModel, Path, Any],
) -> None:
    model, folder, manifest = packages
    assert set(manifest.abilities) == model.abilities
    assert {"image", "text", "exemplars", "heads", "masks", "objects", "recall"} <= {
        *manifest.graphs
    }
    for name, entry in manifest.graphs.items():
        spec = read(folder / entry["file"])
        given = {port.name: sizes(port) for port in spec.description.input}
        assert given == {key: value["shape"] for key, value in entry["inputs"].items()}, name
        assert [port.name for port in spec.description.output] == list(entry["outputs"]), name
    assert manifest.graphs["heads"]["inputs"]["prompt"]["shape"] == [1, -1, model.config.width]
    assert manifest.graphs["recall"]["inputs"]["pointers"]["shape"] == [1, -1, model.config.width]


def test_float16_halves_the_weights(
    packages: tuple[es3.ImageModel, Path, Any], tmp_path: Path
) -> None:
    model, _folder, manifest = packages
    whole = export_model(model, tmp_path / "whole", to="coreml")
    weights = [n for n in manifest.files if n.endswith("weight.bin")]
    assert weights
    half, full = (sum(m.files[n] for n in weights) for m in (manifest, whole))
    assert 0.4 < half / full < 0.65


def test_they_are_not_run_here(packages: tuple[es3.ImageModel, Path, Any]) -> None:
    assert packages[2].agreement == {}
    with pytest.raises(es3.CheckpointError, match="Core ML, which runs in apps"):
        es3.load(packages[1])


def test_precisions_of_core_ml(tmp_path: Path) -> None:
    with pytest.raises(es3.ArgumentError, match="precision of coreml is one of float32, float16"):
        export_model(tiny_model(), tmp_path / "out", to="coreml", precision="int8")
