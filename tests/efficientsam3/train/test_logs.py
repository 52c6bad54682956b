"""CSV files that a resumed run continues, running means, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam3.errors import EfficientSam3Error, MissingPackageError
from efficientsam3.train.logs import (
    CsvLog,
    RunningMeans,
    mean_values,
    tensorboard_logger,
    write_pictures,
)


def test_later_rows_and_an_unfinished_one_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path, 0)
    for step in (5, 10, 15):
        log.add({"step": step, "loss": step / 4})
    with path.open("a") as file:
        file.write("1")
    log = CsvLog(path, 10)
    assert path.read_text() == "step,loss\n5,1.25\n10,2.5\n"
    log.add({"step": 15, "loss": 0.1234567891})
    assert path.read_text().endswith("10,2.5\n15,0.1234568\n")
    assert log.has(15) and not log.has(1)
    assert log.last() == {"loss": 0.1234568}


def test_a_run_from_the_start_has_an_empty_file(tmp_path: Path) -> None:
    CsvLog(tmp_path / "log.csv", 0).add({"step": 5})
    assert CsvLog(tmp_path / "log.csv", 0).rows == []
    assert (tmp_path / "log.csv").read_text() == ""


def test_columns_may_come_later_and_be_missing(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv", 0)
    log.add({"step": 1, "loss": 1.0})
    log.add({"step": 2, "box": 2.0})
    log.add({"step": 3, "loss": 3.0, "box": 4.0})
    assert (tmp_path / "log.csv").read_text() == "step,loss,box\n1,1,\n2,,2\n3,3,4\n"
    assert CsvLog(tmp_path / "log.csv", 3).rows[1] == {"step": "2", "loss": "", "box": "2"}


def test_means_are_of_the_steps_that_have_a_value() -> None:
    means = RunningMeans()
    means.add({"loss": torch.tensor(1.0, requires_grad=True), "box": torch.tensor(5.0)})
    means.add({"loss": torch.tensor(2.0)})
    again = RunningMeans(means.state())  # through a checkpoint
    again.add({"loss": torch.tensor(6.0)})
    one = again.take()
    assert mean_values([one]) == {"loss": 3.0, "box": 5.0}
    assert again.take() == {}
    other = RunningMeans()  # of another process
    other.add({"loss": torch.tensor(11.0), "mask": torch.tensor(1.0)})
    assert mean_values([one, other.state()]) == {"loss": 5.0, "box": 5.0, "mask": 1.0}


def test_pictures_are_named_by_name_and_step(tmp_path: Path) -> None:
    pixels = np.full((3, 4, 3), 7, np.uint8)
    write_pictures(tmp_path, 20, {"hits/red apple": pixels})
    (path,) = (tmp_path / "pictures").iterdir()
    assert path.name == "hits-red-apple_0000020.png"
    assert np.array_equal(np.asarray(Image.open(path)), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((3, 4, 3)), np.zeros((3, 4), np.uint8)])
def test_other_arrays_are_refused(pixels: Any, tmp_path: Path) -> None:
    with pytest.raises(EfficientSam3Error, match=r"'x' is .* must be uint8"):
        write_pictures(tmp_path, 1, {"x": pixels})


def test_missing_tensorboard_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_fabric.loggers.tensorboard as module

    monkeypatch.setattr(module, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(module, "_TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(MissingPackageError, match="pip install tensorboard"):
        tensorboard_logger(tmp_path, 0)
