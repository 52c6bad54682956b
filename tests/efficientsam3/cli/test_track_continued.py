"""``efficientsam3 track`` that is stopped, continued, or run again with something else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from efficientsam3.io.frames import read_frames

from ..video.films import Seer, squares, write_film, write_squares
from .tracking import ASKED, Load, everything, lines, run


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(film: Path, tmp_path: Path, load: Load) -> None:
    load(Seer())
    run(film, *ASKED, *everything(tmp_path))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    load(None)
    result = run(film, *ASKED, *everything(tmp_path))
    assert "40 frames done before" in result.stderr
    for path, (content, modified) in before.items():
        assert path.read_bytes() == content
        if path.suffix in (".mp4", ".png", ".jsonl"):
            assert path.stat().st_mtime_ns == modified
    # New formats and deleted pictures are written without a model.
    (tmp_path / "a.mp4").unlink()
    run(film, *ASKED, *everything(tmp_path))
    with read_frames(tmp_path / "a.mp4") as drawn:
        assert len(list(drawn)) == 40


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 35])
def test_the_next_run_continues_after_ctrl_c(
    film: Path, tmp_path: Path, load: Load, at: int
) -> None:
    load(Seer(stop_at=at))
    result = run(film, *ASKED, *everything(tmp_path), code=130)
    assert "run the same command to continue" in " ".join(result.stderr.split())
    done = lines(tmp_path / "a.tracks.jsonl")
    assert [f["frame"] for f in done] == list(range(at))
    assert not list(tmp_path.glob("*.partial*")) and not list(tmp_path.glob(".*"))
    if at:
        with read_frames(tmp_path / "a.mp4") as drawn:
            assert len(list(drawn)) == at
            assert not drawn.warnings
    content = json.loads((tmp_path / "coco.json").read_text())
    assert content["videos"][0]["length"] == at
    rows = (tmp_path / "a-red.txt").read_text().splitlines()
    assert len(rows) == 2 * at

    model = Seer()
    load(model)
    run(film, *ASKED, *everything(tmp_path))
    assert model.asked == 40 - at + min(at, 32), "frames before the stop are watched again"
    frames = lines(tmp_path / "a.tracks.jsonl")
    assert [f["frame"] for f in frames] == list(range(40))
    for f in frames:
        there = [(o["id"], o["concept"]) for o in f["objects"]]
        assert there == [(0, "red"), (1, "red"), (2, "blue")][: 2 + (f["frame"] >= 8)]
    with read_frames(tmp_path / "a.mp4") as drawn:
        assert len(list(drawn)) == 40


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from films import Seer
from efficientsam3.cli.app import app
from efficientsam3.cli.model_options import ModelOptions
ModelOptions.load = lambda options: Seer(pause=0.05)
ModelOptions.identity = lambda options: {{"model": options.model}}
app()
"""


