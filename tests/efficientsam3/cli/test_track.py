"""``efficientsam3 track``, with a model that detects colors: outputs, names, wrong options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from efficientsam3.data.veval import read_clip_annotations
from efficientsam3.evaluate.clip_predictions import read_clip_predictions
from efficientsam3.io.frames import read_frames

from ..video.films import SIZE, Seer, squares, write_squares
from .tracking import ASKED, Load, everything, lines, run

numpy_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PIG = "55,96,140,186"  # a pig in the first frame of the demo clip


class Shown(Seer):
    """Records its exemplar boxes, by the number of images so far."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(stop_at)
        self.shown: dict[int, tuple[list[list[float]], list[int]]] = {}

    def segment(self, encoded: Any, concepts: Any, **options: Any) -> Any:
        if "boxes" in options:
            boxes, signs = options["boxes"].tolist(), options["box_labels"].tolist()
            self.shown[self.asked] = (boxes, signs)
        return super().segment(encoded, concepts, **options)


def test_boxes_are_exemplars_on_the_first_frame(
    film: Path, tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = ("--box", "4,10,20,26", "--box", "40,10,56,26", "--not-box", "70,1,80,9.5")
    asked = ("-c", "red", *boxes, "--model", "seer", "--tracker", "iou", "--start", 3)
    expected = ([[4, 10, 20, 26], [40, 10, 56, 26], [70, 1, 80, 9.5]], [1, 1, 0])
    model = Shown(stop_at=35)
    load(model)
    run(film, *asked, "--mot", tmp_path / "a.txt", code=130)
    assert model.shown == {1: expected}

    # The memory of the objects in the boxes is lost, so that all frames are tracked again.
    model = Shown()
    load(model)
    run(film, *asked, "--mot", tmp_path / "a.txt")
    assert (model.asked, model.shown) == (37, {1: expected})
    frames = lines(tmp_path / "a.tracks.jsonl")
    assert [f["frame"] for f in frames] == list(range(3, 40))
    assert {o["id"] for f in frames for o in f["objects"]} == {0, 1}
    other = ("--box", "4,10,20,27", *asked[2:])
    load(Shown())
    run(film, "-c", "red", *other, "--mot", tmp_path / "a.txt")
    assert "boxes" in caplog.text


@pytest.mark.slow
def test_a_box_without_a_concept(tmp_path: Path) -> None:
    """The object in the box gets a track, with the packaged model and without a concept."""
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


@pytest.mark.slow
@numpy_warns
def test_all_outputs_of_a_video(film: Path, tmp_path: Path, load: Load) -> None:
    model = Seer()
    load(model)
    result = run(film, *ASKED, *everything(tmp_path))
    assert model.asked == 40
    message = " ".join(result.stderr.split())
    assert "40 frames with 3 tracks in" in message
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("a.mp4", "a-red.txt", "a-blue.txt", "a.tracks.jsonl"),
        *("coco.json", "veval.json", "a.png"),
        *("a.mot-names.json", "veval.veval-names.json"),
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


@numpy_warns
def test_veval_predictions_match_their_ground_truth(film: Path, tmp_path: Path, load: Load) -> None:
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
    found = read_clip_predictions(tmp_path / "a.json", read_clip_annotations(truth))
    assert {key: len(tracks) for key, tracks in found.items()} == {(7, 31): 2, (7, 5): 1}
    first = found[7, 31][0]
    assert first.score == pytest.approx(0.9) and len(first.masks) == 40
    assert first.boxes[10] == pytest.approx((24, 10, 40, 26), abs=1)
    result = run(film, "-c", "green", "--model", "seer", *out, "--restart", code=2)
    assert "does not ask for green; it asks for red, blue" in " ".join(result.stderr.split())
    other = write_squares(tmp_path / "other.mp4", 2)
    result = run(other, *ASKED, *out, "--restart", code=2)
    assert "has no videos named 'other'; it has squares" in " ".join(result.stderr.split())


def test_a_cut_file_is_tracked_as_far_as_possible(film: Path, tmp_path: Path, load: Load) -> None:
    content = film.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: 6 * len(content) // 10])
    load(Seer())
    result = run(cut, *ASKED, "--out", tmp_path / "out.mp4")
    message = " ".join(result.stderr.split())
    assert message.count("cut short or damaged") == 1 and "frames that decode are kept" in message
    count = len(lines(tmp_path / "out.tracks.jsonl"))
    assert 10 < count < 40 and f"{count} frames with" in message
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


def test_a_frame_that_cannot_be_read_is_an_error_at_the_end(tmp_path: Path, load: Load) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(squares(i)).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"damaged")
    (folder / "notes.txt").write_text("no image")
    load(Seer())
    for _ in range(2):  # the second time all is done before
        result = run(folder, *ASKED, "--json", tmp_path / "a.jsonl", code=1)
        assert "1 frame could not be read" in result.stderr and "2 frames with" in result.stderr
        assert "1 file is passed over" in " ".join(result.stderr.split())
        assert [line["frame"] for line in lines(tmp_path / "a.jsonl")] == [0, 2]
    result = run("", *ASKED, code=2)
    assert "name of the source is empty" in " ".join(result.stderr.split())


