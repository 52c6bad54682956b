"""Every example runs, short as it is, and leaves a picture or a film to look at."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
SCENES = EXAMPLES.parent / "demo" / "scenes"

for package in ("supervision", "cv2"):
    pytest.importorskip(package, reason="needs the extras `supervision` and `fiftyone`")


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of the package, which is what the examples use by default."""
    monkeypatch.delenv("EFFICIENTSAM3_ASSETS", raising=False)
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.chdir(tmp_path)


def run(name: str, *arguments: str) -> None:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    assert isinstance(example, ModuleType)
    spec.loader.exec_module(example)
    example.main(list(arguments))


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def changed(path: Path, original: Path) -> float:
    """Share of the pixels that are clearly not the original's."""
    return float((np.abs(pixels(path) - pixels(original)).max(2) > 40).mean())


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_examples_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    assert "efficientsam3-stickers" in text
    for scene in re.findall(r'default=\[?"(demo/[^"]+)"', text):
        assert (EXAMPLES.parent / scene).exists()


@pytest.mark.slow
@pytest.mark.usefixtures("embedded")
def test_a_picture(tmp_path: Path, capsys: Any) -> None:
    scene = SCENES / "images/scene_0000001.jpg"
    run("supervision_image", str(scene))
    assert changed(tmp_path / "out/examples/supervision_image.jpg", scene) > 0.05
    # Eight hippopotamuses, no food and no vehicle.
    assert capsys.readouterr().out.split()[2:].count("animal") >= 4


@pytest.mark.slow
@pytest.mark.usefixtures("embedded")
def test_a_film(tmp_path: Path) -> None:
    import supervision as sv

    clip = tmp_path / "clip.mp4"
    frames = sv.get_video_frames_generator(str(SCENES / "clip_0000007.mp4"), end=4)
    info = sv.VideoInfo.from_video_path(str(SCENES / "clip_0000007.mp4"))
    with sv.VideoSink(str(clip), info) as sink:
        for frame in frames:
            sink.write_frame(frame)
    run("supervision_video", str(clip), "--threshold", "0.3")
    made = list(sv.get_video_frames_generator("out/examples/supervision_video.mp4"))
    given = list(sv.get_video_frames_generator(str(clip)))
    assert len(made) == len(given) == 4
    assert (np.abs(made[3].astype(int) - given[3]).max(2) > 40).mean() > 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("embedded")
def test_boxes_become_masks(tmp_path: Path) -> None:
    for package in ("ultralytics", "lap", "polars"):
        pytest.importorskip(package, reason="needs the extra `ultralytics`")
    scene = SCENES / "images/scene_0000001.jpg"
    run("yolo_boxes_to_masks", str(scene), "--yolo", "yolo11n.yaml", "--conf", "0")
    assert changed(tmp_path / "out/examples/yolo_boxes_to_masks.jpg", scene) > 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("embedded")
def test_words_become_a_dataset(tmp_path: Path) -> None:
    pictures = [str(SCENES / f"images/scene_000000{i}.jpg") for i in range(2)]
    run("text_to_yolo_dataset", *pictures, "--threshold", "0.3")
    folder = tmp_path / "out/examples/dataset"
    assert len(list(folder.glob("labels/*/*.txt"))) == 2
    assert pixels(folder / "sheet.jpg").std() > 10
    assert os.path.getsize(folder / "data.yaml")
