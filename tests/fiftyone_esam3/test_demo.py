"""The demo: its scenes, a complete run with a tiny model, and its evaluation."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from PIL import Image

import efficientsam3 as es3
from efficientsam3.config import tiny_config
from efficientsam3.evaluate import read_clip_annotations, read_ground_truth
from efficientsam3.io.rle import decode
from efficientsam3.types import BitPatch
from efficientsam3.variants import EMBEDDED
from efficientsam3.viz.mask_comparison import HIT, MISSED

from .conftest import make_picture

ROOT = Path(__file__).parents[2]
SCENES = ROOT / "demo" / "scenes"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The script as a module; the packaged model is read from a temporary folder."""
    spec = importlib.util.spec_from_file_location("demo_under_test", ROOT / "demo" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DATASET", f"demo of {tmp_path.name}")
    monkeypatch.setenv("EFFICIENTSAM3_ASSETS", str(tmp_path / "assets"))
    yield module
    if fo.dataset_exists(module.DATASET):
        fo.delete_dataset(module.DATASET)


@pytest.fixture
def asset(tmp_path: Path) -> None:
    config = tiny_config(queries=2)
    model = es3.ImageModel.from_config(config, EMBEDDED, device="cpu", dtype="float32")
    model.save(tmp_path / "assets" / EMBEDDED)


# The scenes ---------------------------------------------------------------------------------------


def test_the_scenes_are_complete_and_small() -> None:
    truth = read_ground_truth(SCENES / "gold.json")
    assert len(truth.images) == 12
    images = {p.name for p in (SCENES / "images").iterdir()}
    assert images == set(truth.images)
    beside = {p.name for p in SCENES.iterdir() if p.suffix != ".mp4"}
    assert beside == {"gold.json", "images", "veval.json"}
    for name, pairs in truth.images.items():
        with Image.open(SCENES / "images" / name) as image:
            assert image.size[::-1] == pairs[0].size
        assert any(pair.targets for pair in pairs), "no concept is present"
        assert any(not pair.targets for pair in pairs), "no concept is absent"
        for pair in pairs:
            for target in pair.targets:
                assert decode(target.mask or {}).sum() == pytest.approx(target.area, abs=1)
    size = sum(p.stat().st_size for p in SCENES.rglob("*.*"))
    assert size < 1_500_000


def test_the_scenes_use_no_art_with_a_share_alike_license() -> None:
    info = json.loads((SCENES / "gold.json").read_text())["info"]
    assert info["split"] == "seen"  # of the art styles for training, without OpenMoji (CC BY-SA)
    text = (SCENES / "gold.json").read_text() + (ROOT / "demo" / "make_scenes.py").read_text()
    assert "openmoji" not in text.lower()


def test_the_clip_is_a_video_with_annotations() -> None:
    (video,) = SCENES.glob("*.mp4")
    assert video.stat().st_size < 300_000
    (clip,) = json.loads((SCENES / "veval.json").read_text())["videos"]
    assert clip["video_name"] == video.stem
    assert (clip["length"], clip["width"], clip["height"]) == (24, 252, 252)
    assert read_clip_annotations(SCENES / "veval.json")
    ffprobe = shutil.which("ffprobe")
    if ffprobe is None:
        pytest.skip("ffprobe is not on PATH")
    fields = "stream=width,height,nb_frames"
    command = [ffprobe, "-v", "error", "-show_entries", fields, "-of", "csv=p=0", str(video)]
    assert subprocess.check_output(command, text=True).strip() == "252,252,24"


# Complete runs ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("asset")
def test_scenes_are_labeled_evaluated_and_drawn(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.main(["--out", str(tmp_path / "out"), "--threshold", "0.2"])
    output = capsys.readouterr().out
    for text in ("12 scenes with 96 phrases", "FiftyOne: mAP", "cgF1", "fiftyone app launch"):
        assert text in output
    assert str(tmp_path / "out" / "answers") in output
    assert "tracking 8 phrases through 24 frames" in output and "pHOTA" in output
    with Image.open(tmp_path / "out" / "clip.png") as sheet:
        assert min(sheet.size) > 3 * 300
    pictures = sorted((tmp_path / "out" / "answers").iterdir())
    assert len(pictures) == 12
    with Image.open(pictures[0]) as sheet:
        assert sheet.width > 4 * 300 and sheet.height > 2 * 300, "eight phrases, four in a row"
    dataset = fo.load_dataset(demo.DATASET)
    assert dataset.persistent and len(dataset) == 12
    sample = dataset.first()
    assert len(sample.phrases) == 8
    assert set(sample.esam3.concept_presence) == set(sample.phrases)
    assert {d.label for d in sample.ground_truth.detections} < set(sample.phrases)
    assert dataset.list_evaluations() == ["eval"]


@pytest.mark.slow
def test_the_truth_gets_full_metrics(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the truth as labels all metrics are full; with half of it they are lower."""
    truth = read_ground_truth(SCENES / "gold.json")
    dataset = demo.make_dataset(truth)
    for sample in dataset.iter_samples(autosave=True):
        same = [d.copy() for d in sample.ground_truth.detections]
        for detection in same:
            detection.confidence = 0.9
        sample["esam3"] = fo.Detections(detections=same)
    full = demo.measure(dataset, truth, 0.5)
    for name, value in full.items():
        best = 1 if "IL_MCC" in name else 100
        assert value == pytest.approx(best, abs=1e-3 * best), name
    folder = demo.draw_answers(dataset, truth, tmp_path / "full")
    assert shows(folder, HIT) and not shows(folder, MISSED)

    for sample in dataset.iter_samples(autosave=True):
        sample.esam3.detections = sample.esam3.detections[::2]
    less = demo.measure(dataset, truth, 0.5)
    for name in full:
        assert less[name] < full[name] or "precision" in name
    assert 40 < less["FiftyOne: recall at IoU 0.5"] < 60
    assert shows(demo.draw_answers(dataset, truth, tmp_path / "less"), MISSED)


def shows(folder: Path, color: tuple[int, int, int]) -> bool:
    """Whether the first picture has an outline of that color; JPEG changes colors a little."""
    pixels = np.asarray(Image.open(min(folder.iterdir())), np.int16)
    return bool((np.abs(pixels - color).max(-1) < 40).sum() > 100)


def test_stored_masks_are_where_the_model_put_them(demo: ModuleType) -> None:
    """Also after the conversion to FiftyOne's relative boxes and back."""
    truth = read_ground_truth(SCENES / "gold.json")
    dataset = demo.make_dataset(truth)
    for sample, pairs in demo.scenes(dataset, truth):
        sample["esam3"] = sample.ground_truth.copy()
        for pair in pairs:
            masks = [mask for mask, _ in demo.stored(sample, pair)]
            assert len(masks) == len(pair.targets)
            for mask, target in zip(masks, pair.targets, strict=True):
                assert np.array_equal(mask, decode(target.mask or {}).astype(bool))


class PerfectModel:
    """A model that gives the true masks of the clip, frame by frame."""

    name = "perfect"
    abilities = frozenset({"concepts", "masks"})

    def __init__(self, share: int = 1) -> None:
        self.frame, self.share = -1, share
        self.truth = read_clip_annotations(SCENES / "veval.json")

    def encode(self, image: np.ndarray) -> SimpleNamespace:
        self.frame += 1
        return SimpleNamespace(size=image.shape[:2], frame=self.frame)

    def segment(self, image: Any, concepts: list[str], **options: Any) -> es3.Instances:
        patches, labels = [], []
        for clip in self.truth.queries.values():
            for track in clip.tracks[:: self.share]:
                mask = track.masks[image.frame]
                if clip.phrase in concepts and mask is not None:
                    patches.append(BitPatch.cut(decode(mask)))
                    labels.append(clip.phrase)
        scores = np.full(len(labels), 0.9, np.float32)
        return es3.Instances(
            boxes=np.array([p.crop(image.size)[1] for p in patches], np.float32).reshape(-1, 4),
            scores=scores,
            presence=scores,
            labels=labels,
            size=image.size,
            patches=list(patches),
            concepts=tuple(concepts),
        )


@pytest.mark.slow
def test_a_clip_is_tracked_drawn_and_evaluated(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = demo.track_clip(PerfectModel(), 0.5, tmp_path / "full")
    assert figures["cgF1"] > 60 and figures["pHOTA"] > 80, "the tracker did not link the true masks"
    output = capsys.readouterr().out
    assert "drawn: pig face, food, insect\n" in output, "objects with two phrases are drawn once"
    with Image.open(tmp_path / "full" / "clip.png") as sheet:
        hues = np.unique(np.asarray(sheet.convert("HSV"))[..., 0])
    half = demo.track_clip(PerfectModel(share=2), 0.5, tmp_path / "half")
    assert half["pHOTA"] < figures["pHOTA"] - 15 and len(hues) > 100
    assert (tmp_path / "full" / "clip.mp4").stat().st_size > 50_000


@pytest.mark.slow
@pytest.mark.usefixtures("asset")
def test_photographs_are_labeled_and_drawn(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(2):
        make_picture(i).save(photos / f"{i}.png")
    arguments = ["--photos", str(photos), "--concepts", "dog, yellow car,", "--model", EMBEDDED]
    demo.main([*arguments, "--out", str(tmp_path / "out"), "--threshold", "0.1"])
    output = capsys.readouterr().out
    assert "2 photographs, looking for: dog, yellow car" in output
    assert re.search(r"0\.png", output)
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--photos", "no/such"], "there is no such folder"),
        (["--photos", str(SCENES)], "no photographs"),
        (["--photos", str(SCENES / "images"), "--concepts", ","], "is empty"),
    ],
)
def test_errors_end_in_a_sentence(demo: ModuleType, arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        demo.main(arguments)
