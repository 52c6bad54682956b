"""Models, encoded images, detectors and trackers in other processes and threads."""

from __future__ import annotations

import copy
import multiprocessing as mp
import os
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import efficientsam3 as es3
from efficientsam3.config import tiny_config
from efficientsam3.types import Instances
from efficientsam3.video.concept_tracker import ConceptTracker
from efficientsam3.video.frame_cache import FrameCache

from ..conftest import tiny_model
from .predictor.conftest import same

Pixels = npt.NDArray[np.uint8]
WORDS = ["dog", "bus"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model().save(path)
    return path


@pytest.fixture(scope="module")
def saved(folder: Path) -> es3.ImageModel:
    return es3.load(folder, device="cpu", dtype="float32")


def ask(model: es3.ImageModel, image: Any) -> Instances:
    return model.segment(image, WORDS, threshold=0.0)


def ask_on_one_thread(model: es3.ImageModel, image: Any) -> Instances:
    torch.set_num_threads(1)
    return ask(model, image)


# Pickles and copies ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_of_files_pickles_as_their_names(saved: es3.ImageModel, photo: Pixels) -> None:
    data = pickle.dumps(saved)
    assert len(data) < 5000, "the weights are not in it"
    other = pickle.loads(data)
    assert other is not saved and (other.name, other.speed) == (saved.name, saved.speed)
    assert (other.device, other.dtype, other.key) == (saved.device, saved.dtype, saved.key)
    same(ask(other, photo), ask(saved, photo))
    same(ask(pickle.loads(pickle.dumps(other)), photo), ask(saved, photo))


def test_a_model_without_files_pickles_its_weights(tiny: es3.ImageModel, photo: Pixels) -> None:
    other = pickle.loads(pickle.dumps(tiny))
    same(ask(other, photo), ask(tiny, photo))
    fresh = es3.ImageModel.from_config(tiny_config(), device="cpu", dtype="float32")
    same(ask(pickle.loads(pickle.dumps(fresh)), photo), ask(fresh, photo))


def test_files_that_changed_are_not_read_by_a_copy(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    data = pickle.dumps(es3.load(path, device="cpu"))
    os.utime(path / "model.safetensors", ns=(1, 1))
    with pytest.raises(es3.CheckpointError, match="has changed since the model was loaded"):
        pickle.loads(data)


@pytest.mark.slow
def test_a_relative_folder_is_found_from_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    data = pickle.dumps(es3.load("tiny", device="cpu"))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(data).name == "tiny"


@pytest.mark.parametrize("of_files", [True, False])
def test_deep_copies(
    saved: es3.ImageModel, tiny: es3.ImageModel, photo: Pixels, of_files: bool
) -> None:
    model = saved if of_files else tiny
    other = copy.deepcopy(model)
    assert other is not model and other.net is not model.net
    same(ask(other, photo), ask(model, photo))


def test_an_encoded_image_is_read_by_copies_of_its_model(
    saved: es3.ImageModel, tiny: es3.ImageModel, photo: Pixels
) -> None:
    encoded = saved.encode(photo)
    expected = ask(saved, encoded)
    other = pickle.loads(pickle.dumps(saved))
    moved = pickle.loads(pickle.dumps(encoded))
    assert moved.owner is None and len(pickle.dumps(encoded)) < 2_000_000
    for model in (saved, other):
        for image in (encoded, moved, copy.deepcopy(encoded), copy.copy(encoded)):
            same(ask(model, image), expected)
    points = moved.size[1] / 2, moved.size[0] / 2
    clicked = saved.segment(encoded, points=[points])
    same(other.segment(moved, points=[points]), clicked)
    with pytest.raises(es3.PromptError, match="encoded by a model of another process"):
        ask(tiny, moved)
    with pytest.raises(es3.PromptError, match="other weights or settings"):
        ask(tiny, encoded)


def test_instances_and_trackers_pickle_in_mid_stream(tiny: es3.ImageModel, photo: Pixels) -> None:
    found = ask(tiny, photo)
    same(pickle.loads(pickle.dumps(found)), found)
    settings = es3.TrackSettings(hotstart_delay=0, detection_threshold=0.2)
    for kind in ("iou", "memory"):
        tracker = ConceptTracker(tiny, WORDS, tracker=kind, settings=settings)
        tracker.step(photo)
        other = pickle.loads(pickle.dumps(tracker))
        (expected,), (continued,) = tracker.step(photo[:, ::-1]), other.step(photo[:, ::-1])
        same(continued.instances, expected.instances)
        assert np.array_equal(continued.instances.track_ids, expected.instances.track_ids)


# Processes ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_pools(saved: es3.ImageModel, photo: Pixels, start: str) -> None:
    images = [photo, photo[:, ::-1].copy(), photo[::-1].copy()]
    context = mp.get_context(start)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = [pool.submit(ask_on_one_thread, saved, image) for image in images]
        for image, one in zip(images, found, strict=True):
            same(one.result(timeout=300), ask(saved, image))
        encoded = saved.encode(photo)
        same(pool.submit(ask_on_one_thread, saved, encoded).result(300), ask(saved, photo))


class Segmented(torch.utils.data.Dataset[Any]):
    """Images that a worker of a data loader segments."""

    def __init__(self, model: es3.ImageModel, images: list[Pixels]) -> None:
        self.model, self.images = model, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Instances:
        return ask(self.model, self.images[index])


def first(batch: list[Instances]) -> Instances:
    return batch[0]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_data_loaders(saved: es3.ImageModel, photo: Pixels, start: str) -> None:
    images = [photo, photo[:, ::-1].copy()]
    loader = torch.utils.data.DataLoader(
        Segmented(saved, images),
        num_workers=1,
        collate_fn=first,
        multiprocessing_context=start,
        timeout=300,
    )
    for image, found in zip(images, loader, strict=True):
        same(found, ask(saved, image))


@pytest.mark.slow
def test_joblib(saved: es3.ImageModel, photo: Pixels) -> None:
    joblib = pytest.importorskip("joblib")
    (found,) = joblib.Parallel(2)([joblib.delayed(ask_on_one_thread)(saved, photo)])
    same(found, ask(saved, photo))


# Threads --------------------------------------------------------------------------------------


def stress(model: es3.ImageModel, photo: Pixels, seconds: float, size: int) -> int:
    """Ask from 16 threads with a text cache that is full; gives the number of answers."""
    words = [f"thing {i}" for i in range(2 * size)]
    encoded = model.encode(photo)
    expected = {w: model.segment(encoded, w, threshold=0.2).scores for w in words}
    stop = threading.Event()

    def work(seed: int) -> int:
        rng, count = np.random.default_rng(seed), 0
        while not stop.is_set():
            word = words[rng.integers(len(words))]
            found = model.segment(encoded, word, threshold=0.2)
            np.testing.assert_allclose(found.scores, expected[word], atol=1e-6)
            count += 1
        return count

    with ThreadPoolExecutor(16) as pool:
        working = [pool.submit(work, seed) for seed in range(16)]
        stop.wait(seconds)
        stop.set()
        counts = [one.result(60) for one in working]
    assert len(model._texts) <= size
    return sum(counts)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.long)])
