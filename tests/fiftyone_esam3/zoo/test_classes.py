"""Classes of several phrases, and suppression across classes, in the zoo's models."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientsam3.errors import ArgumentError
from fiftyone_esam3.ownership.overlap import label_iou
from fiftyone_esam3.runs.segment import segment_concepts
from fiftyone_esam3.runs.steps import finish
from fiftyone_esam3.zoo.source import load_model, parse_parameters

from ..conftest import READABLE

Load = Callable[..., Any]

CLASSES = {"vehicle": ["red car", "bus"], "dog": ["dog"]}


def apply(dataset: Any, model: Any, **kwargs: Any) -> list[Any]:
    options = {"num_workers": 0, "skip_failures": False, "label_field": "esam3"}
    dataset.apply_model(model, **{**options, **kwargs})
    return [sample.esam3 for sample in dataset if sample.esam3 is not None]


def found(labels: Any) -> list[tuple[str, float]]:
    return sorted((d.label, round(d.confidence, 5)) for d in labels.detections)


def test_labels_get_the_class_of_their_phrase(dataset: Any, load: Load) -> None:
    model = load(classes=CLASSES)
    for labels, i in zip(apply(dataset, model), READABLE, strict=True):
        path = dataset.values("filepath")[i]
        expected = model.core.segment(path, CLASSES, threshold=0.0, max_instances=6)
        scores = zip(expected.labels, expected.scores, strict=True)
        assert found(labels) == sorted((name, round(float(s), 5)) for name, s in scores)
        assert set(labels.concept_presence) == {"vehicle", "dog"}


def test_classes_of_apply_model_keep_their_phrases(dataset: Any, load: Load) -> None:
    whole = [found(one) for one in apply(dataset, load(classes={"vehicle": CLASSES["vehicle"]}))]
    model = load(classes=CLASSES, existing="overwrite")
    assert [found(one) for one in apply(dataset, model, classes=["vehicle"])] == whole


def test_phrases_belong_to_the_model(dataset: Any, load: Load) -> None:
    with pytest.raises(ArgumentError, match=r"load_zoo_model\(classes=\{'vehicle'"):
        apply(dataset, load(classes=["dog"]), classes=CLASSES)
    assert not dataset.has_field("esam3")


def test_copies_keep_the_phrases(load: Load, photos: list[str]) -> None:
    model = load(classes=CLASSES)
    copy = pickle.loads(pickle.dumps(model))
    assert found(copy.predict(photos[0])) == found(model.predict(photos[0]))


@pytest.mark.slow
def test_classes_come_from_a_field_of_each_sample(
    dataset: Any, load: Load, tiny_folder: Path
) -> None:
    samples = list(dataset)
    for sample, value in zip(samples, [CLASSES, CLASSES, None, {"cat": None}], strict=True):
        sample["asked"] = value
        sample.save()
    labels = apply(dataset, load(max_instances=None), text_prompt_field="asked")
    assert [set(one.concept_presence) for one in labels] == [set(CLASSES), set(CLASSES), {"cat"}]
    options = {"threshold": 0.0, "device": "cpu", "dtype": "float32"}
    finish(
        segment_concepts(
            dataset, text_field="asked", label_field="again", model=str(tiny_folder), **options
        )
    )
    again = [one for one in dataset.values("again") if one is not None]
    assert [found(one) for one in again] == [found(one) for one in labels]


@pytest.mark.parametrize("fields", [{}, {"prompt_field": "boxes"}])
@pytest.mark.parametrize("metric", ["iou", "iom"])
def test_one_label_for_an_object(
    dataset: Any, load: Load, fields: dict[str, str], metric: str
) -> None:
    """Also where examples find the instances of some of the classes."""
    options = {"classes": ["person", "cat"], "max_instances": None, "nms": 0.2}
    before = apply(dataset, load(**options), **fields)
    options |= {"class_agnostic": True, "overlap_metric": metric}
    after = apply(dataset, load(**options, existing="overwrite"), **fields)
    most = []
    for some, few in zip(before, after, strict=True):
        assert len(few.detections) < len(some.detections)
        overlap = label_iou(few.detections, few.detections)
        np.fill_diagonal(overlap, 0)
        most.append(overlap.max(initial=0))
    assert max(most) <= 0.25  # the model compares masks on a coarse grid


def test_nms_leaves_fewer(dataset: Any, load: Load) -> None:
    counts = []
    for nms in (None, 0.01):
        apply(dataset, load(classes=["bus"], nms=nms, max_instances=None))
        counts.append(dataset.count("esam3.detections"))
    assert 0 < counts[1] < counts[0]


@pytest.mark.parametrize("name", ["tiny", "efficientsam3-video"])
def test_wrong_settings_are_refused(name: str, tiny_folder: Path) -> None:
    folder = str(tiny_folder)
    named = {"variant": folder} if name == "efficientsam3-video" else {}
    for options, message in (
        ({"overlap_metric": "dice"}, "'iou' or 'iom'"),
        ({"class_agnostic": "yes"}, "False or True"),
        ({"classes": {"vehicle": []}}, "name at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(name if named else folder, **named, **options)


def test_values_of_the_form_become_classes() -> None:
    params = {"classes": "dog, cat", "class_phrases": "vehicle: car, bus", "nms": None}
    parse_parameters("any", None, params)
    assert params == {"classes": {"dog": ["dog"], "cat": ["cat"], "vehicle": ["car", "bus"]}}
