"""The benchmark of tracking: it runs, and what it measures is what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.config import MemoryConfig, tiny_config
from efficientsam3.io.frames import read_frames

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "video.py"


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    module = script("video")
    return module


def numbers(said: str) -> list[list[float]]:
    """The numbers of each row of a table."""
    rows = [line for line in said.splitlines() if line.startswith("│")]
    return [[float(v) for v in re.findall(r"[-+]?\d+(?:\.\d+)?", r.replace(",", ""))] for r in rows]


@pytest.mark.slow  # a process of its own, which has torch to import
def test_memory_is_read_at_the_marks(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["memory", "--marks", "4", "20"])
    said = capsys.readouterr().out
    first, second, _ = numbers(said)
    assert (first[0], second[0]) == (4, 20)
    assert 100 < first[1] <= second[1] < 4000
    assert 0 < first[5] <= second[5] < 100, "kB of three objects"
    assert "tiny, stub encoder, 3 objects" in said and "3 tracks in the whole clip" in said


def test_the_film_shows_what_the_watcher_sees(bench: ModuleType, tmp_path: Path) -> None:
    bench.write_film(tmp_path / "a.mp4", 30)
    for frame in read_frames(tmp_path / "a.mp4"):
        colored = np.ptp(frame.image.astype(int), axis=2) > 60
        seen = bench.masks(frame.index).any(0).numpy()
        assert (colored != seen).mean() < 0.01


def test_objects_are_timed(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(
        ["--clock", "cpu", "objects", "--model", "tiny", "--counts", "1", "3", "--repeat", "1"]
    )
    one, three = numbers(capsys.readouterr().out)
    assert (one[0], three[0]) == (1, 3) and one[5] == 100
    assert all(v > 0 for v in (*one, *three))


@pytest.mark.slow
def test_both_trackers_are_timed(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    counts = ("--counts", "1", "17", "--repeat", "1")
    bench.main(["--clock", "cpu", "objects", "--multiplex", "--model", "tiny", *counts])
    said = capsys.readouterr().out
    assert "tiny, SAM3:" in said and "tiny, SAM3.1:" in said
    assert [row[0] for row in numbers(said)] == [1, 17, 1, 17]


def test_attention_is_counted(bench: ModuleType) -> None:
    arguments = bench.argparse.Namespace(clock="wall", repeat=1)
    full, less = (
        bench.cost_of_attention(tiny_config(memory=kind), arguments)
        for kind in (MemoryConfig(2), MemoryConfig(2, 4, 2))
    )
    assert (full["tokens a frame"], less["tokens a frame"]) == (64, 8)
    assert full["frames"] == less["frames"] == 7
    assert less["attention GFLOP"] < full["attention GFLOP"]
    assert less["memory GFLOP"] > full["memory GFLOP"], "the Perceiver itself"


def test_a_perceiver_is_chosen_that_fits_the_grid(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(["attention", "--model", "tiny", "--repeat", "1"])
    rows = numbers(capsys.readouterr().out.replace("4 layers", "").replace("2 layers", ""))
    assert [row[0] for row in rows if len(row) > 4] == [64, 64, 8]


def test_a_model_of_the_table_is_found_by_its_name(bench: ModuleType) -> None:
    small = bench.config_of("efficientsam3-tinyvit-11m", MemoryConfig(2, 8, 8))
    assert (small.resolution, small.memory) == (1008, MemoryConfig(2, 8, 8))
    assert {"interactive", "interactive_neck", "memory"} <= set(small.parts)


def test_upstream_is_compared_with_a_checkout(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    upstream = script("video_upstream")
    with pytest.raises(SystemExit, match="is no checkout"):
        upstream.main(["--upstream", str(tmp_path)])
    upstream.write_frames(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.jpg", "00001.jpg"]
    rows = [{"frames": 4, "in use MiB": 10.0}, {"frames": 8, "in use MiB": 16.0}]
    assert upstream.grown(rows) == 1.5


def test_upstream_is_told_where_the_squares_are(script: Callable[[str], ModuleType]) -> None:
    upstream = script("video_upstream")
    calls = []

    def detect(*, frame_idx: int) -> Any:
        calls.append(frame_idx)
        return {"pred_masks": torch.zeros(1, 5, 24, 32), "kept": frame_idx}, None

    def follow(frame_idx: int) -> Any:
        return torch.zeros(2, 24, 32), torch.zeros(2)

    model = SimpleNamespace(
        detector=SimpleNamespace(forward_video_grounding_multigpu=detect),
        run_tracker_propagation=follow,
    )
    upstream.steer(model, 2)
    for t in (0, 7):
        found, _ = model.detector.forward_video_grounding_multigpu(frame_idx=t)
        assert found["pred_masks"].shape == (1, 2, 24, 32) and found["kept"] == 0
        masks, scores = model.run_tracker_propagation(t)
        assert torch.equal(masks, found["pred_masks"][0]) and (scores > 0).all()
        x0, y0, x1, y1 = found["pred_boxes_xyxy"][0, 0] * torch.tensor([32, 24, 32, 24])
        area = (masks[0] > 0).sum()
        assert abs(float((x1 - x0) * (y1 - y0)) / float(area) - 1) < 0.3
    assert calls == [0], "features of the first frame stand for all"
