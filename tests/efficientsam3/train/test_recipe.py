"""Recipes and `efficientsam3 distill`: stages run in order and continue where they stopped."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from efficientsam3.cli.app import app
from efficientsam3.errors import CheckpointError
from efficientsam3.train.errors import RecipeError, SettingsError
from efficientsam3.train.recipe import ENTRY_POINTS, find_recipe, run_recipe
from efficientsam3.train.recipes import RECIPES

MODULE = """
import signal
from dataclasses import dataclass
import torch
from torch import nn
from safetensors.torch import load_file
from efficientsam3.train.recipe import Recipe, Stage
from efficientsam3.train.settings import LoopSettings
from efficientsam3.train.task import Task

@dataclass(frozen=True)
class Options:
    target: float = 2.0
    stop: int | None = None

class Fit(Task):
    def __init__(self, target, start, stop=None):
        self.module, self.target, self.stop = nn.Linear(1, 1), target, stop
        nn.init.constant_(self.module.weight, start)
        nn.init.zeros_(self.module.bias)
    def batches(self, start, rank, world):
        while True:
            if start == self.stop:
                signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
            yield torch.ones(1, 1)
            start += 1
    def loss(self, module, batch):
        return {"loss": (module(batch) - self.target).square().mean()}
    def validate(self, module):
        return {"weight": module.weight.item()}

SETTINGS = LoopSettings(steps=40, lr=0.1, log_every=10, accelerator="cpu", weight_decay=0.0)
def teacher(run):
    return Fit(run.options.target, 0.0), SETTINGS
def measure(run):
    run.stage_folder.mkdir(exist_ok=True)
    (run.stage_folder / "note.txt").write_text(str(run.weights("teacher").stat().st_size))
def student(run):
    start = load_file(run.weights("teacher"))["weight"].item()
    return Fit(run.options.target, start, run.options.stop), SETTINGS
def finish(run, task):
    (run.stage_folder / "done.txt").write_text(f"{task.module.weight.item()}")
STAGES = (
    Stage("teacher", teacher, "learns"), Stage("measure", measure),
    Stage("student", student, "learns from it", finish),
)
MINE = Recipe("mine", "for tests", STAGES, Options())
PLAIN = Recipe("plain", "", STAGES[:1])
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "tiny_recipe.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def command(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["distill", *(str(a) for a in arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return str(result.output)


def run(*arguments: Any, code: int = 0) -> str:
    return command("--recipe", "tiny_recipe:MINE", *arguments, code=code)


def record(folder: Path) -> Any:
    return json.loads((folder / "recipe.json").read_text())


def test_stages_run_in_order_from_what_earlier_ones_left(tmp_path: Path) -> None:
    output = run("--out", tmp_path)
    stages = record(tmp_path)["stages"]
    assert list(stages) == ["teacher", "measure", "student"]
    assert all(s["done"] and s["seconds"] >= 0 for s in stages.values())
    assert stages["teacher"]["steps"] == 40 and stages["teacher"]["seconds_per_step"] > 0
    first = load_file(tmp_path / "teacher" / "weights.safetensors")["weight"].item()
    last = load_file(tmp_path / "student" / "weights.safetensors")["weight"].item()
    assert stages["teacher"]["metrics"] == {"weight": pytest.approx(first)}
    assert first != last
    assert float((tmp_path / "student" / "done.txt").read_text()) == last
    assert re.search(r"student +40 ", output) and "student 40/40: weight" in output


