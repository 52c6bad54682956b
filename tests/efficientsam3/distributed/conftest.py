"""A saved tiny model, small pictures, and the same pictures as Parquet and tar files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tiny_model

CONCEPTS = ["person", "bus"]
ASK: dict[str, Any] = {"concepts": CONCEPTS, "threshold": 0.2}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model().save(folder)
    return folder


def picture(number: int) -> Image.Image:
    """A picture of a few rectangles, which differs with its number."""
    rng = np.random.default_rng(number)
    pixels = np.full((48, 64, 3), rng.integers(0, 255, 3), np.uint8)
    for _ in range(4):
        y, x = rng.integers(0, 40), rng.integers(0, 52)
        pixels[y : y + 20, x : x + 24] = rng.integers(0, 255, 3)
    return Image.fromarray(pixels)


def encoded(number: int) -> bytes:
    """The same as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(folder: Path, count: int) -> Path:
    """A folder of pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:04d}.png").write_bytes(encoded(number))
    return folder


def write_tar(path: Path, samples: dict[str, dict[str, bytes | str | dict[str, Any]]]) -> Path:
    """A WebDataset tar of samples: key -> ending -> content."""
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for ending, content in parts.items():
                if isinstance(content, dict):
                    content = json.dumps(content)
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path
