"""`efficientsam3 segment`, from arguments to files and exit codes, with a tiny untrained model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

import efficientsam3 as es3
from efficientsam3.cli.model_options import ModelOptions
from efficientsam3.config import tiny_config
from efficientsam3.segment_files import SegmentRun

from .conftest import run, run_refused

numpy_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


LOADED: dict[str, es3.ImageModel] = {}


@pytest.fixture(autouse=True)
def load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands load each model once: loading takes most of their time."""
    load = ModelOptions.load

    def cached(options: ModelOptions) -> es3.ImageModel:
        key = json.dumps([options.identity(), options.device])
        if key not in LOADED:
            LOADED[key] = load(options)
        return LOADED[key]

    monkeypatch.setattr(ModelOptions, "load", cached)


def segment(model: Path, photos: Path | str, out: Path, *more: Any, code: int = 0) -> Any:
    arguments = ["--concept", "person", "--concept", "bus", "--threshold", 0.2, *more]
    return run("segment", photos, *arguments, "--out", out, "--model", model, code=code)


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "instances.json").read_text())


# segment -------------------------------------------------------------------------------------


@pytest.mark.slow
@numpy_warns
def test_a_folder_of_all_kinds_of_images(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = segment(model, photos, out, "--max-instances", 5, code=1)
    content = read(out)
    sizes = {i["file_name"]: (i["width"], i["height"]) for i in content["images"]}
    assert sizes == {
        "cmyk.jpg": (60, 40),
        "one.png": (1, 1),
        "plain.jpg": (60, 40),
        "sub/grey.png": (60, 40),
        "turned.jpg": (40, 60),
    }
    assert [c["name"] for c in content["categories"]] == ["person", "bus"]
    assert all(set(i["presence"]) == {"person", "bus"} for i in content["images"])
    assert len(content["annotations"]) == 25
    images = {i["id"]: i for i in content["images"]}
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        mask = coco.decode(annotation["segmentation"])
        assert mask.shape == (image["height"], image["width"])
        assert mask.sum() == annotation["area"]
        x, y, w, h = annotation["bbox"]
        assert 0 <= x <= x + w <= image["width"] + 0.01 and 0 <= y <= y + h
        assert 0.2 < annotation["score"] <= 1 and 0 < annotation["presence"] <= 1
        name = Path(image["file_name"]).with_suffix(".png")
        with Image.open(out / "masks" / name) as numbers:
            shown = np.asarray(numbers) == annotation["number"]
        assert not (shown & (mask == 0)).any()
        assert (out / "overlays" / name.with_suffix(".jpg")).is_file()
    assert "2 images of 7 failed" in result.stderr
    assert "cut.jpg cannot be" in result.stderr
    assert "empty.png cannot be read" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_the_same_again_loads_no_model(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment(model, f"{photos}/*.jpg", tmp_path / "out", code=1)
    (photos / "cut.jpg").unlink()
    before = (tmp_path / "out/instances.json").read_text()
    monkeypatch.setattr(ModelOptions, "load", None)
    result = segment(model, f"{photos}/*.jpg", tmp_path / "out")
    assert "3 images of 3 done before" in result.stderr
    assert (tmp_path / "out/instances.json").read_text() == before


def test_other_options_start_the_run_again(model: Path, photos: Path, tmp_path: Path) -> None:
    image = photos / "plain.jpg"
    segment(model, image, tmp_path / "out")
    result = segment(model, image, tmp_path / "out", "--max-instances", 1)
    assert "max_instances was None and is 1. The run starts again" in result.stderr
    assert len(read(tmp_path / "out")["annotations"]) == 1
    segment(model, photos / "one.png", tmp_path / "out", "--max-instances", 1)
    assert len(read(tmp_path / "out")["images"]) == 2, "what was done with the same options stays"
    result = segment(model, image, tmp_path / "out", "--max-instances", 1, "--restart")
    assert "done before" not in result.stderr and len(read(tmp_path / "out")["images"]) == 1


@pytest.mark.slow
def test_another_model_in_the_same_folder_is_noticed(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    es3.load(model, dtype="float32").save(copy)
    segment(copy, photos / "one.png", tmp_path / "out")
    es3.ImageModel.from_config(tiny_config(), dtype="float32").save(copy)
    result = segment(copy, photos / "one.png", tmp_path / "out")
    assert f"weights.{copy}/model.safetensors.mtime_ns was" in result.stderr
    assert "The run starts again" in result.stderr


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SegmentRun.segment

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for number, outcome in enumerate(real(*arguments)):
            yield outcome
            if number == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SegmentRun, "segment", interrupted)
        result = segment(model, photos, tmp_path / "out", code=130)
    assert "run the same command to continue" in result.stderr
    assert "cut.jpg" in result.stderr, "what failed until then is said too"
    assert len(read(tmp_path / "out")["images"]) == 2
    result = segment(model, photos, tmp_path / "out", code=1)
    assert "2 images of 7 done before" in result.stderr
    assert len(read(tmp_path / "out")["images"]) == 5


@pytest.mark.slow
def test_a_killed_run_continues(model: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    run_file = out / "run.jsonl"
    photos.mkdir()
    for number in range(30):
        Image.new("RGB", (90, 60), (8 * number, 90, 150)).save(photos / f"{number:02}.png")
    arguments = ["segment", photos, "-c", "person", "-o", out, "-m", model, "--no-overlay"]
    command = [sys.executable, "-m", "efficientsam3.cli.app", *map(str, arguments)]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not run_file.exists() or run_file.read_bytes().count(b"\n") < 4:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    content = run_file.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    done = complete.count(b"\n") - 1
    assert 3 <= done < 30 and not (out / "instances.json").exists()
    result = run(*arguments)
    assert f"{done} images of 30 done before" in result.stderr
    assert len(read(out)["images"]) == 30
    assert run_file.read_bytes().startswith(complete), "what was done stays as it is"


def test_only_what_is_wanted_is_written(model: Path, photos: Path, tmp_path: Path) -> None:
    segment(model, photos / "plain.jpg", tmp_path / "out", "--no-masks", "--no-overlay")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"run.jsonl", "instances.json"}
    assert read(tmp_path / "out")["annotations"][0]["segmentation"]["counts"]


def test_exemplars_and_clicks(model: Path, photos: Path, tmp_path: Path) -> None:
    def labels(*more: Any) -> list[str]:
        out = tmp_path / "out"
        image = photos / "plain.jpg"
        run("segment", image, *more, "--threshold", 0.1, "-o", out, "-m", model)
        return [c["name"] for c in read(out)["categories"]]

    assert labels("-c", "cat", "--box", "5,5,30,30", "--not-box", "40,5,50,30.5") == ["cat"]
    assert labels("--box", "5,5,30,30", "--point", "8,9") == ["visual"]
    assert labels("--point", "8,9", "--not-point", "50,30") == ["object"]
    assert len(read(tmp_path / "out")["annotations"]) == 1


def test_a_box_outside_one_image_costs_that_image(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    arguments = ["segment", photos / "plain.jpg", photos / "one.png", "--box", "5,5,30,30"]
    result = run(*arguments, "-o", tmp_path / "out", "-m", model, code=1)
    assert "one.png: box [5.0, 5.0, 30.0, 30.0] lies outside the image" in result.stderr
    assert len(read(tmp_path / "out")["images"]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch.jpg", "-c", "cat"], "error: there is no image or folder at nosuch.jpg"),
        (["*.nosuch", "-c", "cat"], "error: no image matches *.nosuch"),
        (["{image}"], "error: nothing to find: name concepts"),
        (["{image}", "-c", ""], "error: a concept is a phrase such as 'person'; got ''"),
        (["{image}", "--box", "1,2,3"], "error: '1,2,3' is not x0,y0,x1,y1"),
        (["{image}", "--box", "9,9,3,3"], "error: box [9.0, 9.0, 3.0, 3.0] is empty or inverted"),
        (["{image}", "--point", "1,nan"], "error: '1,nan' is not x,y"),
        (["{image}", "--example", "1,2,3,4"], "error: '1,2,3,4' is not IMAGE:SHAPE"),
        (["{image}", "--example", "no.jpg:1,2,3,4"], "error: there is no image at no.jpg"),
        (["{image}", "--example", "{image}:1,2,3"], "ends with 3 numbers: a box has four"),
        (["{image}", "--example", "{image}:no.png"], "there is no file at no.png"),
        (["{image}", "--example", "{image}:{image}"], "in colors"),
        (["{image}", "--example", "{image}:90,5,99,30"], "lies outside the image of 60 x 40"),
        (
            ["{image}", "-c", "cat", "-m", "tinyvit-11"],
            "error: unknown model 'tinyvit-11'; did you",
        ),
        (
            ["{image}", "-c", "cat", "-m", "{model}", "--device", "abacus"],
            "error: device='abacus' cannot be used",
        ),
        (["{image}", "-c", "cat", "-m", "{model}", "--context", "16"], "is a complete saved model"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    model: Path, photos: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    given = [a.format(image=photos / "plain.jpg", model=model) for a in arguments]
    assert said in run_refused("segment", *given, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@numpy_warns
def test_examples_of_another_image(model: Path, photos: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    pixels = np.zeros((40, 60), np.uint8)
    pixels[5:30, 5:30] = 255
    Image.fromarray(pixels).save(mask)
    shown = photos / "plain.jpg"
    searched = [photos / "sub" / "grey.png", photos / "turned.jpg"]
    core = es3.load(model, device="cpu", dtype="float32")
    wanted = core.segment(searched[0], exemplars=core.exemplar(shown, boxes=[[5, 5, 30, 30]]))
    options = ["--threshold", 0.5, "-m", model, "--dtype", "float32"]
    for number, shape in enumerate(["5,5,30,30", "5,5,30,5,30,30,5,30", mask]):
        out = tmp_path / str(number)
        run("segment", *searched, "--example", f"{shown}:{shape}", "-o", out, *options)
        content = read(out)
        assert [c["name"] for c in content["categories"]] == ["visual"]
        image = next(i for i in content["images"] if "grey" in i["file_name"])
        scores = [a["score"] for a in content["annotations"] if a["image_id"] == image["id"]]
        np.testing.assert_allclose(sorted(scores), sorted(wanted.scores), atol=1e-5)


def test_a_changed_example_starts_again(model: Path, photos: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown.jpg"
    shown.write_bytes((photos / "plain.jpg").read_bytes())
    arguments = ["segment", photos / "plain.jpg", "--example", f"{shown}:5,5,30,30"]
    arguments += ["-c", "bus", "--not-example", f"{shown}:9,9,20,20", "-m", model]
    arguments += ["-o", tmp_path / "out"]
    run(*arguments)
    assert "1 image of 1 done before" in run(*arguments).stderr
    Image.new("RGB", (60, 40), "red").save(shown)
    assert "done before" not in run(*arguments).stderr


@pytest.mark.slow
def test_presence_apart_from_scores(model: Path, photos: Path, tmp_path: Path) -> None:
    found = {}
    for presence in ("multiply", "separate"):
        out = tmp_path / presence
        segment(model, photos / "plain.jpg", out, "--threshold", 0, "--presence", presence)
        found[presence] = read(out)["annotations"]
    for product, alone in zip(found["multiply"], found["separate"], strict=True):
        assert product["presence"] == alone["presence"] < 1
        assert product["score"] == pytest.approx(alone["score"] * alone["presence"], abs=2e-5)


def test_a_missing_ability_ends_the_run(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = tiny_config().without("interactive", "interactive_neck", "memory")
    es3.ImageModel.from_config(config, dtype="float32").save(folder)
    arguments = ["segment", photos, "--point", "0,0", "-m", folder, "-o", tmp_path / "out"]
    assert "no interactive head" in run(*arguments, code=2).stderr


def test_a_full_disk_is_said_in_a_sentence(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = segment(model, photos / "plain.jpg", tmp_path / "out", code=2)
    assert "error: [Errno 28] No space left on device" in result.stderr
    assert "Traceback" not in result.output


# Polygons ------------------------------------------------------------------------------------


@pytest.mark.slow
@numpy_warns
def test_polygons_hold_the_masks_within_the_tolerance(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    segment(model, photos, tmp_path, code=1)
    exact = read(tmp_path)["annotations"]
    assert exact and all(isinstance(a["segmentation"], dict) for a in exact)
    sizes = {image["id"]: (image["height"], image["width"]) for image in read(tmp_path)["images"]}
    corners = []
    for tolerance in (0, 2):
        result = segment(model, photos, tmp_path, "--polygons", "--tolerance", tolerance, code=1)
        assert "done before" in result.stderr
        drawn = read(tmp_path)["annotations"]
        corners.append(sum(len(p) for a in drawn for p in a["segmentation"]))
        for a, b in zip(exact, drawn, strict=True):
            assert (a["bbox"], a["area"]) == (b["bbox"], b["area"])
            parts = coco.frPyObjects(b["segmentation"], *sizes[b["image_id"]])
            mask = coco.decode(coco.merge(parts))
            if not tolerance:
                assert np.array_equal(mask, coco.decode(a["segmentation"]))
    assert corners[1] < corners[0]


def test_a_tolerance_needs_polygons_and_a_number(model: Path, photos: Path, tmp_path: Path) -> None:
    result = segment(model, photos, tmp_path, "--tolerance", 1, code=2)
    assert "add --polygons" in result.stderr
    result = segment(model, photos, tmp_path, "--polygons", "--tolerance", "inf", code=2)
    assert "tolerance is a number of pixels" in result.stderr


# Tiles ---------------------------------------------------------------------------------------


def test_tiles_of_a_large_picture(model: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (150, 220, 3), np.uint8)
    path = tmp_path / "large.tif"
    Image.fromarray(pixels).save(path)
    whole, tiled = tmp_path / "whole", tmp_path / "tiled"
    segment(model, path, whole)
    segment(model, path, tiled, "--tile", "150,32")
    settings = read(tiled)["info"]["settings"]
    assert settings["tile"] == [150, 32]
    assert "tile" not in read(whole)["info"]["settings"]
    assert read(tiled)["annotations"] != read(whole)["annotations"]
    # Without pictures to draw, the file is read in windows, and the answer is the same.
    windows = tmp_path / "windows"
    segment(model, path, windows, "--tile", "150,32", "--no-masks", "--no-overlay")
    plain = [{**a, "number": 0} for a in read(tiled)["annotations"]]
    assert [{**a, "number": 0} for a in read(windows)["annotations"]] == plain


@pytest.mark.parametrize("tile", ["8", "200,200", "large", "200,1,1"])
def test_wrong_tiles_are_refused(model: Path, photos: Path, tmp_path: Path, tile: str) -> None:
    said = run_refused(
        *("segment", photos, "-c", "bus", "--tile", tile, "--out", tmp_path, "--model", model)
    )
    assert "tile" in said


# Everything ----------------------------------------------------------------------------------


def test_everything_without_a_word(model: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    path, out = tmp_path / "photo.png", tmp_path / "out"
    Image.fromarray(pixels).save(path)
    grid = ["--everything", "--points-per-side", 4, "--threshold", 0, "--stability-threshold", 0]
    run("segment", path, *grid, "--out", out, "--model", model)
    content = read(out)
    assert [c["name"] for c in content["categories"]] == ["object"]
    assert content["annotations"]
    assert content["info"]["settings"]["points_per_side"] == 4
    assert "done before" in run("segment", path, *grid, "--out", out, "--model", model).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "bus", "--threshold", 1], "nothing scores more than the threshold of 1.0"),
        (["--everything", "--points-per-side", 2, "--threshold", 1], "lower values keep more"),
    ],
)
def test_a_threshold_that_leaves_nothing_is_named(
    model: Path, photos: Path, tmp_path: Path, options: list[Any], message: str
) -> None:
    said = run(
        "segment", next(photos.iterdir()), *options, "--out", tmp_path, "--model", model
    ).stderr
    assert message in " ".join(said.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--everything", "-c", "bus"], "takes no concepts"),
        (["--everything", "--point", "3,4"], "takes no points"),
        (["-c", "bus", "--points-per-side", 4], "--points-per-side goes with --everything"),
        (["--everything", "--points-per-side", 999], "from 1 to 256; got 999"),
    ],
)
def test_options_of_everything_that_do_not_fit(
    model: Path, photos: Path, tmp_path: Path, options: list[Any], message: str
) -> None:
    said = run_refused("segment", photos, *options, "--out", tmp_path, "--model", model)
    assert message in said
