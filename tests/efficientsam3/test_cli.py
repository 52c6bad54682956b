"""The command line, from arguments to files and exit codes, with a tiny untrained model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

import efficientsam3 as es3
from efficientsam3 import batch, build, cli, doctor, weights
from efficientsam3.build import TextConfig, VitConfig, tiny_config

numpy_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def run(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    unexpected = result.exception and not isinstance(result.exception, SystemExit)
    assert not unexpected, result.exception
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: Any) -> str:
    """The one sentence on a mistake."""
    result = run(*arguments, code=2)
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A tiny model's threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        es3.ImageModel.from_config(tiny_config(), dtype="float32").save(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images of all kinds, two of which cannot be read."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    ramp = np.add.outer(np.arange(40), 3 * np.arange(60))
    colours = np.stack([ramp, ramp[::-1], 200 - ramp], 2).clip(0, 255)
    image = Image.fromarray(colours.astype(np.uint8))
    image.save(folder / "plain.jpg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "sub/grey.png")
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was held upright
    image.save(folder / "turned.jpg", exif=exif)
    image.resize((1, 1)).save(folder / "one.png")
    (folder / "cut.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:600])
    (folder / "empty.png").write_bytes(b"")
    return folder


def segment(model: Path, photos: Path | str, out: Path, *more: Any, code: int = 0) -> Any:
    arguments = ["--concept", "person", "--concept", "bus", "--threshold", 0.2, *more]
    return run("segment", photos, *arguments, "--out", out, "--model", model, code=code)


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "instances.json").read_text())


# segment -------------------------------------------------------------------------------------


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


def test_the_same_again_loads_no_model(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment(model, f"{photos}/*.jpg", tmp_path / "out", code=1)
    (photos / "cut.jpg").unlink()
    before = (tmp_path / "out/instances.json").read_text()
    monkeypatch.setattr(cli, "_load", None)
    result = segment(model, f"{photos}/*.jpg", tmp_path / "out")
    assert "3 images of 3 done before" in result.stderr
    assert (tmp_path / "out/instances.json").read_text() == before


def test_other_settings_are_done_again_and_said(model: Path, photos: Path, tmp_path: Path) -> None:
    image = photos / "plain.jpg"
    segment(model, image, tmp_path / "out")
    result = segment(model, image, tmp_path / "out", "--max-instances", 1)
    expected = "1 image done again: made with other settings: max_instances was None, is 1"
    assert expected in result.stderr
    assert len(read(tmp_path / "out")["annotations"]) == 1
    segment(model, photos / "one.png", tmp_path / "out")
    result = segment(model, photos / "one.png", tmp_path / "out")
    assert "with other settings: not in that file" in result.stderr


def test_another_model_in_the_same_folder_is_noticed(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    es3.load(model, dtype="float32").save(copy)
    segment(copy, photos / "one.png", tmp_path / "out")
    es3.ImageModel.from_config(tiny_config(), dtype="float32").save(copy)
    result = segment(copy, photos / "one.png", tmp_path / "out")
    assert "1 image done again: made with other settings: other weights" in result.stderr


def test_ctrl_c_keeps_what_is_done(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = batch.segment_images

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for number, answer in enumerate(whole(*arguments)):
            yield answer
            if number == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch, "segment_images", interrupted)
        result = segment(model, photos, tmp_path / "out", code=130)
    assert "run the same command again to go on" in result.stderr
    assert "cut.jpg" in result.stderr, "what failed until then is said too"
    assert len(read(tmp_path / "out")["images"]) == 2
    result = segment(model, photos, tmp_path / "out", code=1)
    assert "2 images of 7 done before" in result.stderr
    assert len(read(tmp_path / "out")["images"]) == 5


def test_a_killed_run_goes_on(model: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(30):
        Image.new("RGB", (90, 60), (8 * number, 90, 150)).save(photos / f"{number:02}.png")
    arguments = ["segment", photos, "-c", "person", "-o", out, "-m", model, "--no-overlay"]
    command = [sys.executable, "-m", "efficientsam3.cli", *map(str, arguments)]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while len(list(out.glob("records/*.json"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    records = {path: path.stat().st_mtime_ns for path in out.glob("records/[!.]*.json")}
    assert 3 <= len(records) < 30 and not (out / "instances.json").exists()
    result = run(*arguments)
    assert f"{len(records)} images of 30 done before" in result.stderr
    assert len(read(out)["images"]) == 30
    assert all(path.stat().st_mtime_ns == then for path, then in records.items())


def test_only_what_is_wanted_is_written(model: Path, photos: Path, tmp_path: Path) -> None:
    segment(model, photos / "plain.jpg", tmp_path / "out", "--no-masks", "--no-overlay")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"records", "instances.json"}
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
        (["{image}"], "error: nothing to find: name a concept, show a box or click a point"),
        (["{image}", "-c", ""], "error: a concept is a phrase such as 'person'; got an empty one"),
        (["{image}", "--box", "1,2,3"], "error: '1,2,3' is not x0,y0,x1,y1"),
        (["{image}", "--box", "9,9,3,3"], "error: box 9,9,3,3 is empty or inverted"),
        (["{image}", "--point", "1,nan"], "error: '1,nan' is not x,y"),
        (
            ["{image}", "-c", "cat", "-m", "tinyvit-11"],
            "error: unknown model 'tinyvit-11'; did you",
        ),
        (["{image}", "-c", "cat", "-m", "{model}", "--device", "abacus"], "error: device 'abacus'"),
        (["{image}", "-c", "cat", "-m", "{model}", "--context", "16"], "is a saved model, whole"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    model: Path, photos: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    given = [a.format(image=photos / "plain.jpg", model=model) for a in arguments]
    assert said in refused("segment", *given, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_ability_ends_the_run(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = weights.without(tiny_config(), "interactive", "interactive_neck", "memory")
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


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_where_an_error_comes_from(place: int) -> None:
    arguments = ["segment", "nosuch.jpg", "-c", "cat"]
    arguments.insert(place, "--debug")
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, es3.ImageError)


# models, convert -----------------------------------------------------------------------------


def test_models_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cached_models", lambda: ["efficientsam3-tinyvit-11m"])
    lines = run("models").stdout.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[1 : 1 + len(es3.list_models())]}
    assert list(rows) == es3.list_models()
    row = rows["efficientsam3-tinyvit-11m"]
    assert row[1:5] == ["tinyvit-11m", "mobileclip-s0", "16", "123"]
    assert row[5] == "c?e?mi?v?" and row[-1] == "here"
    assert rows["sam3"][-1] == "gated"
    assert rows["efficientsam3-tinyvit-5m"][-1] == "hub"


def test_models_in_a_narrow_terminal_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(cli, "_console", lambda: Console(width=80))
    lines = run("models").stdout.splitlines()
    assert lines[0 : 2 * len(es3.list_models()) : 2] == es3.list_models()
    assert lines[1] == (
        "  efficientvit-b0, mobileclip-s0, 16 tokens, 126 M, cemiv, Apache-2.0 and SAM License, hub"
    )


def test_models_as_json() -> None:
    rows = json.loads(run("models", "--json").stdout)
    assert [row["name"] for row in rows] == es3.list_models()
    sam3 = next(row for row in rows if row["name"] == "sam3")
    assert sam3["gated"] and "Ask Meta for access" in sam3["how_to_get_access"]
    assert {"vision", "text", "context", "abilities", "uncertain", "licence", "cached"} <= set(sam3)


@dataclass(frozen=True)
class Tiny(build.ModelConfig):
    """The numbers of ``tiny_config`` for encoders by name."""

    resolution: int = 112
    grid: int = 8
    trunk_width: int = 32
    width: int = 16
    heads: int = 2
    hidden: int = 32
    geometry_layers: int = 1
    fusion_layers: int = 2
    decoder_layers: int = 2
    queries: int = 12


@pytest.fixture
def tiny_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in upstream's layout, of encoders that are SAM3's and MobileCLIP-S0's by name."""
    vit = VitConfig(width=32, depth=2, heads=2, hidden=48, window=4, everywhere=(1,))
    monkeypatch.setitem(build.VISIONS, "sam3", vit)
    text = TextConfig("mobileclip-mixer", 32, 3, 2, vocabulary=49408)
    monkeypatch.setitem(build.TEXTS, "mobileclip-s0", text)
    monkeypatch.setattr(weights, "ModelConfig", Tiny)
    path = tmp_path / "upstream.pt"
    weights.write_untrained("sam3-litetext-s0-16", path)
    return path


