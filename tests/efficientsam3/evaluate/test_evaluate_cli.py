"""`efficientsam3 evaluate`, from arguments to the table and the JSON file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from efficientsam3 import ImageModel
from efficientsam3.cli.app import app
from efficientsam3.cli.model_options import ModelOptions

Write = Callable[[str, Any], Path]

LOW = ("--threshold", 0.42, "--min-score", 0.35)


def run(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    unexpected = result.exception and not isinstance(result.exception, SystemExit)
    assert not unexpected, result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny: ImageModel) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save(folder)
    return folder


@pytest.fixture
def no_loading(tiny: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command uses a model that is in memory already; loading takes most of its time."""
    monkeypatch.setattr(ModelOptions, "load", lambda options: tiny)


@pytest.fixture
def gold(toy: SimpleNamespace, write: Write) -> Path:
    return write("gold.json", toy.saco())


def test_a_file_of_predictions(
    toy: SimpleNamespace, write: Write, gold: Path, tmp_path: Path
) -> None:
    rows = [
        toy.result(number, box, 0.9)
        for number, (_, _, boxes) in enumerate(toy.PAIRS, 10)
        for box in boxes
    ]
    out = tmp_path / "deep/figures.json"
    result = run("-a", gold, "--predictions", write("p.json", rows), "--json", out)
    assert "3 images, 5 pairs with a phrase, 3 positive" in result.stderr
    head, row = result.stdout.strip().splitlines()
    assert head.split()[:4] == ["split", "cgF1", "pmF1", "IL_MCC"]
    assert row.split()[:4] == ["gold", "99.99", "99.99", "1.000"]
    figures = json.loads(out.read_text())
    assert figures["cgF1"] == pytest.approx(100, abs=0.02) and figures["name"] == "gold"
    assert figures["AP"] == pytest.approx(100) and figures["counts"]["pairs"] == 5
    assert figures["cgF1"] == pytest.approx(figures["pmF1"] * figures["IL_MCC"])
    assert "AP" not in json.loads(
        (run("-a", gold, "-p", tmp_path / "p.json", "--no-ap", "--json", out), out)[1].read_text()
    )