@pytest.mark.slow  # a new process imports torch
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_run_continues_after_a_kill(
    film: Path, tmp_path: Path, load: Load, how: signal.Signals
) -> None:
    script = SCRIPT.format(here=str(Path(__file__).parents[1] / "video"))
    outputs = [str(v) for v in everything(tmp_path)]
    command = [sys.executable, "-c", script, "track", str(film), *ASKED, *outputs]
    journal = tmp_path / "a.tracks.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not journal.exists() or len(journal.read_bytes().splitlines()) < 25:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, how)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (-how if how == signal.SIGKILL else 130), errors
    killed = how == signal.SIGKILL
    with read_frames(tmp_path / ("a.partial.mp4" if killed else "a.mp4")) as drawn:
        count = len(list(drawn))
    if killed:
        assert count == 20, "the first two seconds"
    else:
        done = len(lines(journal))
        assert 24 <= done < 40 and count in (done - 1, done)
        assert not list(tmp_path.glob("*.partial*"))

    with journal.open("ab") as file:
        file.write(b'{"frame": 39, "obj')  # as a kill during a write leaves it
    load(Seer())
    run(film, *ASKED, *everything(tmp_path))
    frames = lines(journal)
    assert [f["frame"] for f in frames] == list(range(40))
    assert {o["id"] for f in frames for o in f["objects"]} == {0, 1, 2}
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.slow
def test_a_run_that_asks_for_something_else_starts_again(
    film: Path, tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    load(Seer(stop_at=5))
    out = ("--out", tmp_path / "a.mp4")
    run(film, *ASKED, *out, code=130)
    load(Seer())
    result = run(film, *ASKED, *out, "--threshold", 0.3)
    assert "threshold was None and is 0.3" in caplog.text
    assert "done before" not in result.stderr
    assert len(lines(tmp_path / "a.tracks.jsonl")) == 40
    load(Seer())
    result = run(film, *ASKED, *out, "--threshold", 0.3, "--restart")
    assert "done before" not in result.stderr
    (tmp_path / "other.jsonl").write_text("{}\n")
    result = run(film, *ASKED, "--json", tmp_path / "other.jsonl", code=2)
    assert "is not a file of tracks" in result.stderr
    assert (tmp_path / "other.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("kind", ["folder", "pattern", "film"])
def test_a_changed_source_is_tracked_again(
    tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Replaced pictures, one more picture, and another video of the same name."""
    folder = tmp_path / "frames"
    folder.mkdir()

    def write(first: int, count: int = 6) -> Path:
        if kind == "film":
            return write_film(folder / "a.mp4", count, ticks=range(first, first + count))
        for i in range(count):
            Image.fromarray(squares(first + i)).save(folder / f"{i}.png")
        return folder if kind == "folder" else folder / "*.png"

    source, out = write(0), ("--json", tmp_path / "a.jsonl")
    load(Seer())
    run(source, *ASKED, *out)
    before = lines(tmp_path / "a.jsonl")
    load(None)
    assert "6 frames done before" in run(source, *ASKED, *out).stderr
    write(20)
    load(Seer())
    result = run(source, *ASKED, *out)
    assert "done before" not in result.stderr and "The run starts again" in caplog.text
    after = lines(tmp_path / "a.jsonl")
    assert len(after) == 6
    assert kind == "film" or after != before
    write(20, 7)
    assert len(lines(tmp_path / "a.jsonl")) == 6
    load(Seer())
    run(source, *ASKED, *out)
    assert len(lines(tmp_path / "a.jsonl")) == 7


def test_a_run_without_results_is_replaced(film: Path, tmp_path: Path, load: Load) -> None:
    load(Seer())
    out = ("--model", "seer", "--json", tmp_path / "a.jsonl")
    result = run(film, "--box", "1,2,3,4", *out, code=2)
    assert "which the memory then tracks" in " ".join(result.stderr.split())
    run(film, "-c", "red", *out)
    assert len(lines(tmp_path / "a.jsonl")) == 40


def test_a_finished_part_is_continued(film: Path, tmp_path: Path, load: Load) -> None:
    load(Seer())
    part = (*ASKED, "--json", tmp_path / "a.jsonl", "--start", 4, "--stride", 3)
    run(film, *part, "--stop", 20)
    frames = lines(tmp_path / "a.jsonl")
    assert [f["frame"] for f in frames] == [4, 7, 10, 13, 16, 19]
    load(None)
    run(film, *part, "--stop", 20)
    load(Seer())
    run(film, *part, "--coco", tmp_path / "a.json", "--veval", tmp_path / "v.json")
    frames = lines(tmp_path / "a.jsonl")
    assert [f["frame"] for f in frames] == list(range(4, 40, 3))
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["videos"][0]["frames"] == list(range(4, 40, 3))
    tracks = json.loads((tmp_path / "v.json").read_text())
    seen = [i for i, m in enumerate(tracks[0]["segmentations"]) if m]
    assert len(tracks[0]["segmentations"]) == 40 and seen == list(range(4, 40, 3))


def test_a_camera_is_not_continued(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientsam3.io import video_decode

    film = write_squares(tmp_path / "camera.mkv", 6)
    av = video_decode.import_av()
    opened = []
    real = av.open

    def device(name: str, *arguments: Any, **options: Any) -> Any:
        if not name.startswith("/dev"):
            return real(name, *arguments, **options)
        opened.append(name)
        return real(str(film))

    monkeypatch.setattr(av, "open", device)
    monkeypatch.setattr(video_decode.sys, "platform", "linux")
    load(Seer(stop_at=4))
    # The file that replaces the camera is faster, and would be read again and again.
    out = ("--out", tmp_path / "a.mp4", "--every-frame", "--reconnect", "0")
    run("0", *ASKED, *out, code=130)
    assert len(lines(tmp_path / "a.tracks.jsonl")) == 4 and opened == ["/dev/video0"]
    result = run("0", *ASKED, *out, code=2)
    assert "cannot be read again" in result.stderr
    load(Seer())
    run("0", *ASKED, *out, "--restart")
    assert len(lines(tmp_path / "a.tracks.jsonl")) == 6
