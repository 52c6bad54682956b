"""The benchmark of runtimes: its table, and a model that is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import efficientsam3 as es3
from efficientsam3.build import build
from efficientsam3.checkpoints.save import save_folder
from efficientsam3.config import tiny_config


def test_the_table_has_medians_and_factors(script: Callable[[str], ModuleType]) -> None:
    backends = script("backends")

    def turn(seconds: float) -> dict[str, float]:
        return dict.fromkeys(backends.COLUMNS, seconds) | {"MiB": 100 * seconds}

    later = turn(2)
    del later["80 concepts"]  # asked in the first turn alone
    lines = backends.table({"upstream": [turn(8), turn(2), turn(4)], "ours": [turn(2), later]})
    upstream, ours = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])
    assert upstream == ["upstream", *["4.00"] * 6, "400"]
    assert ours == ["ours", "2.00", *["2.00 (2.0x)"] * 5, "200"]


def test_a_model_is_timed(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = script("backends")
    monkeypatch.setenv("STARTED", str(time.time() - 1))
    config = tiny_config()
    save_folder(tmp_path / "tiny", "tiny", config, build(config))
    found = backends.timed(es3.load(tmp_path / "tiny", device="cpu"), repeat=1)
    assert set(found) == set(backends.COLUMNS)
    assert found["start"] > 1 and found["MiB"] > 10
    assert found["together"] == pytest.approx(found["image"] + found["first concept"], rel=0.2)
    model = es3.load(tmp_path / "tiny", device="cpu")
    less = backends.timed(model, repeat=1, many=False)
    assert set(found) - set(less) == {"80 concepts"}
