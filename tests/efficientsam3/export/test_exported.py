"""Exported folders: PyTorch's answers, what the manifest says, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import efficientsam3 as es3
from efficientsam3.export import cache, export_model, folder
from efficientsam3.export.agreement import example_pixels
from efficientsam3.export.graphs import graphs_of
from efficientsam3.nn.detector import fold
from efficientsam3.runtime.manifest import FORMAT, read_manifest
from efficientsam3.runtime.model import ExportedModel
from efficientsam3.runtime.sessions import open_sessions
from efficientsam3.video.memory_tracker import MemoryTracker
from efficientsam3.video.settings import IoUSettings, TrackSettings
from efficientsam3.video.tracker_parts import tracker_parts

from ...conftest import tiny_model

pytestmark = pytest.mark.xdist_group("exports")

SCENES = Path(__file__).parents[3] / "demo" / "scenes" / "images"

Exported = tuple[es3.ImageModel, Path]
BOXES = [[5, 5, 30, 30], [20, 10, 60, 44]]
ASKED: dict[str, dict[str, Any]] = {
    "concepts": {"concepts": ["bus", "a person in black", "tree", "dog", "cup"], "threshold": 0.0},
    "suppressed": {"concepts": "bus", "threshold": 0.0, "nms": 0.3},
    "boxes": {"concepts": "bus", "boxes": BOXES, "box_labels": [1, 0], "threshold": 0.0},
    "one point": {"concepts": "bus", "points": [[9, 9]], "threshold": 0.0},
    "both": {"boxes": BOXES[:1], "points": [[9, 9], [50, 40]], "threshold": 0.0},
    "click": {"points": [[30, 20]]},
    "candidates": {"points": [[30, 20], [5, 5]], "point_labels": [1, 0], "multimask": True},
}


def agree(ours: es3.Instances, theirs: es3.Instances) -> None:
    assert ours.labels == theirs.labels
    assert ours.concepts == theirs.concepts
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)
    np.testing.assert_allclose(ours.presence, theirs.presence, atol=1e-3)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-1)  # pixels
    assert len(theirs)
    assert theirs.masks.any()
    assert (ours.masks != theirs.masks).mean() < 1e-3


@pytest.fixture(scope="module")
def loaded(exported: Exported) -> tuple[es3.ImageModel, ExportedModel]:
    model, place = exported
    ours = es3.load(place)
    assert isinstance(ours, ExportedModel)
    return model, ours


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED)
def test_answers_are_pytorch_s(
    loaded: tuple[es3.ImageModel, ExportedModel], photo: Any, asked: str
) -> None:
    model, ours = loaded
    agree(ours.segment(photo, **ASKED[asked]), model.segment(photo, **ASKED[asked]))


def test_single_objects_are_pytorch_s(
    loaded: tuple[es3.ImageModel, ExportedModel], photo: Any
) -> None:
    model, ours = loaded
    encoded = ours.encode(photo)
    first = model.segment_objects(photo, boxes=BOXES)
    agree(ours.segment_objects(encoded, boxes=BOXES), first)
    for points in (None, [[[30, 20]], [[9, 9]]]):
        asked = {"masks": first.low_res, "points": points}
        agree(ours.segment_objects(encoded, **asked), model.segment_objects(photo, **asked))


@pytest.mark.parametrize("count", [1, 3, 17])  # the example of the export has two
def test_any_number_of_objects(
    loaded: tuple[es3.ImageModel, ExportedModel], photo: Any, count: int
) -> None:
    model, ours = loaded
    points = np.random.default_rng(0).uniform(4, 40, (count, 2, 2))
    theirs = model.segment_objects(photo, points=points)
    agree(ours.segment_objects(photo, points=points), theirs)
    assert len(theirs) == count


def tracked(model: Any, frames: list[Any]) -> list[tuple[int, es3.Instances]]:
    tracker = es3.InteractiveTracker(model, frames, cuts=None)
    tracker.add_points(0, 1, [[20, 15]])
    tracker.add_mask(0, 2, np.pad(np.ones((20, 24), bool), ((10, 18), (30, 10))))
    tracker.add_box(2, 3, BOXES[1])
    return [(frame.index, frame.instances) for frame in tracker.propagate("both")]


@pytest.mark.slow
def test_given_objects_are_tracked_as_in_pytorch(
    loaded: tuple[es3.ImageModel, ExportedModel], photo: Any
) -> None:
    # The picture moves down. To the right, a pixel of the late model's mask is so near 0 that noise
    # of 3e-7 in PyTorch's own weights changes a later score by 0.01.
    frames = [np.roll(photo, 2 * i, 0) for i in range(9)]
    theirs, ours = (tracked(model, frames) for model in loaded)
    assert [index for index, _ in ours] == [*range(9), 1, 0]
    for (index, found), (same, expected) in zip(ours, theirs, strict=True):
        assert index == same
        assert found.track_ids is not None
        assert found.track_ids.tolist() == expected.track_ids.tolist()  # type: ignore[union-attr]
        agree(found, expected)


@pytest.mark.slow
def test_concepts_are_tracked_as_in_pytorch(
    loaded: tuple[es3.ImageModel, ExportedModel], photo: Any
) -> None:
    frames = [np.roll(photo, 2 * i, 1) for i in range(4)]
    for tracker in ("memory", "iou"):
        settings = TrackSettings(
            detection_threshold=0.0,
            new_track_threshold=0.0,
            cuts=None,
            iou=IoUSettings(new_track_threshold=0.0),
        )
        asked: dict[str, Any] = {"concepts": ["bus"], "settings": settings, "tracker": tracker}
        theirs, ours = (list(es3.track(model, frames, **asked)) for model in loaded)
        assert any(len(frame.instances) for frame in theirs)
        for found, expected in zip(ours, theirs, strict=True):
            assert (found.instances.masks != expected.instances.masks).mean() < 1e-3
            np.testing.assert_array_equal(found.instances.track_ids, expected.instances.track_ids)


@pytest.mark.slow
def test_objects_of_a_frame_are_pytorch_s(
    loaded: tuple[es3.ImageModel, ExportedModel], photo: Any
) -> None:
    parts = [tracker_parts(model) for model in loaded]
    theirs, ours = (part.read(photo).encoded for part in parts)
    if not loaded[0].config.memory.adopt_object_iou:
        assert theirs is ours is None
        return
    expected, found = (part.find_objects(x) for part, x in zip(parts, (theirs, ours), strict=True))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_a_tracker_of_an_exported_model_is_copied(
    loaded: tuple[es3.ImageModel, ExportedModel], photo: Any
) -> None:
    engine = MemoryTracker(loaded[1])
    features = engine.read(photo)
    engine.add_points(0, features, 7, torch.tensor([[0.4, 0.5]]), torch.tensor([1]))
    copied = pickle.loads(pickle.dumps(engine))
    ours, theirs = (each.propagate(1, each.read(photo)) for each in (copied, engine))
    assert torch.equal(ours.logits, theirs.logits)


@pytest.mark.slow
@torch.no_grad()
def test_every_free_size(exported: Exported) -> None:
    """Each free axis takes other sizes than the example's, one among them."""
    model, place = exported
    net = fold(model.learned(), torch.float32)
    sessions = open_sessions(place, read_manifest(place))
    checked = 0
    for graph in graphs_of(model, net, example_pixels(model.config)):
        for axis in sorted({axis for axes in graph.free.values() for axis in axes}):
            for size in (1, 3):
                inputs = {
                    name: torch.cat([x] * 3, axis).narrow(axis, 0, size)
                    if axis in graph.free.get(name, ())
                    else x
                    for name, x in graph.inputs.items()
                }
                expected = graph.module(*inputs.values())
                expected = expected if isinstance(expected, tuple) else (expected,)
                found = sessions.run(graph.name, **{k: x.numpy() for k, x in inputs.items()})
                for name, theirs in zip(graph.outputs, expected, strict=True):
                    scale = max(1.0, theirs.abs().max().item())
                    difference = np.abs(found[name] - theirs.numpy()).max() / scale
                    assert difference < 1e-4, (graph.name, name, axis, size)
                checked += 1
    assert checked > 6