def test_convert_there_and_back_is_bitwise_the_same(tiny_upstream: Path, tmp_path: Path) -> None:
    folder, back = tmp_path / "folder", tmp_path / "back.pth"
    there = run("convert", tiny_upstream, folder)
    assert "image encoder" in there.stdout and "mobileclip-s0, context 16" in there.stdout
    assert "can: concepts, exemplars, masks, interactive, video" in there.stdout
    run("convert", folder, back)
    first, second = (torch.load(path)["model"] for path in (tiny_upstream, back))
    assert first.keys() == second.keys() and len(first) > 200
    for key, value in first.items():
        assert value.dtype == second[key].dtype and torch.equal(value, second[key]), key
    again = tmp_path / "again"
    run("convert", back, again, "--model", "sam3-litetext-s0-16")
    files = [(f / "model.safetensors").read_bytes() for f in (folder, again)]
    assert files[0] == files[1]
    assert json.loads((again / "config.json").read_text())["name"] == "sam3-litetext-s0-16"
    assert json.loads((folder / "config.json").read_text())["name"] == "upstream"


def test_convert_says_what_a_file_cannot_do(tiny_upstream: Path, tmp_path: Path) -> None:
    state = torch.load(tiny_upstream)["model"]
    parts = {k: v for k, v in state.items() if k.startswith("detector.") and "sam2" not in k}
    torch.save({"model": parts}, tmp_path / "less.pt")
    said = run("convert", tmp_path / "less.pt", tmp_path / "less").stdout
    assert "can: concepts, exemplars, masks\ncannot: interactive, video" in said
    whole = tmp_path / "whole.pt"
    base = ["--base", tiny_upstream, "--to", "upstream"]
    said = run("convert", tmp_path / "less.pt", whole, *base).stdout
    assert "can: concepts, exemplars, masks, interactive, video" in said
    assert torch.load(whole)["model"].keys() == state.keys()


