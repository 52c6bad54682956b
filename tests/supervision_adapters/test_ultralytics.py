"""Results, trackers and datasets of Ultralytics, of which nothing is downloaded or installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from PIL import Image

import efficientsam3 as es3
from efficientsam3.types import Instances
from supervision_adapters import (
    AdapterError,
    ConceptDetector,
    MissingPackageError,
    PerClassTracker,
    to_detections,
)
from supervision_adapters.ultralytics import (
    UltralyticsTracker,
    auto_annotate,
    prompts_from_results,
    require_ultralytics,
    segment_boxes,
    to_results,
)

from .conftest import make, shapes
from .test_tracking import disc, to_detections_named

CLASSES = ["cat", "dog", "bird"]
pytestmark = [
    pytest.mark.skipif(
        any(importlib.util.find_spec(p) is None for p in ("ultralytics", "lap", "cv2", "polars")),
        reason="needs the extra `ultralytics`",
    ),
]


@pytest.mark.parametrize("mask_format", ["compact", "dense", None])
def test_results_and_back(photo: Any, mask_format: Any) -> None:
    found = make(shapes(), track_ids=np.array([3, 1, 0, 7]))
    given = to_detections(found, class_names=CLASSES, mask_format=mask_format)
    results = to_results(given, photo, path="street.jpg")
    assert np.array_equal(results.orig_img, photo[..., ::-1]), "its pictures are BGR"
    assert results.names == {0: "cat", 1: "dog"} and results.path == "street.jpg"
    for back in (sv.Detections.from_ultralytics(results), prompts_from_results(results)):
        assert np.array_equal(back.xyxy, given.xyxy)
        assert np.allclose(back.confidence, given.confidence)
        assert back.class_id.tolist() == given.class_id.tolist()
        assert back.tracker_id.tolist() == [3, 1, 0, 7]
        assert back.data["class_name"].tolist() == ["dog", "cat", "dog", "cat"]
        if mask_format is None:
            assert back.mask is None
        else:
            assert np.array_equal(np.asarray(back.mask), shapes())


def test_results_do_what_users_do(photo: Any, four: Instances, tmp_path: Path) -> None:
    results = to_results(to_detections(four), photo, class_names=CLASSES)
    assert results.plot().shape == photo.shape
    results.save_txt(str(tmp_path / "a.txt"))
    assert len((tmp_path / "a.txt").read_text().splitlines()) == 3, "it leaves out single pixels"
    assert [row["name"] for row in results.summary()] == ["dog", "cat", "dog", "cat"]
    with pytest.raises(AdapterError, match="class_names has no class 1"):
        to_results(to_detections(four), photo, class_names={0: "cat"})


def test_nothing_found(photo: Any, nothing: Instances) -> None:
    results = to_results(to_detections(nothing), photo, class_names=CLASSES)
    assert len(results) == 0 and results.plot().shape == photo.shape
    back = prompts_from_results(results)
    assert len(back) == 0 and back.data["class_name"].dtype.kind == "U"


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_boxes_of_yolo_get_masks(tiny: es3.ImageModel, photo: Any, color: Any) -> None:
    boxes = sv.Detections(
        xyxy=np.array([[2, 3, 40, 30], [20, 10, 60, 44]], np.float32),
        confidence=np.array([0.9, 0.7], np.float32),
        class_id=np.array([2, 0]),
    )
    results = to_results(boxes, photo, class_names=CLASSES, path="a.jpg")
    (out,) = segment_boxes(ConceptDetector(tiny, color=color), [results])
    said = tiny.segment_objects(photo, boxes=boxes.xyxy)
    assert np.array_equal(out.masks.data.numpy(), said.masks), "the colors were mixed up"
    assert np.array_equal(out.boxes.xyxy.numpy(), boxes.xyxy)
    assert out.boxes.cls.tolist() == [2, 0] and out.path == "a.jpg" and out.names[2] == "bird"
    assert np.array_equal(out.orig_img, results.orig_img)
    assert len(segment_boxes(tiny, to_results(boxes[:0], photo, class_names=CLASSES))) == 0


def test_yolo_itself(tiny: es3.ImageModel, photo: Any) -> None:
    """Untrained, from its own configuration: its answers are the forms that real ones have."""
    yolo = require_ultralytics("ultralytics").YOLO("yolo11n.yaml")
    results = yolo.predict(photo[..., ::-1].copy(), imgsz=64, conf=0.0, max_det=3, verbose=False)
    (out,) = segment_boxes(tiny, results)
    assert len(out) == len(results[0]) == 3
    assert out.masks.data.shape == (3, 48, 64)


# Trackers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bytetrack.yaml", "botsort.yaml", "ocsort.yaml"])
def test_its_trackers_keep_our_masks(name: str) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    for tracker in (UltralyticsTracker(name), PerClassTracker(lambda: UltralyticsTracker(name))):
        for turn in range(2):
            for i in range(6):
                parts = [disc(10 + i, label="cat"), disc(50 - i, label="dog", y=36)]
                both = sv.Detections.merge([to_detections_named(p) for p in parts])
                both = both[[i % 2, 1 - i % 2]]
                out = tracker.update(both, frame)
                assert both.tracker_id is None
                assert np.array_equal(out.xyxy, both.xyxy), "boxes are the detector's"
                assert np.array_equal(np.asarray(out.mask), np.asarray(both.mask))
            assert sorted(out.tracker_id.tolist()) == [0, 1], f"turn {turn}"
            tracker.reset()
        empty = tracker.update(to_detections(make(shapes()[:0])), frame)
        assert empty.tracker_id.dtype == int and len(empty) == 0


def test_settings_of_its_trackers() -> None:
    weak = disc(20)
    weak.confidence = np.array([0.3], np.float32)
    frame = np.zeros((48, 64, 3), np.uint8)
    assert UltralyticsTracker().update(weak, frame).tracker_id.tolist() == [0]
    high = {"track_high_thresh": 0.5, "new_track_thresh": 0.5}
    strict = UltralyticsTracker("bytetrack.yaml", **high)
    assert strict.update(weak, frame).tracker_id.tolist() == [-1]
    with pytest.raises(AdapterError, match=r"bytetrack\.yaml has no track_bufer"):
        UltralyticsTracker(track_bufer=3)
    with pytest.raises(AdapterError, match="needs more than boxes"):
        UltralyticsTracker("tracktrack.yaml")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=one)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done


# Datasets ------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path, photo: Any) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.roll(photo, 9 * i, 1)).save(folder / f"{i}.jpg")
    Image.fromarray(photo).save(folder / "more" / "0.gif")
    return folder


def test_a_dataset_from_words(tiny: es3.ImageModel, pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.png").write_bytes(b"not a picture")
    done = auto_annotate(pictures, ["cat", "dog"], tmp_path / "set", tiny, threshold=0.3, val=0.3)
    assert (done.images, list(done.failed)) == (4, [pictures / "broken.png"])
    data = sv.DetectionDataset.from_yolo(
        *(str(tmp_path / "set" / kind / "train") for kind in ("images", "labels")),
        str(done.data),
    )
    assert data.classes == ["cat", "dog"]
    made = tmp_path / "set"
    rows = [row for file in made.glob("labels/*/*") for row in file.read_text().splitlines()]
    found = [tiny.segment(pictures / f"{i}.jpg", ["cat", "dog"], threshold=0.3) for i in range(3)]
    assert done.objects == len(rows) > sum(map(len, found))
    kept = sorted(file.relative_to(made / "images").as_posix() for file in made.glob("images/*/*"))
    assert kept == ["train/0.jpg", "train/1.jpg", "train/2.jpg", "val/0_1.png"]


def test_what_it_refuses(tiny: es3.ImageModel, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="val is a fraction"):
        auto_annotate(pictures, "cat", tmp_path / "set", tiny, val=1)
    with pytest.raises(es3.ImageError, match="there is no image or folder"):
        auto_annotate(tmp_path / "lost", "cat", tmp_path / "set", tiny)
    with pytest.raises(AdapterError, match="all different"):
        auto_annotate(pictures, [], tmp_path / "set", tiny)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    with pytest.raises(es3.ImageError, match="none of the 1 images could be read"):
        auto_annotate(broken, "cat", tmp_path / "set", tiny)


@pytest.mark.slow
def test_a_dataset_needs_no_ultralytics(pictures: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('ultralytics', 'cv2', 'lap'): sys.modules[name] = None\n"
        "from efficientsam3 import ImageModel\n"
        "from efficientsam3.config import tiny_config\n"
        "from supervision_adapters.ultralytics import auto_annotate, UltralyticsTracker\n"
        f"model = ImageModel.from_config(tiny_config(), device='cpu', dtype='float32')\n"
        f"print(auto_annotate({str(pictures)!r}, 'cat', {str(tmp_path / 'set')!r}, model).images)\n"
        "try: UltralyticsTracker()\n"
        "except ImportError as error: print(error)\n"
    )
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.stdout.splitlines() == [
        "4",
        'this needs the package lap: pip install "efficientsam3[ultralytics]"',
    ]


def test_it_is_never_asked_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YOLO_AUTOINSTALL", raising=False)
    require_ultralytics("ultralytics.utils")
    assert os.environ["YOLO_AUTOINSTALL"] == "false"
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(MissingPackageError, match=r"efficientsam3\[ultralytics\]"):
        require_ultralytics("ultralytics")


@pytest.mark.slow
def test_yolo_trains_on_it(tiny: es3.ImageModel, pictures: Path, tmp_path: Path) -> None:
    """One epoch of its own command on a dataset that was made from words."""
    done = auto_annotate(pictures, ["cat", "dog"], tmp_path / "set", tiny, threshold=0.3, val=0.3)
    command = [
        *(sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()"),
        *("segment", "train"),
        *(f"data={done.data}", "model=yolo11n-seg.yaml", "epochs=1", "imgsz=64", "batch=2"),
        *("workers=0", "device=cpu", "amp=False", "plots=False", f"project={tmp_path / 'runs'}"),
    ]
    run(command, tmp_path)
    (weights,) = (tmp_path / "runs").rglob("last.pt")
    (table,) = (tmp_path / "runs").rglob("results.csv")
    header, row = (line.split(",") for line in table.read_text().splitlines())
    loss = dict(zip((name.strip() for name in header), map(float, row), strict=True))
    assert loss["train/seg_loss"] > 0, "no mask was learned from"
    assert weights.stat().st_size > 1_000_000
