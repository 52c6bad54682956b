"""The project's own processes share the processors; a user's own process is left as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from efficientsam3.runtime import threads

SEEN = "import os, sys; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"


def run(code: str, **environment: str) -> list[str]:
    """What a process prints that has none of OpenMP's settings but the given ones."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "FIFTYONE_SERVER"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


CLI = "from efficientsam3.cli.app import app\napp(['models'], standalone_mode=False)\n"


def test_the_command_line_lets_waiting_threads_sleep() -> None:
    assert run(CLI + SEEN)[-2:] == ["passive", "False"]
    assert run(CLI + SEEN, OMP_WAIT_POLICY="active")[-2:] == ["active", "False"]


def test_torch_computes_with_what_is_set() -> None:
    code = (
        "from efficientsam3.runtime import threads\n"
        "threads.usable_processors = lambda: 1\n"
        "threads.os.cpu_count = lambda: 64\n"
        "assert threads.share_processors()\n"
        "import torch\n"
        "print(torch.get_num_threads())"
    )
    assert run(code) == ["1"]
    assert run(code, OMP_NUM_THREADS="2") == ["2"]


def test_a_process_of_the_user_is_left_as_it_is() -> None:
    assert run("import efficientsam3, torch\nefficientsam3.load\n" + SEEN)[0] == "None"
    code = "import torch\nfrom efficientsam3.runtime.threads import share_processors\n"
    assert run(code + "assert not share_processors()\n" + SEEN)[0] == "None"


@pytest.mark.parametrize(("server", "policy"), [("1", "passive"), ("0", "None")])
def test_only_fiftyones_own_processes_are_changed(server: str, policy: str) -> None:
    pytest.importorskip("fiftyone")
    code = "import fiftyone_esam3\nfiftyone_esam3._share_processors()\n"
    assert run(code + SEEN, FIFTYONE_SERVER=server)[0] == policy


def test_a_container_limits_the_processors(tmp_path: Path) -> None:
    free = threads.usable_processors(tmp_path)
    assert 1 <= free <= (os.cpu_count() or 1)
    limit = tmp_path / "cpu.max"
    for content, expected in (
        ("max 100000", free),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("150000 100000", min(2, free)),
        ("-1 100000", free),
        ("broken", free),
    ):
        limit.write_text(content)
        assert threads.usable_processors(tmp_path) == expected, content
    limit.unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert threads.usable_processors(tmp_path) == 1