def test_threads_with_a_full_cache(tiny: es3.ImageModel, photo: Pixels, seconds: int) -> None:
    model = pickle.loads(pickle.dumps(tiny))
    model._texts.size = 5
    assert stress(model, photo, seconds, 5) > 16


def test_threads_with_one_new_encoded_image(tiny: es3.ImageModel, photo: Pixels) -> None:
    """What is computed when it is first needed is the same for all that need it at once."""
    model = pickle.loads(pickle.dumps(tiny))
    encoded = model.encode(photo)
    expected = ask(tiny, photo)
    clicked = tiny.segment(photo, points=[[20, 20]])
    barrier = threading.Barrier(8)

    def work(number: int) -> tuple[Instances, Instances]:
        barrier.wait(60)
        return ask(model, encoded), model.segment(encoded, points=[[20, 20]])

    with ThreadPoolExecutor(8) as pool:
        for found, click in pool.map(work, range(8)):
            same(found, expected)
            same(click, clicked)


def test_threads_share_a_frame_cache() -> None:
    frames = np.zeros((12, 4, 5, 3), np.uint8) + np.arange(12, dtype=np.uint8)[:, None, None, None]
    cache = FrameCache(frames, max_frames=3)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for index in rng.integers(0, 12, 40).tolist():
            assert cache.get(index).image[0, 0, 0] == index

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
