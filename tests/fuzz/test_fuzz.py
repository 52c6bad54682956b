"""Inputs of all kinds: none ends in anything but an answer or a typed error.

The harness forks, which is safe only in a process without threads. So it runs in one of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from .kinds import ALL
from .mutate import mutate_bytes, mutate_json
from .runner import inputs

ROOT = Path(__file__).parents[2]
QUICK = [name for name, kind in ALL.items() if not kind.slow]  # type: ignore[attr-defined]
SLOW = [name for name in ALL if name not in (*QUICK, "operator")]


def run_module(*arguments: Any) -> str:
    """What a module prints in a process of its own, which must succeed."""
    paths = os.pathsep.join([str(ROOT / "model"), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    return ended.stdout


def fuzz_kinds(names: list[str], count: int, seed: int, failures: Path) -> None:
    kinds = [part for name in names for part in ("--kind", name)]
    limits = ("--count", count, "--seed", seed, "--failures", failures)
    rows = run_module("tests.fuzz", *kinds, *limits).splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [[name, str(count)] for name in names]


@pytest.mark.slow
def test_a_few_inputs_give_an_answer_or_a_typed_error(tmp_path: Path) -> None:
    fuzz_kinds(QUICK, 25, 2, tmp_path)


@pytest.mark.parametrize("names", [QUICK, SLOW], ids=["quick", "slow"])
@pytest.mark.parametrize(
    "count", [pytest.param(200, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.long)]
)
def test_inputs_give_an_answer_or_a_typed_error(
    names: list[str], count: int, tmp_path: Path
) -> None:
    fuzz_kinds(names, count, 1, tmp_path)


@pytest.mark.fiftyone
@pytest.mark.parametrize(
    "count", [pytest.param(100, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.long)]
)
def test_values_of_forms_give_an_answer_or_a_typed_error(count: int, tmp_path: Path) -> None:
    pytest.importorskip("fiftyone")
    fuzz_kinds(["operator"], count, 1, tmp_path)


@pytest.mark.slow
def test_the_harness_finds_what_is_wrong(tmp_path: Path) -> None:
    assert run_module("tests.fuzz.faulty", tmp_path).split() == [
        *("exception", "crash", "time", "memory", "changed", "file", "wrong", "answer"),
    ]
    kept = list(tmp_path.glob("faulty-0-*/FINDING.txt"))
    assert len(kept) == 2 and "--seed 0 --index 1" in kept[0].read_text() + kept[1].read_text()


@pytest.mark.parametrize("name", ["coco", "rle"])
def test_an_input_follows_from_seed_and_index(name: str) -> None:
    kind = ALL[name]()
    first = dict(inputs(kind, 5, 0, 130))
    assert repr(dict(inputs(kind, 5, 110, 130))) == repr({i: first[i] for i in range(110, 130)})
    assert repr(dict(inputs(kind, 6, 0, 130))) != repr(first)


def test_mutations_change_copies() -> None:
    value = {"a": [1, {"b": "c"}], "d": None}
    before = repr(value)
    changed = [repr(mutate_json(Random(i), value)) for i in range(50)]
    assert repr(value) == before and sum(c != before for c in changed) > 40
    data = bytes(range(100))
    assert sum(mutate_bytes(Random(i), data) != data for i in range(50)) > 40