@pytest.mark.usefixtures("no_loading")
def test_a_model_twice(
    model: Path, gold: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, found = tmp_path / "figures.json", tmp_path / "found.json"
    arguments = ("-a", gold, "-i", images, "-m", model, "-p", found, "--json", out, *LOW)
    run(*arguments)
    figures, rows = json.loads(out.read_text()), json.loads(found.read_text())
    assert figures["counts"]["predictions"] > 0 and len(rows) > figures["counts"]["predictions"]
    assert figures["settings"]["model"] == "tiny" and figures["settings"]["min_score"] == 0.35
    written = found.with_suffix(".jsonl").stat().st_mtime_ns
    run(*arguments)  # nothing is left to do
    assert found.with_suffix(".jsonl").stat().st_mtime_ns == written
    assert json.loads(out.read_text()) == figures
    # The predictions alone give the same.
    run("-a", gold, "-p", found, "--json", out, "--threshold", 0.42)
    assert json.loads(out.read_text())["cgF1"] == figures["cgF1"]
    run(*arguments[:-1], 0.1)
    assert "min_score was 0.35 and is 0.1. The run starts again" in caplog.text
    caplog.clear()
    run(*arguments, "--restart")
    assert not caplog.records


@pytest.mark.usefixtures("no_loading")
def test_splits_of_three_annotators_and_their_mean(
    toy: SimpleNamespace,
    write: Write,
    model: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for split, pairs in (("food", toy.PAIRS), ("sports", toy.PAIRS[:3])):
        for letter in "abc":
            write(f"gold_{split}_merged_{letter}_test.json", toy.saco(pairs))
    out = tmp_path / "figures.json"
    result = run(
        *("-a", str(tmp_path / "gold_*_merged_*_test.json"), "-i", images, "-m", model),
        *("--json", out, *LOW),
    )
    assert "by 3 annotators" in result.stderr
    assert [line.split()[0] for line in result.stdout.strip().splitlines()] == [
        *("split", "gold_food_merged_test", "gold_sports_merged_test", "mean")
    ]
    figures = json.loads(out.read_text())
    parts = list(figures["splits"].values())
    assert figures["pmF1"] == pytest.approx(sum(part["pmF1"] for part in parts) / 2)
    assert parts[0]["settings"]["annotators"] == 3
    written = sorted(p.name for p in (tmp_path / "out/evaluate").iterdir())
    assert written == [f"tiny-gold_{s}_merged_test.jsonl" for s in ("food", "sports")]
    with_file = ("-a", str(tmp_path / "gold_*_test.json"), "-p", "p.jsonl")
    refused(*with_file, says="are of 2 splits")
    refused(*with_file, "-m", model, "-i", images, says="go to a folder")


def refused(*arguments: Any, says: str) -> None:
    result = run(*arguments, code=2)
    assert "Traceback" not in result.output
    assert says in " ".join(result.stderr.split()), result.stderr


@pytest.mark.usefixtures("no_loading")
def test_mistakes_are_reported_in_a_sentence(
    toy: SimpleNamespace, write: Write, gold: Path, model: Path, images: Path, tmp_path: Path
) -> None:
    found = write("p.json", [])
    refused("-a", gold, says="name a --model to evaluate, or a file of --predictions")
    refused("-a", gold, "-m", model, says="--images FOLDER")
    refused("-a", tmp_path / "no*.json", "-p", found, says="no file matches")
    refused("-a", gold, "-p", tmp_path / "none.json", says="there is no file")
    cut = write("cut.json", json.dumps(toy.saco())[:300])
    refused("-a", cut, "-p", found, says="cut.json is not JSON, or is cut short")
    refused("-a", write("e.json", toy.saco([])), "-p", found, says="the split is empty")
    refused("-a", write("v.json", {"videos": []}), "-m", model, says="is of clips")
    (images / "a.png").unlink()
    missing = ("-a", gold, "-i", images, "-m", model, "-p", tmp_path / "m.jsonl")
    refused(*missing, says="1 of 3 images")
    (images / "extra.png").write_bytes((images / "b.png").read_bytes())
    (images / "notes.txt").write_text("no image")
    result = run(*missing, "--skip-missing", *LOW)
    others = "2 files are passed over, because the annotations do not name them: 1 .png, 1 .txt"
    assert others in result.stderr
    assert "1 image of gold left out" in result.stderr and "a.png" in result.stderr
    result = run(*missing, "--skip-missing", *LOW, "--limit", 2)
    assert "passed over" not in result.stderr, "those beyond the limit are named"


@pytest.mark.usefixtures("no_loading")
def test_predictions_of_other_pictures_are_scored_with_a_word(
    toy: SimpleNamespace, write: Write, gold: Path, model: Path, images: Path, tmp_path: Path
) -> None:
    found = tmp_path / "p.jsonl"
    run("-a", gold, "-i", images, "-m", model, "-p", found, *LOW)
    score = ("-a", gold, "-p", found, "-i", images)
    assert "predicted" not in run(*score).stderr
    (images / "a.png").write_bytes((images / "b.png").read_bytes())
    said = " ".join(run(*score).stderr.split())
    assert "was predicted from other files for 1 of 3 images, the first of them a.png" in said
    content = json.loads(gold.read_text())
    content["annotations"].pop()
    gold.write_text(json.dumps(content))
    said = " ".join(run(*score[:4]).stderr.split())
    assert "was predicted for other content of the annotations" in said


def test_clips(toy: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    masks = {"video_id": 0, "category_id": 1, "segmentations": [toy.rle_of(toy.LEFT)] * 2}
    height, width = toy.SIZE
    content = {
        "videos": [{"id": 0, "height": height, "width": width, "length": 2}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [masks | {"id": 1}],
        "video_np_pairs": [{"video_id": 0, "category_id": c} for c in (1, 2)],
    }
    out = tmp_path / "figures.json"
    found = write("p.json", [masks | {"score": 0.8}])
    result = run("-a", write("veval.json", content), "-p", found, "--jf", "--json", out)
    head, row = (line.split() for line in result.stdout.strip().splitlines())
    cells = dict(zip(head, row, strict=False))
    assert (cells["pHOTA"], cells["J&F"]) == ("100.00", "100.00")
    assert json.loads(out.read_text())["cgF1"] == pytest.approx(100, abs=0.02)


@pytest.mark.slow
def test_a_killed_run_continues(
    toy: SimpleNamespace, write: Write, model: Path, images: Path, tmp_path: Path
) -> None:
    count = 60
    for number in range(count):
        (images / f"{number}.png").write_bytes((images / "a.png").read_bytes())
    pairs = [(f"{n}.png", p, b) for n in range(count) for _, p, b in toy.PAIRS[:2]]
    gold = write("gold.json", toy.saco(pairs))

    def options(name: str) -> list[str]:
        out = ("--predictions", tmp_path / name, "--json", tmp_path / f"{name}.json")
        given = ("-a", gold, "-i", images, "-m", model, "--no-ap", *LOW)
        return [str(a) for a in (*given, *out)]

    code = (
        "import torch, typer; torch.set_num_threads(1); "
        "from efficientsam3.cli.evaluate import evaluate; typer.run(evaluate)"
    )
    run_file = tmp_path / "p.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options("p.jsonl")], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (run_file.exists() and run_file.stat().st_size > 20_000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = run_file.read_bytes().count(b"\n") - 1
    assert 0 < done < count
    figures = []
    for name in ("p.jsonl", "complete.jsonl"):
        run(*options(name))
        figures.append(json.loads((tmp_path / f"{name}.json").read_text()))
        figures[-1]["settings"].pop("predictions")
    assert figures[0] == figures[1]
    assert run_file.read_bytes() == (tmp_path / "complete.jsonl").read_bytes()
