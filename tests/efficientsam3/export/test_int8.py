"""Eight bits: what is measured, which layers are kept, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import efficientsam3 as es3
from efficientsam3.cli.app import app
from efficientsam3.export import ExportError, export_model, folder, quantize
from efficientsam3.export.agreement import example_pixels
from efficientsam3.export.calibration import (
    HEAD_FEEDS,
    Calibration,
    calibrate,
    read_pictures,
)
from efficientsam3.export.graphs import graphs_of
from efficientsam3.nn.detector import fold
from efficientsam3.runtime.manifest import read_manifest
from efficientsam3.runtime.model import ExportedModel

pytestmark = pytest.mark.xdist_group("exports")

Exported = tuple[es3.ImageModel, Path]
SCENES = Path(__file__).parents[3] / "demo" / "scenes" / "images"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five pictures, one of them damaged, and a text."""
    place = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(4):
        small = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(small).resize((80, 60)).save(place / f"{number}.png")
    (place / "9.jpg").write_bytes(b"no picture")
    (place / "notes.txt").write_text("mine")
    return place


@pytest.fixture(scope="module")
def calibration(exported: Exported, pictures: Path) -> Calibration:
    model, place = exported
    net = fold(model.learned(), torch.float32)
    graphs = graphs_of(model, net, example_pixels(model.config))
    return calibrate(model, graphs, read_pictures(pictures, 2, place), ["bus", "dog"])


def test_pictures_that_measure_are_others(calibration: Calibration) -> None:
    assert len(calibration.samples) == 2
    assert len(calibration.measured) == 2  # four can be read
    assert calibration.held_out
    samples = calibration.samples[0], calibration.measured[0]
    ours, theirs = (sample.inputs["image"]["pixels"] for sample in samples)
    assert np.abs(ours - theirs).max() > 0.1
    heads = calibration.feeds("heads")
    assert {len(feed["prompt"]) for feed in heads} == {1}
    assert len(heads) >= HEAD_FEEDS and len(calibration.feeds("image")) == 2
    words = {feed["prompt"].tobytes() for feed in heads}
    assert len(words) >= HEAD_FEEDS - 2  # further phrases, of either picture


class NoSessions:
    """Stands for the runtime."""

    def replace(self, graph: str, path: Path) -> None:
        assert path.is_file()

    def close(self) -> None: ...


class Rounding:
    """Stands for a quantizer: a file is copied, and layers that are not kept are counted."""

    def __init__(self, harmful: set[str], measured: list[list[str]]) -> None:
        self.harmful, self.measured = harmful, measured

    def layers(self, file: Path) -> list[str]:
        return [f"{file.stem}.{i}" for i in range(12)]

    def quantize(
        self, file: Path, target: Path, feeds: Any, kept: list[str], *, roughly: bool = False
    ) -> None:
        assert feeds
        for part in file.parent.glob(f"{file.stem}.*"):
            shutil.copy(part, target.with_suffix(part.suffix))
        self.measured.append(sorted(self.harmful - set(kept)) if "heads" in file.stem else [])

    def halve(self, file: Path) -> None:
        assert file.is_file()


def test_a_score_that_differs_is_a_loss() -> None:
    start = quantize.Agreement(1.0, 0.0, 0.001)
    assert quantize.Agreement(0.98, 0.01, 0.02).within(start, 0.03)
    assert not quantize.Agreement(0.98, 0.01, 0.05).within(start, 0.03)


