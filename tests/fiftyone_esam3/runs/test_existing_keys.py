"""Evaluations, brain runs and label schemas that the dataset has are not replaced unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import numpy as np
import pytest

from fiftyone_esam3.runs.annotation import prepare_annotation
from fiftyone_esam3.runs.embed import compute_embeddings
from fiftyone_esam3.runs.evaluate import evaluate
from fiftyone_esam3.runs.steps import RunError, finish

from ..conftest import READABLE


@pytest.fixture
def images(dataset: Any) -> Any:
    """The samples whose images can be read."""
    dataset.delete_samples([dataset.values("id")[i] for i in range(4) if i not in READABLE])
    return dataset


@pytest.mark.slow
def test_an_evaluation_is_replaced_only_explicitly(images: Any) -> None:
    for sample in images:
        for name in ("truth", "found"):
            mask, corners = np.ones((9, 9), bool), [0, 0, 0.5, 0.5]
            box = fo.Detection(label="a", bounding_box=corners, mask=mask, confidence=0.9)
            sample[name] = fo.Detections(detections=[box])
        sample.save()
    finish(evaluate(images, "found", "truth", eval_key="mine"))
    before = images.get_evaluation_info("mine").timestamp
    with pytest.raises(RunError, match=r"there is an evaluation 'mine' already.*'overwrite'"):
        finish(evaluate(images, "found", "truth", eval_key="mine"))
    with pytest.raises(RunError, match="it can be 'refuse', 'overwrite'"):
        finish(evaluate(images, "found", "truth", eval_key="mine", existing="add"))
    assert images.get_evaluation_info("mine").timestamp == before
    finish(evaluate(images, "found", "truth", eval_key="mine", existing="overwrite"))
    assert images.get_evaluation_info("mine").timestamp > before


def test_an_index_is_extended_or_replaced_only_explicitly(images: Any, tiny_folder: Path) -> None:
    options = {"model": str(tiny_folder), "brain_key": "like"}
    finish(compute_embeddings(images[:2], **options))
    with pytest.raises(RunError, match=r"a similarity index 'like' already.*'add' extends"):
        finish(compute_embeddings(images, **options))
    finish(compute_embeddings(images, existing="add", **options))
    assert images.load_brain_results("like").total_index_size == 3
    before = images.get_brain_info("like").timestamp
    finish(compute_embeddings(images, existing="overwrite", **options))
    assert images.get_brain_info("like").timestamp > before


def test_a_visualization_is_never_replaced_by_an_index(images: Any, tiny_folder: Path) -> None:
    points = np.zeros((3, 2))
    fob.compute_visualization(images, points=points, brain_key="map", progress=False)
    for existing in ("refuse", "add", "overwrite"):
        with pytest.raises(RunError, match="'map' names a visualization of this dataset"):
            finish(
                compute_embeddings(
                    images, brain_key="map", model=str(tiny_folder), existing=existing
                )
            )
    assert images.get_brain_info("map").config.type == "visualization"
    assert not images.has_field("esam3_embedding")


def test_vectors_of_people_are_kept(images: Any, tiny_folder: Path) -> None:
    own = np.arange(4.0)
    first = images.first()
    first["vector"] = own
    first.save()
    options = {"model": str(tiny_folder), "embeddings_field": "vector"}
    with pytest.raises(RunError, match="holds vectors that no run of this package computed"):
        finish(compute_embeddings(images, **options))
    summary = finish(compute_embeddings(images, existing="add", **options))
    assert (summary["before"], summary["done"]) == (1, 2)
    np.testing.assert_array_equal(images.first().vector, own)


def test_embedding_boxes_changes_nothing_else_of_them(
    images: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a person changes them while the run is going."""
    options = {"model": str(tiny_folder), "patches_field": "boxes", "embeddings_field": "vector"}
    steps = compute_embeddings(images, **options)
    real = type(images).set_label_values

    def relabel(self: Any, *args: Any, **kwargs: Any) -> None:
        images.set_values("boxes.detections.label", [["x"] * 3] * 3)
        real(self, *args, **kwargs)

    monkeypatch.setattr(type(images), "set_label_values", relabel)
    finish(steps)
    images.reload()
    for sample in images:
        assert [d.label for d in sample.boxes.detections] == ["x"] * 3
        assert all(d.vector.ndim == 1 for d in sample.boxes.detections)


def test_a_label_schema_is_extended_or_replaced_only_explicitly(images: Any) -> None:
    finish(prepare_annotation(images, ["boxes"]))
    schema = images.label_schemas["boxes"]
    schema["classes"] = ["zebra", "cat"]
    schema["attributes"].append({"name": "wild", "type": "bool", "component": "checkbox"})
    images.update_label_schema("boxes", schema, allow_new_attrs=True)
    before = images.label_schemas["boxes"]
    with pytest.raises(RunError, match="a label schema of the field 'boxes' already"):
        finish(prepare_annotation(images, ["boxes"]))
    assert images.label_schemas["boxes"] == before
    finish(prepare_annotation(images, ["boxes"], existing="add"))
    after = images.label_schemas["boxes"]
    assert after["classes"] == ["zebra", "cat", "dog"]
    assert "wild" in {attribute["name"] for attribute in after["attributes"]}
    finish(prepare_annotation(images, ["boxes"], existing="overwrite"))
    assert set(images.label_schemas["boxes"]["classes"]) == {"cat", "dog"}
