"""The benchmark of trackers: true detections score full, what is done stays done."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import efficientsam3 as es3
from efficientsam3.checkpoints.save import save_folder
from efficientsam3.config import MemoryConfig, tiny_config
from efficientsam3.data.types import ClipQuery, ClipRecord, ObjectTrack
from efficientsam3.io import rle
from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.concepts import SPLITS
from efficientsam3_stickers.recipes import common

from ..efficientsam3.train.clips import tiny_tracker
from ..efficientsam3_stickers.conftest import bake_shapes

pytest.importorskip("trackers")
ROOT = Path(__file__).parents[2]
WORDS = {"text": tiny_config().text}
"""All of them: phrases are read."""


@pytest.fixture(scope="module")
def art(tmp_path_factory: pytest.TempPathFactory) -> StickerArt:
    return bake_shapes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def bench(
    script: Callable[[str], ModuleType], art: StickerArt, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The script as a module, with plain shapes for art."""
    module = script("tracking")
    monkeypatch.setattr(StickerArt, "open", lambda folder=None: art)
    part = SPLITS["seen"]
    names = art.concept_names(part.concepts, part.styles)
    monkeypatch.setattr(common, "recipe_concepts", lambda art, split, every=False: names)
    monkeypatch.setattr(module, "_MODELS", {})
    return module


def run(bench: ModuleType, out: Path, *words: str, clips: int = 2) -> dict[str, dict[str, float]]:
    given = ["--out", str(out), "--clips", str(clips), "--frames", "6", "--size", "112", *words]
    bench.main(given)
    content = json.loads((out / "tracking.json").read_text())
    kind = words[words.index("--detections") + 1] if "--detections" in words else "own"
    assert content[kind]["clips"] == clips
    return content[kind]["trackers"]


def square(at: int) -> dict[str, object]:
    mask = np.zeros((20, 20), bool)
    mask[4:12, at : at + 8] = True
    return rle.encode(mask)[0]


def track(*places: int | None) -> ObjectTrack:
    return ObjectTrack([None if p is None else square(p) for p in places], [None] * len(places))


def test_a_switch_is_another_track_than_last_time(bench: ModuleType) -> None:
    switches = sys.modules["tracking_figures"].switches
    truth = (track(0, 1, 2, 3), track(10, 10, None, 10))
    clip = ClipQuery((1, 1), ClipRecord(1, "clip", (20, 20), 4), "thing", truth)
    assert switches(clip, []) == 0
    assert switches(clip, truth) == 0
    crossed = [track(0, 1, None, 10), track(10, 10, 2, 3)]
    assert switches(clip, crossed) == 2  # each once; that one was away does not hide it
    lost = [track(0, 1, None, None), track(10, 10, None, 10), track(None, None, 2, 3)]
    assert switches(clip, lost) == 1
    assert switches(clip, [track(0, 1, 9, 9)]) == 0  # not found at all: no switch


@pytest.mark.slow
def test_true_masks_are_followed(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(bench, tmp_path, "--detections", "true")
    assert list(found) == ["mask IoU", "ByteTrack", "SORT", "OC-SORT"]
    assert found["mask IoU"]["DetA"] == pytest.approx(100)
    assert found["mask IoU"]["pHOTA"] > 75
    spoilt = run(bench, tmp_path, "--detections", "spoilt")
    assert spoilt["mask IoU"]["pHOTA"] < found["mask IoU"]["pHOTA"]
    lines = (tmp_path / "tracking-true.jsonl").read_text().splitlines()
    run(bench, tmp_path, "--detections", "true", clips=3)
    grown = (tmp_path / "tracking-true.jsonl").read_text().splitlines()
    assert grown[:3] == lines and len(grown) == 4
    capsys.readouterr()
    page = tmp_path / "page.md"
    page.write_text(f"before\n{bench.START}\n{bench.END}\nafter\n")
    bench.main(["--out", str(tmp_path), "--table", str(page)])
    assert page.read_text().count("| true masks |") == 4
    assert page.read_text().count("| spoilt true masks |") == 4


@pytest.mark.slow
def test_memories_follow_what_a_model_finds_and_what_they_are_given(
    bench: ModuleType, tmp_path: Path
) -> None:
    folders = []
    for name, memory in (("full", MemoryConfig(1)), ("perceiver", MemoryConfig(1, 2, 2))):
        config, net = tiny_tracker(memory=memory, **WORDS)
        save_folder(tmp_path / name, name, config, net)
        folders += [f"--{name}", str(tmp_path / name)]
    found = run(bench, tmp_path / "out", *folders, clips=1)
    assert list(found)[:3] == ["full memory", "Perceiver memory", "mask IoU"]
    for name in ("full memory", "Perceiver memory"):
        assert 0 <= found[name]["J&F by mask"] <= 100
        assert 0 <= found[name]["J&F by click"] <= 100
    assert "J&F by mask" not in found["mask IoU"]
    true = run(bench, tmp_path / "out", *folders, "--detections", "true", clips=1)
    assert "full memory" in true
    with pytest.raises(SystemExit, match="goes with --full"):
        bench.main(["--perceiver", str(tmp_path / "perceiver"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="nothing was measured"):
        bench.main(["--out", str(tmp_path / "none")])


def test_a_child_tells_its_memory(bench: ModuleType, tmp_path: Path) -> None:
    config, net = tiny_tracker(**WORDS)
    save_folder(tmp_path / "full", "full", config, net)
    models = {"full": es3.load(str(tmp_path / "full"), device="cpu")}
    for name in ("full memory", "mask IoU", "ByteTrack"):
        assert bench.child(name, models, 3) > 50