def test_a_stopped_run_continues_at_its_stage_and_step(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run("--out", whole)
    output = run("--out", cut, "--set", "stop=25", code=130)
    assert "stopped by SIGTERM at step 26 of 40" in output
    assert "run the same command again to continue" in output
    assert not record(cut)["stages"]["student"]["done"]
    output = run("--out", cut, "--set", "stop=none", code=2)
    assert "stop was 25 and is None" in output and "--accept-changes" in output
    output = run("--out", cut, "--accept-changes")
    assert "teacher: done before" in output
    report = json.loads((cut / "student" / "report.json").read_text())
    assert [s["from"] for s in report["sessions"]] == [0, 26]
    for stage in ("teacher", "student"):
        one, two = (load_file(f / stage / "weights.safetensors") for f in (whole, cut))
        assert one["weight"].item() == two["weight"].item()


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run("--out", tmp_path, "--steps", 5)
    before = record(tmp_path)
    output = run("--out", tmp_path, "--steps", 5)
    assert all(f"{stage}: done before" in output for stage in ("teacher", "measure", "student"))
    assert record(tmp_path) == before
    with pytest.raises(CheckpointError, match="recipe 'mine', not 'plain'"):
        run_recipe(find_recipe("tiny_recipe:PLAIN"), tmp_path, restart=True)
    (tmp_path / "recipe.json").write_text("{")
    assert "is damaged" in run("--out", tmp_path, "--restart", code=2)


def test_restart_starts_again(tmp_path: Path) -> None:
    run("--out", tmp_path, "--steps", 5)
    output = run("--out", tmp_path, "--steps", 7, "--set", "target=1", "--restart")
    assert "done before" not in output
    assert [s.get("steps") for s in record(tmp_path)["stages"].values()] == [7, None, 7]
    sessions = json.loads((tmp_path / "teacher" / "report.json").read_text())["sessions"]
    assert [(s["from"], s["to"]) for s in sessions] == [(0, 7)]
    # One stage alone: the others stay, and what needs it goes on from them.
    before = (tmp_path / "teacher" / "report.json").read_text()
    changes = ("--steps", 3, "--set", "target=1")
    output = run("--out", tmp_path, *changes, "--restart", "--stage", "student")
    assert [s.get("steps") for s in record(tmp_path)["stages"].values()] == [7, None, 3]
    assert (tmp_path / "teacher" / "report.json").read_text() == before


def test_a_restart_that_was_killed_continues_as_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("--out", tmp_path, "--steps", 5)
    monkeypatch.setattr("efficientsam3.train.recipe.train", _killed)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(find_recipe("tiny_recipe:MINE"), tmp_path, steps=7, restart=True)
    monkeypatch.undo()
    output = run("--out", tmp_path, "--steps", 7)
    assert "done before" not in output
    assert [s.get("steps") for s in record(tmp_path)["stages"].values()] == [7, None, 7]


def _killed(*args: Any, **options: Any) -> None:
    raise KeyboardInterrupt


def test_single_stages_and_settings(tmp_path: Path) -> None:
    output = run("--out", tmp_path, "--stage", "student", code=2)
    assert "'student' needs 'teacher', which is not done" in output
    changes = ("--set", "loop.lr=0.05", "--set", "teacher.clip=none", "--set", "target=1")
    output = run("--out", tmp_path, "--stage", "teacher", "--steps", 7, *changes, code=2)
    assert "target was 2.0 and is 1.0" in output
    run("--out", tmp_path / "b", "--stage", "teacher", "--steps", 7, *changes)
    assert record(tmp_path / "b")["stages"]["teacher"]["steps"] == 7
    assert record(tmp_path / "b")["options"]["target"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--stage", "pupil"), "has no stage 'pupil'; it has: teacher, measure, student"),
        (("--set", "size=3"), "unknown setting 'size'; known: target, stop"),
        (("--set", "student.rate=3"), "unknown setting 'rate'"),
        (("--set", "target"), "--set takes KEY=VALUE"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    output = run("--out", tmp_path / "run", *arguments, code=2)
    assert words in output
    assert not (tmp_path / "run").exists()


def test_unknown_recipes_are_refused(tmp_path: Path) -> None:
    assert "known: stage1-image" in command("--recipe", "cakes", "--out", tmp_path, code=2)
    for name in ("no_such_module:X", "tiny_recipe:NONE", "tiny_recipe:Options"):
        with pytest.raises(RecipeError):
            find_recipe(name)
    with pytest.raises(SettingsError, match="has no options"):
        run_recipe(find_recipe("tiny_recipe:PLAIN"), tmp_path, overrides={"a": "1"})
    assert "--recipe NAME and --out FOLDER are needed" in command(code=2)


@pytest.mark.parametrize("name", RECIPES)
def test_known_recipes_are_found_by_their_names(name: str) -> None:
    assert find_recipe(name).name == name


def test_recipes_of_other_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("other", "tiny_recipe:MINE", ENTRY_POINTS),
        EntryPoint("broken", "no_such_module:RECIPE", ENTRY_POINTS),
    ]
    monkeypatch.setattr("efficientsam3.train.recipe.entry_points", lambda group: points)
    assert find_recipe("other").name == "mine"
    with pytest.raises(RecipeError, match="recipe 'broken' cannot be loaded: No module named"):
        find_recipe("broken")
    output = command("--list")
    assert "other: for tests" in output and "broken: not available: " in output


def test_listing() -> None:
    output = command("--list")
    assert all(f"{name}: {find_recipe(name).about}" in output for name in RECIPES)
    output = command("--list", "--recipe", "tiny_recipe:MINE")
    assert "student: learns from it" in output and "target = 2.0" in output
