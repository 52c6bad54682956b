"""`efficientsam3 track`, with a model that sees colours: files, stops, and going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from efficientsam3 import cli
from efficientsam3.evaluate import read_clips
from efficientsam3.evaluate.veval import read_clip_predictions
from efficientsam3.video.frames import read_frames

from .films import SIZE, Seer, squares, write_squares

numpy_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Load = Callable[[Seer | None], None]


def run(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, ["track", *map(str, arguments)])
    unexpected = result.exception and not isinstance(result.exception, SystemExit)
    assert not unexpected, result.exception
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Choose what the command loads; None: loading anything fails."""

    def choose(model: Seer | None) -> None:
        monkeypatch.setattr(cli, "_load", None if model is None else lambda *_: model)

    monkeypatch.setattr(cli, "_known", lambda model: model)
    monkeypatch.setattr(cli, "_weights", lambda *_: [])
    return choose


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("films") / "squares.mp4")


PIG = "55,96,140,186"  # in the first frame of the clip of the demo
ASKED = ("-c", "red", "-c", "blue", "--model", "seer", "--tracker", "masks")


def lines(path: Path) -> list[dict[str, Any]]:
    head, *frames = [json.loads(line) for line in path.read_text().splitlines()]
    assert head["format"] == 1
    return [frame for frame in frames if "end" not in frame]


def everything(folder: Path) -> list[Any]:
    names = {"--out": "a.mp4", "--mot": "a.txt", "--coco": "coco.json", "--veval": "veval.json"}
    names |= {"--sheet": "a.png"}
    return [value for flag, name in names.items() for value in (flag, folder / name)]