def test_layers_that_cost_too_much_are_kept(
    exported: Exported,
    calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Path(shutil.copytree(exported[1], tmp_path / "copied"))
    harm: list[list[str]] = [[]]
    monkeypatch.setattr(quantize, "open_sessions", lambda *args: NoSessions())
    monkeypatch.setattr(
        quantize,
        "measure",
        lambda *args, **kwargs: quantize.Agreement(1 - 0.1 * len(harm[-1]), 0.0),
    )
    quantizer = Rounding({"heads.3", "heads.8"}, harm)
    found = quantize.quantize_graphs(
        place, read_manifest(place), calibration, quantizer, matched=False
    )
    assert set(found["kept in half precision"]) == {"heads"}
    kept = found["kept in half precision"]["heads"]
    assert {"heads.3", "heads.8"} <= set(kept)
    assert len(kept) == 4  # two groups of two
    assert found["mask IoU"] == 1
    read_manifest(place)  # all files are in their places
    everything = quantize.quantize_graphs(
        place, read_manifest(place), calibration, quantizer, matched=False, loss=1.0
    )
    assert everything["kept in half precision"] == {}


@pytest.mark.slow
def test_a_quantized_folder(
    exported: Exported, calibration: Calibration, tmp_path: Path, photo: Any
) -> None:
    model, before = exported
    backend = read_manifest(before).backend
    if backend == "openvino":
        pytest.importorskip("nncf")
    place = Path(shutil.copytree(before, tmp_path / "copied"))
    manifest = read_manifest(place)
    late = model.config.late is not None
    # Untrained weights lose much. In late fusion the image's features choose the objects, so that
    # some of their layers have to be kept.
    loss = 0.3 if late else 1.0
    found = quantize.quantize_graphs(
        place, manifest, calibration, folder._quantizer(backend), matched=late, loss=loss
    )
    kept = found["kept in half precision"]
    assert set(kept) == ({"image"} if late else set())
    assert max(0.1, 1 - loss) < found["mask IoU"] < 1
    assert 0 < found["presence difference"] < 0.5
    assert 0 < found["score difference"] < 0.5
    text = json.loads((place / "manifest.json").read_text())
    text["files"] = {name: (place / name).stat().st_size for name in text["files"]}
    (place / "manifest.json").write_text(json.dumps(text | {"precision": "int8"}))
    ours = es3.load(place).segment(photo, "bus", threshold=0.0)
    theirs = model.segment(photo, "bus", threshold=0.0)
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(ours.presence, theirs.presence, atol=0.3)


@pytest.mark.long
def test_the_packaged_model_in_eight_bits(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    out = tmp_path / "stickers"
    command = [sys.executable, "-m", "efficientsam3", "export", "--model", "efficientsam3-stickers"]
    command += ["--precision", "int8", "--calibrate", str(SCENES), "--calibrate-count", "6"]
    command += ["-c", "animal", "-c", "vehicle", "-c", "food", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mean difference of presence" in done.stdout
    ours = es3.load(out)
    assert isinstance(ours, ExportedModel)
    assert ours.dtype == "int8"
    assert ours.manifest.agreement["mask IoU"] > 0.9
    assert ours.segment(min(SCENES.glob("*.jpg")), ["animal", "vehicle"], threshold=0.3)


# What is refused ------------------------------------------------------------------------------


def test_what_cannot_be_quantized(
    tiny: es3.ImageModel, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"folder": out, "to": "openvino", "precision": "int8"}
    with pytest.raises(es3.ArgumentError, match="needs calibrate: a folder with pictures"):
        export_model(tiny, **options)
    with pytest.raises(es3.ArgumentError, match=r"calibrate goes with precision='int8'"):
        export_model(tiny, out, calibrate=pictures)
    with pytest.raises(es3.ArgumentError, match="is a file"):
        export_model(tiny, **options, calibrate=pictures / "notes.txt")
    with pytest.raises(es3.ArgumentError, match="calibrate_count is at least 1 picture; got 0"):
        export_model(tiny, **options, calibrate=pictures, calibrate_count=0)
    with pytest.raises(es3.ArgumentError, match="loss is 2: what eight bits may lose"):
        export_model(tiny, **options, calibrate=pictures, loss=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(es3.ImageError, match=r"no images in .*empty"):
        export_model(tiny, **options, calibrate=tmp_path / "empty")
    shutil.copy(pictures / "9.jpg", tmp_path / "empty")
    with pytest.raises(es3.ImageError, match=r"none of 1 pictures .* can be read"):
        export_model(tiny, **options, calibrate=tmp_path / "empty")
    found = folder.importlib.util.find_spec
    monkeypatch.setattr(
        folder.importlib.util, "find_spec", lambda name: None if name == "nncf" else found(name)
    )
    with pytest.raises(ExportError, match=r"nncf not installed: .*efficientsam3\[int8\]"):
        export_model(tiny, **options, calibrate=pictures)
    assert not out.exists()


def test_the_command_needs_pictures() -> None:
    result = CliRunner().invoke(app, ["export", "--out", "x", "--precision", "int8"])
    assert result.exit_code == 2
    assert "--calibrate FOLDER" in result.output
