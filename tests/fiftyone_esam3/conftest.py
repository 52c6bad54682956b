"""FiftyOne with a database, a zoo and plugins of its own, and a model that answers at once."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

HERE = Path(__file__).parent

if importlib.util.find_spec("fiftyone") is None:
    collect_ignore_glob = ["test_*.py"]
elif "fiftyone" not in sys.modules:
    home = tempfile.mkdtemp(prefix="fiftyone-esam3-")
    # Before FiftyOne's own exit handlers, so that it runs after they stopped the database.
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["FIFTYONE_CONFIG_PATH"] = f"{home}/config.json"
    os.environ["FIFTYONE_DATABASE_DIR"] = f"{home}/database"
    # FiftyOne's processes of one user share a server that runs already, whatever its folder.
    os.environ["FIFTYONE_DATABASE_NAME"] = f"esam3-tests-{os.getpid()}"
    os.environ["FIFTYONE_DEFAULT_DATASET_DIR"] = f"{home}/datasets"
    os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"
    os.environ["FIFTYONE_MODEL_ZOO_DIR"] = f"{home}/zoo"
    os.environ["FIFTYONE_PLUGINS_DIR"] = f"{home}/plugins"
    os.environ["FIFTYONE_SHOW_PROGRESS_BARS"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FiftyOne's, about its own dependencies
        import fiftyone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.fiftyone)
            # FiftyOne's and its dependencies' deprecations are not ours to fix.
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved, untrained model of the real architecture, whose masks have shapes."""
    import efficientsam3 as es3
    from efficientsam3.build import tiny_config

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = es3.ImageModel.from_config(tiny_config(), device="cpu", dtype="float32")
    for name, weight in model.learned().named_parameters():
        if name.endswith("weight") and weight.ndim > 1:
            weight.data.mul_(3**0.5)  # else all masks are empty, or the whole image
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model.save(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two threads gain nothing on a tiny model, and lose much where other programs compute."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def core(tiny: Path) -> Callable[..., Any]:
    """``efficientsam3.load``, which reads the tiny model once for each set of arguments."""
    import efficientsam3 as es3

    return functools.cache(es3.load)


@pytest.fixture
def load(
    tiny: Path, core: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Loads the tiny model as a zoo model; all that it finds is kept."""
    import efficientsam3 as es3
    from fiftyone_esam3 import load_model

    monkeypatch.setattr(es3, "load", core)

    def load_tiny(**kwargs: Any) -> Any:
        options = {"device": "cpu", "dtype": "float32", "threshold": 0.0, "max_instances": 6}
        return load_model(str(tiny), **{**options, **kwargs})

    return load_tiny


def picture(seed: int, height: int = 48, width: int = 64) -> Image.Image:
    """A few coloured rectangles."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), rng.integers(0, 255, 3), np.uint8)
    for _ in range(4):
        y, x = rng.integers(0, height - 8), rng.integers(0, width - 8)
        pixels[y : y + 20, x : x + 24] = rng.integers(0, 255, 3)
    return Image.fromarray(pixels)


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Four pictures; the third cannot be read."""
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        picture(i).save(path)
    paths[2].write_bytes(paths[2].read_bytes()[:40])
    return [str(path) for path in paths]


@pytest.fixture
def dataset(photos: list[str]) -> Iterator[Any]:
    """The four pictures, with prompts of every kind."""
    dataset = fiftyone.Dataset()
    words = ["bus", ["red car", "dog"], "cat", None]
    dataset.add_samples(
        [
            fiftyone.Sample(
                filepath=path,
                words=word if isinstance(word, list) or word is None else [word],
                scene=fiftyone.Classification(label="street"),
                boxes=fiftyone.Detections(
                    detections=[
                        fiftyone.Detection(label="cat", bounding_box=[0.1, 0.1, 0.4, 0.5]),
                        fiftyone.Detection(
                            label="dog", bounding_box=[0.5, 0.5, 0.4, 0.4], sam_label=False
                        ),
                        fiftyone.Detection(
                            label="dog", bounding_box=[0.2, 0.3, 0.4, 0.4], sam3_label=True
                        ),
                    ]
                ),
                clicks=fiftyone.Keypoints(
                    keypoints=[
                        fiftyone.Keypoint(label="a", points=[(0.5, 0.5)]),
                        fiftyone.Keypoint(
                            label="b",
                            points=[(0.2, 0.2), (float("nan"), float("nan")), (0.8, 0.8)],
                            sam_labels=[1, 1, 0],
                        ),
                        fiftyone.Keypoint(label="c", points=[(0.9, 0.1), (0.8, 0.1)]),
                    ]
                ),
            )
            for path, word in zip(photos, words, strict=True)
        ]
    )
    yield dataset
    dataset.delete()