def test_embeddings_are_pytorch_s(loaded: tuple[es3.ImageModel, ExportedModel], photo: Any) -> None:
    model, ours = loaded
    np.testing.assert_allclose(ours.embed(photo), model.embed(photo), atol=1e-3)
    np.testing.assert_allclose(ours.embed_patches(photo), model.embed_patches(photo), atol=1e-3)


def test_the_manifest_says_what_is_there(exported: Exported) -> None:
    model, place = exported
    manifest = es3.load(place).manifest
    assert manifest.agreement["largest difference"] < 1e-3
    assert manifest.agreement["mask IoU"] > 0.99
    assert set(manifest.abilities) == model.abilities
    assert manifest.graphs["heads"]["inputs"]["prompt"] == {
        "dtype": "float32",
        "shape": [-1, -1, model.config.width],
    }
    assert {file.name for file in place.iterdir()} == {*manifest.files, "manifest.json"}
    assert "torch" not in (place / "requirements.txt").read_text()


SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is not installed")

sys.meta_path.insert(0, Blocked())
import numpy as np
import efficientsam3 as es3
model = es3.load(sys.argv[1])
photo = np.load(sys.argv[2])
found = model.segment(photo, ["bus", "Straße"], threshold=0.0)
clicked = model.segment(photo, points=[[30, 20]])
np.savez(sys.argv[3], masks=found.masks, scores=found.scores, clicked=clicked.masks)
"""
BLOCKED = [
    "torch",
    "torchvision",
    "timm",
    "open_clip",
    "transformers",
    "huggingface_hub",
    "safetensors",
]


@pytest.mark.slow
def test_torch_is_not_needed(exported: Exported, photo: Any, tmp_path: Path) -> None:
    model, place = exported
    np.save(tmp_path / "photo.npy", photo)
    code = SCRIPT.format(blocked=set(BLOCKED))
    args = [sys.executable, "-c", code, place, tmp_path / "photo.npy", tmp_path / "found.npz"]
    done = subprocess.run(list(map(str, args)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = np.load(tmp_path / "found.npz")
    theirs = model.segment(photo, ["bus", "Straße"], threshold=0.0)
    np.testing.assert_allclose(ours["scores"], theirs.scores, atol=1e-3)
    assert (ours["masks"] != theirs.masks).mean() < 1e-3
    clicked = model.segment(photo, points=[[30, 20]]).masks
    assert (ours["clicked"] != clicked).mean() < 1e-3


@pytest.mark.slow
def test_the_packaged_model_by_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    out = tmp_path / "stickers"
    command = [sys.executable, "-m", "efficientsam3", "export", "--model", "efficientsam3-stickers"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "difference from PyTorch" in done.stdout
    ours = es3.load(out)
    assert isinstance(ours, ExportedModel)
    assert ours.manifest.agreement["largest difference"] < 1e-3
    model = es3.load("efficientsam3-stickers", device="cpu", dtype="float32")
    scene = min(SCENES.glob("*.jpg"))
    for asked in ({"concepts": ["plant", "flower"], "threshold": 0.3}, {"points": [[150, 150]]}):
        agree(ours.segment(scene, **asked), model.segment(scene, **asked))


@pytest.mark.slow
def test_a_backend_exports_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiny_model().save(tmp_path / "tiny")
    first = es3.load(tmp_path / "tiny", backend="openvino")
    monkeypatch.setattr(cache, "export_model", None)
    again = es3.load(tmp_path / "tiny", backend="openvino")
    assert first.key == again.key
    image = first.encode(np.zeros((8, 8, 3), np.uint8))
    assert again.segment(image, "bus").concepts == ("bus",)
    assert pickle.loads(pickle.dumps(again)).key == again.key


# What is refused ------------------------------------------------------------------------------


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported[1], tmp_path / "copied"))


def refused(place: Path, *words: str, error: type[Exception] = es3.CheckpointError) -> None:
    with pytest.raises(error) as caught:
        es3.load(place).segment(np.zeros((8, 8, 3), np.uint8), "bus")
    for word in words:
        assert word in str(caught.value)


def change(place: Path, **values: Any) -> None:
    file = place / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_another_format_version(copied: Path) -> None:
    change(copied, format=99, version="7.0")
    refused(copied, "format 99", f"reads format {FORMAT}", "export", "7.0")


def test_a_truncated_file(copied: Path) -> None:
    file = next(f for f in copied.iterdir() if f.stem == "heads" and f.suffix in (".bin", ".onnx"))
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    refused(copied, file.name, f"{size - 100} bytes instead of {size}", "copy the folder again")
    file.unlink()
    refused(copied, file.name, "is missing")


def test_a_file_of_something_else(copied: Path) -> None:
    file = next(f for f in copied.iterdir() if f.stem == "image" and f.suffix in (".xml", ".onnx"))
    file.write_bytes(b"x" * file.stat().st_size)
    refused(copied, file.name, "cannot be read by", "export the model again")


def test_a_damaged_manifest(copied: Path) -> None:
    (copied / "manifest.json").write_text("{}")
    refused(copied, "manifest.json", "export the model again")
    change(copied, format=FORMAT)
    refused(copied, "manifest.json", "fields")


def test_a_missing_runtime(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = json.loads((copied / "manifest.json").read_text())["backend"]
    package = {"onnx": "onnxruntime", "openvino": "openvino"}[backend]
    monkeypatch.setitem(sys.modules, package, None)
    refused(copied, f"pip install {package}", error=es3.EfficientSam3Error)


def test_what_cannot_be_changed_after_the_export(exported: Exported) -> None:
    changes: Any
    for changes in ({"dtype": "bfloat16"}, {"speed": "fast"}, {"text": "sam3"}, {"adapter": "a"}):
        with pytest.raises(es3.ArgumentError, match="export the model again"):
            es3.load(exported[1], **changes)
    with pytest.raises(es3.ArgumentError, match="device='tpu'"):
        es3.load(exported[1], device="tpu")


def test_what_cannot_be_exported(tiny: es3.ImageModel, tmp_path: Path) -> None:
    with pytest.raises(
        es3.ArgumentError, match=r"to is one of onnx, openvino, coreml; got 'tflite'"
    ):
        export_model(tiny, tmp_path / "out", to="tflite")
    with pytest.raises(es3.ArgumentError, match=r"precision of onnx is one of float32, float16"):
        export_model(tiny, tmp_path / "out", to="onnx", precision="bfloat16")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(es3.ArgumentError, match="is not an exported model"):
        export_model(tiny, tmp_path)
    with pytest.raises(es3.ArgumentError, match="backend"):
        es3.load("efficientsam3-stickers", backend="tflite")


def test_an_export_that_fails_leaves_the_earlier_one(
    exported: Exported, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> str:
        raise RuntimeError("disk full")

    monkeypatch.setattr(folder, "_writer", lambda to: fail)
    with pytest.raises(RuntimeError, match="disk full"):
        export_model(exported[0], copied, to=es3.load(copied).manifest.backend)
    assert es3.load(copied).name == "tiny"
    assert [p.name for p in copied.parent.iterdir()] == ["copied"]


# Graphs that are read beforehand, and maps in half precision ---------------------------------


def test_graphs_are_read_beforehand(copied: Path, photo: Any) -> None:
    """A graph that cannot be read fails where it is needed, and is tried again."""
    file = next(f for f in copied.iterdir() if f.stem == "heads" and f.suffix in (".xml", ".onnx"))
    content = file.read_bytes()
    model = es3.load(copied)
    file.write_bytes(b"x" * len(content))
    for _ in range(2):
        with pytest.raises(es3.CheckpointError, match="heads"):
            model.segment(photo, "bus", threshold=0.0)
    file.write_bytes(content)
    assert len(model.segment(photo, "bus", threshold=0.0))
    model._sessions.release("heads")
    model._sessions.release("text")
    assert len(model.segment(photo, "tree", threshold=0.0))
    model._sessions.close()
    model._sessions.prepare(["heads", "of no model", "image"])
    assert set(model._sessions._made) == {"heads", "image"}
    assert len(model.segment(photo, "tree", threshold=0.0))


@pytest.mark.slow
def test_maps_go_between_graphs_in_half_precision(
    tmp_path: Path, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    from efficientsam3.export import openvino_files

    monkeypatch.setattr(openvino_files, "LARGE_MAP", 1 << 8)
    model = tiny_model()
    manifest = export_model(model, tmp_path / "tiny", to="openvino", precision="float16")
    dtypes = {
        (graph, side, name): value["dtype"]
        for graph, entry in manifest.graphs.items()
        for side in ("inputs", "outputs")
        for name, value in entry[side].items()
    }
    halved = {key for key, dtype in dtypes.items() if dtype == "float16"}
    assert {("image", "outputs", "tokens"), ("heads", "inputs", "seen")} <= halved
    assert any(graph == "mask_image" for graph, _, _ in halved)
    assert not any(graph in ("text", "points") for graph, _, _ in halved)
    assert read_manifest(tmp_path / "tiny").graphs == manifest.graphs
    ours = es3.load(tmp_path / "tiny")
    found, expected = (m.segment(photo, "bus", threshold=0.0) for m in (ours, model))
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-2)
    assert (found.masks != expected.masks).mean() < 1e-2
    np.testing.assert_allclose(ours.embed(photo), model.embed(photo), atol=1e-2)
    assert ours.embed(photo).dtype == ours.embed_patches(photo).dtype == np.float32
    clicked = ours.segment(photo, points=[[30, 20]])
    assert (clicked.masks != model.segment(photo, points=[[30, 20]]).masks).mean() < 1e-2