class Shown(Seer):
    """Keeps what boxes it is shown, by the images that it has read."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(stop_at)
        self.shown: dict[int, tuple[list[list[float]], list[int]]] = {}

    def segment(self, encoded: Any, concepts: Any, **options: Any) -> Any:
        if "boxes" in options:
            boxes, signs = options["boxes"].tolist(), options["box_labels"].tolist()
            self.shown[self.asked] = (boxes, signs)
        return super().segment(encoded, concepts, **options)


def test_boxes_are_shown_on_the_first_frame(film: Path, tmp_path: Path, load: Load) -> None:
    boxes = ("--box", "4,10,20,26", "--box", "40,10,56,26", "--not-box", "70,1,80,9.5")
    asked = ("-c", "red", *boxes, "--model", "seer", "--tracker", "masks", "--start", 3)
    expected = ([[4, 10, 20, 26], [40, 10, 56, 26], [70, 1, 80, 9.5]], [1, 1, 0])
    model = Shown(stop_at=35)
    load(model)
    run(film, *asked, "--mot", tmp_path / "a.txt", code=130)
    assert model.shown == {1: expected}

    # Its memory of what the boxes found is gone: a later start would not know it.
    model = Shown()
    load(model)
    run(film, *asked, "--mot", tmp_path / "a.txt")
    assert (model.asked, model.shown) == (37, {1: expected})
    frames = lines(tmp_path / "a.tracks.jsonl")
    assert [f["frame"] for f in frames] == list(range(3, 40))
    assert {o["id"] for f in frames for o in f["objects"]} == {0, 1}
    other = ("--box", "4,10,20,27", *asked[2:])
    refused = run(film, "-c", "red", *other, "--mot", tmp_path / "a.txt", code=2)
    assert "tracks of another run: boxes" in refused.stderr


def test_a_box_alone_is_followed(tmp_path: Path) -> None:
    """With the model of the package: what is in the box gets a track, and no word is said."""
    clip = Path(__file__).parents[3] / "demo" / "scenes" / "clip_0000007.mp4"
    out = tmp_path / "a.mp4"
    result = run(clip, "--box", PIG, "--stop", 6, "-m", "efficientsam3-stickers", "-o", out)
    assert "6 frames" in " ".join(result.stderr.split())
    frames = lines(tmp_path / "a.tracks.jsonl")
    assert len(frames) == 6
    first = {o["id"] for o in frames[0]["objects"]}
    assert first and all(first & {o["id"] for o in f["objects"]} for f in frames)
    with read_frames(out) as drawn:
        assert len(list(drawn)) == 6


@numpy_warns
def test_a_film_becomes_files(film: Path, tmp_path: Path, load: Load) -> None:
    model = Seer()
    load(model)
    result = run(film, *ASKED, *everything(tmp_path))
    assert model.asked == 40
    said = " ".join(result.stderr.split())
    assert "40 frames with 3 tracks in" in said
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("a.mp4", "a-red.txt", "a-blue.txt", "a.tracks.jsonl"),
        *("coco.json", "veval.json", "a.png"),
    }

    frames = lines(tmp_path / "a.tracks.jsonl")
    assert [f["frame"] for f in frames] == list(range(40))
    assert [f["time"] for f in frames] == pytest.approx([i / 10 for i in range(40)])
    for f in frames:
        there = [(o["id"], o["concept"]) for o in f["objects"]]
        assert there == [(0, "red"), (1, "red"), (2, "blue")][: 2 + (f["frame"] >= 8)]

    with read_frames(tmp_path / "a.mp4") as drawn:
        assert drawn.info.frames == 40 and drawn.info.size == (480, 640)
        shown = list(drawn)
    assert [f.time for f in shown] == pytest.approx([i / 10 for i in range(40)], abs=1e-3)
    still = np.asarray(Image.fromarray(squares(20)).resize((640, 480), Image.Resampling.NEAREST))
    ground = np.abs(shown[20].image.astype(int) - still)[420:, 500:]
    assert ground.mean() < 6, "what is not an object is as it was"

    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 640

    rows = [r.split(",") for r in (tmp_path / "a-red.txt").read_text().splitlines()]
    assert len(rows) == 80 and all(len(r) == 10 for r in rows)
    assert [float(v) for v in rows[0]] == pytest.approx(
        [1, 1, 4, 10, 16, 16, 0.9, -1, -1, -1], abs=1
    )
    assert {r[1] for r in rows} == {"1", "2"} and rows[-1][0] == "40"
    blue = (tmp_path / "a-blue.txt").read_text().splitlines()
    assert len(blue) == 32 and blue[0].startswith("9,3,")

    content = json.loads((tmp_path / "coco.json").read_text())
    (video,) = content["videos"]
    assert (video["name"], video["length"], video["fps"]) == ("squares.mp4", 40, 10)
    assert (video["height"], video["width"]) == SIZE
    assert [c["name"] for c in content["categories"]] == ["red", "blue"]
    assert [(a["id"], a["track_id"], a["category_id"]) for a in content["annotations"]] == [
        *((1, 0, 1), (2, 1, 1), (3, 2, 2)),
    ]
    third = content["annotations"][2]
    assert [m is None for m in third["segmentations"]] == [True] * 8 + [False] * 32
    assert [b is None for b in third["bboxes"]] == [True] * 8 + [False] * 32
    mask = coco.decode(third["segmentations"][30])
    assert mask.sum() == third["areas"][30] == pytest.approx(320, abs=40)
    assert mask[70:86, 62:78].all()


def test_what_is_done_is_not_done_again(film: Path, tmp_path: Path, load: Load) -> None:
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
    # A form that was not asked for before is written without a model, and so is a lost picture.
    (tmp_path / "a.mp4").unlink()
    run(film, *ASKED, *everything(tmp_path))
    with read_frames(tmp_path / "a.mp4") as drawn:
        assert len(list(drawn)) == 40


@pytest.mark.parametrize("at", [0, 35])
def test_ctrl_c_keeps_what_is_done_and_the_next_run_goes_on(
    film: Path, tmp_path: Path, load: Load, at: int
) -> None:
    load(Seer(stop_at=at))
    result = run(film, *ASKED, *everything(tmp_path), code=130)
    assert "run the same command again" in " ".join(result.stderr.split())
    done = lines(tmp_path / "a.tracks.jsonl")
    assert [f["frame"] for f in done] == list(range(at))
    assert not list(tmp_path.glob("*.partial*")) and not list(tmp_path.glob(".*"))
    if at:
        with read_frames(tmp_path / "a.mp4") as drawn:
            assert len(list(drawn)) == at
            assert not drawn.trouble
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
from efficientsam3 import cli
cli._load = lambda *_: Seer(pause=0.05)
cli._known = lambda model: model
cli._weights = lambda *_: []
cli.app()
"""


