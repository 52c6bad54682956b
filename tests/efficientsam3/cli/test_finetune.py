"""`efficientsam3 finetune`, and adapters in other commands."""

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
from safetensors.torch import load_file
from typer.testing import CliRunner

import efficientsam3 as es3
from efficientsam3.cli.app import app
from efficientsam3.train import checkpoint

from ..train.recipes.coco_files import OPTIONS, QUICK, save_model, write_coco

SETTINGS = {**QUICK, "workers": "0", "prompts": "2"}
SET = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def command(model: Path, data: tuple[Path, Path], out: Path, *more: Any) -> list[str]:
    start = ["finetune", "--model", model, "--data", data[0], "--images", data[1], "--out", out]
    fixed = ["--rank", OPTIONS["rank"], "--held-out", 2]
    return [str(a) for a in (*start, *fixed, *SET, *more)]


@pytest.mark.slow
def test_from_a_command_to_overlays_and_a_merged_model(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    data = write_coco(tmp_path / "data", 5)
    arguments = command(model, data, tmp_path / "boats", "--steps", 2)
    first = invoke(*arguments)
    assert first.exit_code == 0, first.output
    assert "before" in first.stdout and "cgF1" in first.stdout
    again = invoke(*arguments)
    assert again.exit_code == 0 and "done before" in again.stderr
    assert again.stdout == first.stdout
    adapter = tmp_path / "boats" / "adapter.safetensors"

    fixed = ["--device", "cpu", "--dtype", "float32", "--threshold", 0]
    out = tmp_path / "out"
    segment = ["segment", data[1], "-c", "red thing", "--model", model, "--out", out, *fixed]
    plain = invoke(*segment)
    assert plain.exit_code == 0, plain.output
    changed = invoke(*segment, "--adapter", tmp_path / "boats")
    assert changed.exit_code == 0, changed.output
    assert (out / "run.jsonl.previous").exists()  # it is the run of another model
    kept = (out / "run.jsonl").read_text()
    assert invoke(*segment, "--adapter", adapter).exit_code == 0  # the same file
    assert (out / "run.jsonl").read_text() == kept

    merged = tmp_path / "merged"
    converted = invoke("convert", model, merged, "--adapter", adapter)
    assert converted.exit_code == 0, converted.output
    assert json.loads((merged / "config.json").read_text())["name"] == "tiny+boats"
    ours = es3.load(model, device="cpu", adapter=adapter).learned().state_dict()
    theirs = es3.load(merged, device="cpu").learned().state_dict()
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_wrong_adapters_and_data_are_sentences(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    data = write_coco(tmp_path / "data", 1)
    result = invoke(
        *("segment", data[1], "-c", "dog", "--model", model, "--out", tmp_path / "out"),
        *("--adapter", model / "model.safetensors"),
    )
    assert result.exit_code == 2 and "is not an adapter of this version" in result.stderr
    assert "Traceback" not in result.output
    result = invoke(*command(model, (data[1] / "0.png", data[1]), tmp_path / "run"))
    assert result.exit_code == 2 and "is not JSON" in result.stderr
    result = invoke(*command(model, data, tmp_path / "run", "--parts", "head"))
    assert result.exit_code == 2 and "parts is ('head',)" in result.stderr


@pytest.mark.slow
def test_a_killed_command_continues_to_the_same_weights(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    data = write_coco(tmp_path / "data", 5)
    more = ("--steps", 12, "--held-out", 0, "--set", "loop.save_every=1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = command(model, data, tmp_path / "killed", *more)
    child = subprocess.Popen([sys.executable, "-m", "efficientsam3", *killed], env=environment)
    try:
        end = time.monotonic() + 120
        while max(checkpoint.list_checkpoints(tmp_path / "killed" / "tune"), default=0) < 2:
            assert child.poll() is None and time.monotonic() < end
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    for arguments in (killed, command(model, data, tmp_path / "whole", *more)):
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
    ours, theirs = (
        load_file(tmp_path / name / "adapter.safetensors") for name in ("killed", "whole")
    )
    assert ours.keys() == theirs.keys()
    assert all(value.equal(theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_two_processes_of_torchrun_share_the_work(tmp_path: Path) -> None:
    model, data = save_model(tmp_path / "model"), write_coco(tmp_path / "data", 6)
    out = tmp_path / "boats"
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    start += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "efficientsam3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*start, *command(model, data, out, "--steps", 2)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("before") == 1, "one process prints"
    assert json.loads((out / "recipe.json").read_text())
    last = checkpoint.checkpoint_path(out / "tune", 2)
    assert len(checkpoint.load_checkpoint(last)["random"]) == 2
    plain, adapted = (
        es3.load(model, adapter=adapter, device="cpu", dtype="float32").segment(
            data[1] / "0.png", "red square", threshold=0.0
        )
        for adapter in (None, out)
    )
    assert plain.scores.tolist() != adapted.scores.tolist()
