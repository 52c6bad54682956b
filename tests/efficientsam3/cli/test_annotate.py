"""`efficientsam3 annotate`: mistakes are said in one sentence before a cluster is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.distributed import cluster

from .conftest import run_refused

pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efficientsam3.distributed.run.import_ray", lambda: None)
    monkeypatch.setattr("efficientsam3.distributed.run.connected", None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "nothing to find: name concepts"),
        (["-c", "v="], "is not class=phrase,phrase"),
        (["-c", "a", "--concept-column", "b"], "concepts are named once"),
        (["--concept-column", "b", "--coco"], "COCO numbers its categories before"),
        (["--concept-column", "b"], "images have no columns"),
        (["-c", "a", "--tile", "x"], "tile"),
    ],
)
def test_wrong_options_are_refused(
    model: Path, photos: Path, tmp_path: Path, options: list[Any], sentence: str
) -> None:
    out = tmp_path / "out"
    assert sentence in run_refused("annotate", photos, "--out", out, "--model", model, *options)
    assert not out.exists()


def test_nothing_there_is_refused(model: Path, tmp_path: Path) -> None:
    said = run_refused("annotate", tmp_path / "lost", "-c", "a", "--model", model)
    assert f"there is no file at {tmp_path}/lost" in said


def test_without_ray_the_package_is_named(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efficientsam3.distributed.run.import_ray", cluster.import_ray)
    monkeypatch.setitem(sys.modules, "ray", None)
    said = run_refused("annotate", photos, "-c", "a", "--model", model)
    assert 'many machines need Ray: pip install "efficientsam3[ray]"' in said
