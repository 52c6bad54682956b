"""Given objects in videos: tracking, continuing a stopped run, scoring."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import efficientsam3 as es3
from efficientsam3.checkpoints.save import save_folder
from efficientsam3.cli.app import app
from efficientsam3.data.object_videos import read_object_map, read_object_videos
from efficientsam3.errors import AnnotationError, MissingAbilityError, RunFileError
from efficientsam3.evaluate import objects
from efficientsam3.evaluate.errors import PredictionError
from efficientsam3.evaluate.objects import predict_objects, score_objects

from ..train.clips import tiny_tracker
from ..train.conftest import tiny_net

SIZE = (40, 60)


def numbers(t: int, moved: int = 0) -> np.ndarray:
    """Object 1 goes to the right; object 2 comes in frame 2 and is away in frame 4."""
    out = np.zeros(SIZE, np.uint8)
    if t >= 2 and t != 4:
        out[20:36, 30:50] = 2
    out[4:20, 2 + 3 * t + moved : 18 + 3 * t + moved] = 1
    return out


def write_map(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    image.save(path)


def write_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(255) * mask.astype(np.uint8)).save(path)


def write_frames(folder: Path, frames: int, every: int = 1) -> None:
    folder.mkdir(parents=True)
    for t in range(frames):
        pixels = 60 + 80 * numbers(t // every)
        Image.fromarray(np.stack([pixels] * 3, -1)).save(folder / f"{t:05d}.jpg")


@pytest.fixture
def davis(tmp_path: Path) -> tuple[Path, Path]:
    """Two videos of six and four frames, each frame annotated."""
    for name, frames in (("bear", 6), ("camel", 4)):
        write_frames(tmp_path / "JPEGImages" / name, frames)
        for t in range(frames):
            write_map(tmp_path / "Annotations" / name / f"{t:05d}.png", numbers(t))
    return tmp_path / "Annotations", tmp_path / "JPEGImages"


@pytest.fixture
def sav(tmp_path: Path) -> tuple[Path, Path]:
    """A video of 21 frames, every fourth annotated; the second object from the third."""
    write_frames(tmp_path / "JPEGImages_24fps" / "sav_7", 21, every=4)
    for id, first in (("000", 0), ("001", 2)):
        for t in range(first, 6):
            mask = numbers(t) == int(id) + 1
            write_mask(tmp_path / "Annotations_6fps" / "sav_7" / id / f"{4 * t:05d}.png", mask)
    return tmp_path / "Annotations_6fps", tmp_path / "JPEGImages_24fps"


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, net = tiny_tracker()
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_folder(folder, "tiny", config, net)
    return folder


@pytest.fixture(scope="module")
def model(tracker: Path) -> es3.ImageModel:
    return es3.load(str(tracker), device="cpu", dtype="float32")


# Scoring --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["davis", "sav"])
def test_annotations_as_predictions_score_100(layout: str, request: pytest.FixtureRequest) -> None:
    annotations, _ = request.getfixturevalue(layout)
    report = score_objects(read_object_videos(annotations), annotations)
    assert report.metrics == {"J&F": 100, "J": 100, "F": 100}
    # Frames 1 to 4 and 1 to 2 of DAVIS; of SA-V the second object's own, 3 to 4.
    counts = {"davis": (2, 4, 6), "sav": (1, 2, 6)}[layout]
    assert tuple(report.counts[k] for k in ("videos", "instances", "frames")) == counts


def test_an_object_counts_from_its_first_visible_frame(
    davis: tuple[Path, Path], tmp_path: Path
) -> None:
    """By hand: object 1 is two pixels off, 14 of 18 columns; object 2 is right, then missed."""
    annotations, _ = davis
    videos = read_object_videos(annotations, videos=["bear"])
    for t in range(6):
        predicted = numbers(t, moved=2)
        if t == 3:
            predicted[predicted == 2] = 0
        write_map(tmp_path / "predicted" / "bear" / f"{t:05d}.png", predicted)
    report = score_objects(videos, tmp_path / "predicted")
    # The first and last frame do not count. Object 2 from frame 2: right, missed, right (away).
    moved = [14 / 18] * 4
    overlap = [0 for _ in moved]
    for i, t in enumerate((1, 2, 3, 4)):  # object 1 hides none of object 2
        a, b = numbers(t) == 1, numbers(t, moved=2) == 1
        overlap[i] = (a & b).sum() / (a | b).sum()
    assert overlap == pytest.approx(moved)
    assert report.metrics["J"] == pytest.approx(100 * (14 / 18 + 2 / 3) / 2)
    # Predicted before it is there, it counts from there.
    early = numbers(1, moved=2)
    early[20:36, 30:50] = 2
    write_map(tmp_path / "predicted" / "bear" / "00001.png", early)
    report = score_objects(videos, tmp_path / "predicted")
    assert report.metrics["J"] == pytest.approx(100 * (14 / 18 + 2 / 4) / 2)
    # What is nowhere annotated among the frames that count is no object.
    early[0:3, 50:60] = 9
    write_map(tmp_path / "predicted" / "bear" / "00001.png", early)
    assert score_objects(videos, tmp_path / "predicted").counts["instances"] == 2


def test_what_cannot_be_scored_is_reported(
    davis: tuple[Path, Path], sav: tuple[Path, Path]
) -> None:
    annotations, _ = davis
    videos = read_object_videos(annotations)
    predicted = annotations.parent / "predicted"
    shutil.copytree(annotations, predicted)
    write_map(predicted / "camel" / "00002.png", numbers(2)[:20])
    with pytest.raises(PredictionError, match=r"00002.png is 60 x 20 pixels, and .* 60 x 40"):
        score_objects(videos, predicted)
    (predicted / "bear" / "00003.png").write_bytes(b"nothing")
    with pytest.raises(PredictionError, match="cannot be read as an image"):
        score_objects(videos, predicted)
    (predicted / "bear" / "00003.png").unlink()
    with pytest.raises(PredictionError, match=r"there is no prediction .*00003.png"):
        score_objects(videos, predicted)
    for t in range(1, 4):
        (annotations / "camel" / f"{t:05d}.png").unlink()
    with pytest.raises(AnnotationError, match="nothing to score"):
        score_objects(read_object_videos(annotations, videos=["camel"]), annotations)


# Tracking -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["davis", "sav"])
def test_predictions_have_the_form_of_annotations(
    layout: str, request: pytest.FixtureRequest, model: es3.ImageModel, tmp_path: Path
) -> None:
    annotations, frames = request.getfixturevalue(layout)
    videos = read_object_videos(annotations, frames)
    predicted = predict_objects(model, videos, tmp_path / "predicted")
    for path in annotations.rglob("*.png"):
        with (
            Image.open(path) as true,
            Image.open(predicted / path.relative_to(annotations)) as image,
        ):
            assert image.size == true.size
            if layout == "davis":
                assert image.mode == "P" and image.getpalette()[:9] == true.getpalette()[:9]
                assert set(np.unique(np.asarray(image))) <= {0, 1, 2}
    first = read_object_videos(predicted)[0]
    given = first.masks("00000")
    wanted = videos[0].masks("00000")
    name = min(wanted)
    both = given[name] & wanted[name]
    assert both.sum() > 0.8 * wanted[name].sum()  # the given mask is shown as it was given
    report = score_objects(videos, predicted)
    assert 0 <= report.metrics["J&F"] < 100


def test_masks_are_empty_before_the_first_object(
    davis: tuple[Path, Path], model: es3.ImageModel, tmp_path: Path
) -> None:
    annotations, frames = davis
    for t in range(3):
        write_map(annotations / "bear" / f"{t:05d}.png", 0 * numbers(t))
    videos = read_object_videos(annotations, frames, ["bear"])
    predicted = predict_objects(model, videos, tmp_path / "predicted") / "bear"
    assert len(list(predicted.iterdir())) == 6
    for t in range(3):
        assert not read_object_map(predicted / f"{t:05d}.png")
    assert read_object_map(predicted / "00003.png")


def test_shared_pixels_belong_to_the_lower_number(
    davis: tuple[Path, Path], model: es3.ImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(model: Any, video: Any) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        everywhere = np.ones(SIZE, bool)
        for frame in video.frames:
            yield frame, {"10": everywhere, "2": numbers(2) == 2}

    monkeypatch.setattr(objects, "track_given_objects", follow)
    predicted = predict_objects(model, read_object_videos(*davis), tmp_path / "predicted")
    masks = read_object_map(predicted / "bear" / "00001.png")
    assert np.array_equal(masks["2"], numbers(2) == 2)
    assert np.array_equal(masks["10"], numbers(2) != 2)


@pytest.mark.slow
def test_a_stopped_run_continues(
    davis: tuple[Path, Path],
    model: es3.ImageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    videos = read_object_videos(*davis)
    followed: list[str] = []
    interrupted = ["camel"]
    real = objects.track_given_objects

    def follow(model: Any, video: Any) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        followed.append(video.name)
        for number, entry in enumerate(real(model, video)):
            if video.name in interrupted and number == 2:
                raise KeyboardInterrupt
            yield entry

    monkeypatch.setattr(objects, "track_given_objects", follow)
    predicted = tmp_path / "predicted"
    with pytest.raises(KeyboardInterrupt):
        predict_objects(model, videos, predicted)
    interrupted.clear()
    assert sorted(p.name for p in predicted.iterdir()) == [
        "bear",
        "run.jsonl",
    ]  # no unfinished video
    done: list[tuple[int, int]] = []
    predict_objects(model, videos, predicted, progress=lambda p: done.append((p.done, p.before)))
    assert followed == ["bear", "camel", "camel"] and done == [(2, 1)]
    other = es3.ImageModel("other", model.config, model.learned, device="cpu", dtype="float32")
    del followed[:]
    predict_objects(other, videos, predicted)
    assert followed == ["bear", "camel"]
    assert "model was tiny and is other" in caplog.text and "weights" not in caplog.text
    predict_objects(other, videos, predicted, restart=True)
    assert followed == ["bear", "camel"] * 2
    write_map(davis[0] / "camel" / "00000.png", numbers(1))
    predict_objects(other, read_object_videos(*davis), predicted)
    assert followed[4:] == ["camel"], "the annotation has changed"
    shutil.rmtree(predicted / "bear")
    predict_objects(other, read_object_videos(*davis), predicted)
    assert followed[5:] == ["bear"], "the predictions were deleted"
    for restart in (False, True):  # files of others are never removed
        with pytest.raises(RunFileError, match="is not empty"):
            predict_objects(model, videos, davis[0], restart=restart)
    assert len(list(davis[0].rglob("*.png"))) == 10


def test_a_model_without_memory_is_refused(davis: tuple[Path, Path], tmp_path: Path) -> None:
    config, net = tiny_net(parts=("geometry", "masks"))
    without_memory = es3.ImageModel("tiny", config, lambda: net, device="cpu")
    with pytest.raises(MissingAbilityError, match="no tracker"):
        predict_objects(without_memory, read_object_videos(*davis), tmp_path / "predicted")
    assert not (tmp_path / "predicted").exists()


# From the command line ------------------------------------------------------------------------


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    unexpected = result.exception and not isinstance(result.exception, SystemExit)
    assert not unexpected, result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.slow
def test_the_command(
    davis: tuple[Path, Path], tracker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    annotations, frames = davis
    given = ("-a", annotations, "-i", frames, "-m", tracker, "--device", "cpu")
    predicted = run(*given, "--json", tmp_path / "a.json")
    figures = json.loads((tmp_path / "a.json").read_text())
    assert f"{figures['J&F']:.2f}" in predicted and figures["counts"]["instances"] == 4
    kept = tmp_path / "out" / "evaluate" / "tiny-Annotations"
    assert (kept / "bear" / "00005.png").is_file()
    run("-a", annotations, "-p", kept, "--json", tmp_path / "b.json")
    again = json.loads((tmp_path / "b.json").read_text())
    assert again["J&F"] == figures["J&F"]
    run("-a", annotations, "-p", kept, "--limit", 1, "--json", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())["counts"]["videos"] == 1
    assert "needs the images" in run("-a", annotations, "-m", tracker, code=2)
    assert "one folder of annotations" in run("-a", annotations, "-a", "b", "-p", kept, code=2)
