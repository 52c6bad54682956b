"""scripts/train_stickers.sh: the commands that it runs, with options that the recipes have."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from efficientsam3.train.recipe import find_recipe
from efficientsam3.train.settings import with_overrides
from efficientsam3_stickers.recipes.common import loop_settings

SCRIPT = Path(__file__).parents[3] / "scripts" / "train_stickers.sh"


def commands(tmp_path: Path, *arguments: str, **variables: str) -> list[list[str]]:
    """The arguments of each command that the script gives to Python."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" END >> {tmp_path / "said"}\n')
    python.chmod(0o755)
    environment = {**os.environ, **variables, "PYTHON": str(python)}
    subprocess.run(["bash", SCRIPT, *arguments], env=environment, check=True, timeout=60)
    said = (tmp_path / "said").read_text().split("END\n")
    return [part.splitlines() for part in said if part]


def options_of(command: list[str]) -> dict[str, str]:
    pairs = (command[i + 1] for i, word in enumerate(command) if word == "--set")
    return dict(pair.split("=", 1) for pair in pairs)


@pytest.mark.parametrize("hours", ["0.01", "2"])
def test_both_recipes_run_with_options_that_they_have(tmp_path: Path, hours: str) -> None:
    images, video = commands(tmp_path, "out/seed", hours, OBJECTS="--set teacher=0")
    for command, name in ((images, "stickers-objects"), (video, "stickers-video")):
        assert command[command.index("--recipe") + 1] == name
        recipe = find_recipe(name)
        stages = {stage.name for stage in recipe.stages}
        for key, value in options_of(command).items():
            stage, _, setting = key.rpartition(".")
            if stage:
                assert stage in stages, key
                changed = with_overrides(loop_settings(0, steps=10**6), {setting: value})
                assert str(getattr(changed, setting)) == str(value).replace("8e-4", "0.0008")
            else:
                assert hasattr(recipe.options, key), key
        for stage in stages - {"calibrate"}:
            given = options_of(command)
            assert int(given[f"{stage}.steps"]) >= 20
            warmup = int(given.get(f"{stage}.warmup", "100"))
            assert warmup <= int(given[f"{stage}.steps"]) / 10
    assert options_of(images)["teacher"] == "0"
    assert options_of(video)["model"] == "out/seed/objects/calibrate/model"


@pytest.mark.parametrize("arguments", [[], ["out/seed", "two"], ["out/seed", "-1"]])
def test_wrong_arguments_start_nothing(arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHON": "/nowhere/python"}
    done = subprocess.run(
        ["bash", SCRIPT, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: scripts/train_stickers.sh OUT [HOURS]: a folder")
