"""The scripts of stops and of long runs: they run, and find what they look for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run_script(name: str, *arguments: Any) -> str:
    """What a script prints in a process of its own, which must succeed."""
    paths = os.pathsep.join([str(ROOT / "model"), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.slow  # a process that imports torch, and two runs of the command for each point
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("command", ["segment", "track", "evaluate", "distill"])
def test_a_command_that_was_stopped_gives_what_it_gives_undisturbed(command: str) -> None:
    said = run_script("kill_points.py", command, "--points", 4)
    assert re.search(rf"^{command}: 4 points .*, 0 wrong$", said, re.M), said


@pytest.mark.slow
def test_a_long_run_of_tracking_records_its_faults() -> None:
    said = run_script("long_run.py", "track", "--count", 200)
    assert "2 of 2 unreadable files recorded" in said
    assert "198 of 198 readable frames were given" in said