@numpy_warns
def test_frames_and_concepts_keep_their_names(tmp_path: Path, load: Load) -> None:
    folder = tmp_path / "f \U0001f98a"
    folder.mkdir()
    files = ["1.png", "2 - Kopie.png", "10.png", "caf\u00e9.png"]
    for i, name in enumerate(files):
        Image.fromarray(squares(i + 8)).save(folder / name)
    load(Seer())
    run(folder, *ASKED, "--start", 1, "--mot", tmp_path / "m.txt", *("--coco", tmp_path / "c.json"))
    (video,) = json.loads((tmp_path / "c.json").read_text())["videos"]
    assert video["frames"] == [1, 2, 3]
    assert video["file_names"] == [f"{folder.name}/{name}" for name in files[1:]]
    names = json.loads((tmp_path / "m.mot-names.json").read_text())
    assert names["videos"][0]["file_names"] == [f"{folder.name}/{name}" for name in files]
    assert [(c["name"], c["file"]) for c in names["categories"]] == [
        *(("red", "m-red.txt"), ("blue", "m-blue.txt"))
    ]


def test_wrong_options(film: Path, tmp_path: Path, load: Load) -> None:
    load(Seer())
    same = tmp_path / "a.json"
    for arguments, words in {
        (film, "-c", " "): "a concept is a phrase",
        (film,): "nothing to track",
        (film, "--not-box", "1,2,3,4"): "nothing to track",
        (film, "--box", "1,2,3"): "'1,2,3' is not x0,y0,x1,y1",
        (film, "-c", "red", "--box", "9,2,3,4"): "is empty or inverted",
        (film, "-c", "red", "--box", "900,2,930,4"): "lies outside the image",
        (film, "-c", "red", "-c", "blue", "--box", "1,2,3,4"): "got 2: red, blue",
        (film, "-c", "red", "--out", tmp_path / "a.gif"): ".m4v, .mkv, .mov, .mp4",
        (film, "-c", "red", "--coco", same, "--veval", same): "a file of its own",
        (film, "-c", "red", "--truth", film): "is not asked for",
        (film, "-c", "red", "--json", tmp_path / "a.txt"): ".jsonl",
        (tmp_path / "no.mp4", "-c", "red"): "there is no video",
        (tmp_path, "-c", "red"): "no images in the folder",
        (film, "-c", "red", "--start", 5, "--stop", 4): "start 5, stop 4",
    }.items():
        result = run(*arguments, "--model", "seer", code=2)
        (line,) = result.stderr.splitlines()
        assert words in line
    assert not list(tmp_path.iterdir())


def objects_of(path: Path) -> list[dict[int, Any]]:
    """Objects of each frame of a run file, by identity."""
    return [{o["id"]: o for o in frame["objects"]} for frame in lines(path)]


@numpy_warns
@pytest.mark.slow
def test_objects_of_options_and_files(model: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(4):
        Image.fromarray(squares(number)).save(frames / f"{number}.png")
    height, width = SIZE
    numbers = np.zeros(SIZE, np.uint8)
    numbers[4:20, 4:20], numbers[4:20, 40:60] = 1, 2
    Image.fromarray(numbers).save(tmp_path / "map.png")
    out = tmp_path / "a.jsonl"
    asked = ("--json", out, "--model", model)
    run(frames, "--object", f"1:{tmp_path / 'map.png'}", *asked)
    assert [sorted(objects) for objects in objects_of(out)[:2]] == [[], [0, 1]]
    polygon = [[4, 4, 20, 4, 20, 20, 4, 20]]
    annotation = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [4, 4, 16, 16]}
    content = {
        "images": [{"id": 1, "file_name": "2.png", "height": height, "width": width}],
        "annotations": [{**annotation, "segmentation": polygon}],
        "categories": [{"id": 5, "name": "pig"}],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    run(frames, "--object", file, *asked)  # other objects: it starts again
    found = objects_of(out)
    assert [sorted(objects) for objects in found[:3]] == [[], [], [0]]
    assert found[2][0]["concept"] == "pig"
    example = f"{frames / '0.png'}:4,4,20,20"
    run(frames, "--example", example, "--threshold", 0.4, "--presence", "separate", *asked)
    assert {o["concept"] for objects in objects_of(out) for o in objects.values()} <= {"visual"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--object", "1,2,3,4"], "'1,2,3,4' is not FRAME:SHAPE"),
        (["--object", "0:1,2,3"], "ends with 3 numbers"),
        (["--object", "0:no.png"], "there is no file at no.png"),
        (["--object", "0:no.json"], "there is no file at no.json"),
        (["--object", "99:4,4,20,20"], "shown on frame 99, which is not read"),
        (["--object", "0:900,4,920,20"], "frame 0 is wrong: box [900.0, 4.0, 920.0, 20.0] lies"),
        (["--object", "0:4,4,20,20,4,4"], "frame 0 is wrong: a polygon"),
        (["--example", "no.jpg:1,2,3,4"], "there is no image at no.jpg"),
        ([], "nothing to track: name it with --concept"),
    ],
)
def test_wrong_objects(film: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    result = run(film, *arguments, "--json", tmp_path / "a.jsonl", code=2)
    assert said in result.stderr
    assert not (tmp_path / "a.jsonl").exists()
