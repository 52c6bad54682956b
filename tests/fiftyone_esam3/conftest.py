"""FiftyOne with its own database, zoo and plugins, and a tiny model in a folder."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ..conftest import tiny_model

HERE = Path(__file__).parent

if importlib.util.find_spec("fiftyone") is None:
    collect_ignore_glob = ["test_*.py"]
elif "fiftyone" not in sys.modules:
    home = tempfile.mkdtemp(prefix="fiftyone-esam3-")
    # Registered before FiftyOne's own exit handlers, so it runs after they stop the database.
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["FIFTYONE_CONFIG_PATH"] = f"{home}/config.json"
    os.environ["FIFTYONE_DATABASE_DIR"] = f"{home}/database"
    # FiftyOne's processes of one user share a server that is running, in whatever folder.
    os.environ["FIFTYONE_DATABASE_NAME"] = f"esam3-tests-{os.getpid()}"
    os.environ["FIFTYONE_DEFAULT_DATASET_DIR"] = f"{home}/datasets"
    os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"
    os.environ["FIFTYONE_MODEL_ZOO_DIR"] = f"{home}/zoo"
    os.environ["FIFTYONE_PLUGINS_DIR"] = f"{home}/plugins"
    os.environ["FIFTYONE_SHOW_PROGRESS_BARS"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about FiftyOne's own dependencies
        import fiftyone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.fiftyone)
            # One worker process runs all these tests: they share datasets, plugins and the zoo.
            item.add_marker(pytest.mark.xdist_group("fiftyone"))
            # FiftyOne and its dependencies use deprecated functions.
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved, untrained model of the real architecture."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model().save(folder)
    return folder


@pytest.fixture(scope="session")
def cached_load() -> Callable[..., Any]:
    """``efficientsam3.load``, which reads a model once for each set of arguments."""
    import efficientsam3 as es3

    return functools.cache(es3.load)


@pytest.fixture
def load(
    tiny_folder: Path, cached_load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Load the tiny model as a zoo model that keeps all instances."""
    import efficientsam3 as es3
    from fiftyone_esam3 import load_model

    monkeypatch.setattr(es3, "load", cached_load)

    def load_tiny(**kwargs: Any) -> Any:
        options = {"device": "cpu", "dtype": "float32", "threshold": 0.0, "max_instances": 6}
        return load_model(str(tiny_folder), **{**options, **kwargs})

    return load_tiny


def make_picture(seed: int, height: int = 48, width: int = 64) -> Image.Image:
    """A picture of a few colored rectangles."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), rng.integers(0, 255, 3), np.uint8)
    for _ in range(4):
        y, x = rng.integers(0, height - 8), rng.integers(0, width - 8)
        pixels[y : y + 20, x : x + 24] = rng.integers(0, 255, 3)
    return Image.fromarray(pixels)


READABLE, UNREADABLE = [0, 1, 3], 2
"""The positions of the pictures in ``dataset`` that can be read, and of the one that cannot."""


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Four pictures; the third cannot be read."""
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        make_picture(i).save(path)
    paths[UNREADABLE].write_bytes(paths[UNREADABLE].read_bytes()[:40])
    return [str(path) for path in paths]


@pytest.fixture
def new_dataset() -> Iterator[Callable[..., Any]]:
    """Make datasets from samples; they are deleted after the test."""
    made: list[str] = []

    def make(samples: list[Any] | None = None) -> Any:
        dataset = fiftyone.Dataset()
        made.append(dataset.name)
        if samples:
            dataset.add_samples(samples)
        return dataset

    yield make
    for name in made:
        if fiftyone.dataset_exists(name):
            fiftyone.delete_dataset(name)


@pytest.fixture
def dataset(photos: list[str], new_dataset: Callable[..., Any]) -> Any:
    """The four pictures, with prompts of all kinds."""
    words = [["bus"], ["red car", "dog"], ["cat"], None]
    nan = float("nan")
    detection, keypoint = fiftyone.Detection, fiftyone.Keypoint
    return new_dataset(
        [
            fiftyone.Sample(
                filepath=path,
                words=word,
                scene=fiftyone.Classification(label="street"),
                boxes=fiftyone.Detections(
                    detections=[
                        detection(label="cat", bounding_box=[0.1, 0.1, 0.4, 0.5]),
                        detection(label="dog", bounding_box=[0.5, 0.5, 0.4, 0.4], sam_label=False),
                        detection(label="dog", bounding_box=[0.2, 0.3, 0.4, 0.4], sam3_label=True),
                    ]
                ),
                clicks=fiftyone.Keypoints(
                    keypoints=[
                        keypoint(label="a", points=[(0.5, 0.5)]),
                        keypoint(
                            label="b",
                            points=[(0.2, 0.2), (nan, nan), (0.8, 0.8)],
                            sam_labels=[1, 1, 0],
                        ),
                        keypoint(label="c", points=[(0.9, 0.1), (0.8, 0.1)]),
                    ]
                ),
            )
            for path, word in zip(photos, words, strict=True)
        ]
    )


def write_frames(path: Path, frames: Sequence[Any]) -> str:
    """Write (H, W, 3) uint8 pictures as a video, and give its path."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        (stream.height, stream.width), stream.pix_fmt = frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return str(path)


def write_video(path: Path, frames: int) -> str:
    """Write a video of a moving picture, and give its path."""
    image = np.array(make_picture(3))
    moved = [np.ascontiguousarray(np.roll(image, 2 * i, 1)) for i in range(frames)]
    return write_frames(path, moved)


@pytest.fixture
def videos(tmp_path: Path, new_dataset: Callable[..., Any]) -> Any:
    """Two videos of 7 and 4 frames, and a file that is no video."""
    paths = [
        write_video(tmp_path / "a.mp4", 7),
        write_video(tmp_path / "b.mp4", 4),
        str(tmp_path / "c.mp4"),
    ]
    Path(paths[2]).write_bytes(b"no video")
    return new_dataset([fiftyone.Sample(filepath=path) for path in paths])


SIDE = 12
PLACES = {
    "hippo": [(0, 0), (20, 30), (0, 40)],
    "food": [(34, 10)],
    "animal": [(1, 1), (34, 40)],
}
"""(y, x) of the squares that the model finds of each concept; "animal" finds the first hippo."""


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model that finds squares; the list gets every concept that it is asked for."""
    import efficientsam3 as es3
    from efficientsam3.types import BitPatch, Instances

    asked: list[str] = []

    def segment(self: Any, image: Any, concepts: Any, **options: Any) -> Any:
        asked.extend(concepts)
        phrases = concepts if isinstance(concepts, dict) else {c: [c] for c in concepts}
        found = [(c, y, x) for c in phrases for p in phrases[c] for y, x in PLACES.get(p, [])]
        corners = [[x, y, x + SIDE, y + SIDE] for _, y, x in found]
        ones = np.ones(len(found), np.float32)
        return Instances(
            np.array(corners, np.float32).reshape(-1, 4),
            ones,
            ones,
            [c for c, _, _ in found],
            (48, 64),
            [BitPatch(np.ones((SIDE, SIDE), bool), y, x) for _, y, x in found],
            tuple(concepts),
            dict.fromkeys(concepts, 1.0),
        )

    monkeypatch.setattr(es3.ImageModel, "segment", segment)
    monkeypatch.setattr(es3.ImageModel, "encode", lambda self, image: image)
    return asked
