"""Zoo models in other processes."""

from __future__ import annotations

import copy
import multiprocessing as mp
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fiftyone_esam3 import load_model


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    return load_model(str(tiny_folder), classes=["dog"], threshold=0.0, device="cpu")


def labels(model: Any, image: Any) -> list[tuple[str, float]]:
    return [(d.label, d.confidence) for d in model.predict(image).detections]


def test_a_zoo_model_pickles_as_its_arguments(model: Any) -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    expected = labels(model, image)
    data = pickle.dumps(model)
    assert len(data) < 20_000
    other = pickle.loads(data)
    assert other.config.classes == ["dog"] and other.operation_mode == "concept"
    assert labels(other, image) == labels(copy.deepcopy(model), image) == expected
    assert other.core is model.core, "one process has one copy of the weights"


@pytest.mark.slow
def test_a_zoo_model_in_a_spawned_process(model: Any) -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    with mp.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(labels, (model, image)).get(300)
    expected = labels(model, image)
    assert [name for name, _ in found] == [name for name, _ in expected]
    scores = [[score for _, score in each] for each in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
