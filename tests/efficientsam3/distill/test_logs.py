"""Tables that a resumed run continues, means, pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam3.distill.logs import Board, Means, Table, write_pictures
from efficientsam3.errors import EfficientSam3Error


def test_later_rows_and_a_torn_one_go(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = Table(path, 0)
    for step in (5, 10, 15):
        log.add({"step": step, "loss": step / 4})
    with path.open("a") as file:
        file.write("1")
    log = Table(path, 10)
    assert path.read_text() == "step,loss\n5,1.25\n10,2.5\n"
    log.add({"step": 15, "loss": 0.1234567891})
    assert path.read_text().endswith("10,2.5\n15,0.1234568\n")
    assert log.has(15) and not log.has(1)
    assert log.last() == {"loss": 0.1234568}


def test_a_run_from_the_start_begins_an_empty_table(tmp_path: Path) -> None:
    Table(tmp_path / "log.csv", 0).add({"step": 5})
    assert Table(tmp_path / "log.csv", 0).rows == []
    assert (tmp_path / "log.csv").read_text() == ""


def test_columns_may_come_later_and_stay_away(tmp_path: Path) -> None:
    log = Table(tmp_path / "log.csv", 0)
    log.add({"step": 1, "loss": 1.0})
    log.add({"step": 2, "box": 2.0})
    log.add({"step": 3, "loss": 3.0, "box": 4.0})
    assert (tmp_path / "log.csv").read_text() == "step,loss,box\n1,1,\n2,,2\n3,3,4\n"
    assert Table(tmp_path / "log.csv", 3).rows[1] == {"step": "2", "loss": "", "box": "2"}


def test_means_count_only_where_a_part_was() -> None:
    means = Means()
    means.add({"loss": torch.tensor(1.0, requires_grad=True), "box": torch.tensor(5.0)})
    means.add({"loss": torch.tensor(2.0)})
    again = Means(means.pending())  # through a checkpoint
    again.add({"loss": torch.tensor(6.0)})
    assert again.take() == {"loss": 3.0, "box": 5.0}
    assert again.take() == {}


def test_pictures_are_files_by_name_and_step(tmp_path: Path) -> None:
    pixels = np.full((3, 4, 3), 7, np.uint8)
    write_pictures(tmp_path, 20, {"hits/red apple": pixels})
    (path,) = (tmp_path / "pictures").iterdir()
    assert path.name == "hits-red-apple_0000020.png"
    assert np.array_equal(np.asarray(Image.open(path)), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((3, 4, 3)), np.zeros((3, 4), np.uint8)])
def test_other_arrays_are_no_pictures(pixels: Any, tmp_path: Path) -> None:
    with pytest.raises(EfficientSam3Error, match=r"'x' is .* must be uint8"):
        write_pictures(tmp_path, 1, {"x": pixels})


def test_tensorboard_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(EfficientSam3Error, match="pip install tensorboard"):
        Board(tmp_path, 0)
