"""Embeddings of images and patches, and FiftyOne's brain methods on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fiftyone.brain as fob
import numpy as np
import pytest
from PIL import Image

from efficientsam3 import ImageError

from ..conftest import READABLE, UNREADABLE

Load = Callable[..., Any]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_embeddings_are_the_core_s(dataset: Any, load: Load, num_workers: int) -> None:
    model = load()
    dataset.compute_embeddings(model, embeddings_field="embedding", num_workers=num_workers)
    values = dataset.values("embedding")
    assert values[UNREADABLE] is None
    for i in READABLE:
        np.testing.assert_allclose(
            values[i], model._model.embed(dataset.values("filepath")[i]), rtol=1e-5
        )


def test_an_embedding_needs_no_concepts_and_reads_no_prompts(dataset: Any, load: Load) -> None:
    model = load(operation_mode="visual", prompt_field="words")
    dataset[:1].compute_embeddings(model, embeddings_field="embedding", num_workers=0)
    assert dataset.first().embedding.shape == model._model.embed(dataset.first().filepath).shape


def test_in_memory_a_corrupt_image_is_none(dataset: Any, load: Load) -> None:
    embeddings = dataset.compute_embeddings(load(), num_workers=0)
    assert [e is None for e in embeddings] == [False, False, True, False]


def test_only_the_first_corrupt_image_fails_its_batch(
    dataset: Any, load: Load, photos: list[str]
) -> None:
    for path in (photos[0], photos[3]):  # so the first, third and fourth are corrupt
        with open(path, "wb") as file:
            file.write(b"no image")
    embeddings = dataset.compute_embeddings(load(), batch_size=2, num_workers=0)
    assert [e is None for e in embeddings] == [True] * 4
    embeddings = dataset.skip(1).compute_embeddings(load(), batch_size=1, num_workers=0)
    assert [e is None for e in embeddings] == [False, True, True]
    embeddings = dataset.sort_by("filepath", reverse=True).compute_embeddings(
        load(), batch_size=3, num_workers=0
    )
    assert [e is None for e in embeddings] == [True, True, True, True]


def test_skip_failures_false_raises(dataset: Any, load: Load) -> None:
    with pytest.raises(ImageError, match="cannot be"):
        dataset.compute_embeddings(load(), num_workers=0, skip_failures=False)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_patches_have_embeddings(dataset: Any, load: Load, batch_size: int | None) -> None:
    model = load()
    sample = dataset.first()
    sample.boxes.detections[1].bounding_box = [0.125, 0.25, 0.5, 0.5]  # edges on whole pixels
    sample.save()
    dataset.compute_patch_embeddings(
        model, "boxes", embeddings_field="embedding", batch_size=batch_size, num_workers=0
    )
    boxes = dataset.first().boxes.detections
    crop = Image.open(dataset.first().filepath).crop((8, 12, 40, 36))
    np.testing.assert_allclose(boxes[1].embedding, model._model.embed(crop), atol=1e-4)
    assert "embedding" not in dataset.skip(UNREADABLE).first().boxes.detections[0]


def test_uniqueness(dataset: Any, load: Load) -> None:
    fob.compute_uniqueness(dataset, model=load(), num_workers=0)
    assert [u is None for u in dataset.values("uniqueness")] == [False, False, True, False]


def test_similarity(dataset: Any, load: Load) -> None:
    good = dataset.select([dataset.values("id")[i] for i in READABLE])
    fob.compute_similarity(good, model=load(), brain_key="like", num_workers=0)
    query = good.first().id
    assert good.sort_by_similarity(query, brain_key="like").first().id == query


def test_get_embeddings_gives_the_last_ones(load: Load, photos: list[str]) -> None:
    model = load()
    embeddings = model.embed_all([photos[0], photos[1]])
    assert model.get_embeddings() is embeddings
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(model.embed(photos[1]), embeddings[1])
