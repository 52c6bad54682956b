"""The image model without ``apply_model``: ``predict``, items, and ``predict_interactive``."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import efficientsam3 as es3
from fiftyone_esam3.image_items import ImageGetItem, Item

from ..conftest import UNREADABLE
from .recorder import Recorder

Load = Callable[..., Any]


def test_predict_takes_images_of_any_kind(dataset: Any, load: Load, photos: list[str]) -> None:
    from PIL import Image

    model = load(classes=["bus"])
    image = Image.open(photos[0])
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    results = [model.predict(x) for x in (photos[0], image, array, tensor)]
    scores = [[d.confidence for d in r.detections] for r in results]
    assert scores[0]
    assert all(s == scores[0] for s in scores)
    batch = model.predict_all(torch.stack([tensor, tensor]))
    assert [len(b.detections) for b in batch] == [len(scores[0])] * 2


def test_predict_raises_without_a_sample(load: Load, photos: list[str]) -> None:
    with pytest.raises(es3.ImageError):
        load(classes=["bus"]).predict(photos[UNREADABLE])


def test_predict_reads_prompts_from_a_sample(dataset: Any, load: Load) -> None:
    model = load()
    model.needs_fields = {"text_prompt_field": "words"}
    sample = dataset.first()
    assert {d.label for d in model.predict(sample.filepath, sample).detections} == {"bus"}


def test_items_of_the_get_item_can_be_predicted(dataset: Any, load: Load) -> None:
    import fiftyone.utils.torch as fout

    model = load()
    get_item = model.build_get_item(field_mapping={"text_prompt_field": "words"})
    items = fout.get_model_inputs_from_get_item(dataset, get_item)
    results = model.predict_all(items)
    assert [r is None for r in results] == [False, False, True, False]
    assert {d.label for d in results[0].detections} == {"bus"}


def test_get_item_takes_another_path_field(dataset: Any, photos: list[str]) -> None:
    get_item = ImageGetItem({"filepath": "thumbnail"})
    assert get_item.field_mapping == {"filepath": "thumbnail"}
    assert isinstance(get_item({"filepath": photos[0]}), Item)


def test_items_can_be_pickled(dataset: Any, load: Load, photos: list[str]) -> None:
    """Worker processes receive the items and the function that makes them by pickle."""
    mapping = {"box_prompt_field": "boxes", "point_prompt_field": "clicks"}
    get_item = pickle.loads(pickle.dumps(load().build_get_item(mapping)))
    sample = dataset.first()
    for path in (photos[0], photos[UNREADABLE]):
        values = {"filepath": path, **{k: sample[v] for k, v in mapping.items()}}
        item = get_item(values)
        again = pickle.loads(pickle.dumps(item))
        assert len(again.prompts.boxes) == len(item.prompts.boxes)
        assert str(again.error) == str(item.error)
        assert (again.image is None) == (path == photos[UNREADABLE])


def test_predict_interactive_encodes_an_image_once(dataset: Any, load: Load) -> None:
    model = load()
    model._model = recorder = Recorder(model._model)
    first, second = dataset[:2]
    box = [[5, 5, 30, 30]]
    once = model.predict_interactive(first, boxes=box, prompt_classes=["cat"])
    model.predict_interactive(first, points=[[[10, 10]], [[3, 3], [40, 40]]])
    again = model.predict_interactive(boxes=box, points=[[[10, 10], [1, 1]]], point_labels=[[1, 0]])
    assert len(recorder.calls) == 1
    model.predict_interactive(second, boxes=box)
    assert len(recorder.calls) == 2
    assert once.detections[0].label == "cat"
    assert len(again.detections) == 1


def test_predict_interactive_needs_an_image_first(load: Load) -> None:
    with pytest.raises(es3.PromptError, match="pass a sample first"):
        load().predict_interactive(boxes=[[0, 0, 5, 5]])
