"""The parts of forms: what they offer, and what becomes of what is typed."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import fiftyone as fo
import pytest
from fiftyone.operators import types

from efficientsam3.video.settings import TrackSettings
from fiftyone_esam3.operators.form import CLASS_PHRASES, CLASSES
from fiftyone_esam3.operators.models import describe_model
from fiftyone_esam3.operators.texts import split_phrases
from fiftyone_esam3.plugin import OPERATORS
from fiftyone_esam3.runs import run as runs
from fiftyone_esam3.tracking import make_settings

from .calls import Run, everything, resolve_form


def test_the_form_offers_classes_fields_and_models(dataset: Any) -> None:
    properties = resolve_form(dataset, "segment_concepts").type.properties
    offered = [c.value for c in properties[CLASSES].view.choices]
    assert {"cat", "dog", "street"} <= set(offered)
    assert {"words", "scene"} <= {c.value for c in properties["text_field"].view.choices}
    labels = [c.label for c in properties["model"].view.choices]
    assert any("M parameters" in label and "is downloaded first" in label for label in labels)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.NAME)
def test_no_form_takes_a_suggestion_that_was_not_chosen(dataset: Any, operator: Any) -> None:
    """By default the App puts the first suggestion in place of what is typed before Enter."""
    for name, field in resolve_form(dataset, operator.NAME).type.properties.items():
        if isinstance(field.view, types.AutocompleteView):
            props = field.view.to_json()["componentsProps"]["autocomplete"]
            assert props["autoHighlight"] is False, name
            if field.view.choices:  # else a suggestion under the pointer would be taken
                assert "autoSelect" not in props, name


def test_classes_of_the_dataset_are_searched_for_beside_the_phrases(dataset: Any, run: Run) -> None:
    run("segment_concepts", **everything(concepts=["person, bus"], dataset_classes=["dog"]))
    assert set(dataset.first().esam3.concept_presence) == {"person", "bus", "dog"}
    run("segment_concepts", **everything(concepts=[], dataset_classes=["street"], label_field="f"))
    assert set(dataset.first().f.concept_presence) == {"street"}


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.NAME)
def test_fields_of_a_form_are_arguments_of_the_run(dataset: Any, operator: Any) -> None:
    """Fields with a value; others are notices and the choice of samples."""
    arguments = inspect.signature(operator.RUN).parameters
    shown = resolve_form(dataset, operator.NAME).type.properties
    views = {"view_target", "examples", "refused", "none", CLASSES, CLASS_PHRASES, "only_selected"}
    assert set(shown) - views <= set(arguments)


@pytest.mark.parametrize(("model", "score"), [("sam3-3.1", 0.4), ("sam3", 0.5), ("folder", 0.5)])
def test_tracks_begin_with_the_threshold_of_the_release(model: str, score: float) -> None:
    videos = fo.Dataset()
    videos.add_sample(fo.Sample(filepath="a.mp4"))
    try:
        form = resolve_form(videos, "track_video", model=model)
        assert form.type.properties["threshold"].default == score
    finally:
        videos.delete()
    released = SimpleNamespace(config=SimpleNamespace(multiplexed=model == "sam3-3.1"))
    settings = make_settings(None, model=released)
    assert settings.detection_threshold == settings.iou.new_track_threshold == score


def test_a_threshold_changes_no_other_setting_of_the_model() -> None:
    late = SimpleNamespace(config=SimpleNamespace(multiplexed=False, late=object()))
    usual, settings = TrackSettings.of(late), make_settings(0.3, model=late)
    assert settings.iou == replace(usual.iou, new_track_threshold=0.3)
    assert replace(settings, detection_threshold=usual.detection_threshold, iou=usual.iou) == usual


def test_phrases_are_split_at_commas() -> None:
    assert split_phrases(["a, b", " c ,,"]) == ["a", "b", "c"]


def test_the_form_shows_the_measured_speed_of_a_model() -> None:
    name = "efficientsam3-tinyvit-11m"
    runs.remember_speed({"model": name, "done": 10, "seconds": 25.0})
    assert "2.5 s an image here" in describe_model(name, True)
    assert "here" not in describe_model(name, False)