@pytest.mark.slow  # a process of its own has torch to import
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run(film: Path, tmp_path: Path, load: Load, how: signal.Signals) -> None:
    script = SCRIPT.format(here=str(Path(__file__).parent))
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
        file.write(b'{"frame": 39, "obj')  # as a kill in the middle of a line leaves it
    load(Seer())
    run(film, *ASKED, *everything(tmp_path))
    frames = lines(journal)
    assert [f["frame"] for f in frames] == list(range(40))
    assert {o["id"] for f in frames for o in f["objects"]} == {0, 1, 2}
    assert not list(tmp_path.glob("*.partial*"))


def test_another_run_does_not_go_on(film: Path, tmp_path: Path, load: Load) -> None:
    load(Seer(stop_at=5))
    out = ("--out", tmp_path / "a.mp4")
    run(film, *ASKED, *out, code=130)
    load(Seer())
    result = run(film, *ASKED, *out, "--threshold", 0.3, code=2)
    assert "threshold was 0.5 and is 0.3" in result.stderr and "--restart" in result.stderr
    result = run(film, *ASKED, *out, "--threshold", 0.3, "--restart")
    assert "done before" not in result.stderr
    assert len(lines(tmp_path / "a.tracks.jsonl")) == 40
    (tmp_path / "other.jsonl").write_text("{}\n")
    result = run(film, *ASKED, "--json", tmp_path / "other.jsonl", code=2)
    assert "is no file of tracks" in result.stderr


def test_a_run_that_came_to_nothing_is_in_nobodys_way(
    film: Path, tmp_path: Path, load: Load
) -> None:
    load(Seer())
    out = ("--model", "seer", "--json", tmp_path / "a.jsonl")
    result = run(film, "--box", "1,2,3,4", *out, code=2)
    assert "followed from there by memory" in result.stderr
    run(film, "-c", "red", *out)
    assert len(lines(tmp_path / "a.jsonl")) == 40


def test_a_part_and_then_more_of_it(film: Path, tmp_path: Path, load: Load) -> None:
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


