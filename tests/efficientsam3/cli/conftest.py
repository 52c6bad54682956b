"""The command line in this process, a tiny saved model and some images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import efficientsam3 as es3
from efficientsam3.cli.app import app
from efficientsam3.cli.model_options import ModelOptions
from efficientsam3.config import tiny_config

from ..video.films import Seer, write_squares


def run(*arguments: Any, code: int = 0) -> Result:
    """The result of a command, which must end with this exit code."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    unexpected = result.exception and not isinstance(result.exception, SystemExit)
    assert not unexpected, result.exception
    assert result.exit_code == code, result.output
    return result


def run_refused(*arguments: Any) -> str:
    """The one sentence that a command prints for a mistake of its user."""
    result = run(*arguments, code=2)
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained tiny model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        es3.ImageModel.from_config(tiny_config(), dtype="float32").save(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images of all kinds, two of which cannot be read."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    ramp = np.add.outer(np.arange(40), 3 * np.arange(60))
    colors = np.stack([ramp, ramp[::-1], 200 - ramp], 2).clip(0, 255)
    image = Image.fromarray(colors.astype(np.uint8))
    image.save(folder / "plain.jpg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "sub/grey.png")
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was held upright
    image.save(folder / "turned.jpg", exif=exif)
    image.resize((1, 1)).save(folder / "one.png")
    (folder / "cut.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:600])
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[Seer | None], None]:
    """Choose what the command loads; None: loading anything fails."""

    def choose(model: Seer | None) -> None:
        monkeypatch.setattr(ModelOptions, "load", None if model is None else lambda _: model)

    monkeypatch.setattr(ModelOptions, "identity", lambda options: {"model": options.model})
    return choose


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of a red and a blue square."""
    return write_squares(tmp_path_factory.mktemp("films") / "squares.mp4")