def test_convert_overwrites_nothing_unasked(model: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    arguments = ["convert", model, tmp_path / "taken", "--to", "folder"]
    assert "is there already" in refused(*arguments)
    run(*arguments, "--overwrite")
    assert es3.load(tmp_path / "taken").name == "untrained"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{model}", "file"], "upstream's files end in .pt or .pth; got file"),
        (["file.pt", "other.pt"], "our layout is a folder, not a file; got other.pt"),
        (["nosuch.pt", "folder"], "there is no weight file at nosuch.pt"),
        (["tinyvit-99", "folder"], "unknown model 'tinyvit-99'"),
        (["{model}", "file.pt"], "upstream has no model of these encoders"),
        (["{model}", "file.pt", "--model", "sam3"], "go with upstream files"),
    ],
)
def test_convert_refuses(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused("convert", *(a.format(model=model) for a in arguments))
    assert not list(tmp_path.iterdir())


# The rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["segment", "--help"], ["models"], ["--version"]]
)
def test_what_needs_no_torch_imports_none(arguments: list[str]) -> None:
    code = (
        "import sys; from efficientsam3.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "finally: print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = doctor.Check("ffmpeg", "missing", "not on PATH", "videos", "install it")
    monkeypatch.setattr(doctor, "examine", lambda: [fine])
    assert "not on PATH" in run("doctor").stdout
    bad = doctor.Check("torch", "missing", "cannot be imported", "everything", "install it")
    monkeypatch.setattr(doctor, "examine", lambda: [fine, bad])
    run("doctor", code=1)


def test_benchmark(model: Path, photos: Path) -> None:
    arguments = [
        "benchmark",
        photos / "plain.jpg",
        "-m",
        model,
        "--repeat",
        1,
        "--dtype",
        "float32",
    ]
    lines = run(*arguments, "--parts").stdout.splitlines()
    first = {line.rsplit(maxsplit=1)[0] for line in lines[2:7]}
    assert first == {
        "preprocess",
        "encode, with preprocess",
        "first concept",
        "next concept",
        "image and first concept",
    }
    assert any(line.startswith("peak memory") for line in lines)
    assert any(line.startswith("fusion encoder") for line in lines)


def test_benchmark_without_weights_takes_random_ones(
    tiny_upstream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def write(command: list[str], **_: Any) -> None:
        called.append(command[-2])
        Path(command[-1]).write_bytes(tiny_upstream.read_bytes())

    monkeypatch.setattr(subprocess, "run", write)
    monkeypatch.setattr(doctor, "cached_models", list)
    result = run("benchmark", "-m", "sam3-litetext-s0-16", "--repeat", 1)
    assert called == ["sam3-litetext-s0-16"]
    assert "timing random ones" in result.stderr


def test_version() -> None:
    assert run("--version").stdout == f"efficientsam3 {es3.__version__}\n"
    assert run("version").stdout.startswith(f"efficientsam3 {es3.__version__}, torch 2.")
