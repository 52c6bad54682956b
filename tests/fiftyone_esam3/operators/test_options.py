"""Options of the operators for labels that are there, classes, selections, and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import pytest
from fiftyone.operators.executor import ExecutionContext, ExecutionError, Executor
from fiftyone.operators.registry import OperatorRegistry

from efficientsam3.errors import EfficientSam3Error
from fiftyone_esam3.operators.form import CLASSES
from fiftyone_esam3.plugin import PLUGIN

from .calls import Run, everything, resolve_form


def test_classes_of_several_phrases_are_typed_in_the_form(dataset: Any, run: Run) -> None:
    classes = "vehicle: truck, red car; pet: dog"
    summary = run("segment_concepts", **everything(class_phrases=classes, max_instances=None))
    assert set(summary["instances"]) == {"person", "bus", "vehicle", "pet"}
    presence = dataset.first().esam3.concept_presence
    assert set(presence) == {"person", "bus", "vehicle", "pet"}
    with pytest.raises(ExecutionError, match="'vehicle' is no class with phrases"):
        run("segment_concepts", **everything(class_phrases="vehicle; pet: dog"))


def test_the_form_offers_the_classes_of_a_label_schema(dataset: Any) -> None:
    dataset.set_label_schemas(dataset.generate_label_schemas())
    schema = dataset.label_schemas["boxes"]
    dataset.update_label_schema("boxes", {**schema, "classes": ["zebra"]})
    properties = resolve_form(dataset, "segment_concepts").type.properties
    assert "zebra" in [c.value for c in properties[CLASSES].view.choices]


def test_the_sidebar_can_filter_by_presence(dataset: Any, run: Run) -> None:
    run("segment_concepts", **everything(concepts=["a.b", "a_b"]))
    dataset.reload()
    schema = dataset.get_field_schema(flat=True)
    assert isinstance(schema["esam3.detections.presence"], fo.FloatField)
    assert isinstance(schema["esam3.concept_presence"], fo.DictField)
    assert set(dataset.first().esam3.concept_presence) == {"a%2Eb", "a_b"}
    assert dataset.count("esam3.concept_presence.a%2Eb") == 3


@pytest.mark.slow
def test_selected_labels_and_patches_are_prompts(dataset: Any, run: Run) -> None:
    first = dataset.first()
    chosen = [
        {"sample_id": first.id, "field": "boxes", "label_id": label.id}
        for label in first.boxes.detections[:2]
    ]
    run(
        "segment_prompts", prompt_field="boxes", only_selected=True, ctx={"selected_labels": chosen}
    )
    found = dataset.first().boxes_masks.detections
    assert len(found) == 2 and dataset.last().boxes_masks is None
    patches = dataset.to_patches("boxes").match(fo.ViewField("boxes.label") == "cat")
    summary = run("segment_prompts", target=patches, prompt_field="boxes", label_field="cats")
    assert set(summary["instances"]) == {"cat"}
    similar = run(
        "find_similar",
        target=dataset.to_patches("boxes"),
        ctx={"selected": [dataset.first().boxes.detections[0].id]},
        threshold=0.0,
    )
    assert similar["examples"] == 1 and set(similar["instances"]) == {"cat"}


def test_a_run_is_undone_by_its_operator(dataset: Any, run: Run) -> None:
    run("segment_concepts", **everything())
    count = dataset.count("esam3.detections")
    result = foo.execute_operator(f"{PLUGIN}/undo_run", ctx={"view": dataset.view()}).result
    assert result["removed"] == count > 0
    assert f"{count} labels of the run are removed from esam3" in result["message"]
    dataset.reload()
    assert dataset.count("esam3.detections") == 0
    with pytest.raises(ExecutionError, match="no run"):
        foo.execute_operator(f"{PLUGIN}/undo_run", ctx={"view": dataset.view()})
    with pytest.raises(ExecutionError, match="no run is writing to this dataset"):
        foo.execute_operator(f"{PLUGIN}/cancel_runs", ctx={"view": dataset.view()})


def test_people_s_labels_are_refused_in_the_form_s_terms(dataset: Any, run: Run) -> None:
    with pytest.raises(ExecutionError, match="'boxes' holds 12 labels in 4 samples that people"):
        run("segment_concepts", **everything(label_field="boxes"))
    summary = run("segment_concepts", **everything(label_field="boxes", existing="add"))
    assert summary["kept"] == 9 and "9 labels of people were kept" in summary["message"]
    ways = resolve_form(dataset, "segment_concepts").type.properties["existing"].view.choices
    assert [way.value for way in ways] == ["refuse", "add", "replace", "overwrite"]
    assert "overlap" in resolve_form(dataset, "segment_concepts", existing="add").type.properties


def execute_unchecked(dataset: Any, name: str, **params: Any) -> dict[str, Any]:
    """Execute an operator without FiftyOne's own check of the form."""
    operator = OperatorRegistry().get_operator(f"{PLUGIN}/{name}")
    request = {"dataset_name": dataset.name, "view": [], "params": params}
    return dict(operator.execute(ExecutionContext(request, Executor())))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("segment_concepts", {"concepts": 5}, "concepts is a text or a list of texts; got 5"),
        ("segment_concepts", {"concepts": "cat", "text_field": ["a"]}, "text_field is a text"),
        ("segment_concepts", {"concepts": "cat", "restart": 1}, "restart is true or false; got 1"),
        ("segment_concepts", {"concepts": "cat", "num_workers": -1}, "num_workers is a number of"),
        ("compute_embeddings", {"embeddings_field": {"a": 1}}, "embeddings_field is a text"),
        ("compute_embeddings", {"num_workers": -1}, "num_workers is a number of"),
        ("find_similar", {"selected": [{"a": 1}]}, "each with the texts sample_id, field and"),
        ("evaluate", {"field": "boxes"}, "truth is empty: fill in this field of the form"),
        ("segment_prompts", {}, "prompt_field is empty"),
        ("track_objects", {"frame_numbers": 5}, "frame_numbers is a text or a list"),
        ("track_objects", {"frame_numbers": [0], "prompt_field": "boxes"}, "frames are whole"),
        ("prepare_annotation", {"fields": ["filepath"]}, "holds StringField; Label is needed"),
        ("prepare_annotation", {"fields": ["boxes", "clicks"]}, "Annotate does not edit Keypoints"),
    ],
)
def test_values_of_wrong_types_are_named(
    dataset: Any, tiny_folder: Path, name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(EfficientSam3Error) as caught:
        execute_unchecked(dataset, name, model=str(tiny_folder), **params)
    assert message in str(caught.value)
    assert "the log has the details" not in str(caught.value)
    fields = resolve_form(dataset, name, **params).type.properties
    shown = [field.error_message for field in fields.values() if field.invalid]
    assert not any("the log has the details" in str(error) for error in shown)
    assert "boxes" not in dataset.label_schemas


def test_a_text_of_phrases_is_split_at_commas_and_not_into_letters(
    dataset: Any, tiny_folder: Path
) -> None:
    params = everything(concepts="person, bus", model=str(tiny_folder))
    execute_unchecked(dataset, "segment_concepts", **params)
    assert set(dataset.first().esam3.concept_presence) == {"person", "bus"}


def test_the_form_for_videos_opens_on_images(dataset: Any) -> None:
    form = resolve_form(dataset, "track_objects", prompt_field="boxes", label_field="a")
    assert "this needs video" in form.type.properties["refused"].error_message


def test_a_run_is_undone_though_its_field_was_deleted(dataset: Any, run: Run) -> None:
    key = run("segment_concepts", **everything())["run_key"]
    dataset.delete_sample_field("esam3")
    summary = run("undo_run", run_key=key)
    assert summary["removed"] == 0 and key not in dataset.list_runs()