@numpy_warns
def test_predictions_fit_their_ground_truth(film: Path, tmp_path: Path, load: Load) -> None:
    truth = tmp_path / "truth.json"
    names = [f"squares/{i:05d}.jpg" for i in range(40)]
    video = {"id": 7, "video_name": "squares", "file_names": names, "length": 40}
    pair = {"video_id": 7, "category_id": 31, "noun_phrase": "red", "num_masklets": 0, "id": 1}
    content = {
        "info": {},
        "videos": [{**video, "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [],
        "categories": [{"id": 31, "name": "red"}, {"id": 5, "name": "blue"}],
        "video_np_pairs": [pair],
    }
    truth.write_text(json.dumps(content))
    load(Seer())
    out = ("--veval", tmp_path / "a.json", "--truth", truth)
    run(film, *ASKED, *out)
    found = read_clip_predictions(tmp_path / "a.json", read_clips(truth))
    assert {key: len(tracks) for key, tracks in found.items()} == {(7, 31): 2, (7, 5): 1}
    first = found[7, 31][0]
    assert first.score == pytest.approx(0.9) and len(first.masks) == 40
    assert first.boxes[10] == pytest.approx((24, 10, 40, 26), abs=1)
    result = run(film, "-c", "green", "--model", "seer", *out, "--restart", code=2)
    assert "does not ask for green; it asks for red, blue" in " ".join(result.stderr.split())
    other = write_squares(tmp_path / "other.mp4", 2)
    result = run(other, *ASKED, *out, "--restart", code=2)
    assert "has no videos named 'other'; it has squares" in " ".join(result.stderr.split())


def test_a_cut_file_is_followed_as_far_as_it_goes(film: Path, tmp_path: Path, load: Load) -> None:
    content = film.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: 6 * len(content) // 10])
    load(Seer())
    result = run(cut, *ASKED, "--out", tmp_path / "out.mp4")
    said = " ".join(result.stderr.split())
    assert said.count("cut short or damaged") == 1 and "frames that decode are kept" in said
    count = len(lines(tmp_path / "out.tracks.jsonl"))
    assert 10 < count < 40 and f"{count} frames with" in said
    load(None)
    run(cut, *ASKED, "--out", tmp_path / "out.mp4")


def test_folders_and_empty_sources(tmp_path: Path, load: Load, monkeypatch: Any) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(squares(i)).save(folder / f"{i}.png")
    load(Seer())
    monkeypatch.chdir(tmp_path)
    run("frames", *ASKED, "--rate", 4)
    with read_frames(tmp_path / "out" / "frames.mp4") as drawn:
        assert [f.time for f in drawn] == pytest.approx([0, 0.25, 0.5], abs=1e-3)
    result = run("frames", *ASKED, "--start", 3, *everything(tmp_path))
    assert "0 frames with 0 tracks" in result.stderr
    assert json.loads((tmp_path / "veval.json").read_text()) == []
    assert not (tmp_path / "a.mp4").exists() and not (tmp_path / "a.png").exists()


def test_mistakes(film: Path, tmp_path: Path, load: Load) -> None:
    load(Seer())
    same = tmp_path / "a.json"
    for arguments, words in {
        (film, "-c", " "): "a concept is a phrase",
        (film,): "nothing to follow",
        (film, "--not-box", "1,2,3,4"): "nothing to follow",
        (film, "--box", "1,2,3"): "a box is X0,Y0,X1,Y1 in pixels",
        (film, "-c", "red", "--box", "9,2,3,4"): "is empty or inverted",
        (film, "-c", "red", "--box", "900,2,930,4"): "lies outside the image",
        (film, "-c", "red", "-c", "blue", "--box", "1,2,3,4"): "got 2: red, blue",
        (film, "-c", "red", "--out", tmp_path / "a.gif"): ".m4v, .mkv, .mov, .mp4",
        (film, "-c", "red", "--coco", same, "--veval", same): "a file of its own",
        (film, "-c", "red", "--truth", film): "not asked for",
        (film, "-c", "red", "--json", tmp_path / "a.txt"): ".jsonl",
        (tmp_path / "no.mp4", "-c", "red"): "there is no video",
        (tmp_path, "-c", "red"): "no images in the folder",
        (film, "-c", "red", "--start", 5, "--stop", 4): "start 5, stop 4",
    }.items():
        result = run(*arguments, "--model", "seer", code=2)
        (line,) = result.stderr.splitlines()
        assert words in line
    assert not list(tmp_path.iterdir())


def test_what_is_live_is_not_gone_on_with(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientsam3.video import decode

    film = write_squares(tmp_path / "camera.mkv", 6)
    av = decode.need_av()
    opened = []
    real = av.open

    def device(name: str, *arguments: Any, **options: Any) -> Any:
        if not name.startswith("/dev"):
            return real(name, *arguments, **options)
        opened.append(name)
        return real(str(film))

    monkeypatch.setattr(av, "open", device)
    monkeypatch.setattr(decode.sys, "platform", "linux")
    load(Seer(stop_at=4))
    out = ("--out", tmp_path / "a.mp4", "--every-frame")  # a file is not as slow as a camera
    run("0", *ASKED, *out, code=130)
    assert len(lines(tmp_path / "a.tracks.jsonl")) == 4 and opened == ["/dev/video0"]
    result = run("0", *ASKED, *out, code=2)
    assert "cannot be seen again" in result.stderr
    load(Seer())
    run("0", *ASKED, *out, "--restart")
    assert len(lines(tmp_path / "a.tracks.jsonl")) == 6
