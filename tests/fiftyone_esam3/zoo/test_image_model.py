"""``apply_model`` with the image model: prompts from fields, labels in the database."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
import torch
from fiftyone import ViewField as F

import efficientsam3 as es3
from fiftyone_esam3.labels import ERROR_FIELD

from ..conftest import READABLE, UNREADABLE
from .recorder import Recorder

Load = Callable[..., Any]


def labels(dataset: Any, field: str = "esam3") -> list[list[str] | None]:
    """The classes found in each sample."""
    return [s[field] and [d.label for d in s[field].detections] for s in dataset]


def apply(dataset: Any, model: Any, **kwargs: Any) -> list[list[str] | None]:
    options = {"num_workers": 0, "skip_failures": False, "label_field": "esam3"}
    dataset.apply_model(model, **{**options, **kwargs})
    return labels(dataset, kwargs.get("label_field", "esam3"))


def test_labels_are_what_the_core_finds(dataset: Any, load: Load) -> None:
    model = load(classes=["person", "bus"])
    apply(dataset, model)
    core = model._model
    sample = dataset.first()
    found = core.segment(sample.filepath, ["person", "bus"], threshold=0.0, max_instances=6)
    width, height = 64, 48
    drawn = [i for i in range(len(found)) if found.mask(i).any()]
    assert len(drawn) == len(sample.esam3.detections) > 0
    for i, detection in zip(drawn, sample.esam3.detections, strict=True):
        x, y, w, h = np.array(detection.bounding_box) * [width, height, width, height]
        mask = np.zeros((height, width), bool)
        mask[round(y) : round(y + h), round(x) : round(x + w)] = detection.mask
        np.testing.assert_array_equal(mask, found.mask(i))
        assert detection.label == found.labels[i]
        assert detection.confidence == pytest.approx(found.scores[i])
        assert detection.presence == pytest.approx(found.presence[i])
    presence = dataset.first().esam3.concept_presence
    assert presence == pytest.approx(found.concept_presence)


@pytest.mark.parametrize("skip_failures", [True, False])
@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (3, 0), (1, 2), (3, 2)])
def test_a_corrupt_image_fails_alone_and_is_recorded(
    dataset: Any, load: Load, batch_size: int, num_workers: int, skip_failures: bool
) -> None:
    found = apply(
        dataset,
        load(classes=["bus"]),
        batch_size=batch_size,
        num_workers=num_workers,
        skip_failures=skip_failures,
    )
    assert [bool(f) for f in found] == [True, True, False, True]
    failed = dataset.exists(ERROR_FIELD)
    assert failed.values("filepath") == [dataset.values("filepath")[UNREADABLE]]
    assert "cannot be" in failed.first()[ERROR_FIELD]
    assert failed.first().esam3 is None


def test_the_field_of_errors_is_made_when_all_batches_are_written(
    dataset: Any, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new field fails the thread in which FiftyOne writes, where a person holds samples."""
    from fiftyone.core.collections import SaveContext

    model, seen = load(classes=["bus"]), []
    write = SaveContext._do_save_batch

    def written(self: Any) -> None:
        seen.append(dataset.has_sample_field(ERROR_FIELD))
        write(self)

    monkeypatch.setattr(SaveContext, "_do_save_batch", written)
    held = list(dataset)
    apply(dataset, model)
    assert seen and not any(seen)
    assert [bool(sample[ERROR_FIELD]) for sample in held] == [False, False, True, False]


def test_the_error_is_cleared_when_the_image_is_repaired(
    dataset: Any, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(classes=["bus"])
    apply(dataset, model)
    assert "1 images had errors" in caplog.text
    paths = dataset.values("filepath")
    with open(paths[0], "rb") as good, open(paths[UNREADABLE], "wb") as bad:
        bad.write(good.read())
    caplog.clear()
    apply(dataset.exists(ERROR_FIELD), model)
    assert len(dataset.exists(ERROR_FIELD)) == 0
    assert len(dataset.exists("esam3")) == 4
    assert not caplog.records


def test_batches_of_any_size_give_the_same_labels(dataset: Any, load: Load) -> None:
    model = load(classes=["person", "bus"])
    runs = []
    for batch_size in (1, 3):
        apply(dataset, model, batch_size=batch_size)
        runs.append(dataset.exists("esam3").values("esam3.detections.confidence"))
    for one, together in zip(*runs, strict=True):
        assert one == pytest.approx(together, abs=1e-5)
    for found in labels(dataset):
        assert found is None or found == sorted(found, key=["person", "bus"].index)


# Concepts -----------------------------------------------------------------------------------


def test_concepts_come_from_a_field_of_each_sample(dataset: Any, load: Load) -> None:
    found = apply(dataset, load(), text_prompt_field="words")
    assert set(found[0]) == {"bus"}
    assert set(found[1]) <= {"red car", "dog"}
    assert set(dataset.values("esam3.concept_presence")[1]) == {"red car", "dog"}
    assert found[3] == []


def test_class_names_of_labels_can_be_concepts(dataset: Any, load: Load) -> None:
    assert set(apply(dataset, load(), text_prompt_field="scene")[0]) == {"street"}


def test_prompt_fields_can_be_named_when_loading(dataset: Any, load: Load) -> None:
    assert set(apply(dataset, load(text_prompt_field="words"))[0]) == {"bus"}


def test_a_sample_s_concepts_replace_those_of_the_model(dataset: Any, load: Load) -> None:
    found = apply(dataset, load(classes=["person"]), text_prompt_field="words")
    assert set(found[0]) == {"bus"}


@pytest.mark.parametrize(
    ("loaded", "requested", "concepts"),
    [
        (None, ["dog", "cat"], ["cat", "dog"]),
        (["person", "bus", "dog"], ["dog", "bus"], ["bus", "dog"]),
        (["person"], ["zebra"], ["zebra"]),
    ],
)
def test_classes_of_apply_model_are_searched_for(
    dataset: Any, load: Load, loaded: Any, requested: list[str], concepts: list[str]
) -> None:
    model = load(classes=loaded)
    apply(dataset, model, classes=requested)
    assert list(dataset.first().esam3.concept_presence) == concepts
    assert model.config.filter_classes is None


def test_classes_of_apply_model_filter_a_sample_s_concepts(dataset: Any, load: Load) -> None:
    found = apply(dataset, load(), text_prompt_field="words", classes=["dog", "bus"])
    assert set(found[0]) == {"bus"}
    assert set(found[1]) == {"dog"}


def test_presence_ranks_samples(dataset: Any, load: Load) -> None:
    apply(dataset, load(classes=["bus"]))
    ranked = dataset.exists("esam3").sort_by("esam3.concept_presence.bus", reverse=True)
    presence = [s.esam3.concept_presence["bus"] for s in ranked]
    assert presence == sorted(presence, reverse=True)
    assert len(dataset.match(F("esam3.concept_presence.bus") > 0)) == 3


# Limits -------------------------------------------------------------------------------------


def test_confidence_thresh_replaces_threshold(dataset: Any, load: Load) -> None:
    apply(dataset, load(classes=["bus"], threshold=0.999))
    assert dataset.count("esam3.detections") == 0
    apply(dataset, load(classes=["bus"], threshold=0.999), confidence_thresh=0.0)
    scores = [c for s in dataset.exists("esam3").values("esam3.detections.confidence") for c in s]
    middle = float(np.median(scores))
    apply(dataset, load(classes=["bus"], confidence_thresh=middle))
    kept = [c for s in dataset.exists("esam3").values("esam3.detections.confidence") for c in s]
    assert 0 < len(kept) < len(scores)
    assert min(kept) > middle


@pytest.mark.parametrize("fields", [{}, {"prompt_field": "boxes"}])
def test_max_instances_counts_all_concepts_and_examples(
    dataset: Any, load: Load, fields: dict[str, str]
) -> None:
    """Without the limit, each readable image has more instances than it allows."""
    all_labels = apply(dataset, load(classes=["person", "bus"], max_instances=None), **fields)
    limited = apply(dataset, load(classes=["person", "bus"], max_instances=2), **fields)
    assert [i for i, found in enumerate(limited) if found is not None] == READABLE
    for i in READABLE:
        assert len(all_labels[i]) > 2 and len(limited[i]) == 2
        assert not Counter(limited[i]) - Counter(all_labels[i])


# Examples and single objects ----------------------------------------------------------------


@pytest.mark.slow
def test_tiles_are_read_as_the_core_reads_them(dataset: Any, load: Load) -> None:
    model = load(classes=["bus"], tile=32, max_instances=None)
    apply(dataset, model)
    sample = dataset.first()
    found = model.core.segment(sample.filepath, ["bus"], threshold=0.0, tile=32)
    plain = model.core.segment(sample.filepath, ["bus"], threshold=0.0)
    drawn = sum(bool(found.mask(i).any()) for i in range(len(found)))
    assert len(sample.esam3.detections) == drawn > 0
    assert found.rles != plain.rles
    with pytest.raises(es3.PromptError, match="at least 32 pixels; got 4"):
        load(classes=["bus"], tile=4)


def test_a_concept_is_searched_for_with_its_examples(dataset: Any, load: Load) -> None:
    model = load(classes=["person", "cat"])
    model._model = recorder = Recorder(model._model)
    found = apply(dataset[:1], model, box_prompt_field="boxes")
    encode, words, cat, dog = recorder.calls
    assert encode[0] == "encode"
    assert words[0] == ["person"]
    assert cat[0] == ["cat"]
    np.testing.assert_allclose(cat[1]["boxes"], [[6.4, 4.8, 32, 28.8]], rtol=1e-5)
    assert dog[0] == ["visual"]  # not one of the concepts, so only its examples define it
    assert dog[1]["box_labels"].tolist() == [0, 1]
    assert found[0] == sorted(found[0], key=["person", "cat", "dog"].index)
    assert list(dataset.first().esam3.concept_presence) == ["person", "cat", "dog"]


def test_examples_need_no_concepts(dataset: Any, load: Load) -> None:
    apply(dataset, load(), prompt_field="boxes")
    assert set(dataset.first().esam3.concept_presence) == {"cat", "dog"}


def test_clicks_are_examples_in_concept_mode(dataset: Any, load: Load) -> None:
    apply(dataset, load(), point_prompt_field="clicks")
    assert set(dataset.first().esam3.concept_presence) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"prompt_field": "boxes"}, ["cat", "dog", "dog"]),
        ({"box_prompt_field": "boxes"}, ["cat", "dog", "dog"]),
        ({"prompt_field": "clicks"}, ["a", "b", "c"]),
        ({"point_prompt_field": "clicks"}, ["a", "b", "c"]),
        ({"box_prompt_field": "boxes", "point_prompt_field": "clicks"}, ["cat", "dog", "dog"]),
    ],
)
def test_visual_mode_gives_one_object_a_prompt(
    dataset: Any, load: Load, fields: dict[str, str], found: list[str]
) -> None:
    model = load(operation_mode="visual")
    results = apply(dataset, model, **fields)
    assert results[UNREADABLE] is None
    assert results[0] == found


def test_visual_mode_uses_the_interactive_head(dataset: Any, load: Load) -> None:
    model = load()
    model.operation_mode = "visual"
    apply(dataset, model, box_prompt_field="boxes")
    core = model._model
    sample = dataset.first()
    corners = [[6.4, 4.8, 32, 28.8], [32, 24, 57.6, 43.2], [12.8, 14.4, 38.4, 33.6]]
    expected = core.segment_objects(sample.filepath, boxes=corners)
    scores = [d.confidence for d in sample.esam3.detections]
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-4)


def test_points_mask_index_chooses_by_area(dataset: Any, load: Load) -> None:
    areas = []
    for index in (0, 1, 2):
        model = load(operation_mode="visual", points_mask_index=index)
        apply(dataset[:1], model, point_prompt_field="clicks")
        areas.append([d.mask.sum() for d in dataset.first().esam3.detections])
    assert len({len(a) for a in areas}) == 1
    assert all(a <= b <= c for a, b, c in zip(*areas, strict=True))


def test_classes_and_confidence_filter_in_visual_mode(dataset: Any, load: Load) -> None:
    model = load(operation_mode="visual")
    assert apply(dataset, model, prompt_field="boxes", classes=["dog"])[0] == ["dog", "dog"]
    assert apply(dataset, model, prompt_field="boxes", confidence_thresh=1.0)[0] == []


def test_a_bad_prompt_does_not_affect_other_images(dataset: Any, load: Load) -> None:
    sample = dataset.first()
    sample.clicks.keypoints[1].sam_labels = [1]
    sample.save()
    other = dataset.skip(1).first()
    other.boxes.detections[0].bounding_box = [0.5, 0.5, 0, 0.1]
    other.save()
    model = load(operation_mode="visual")
    found = apply(dataset, model, prompt_field="clicks", batch_size=4)
    assert [bool(f) for f in found] == [False, True, False, True]
    assert "3 points and 1 sam_labels" in dataset.first()[ERROR_FIELD]
    found = apply(dataset, model, prompt_field="boxes", label_field="more", batch_size=4)
    assert [f and len(f) for f in found] == [3, 2, None, 3]
    assert "no area in the image" in dataset.values(ERROR_FIELD)[1]
    assert dataset.first()[ERROR_FIELD] is None


def test_boxes_and_keypoints_must_be_equally_many(dataset: Any, load: Load) -> None:
    sample = dataset.first()
    sample.clicks.keypoints.pop()
    sample.save()
    fields = {"box_prompt_field": "boxes", "point_prompt_field": "clicks"}
    apply(dataset, load(operation_mode="visual"), **fields)
    assert "3 boxes and 2 keypoints" in dataset.first()[ERROR_FIELD]


# Errors before any work -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loaded", "applied", "message"),
    [
        ({}, {}, "nothing to look for"),
        ({"operation_mode": "visual"}, {"classes": ["a"]}, "no field holds boxes or points"),
        ({"classes": ["a"]}, {"txt_field": "words"}, r"unknown arguments \['txt_field'\]"),
        ({"classes": ["a"]}, {"prompt_field": "boxs"}, "no field 'boxs'"),
        ({"classes": ["a"]}, {"confidence_thresh": 50}, "threshold is between 0 and 1; got 50.0"),
        ({"clases": ["a"]}, {}, r"unknown arguments \['clases'\]; known are classes"),
        ({"classes": ["a", " "]}, {}, "a concept is a phrase"),
        ({"operation_mode": "auto"}, {}, "'concept' or 'visual'"),
        ({"classes": ["a"], "threshold": "high"}, {}, "threshold is 'high', a str"),
        ({"points_mask_index": 3}, {}, "it can be 0, 1 or 2"),
    ],
)
def test_errors_of_the_request_are_not_skipped(
    dataset: Any, load: Load, loaded: Any, applied: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataset.apply_model(load(**loaded), label_field="esam3", num_workers=0, **applied)


def test_a_missing_ability_is_not_skipped(
    dataset: Any, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(operation_mode="visual")
    config = dataclasses.replace(model._model.config, parts=("masks",))
    monkeypatch.setattr(model._model, "config", config)
    monkeypatch.setattr(model._model, "abilities", config.abilities)
    with pytest.raises(es3.MissingAbilityError, match=r"cannot do this.*It can: masks"):
        dataset.apply_model(model, label_field="esam3", prompt_field="boxes")
    model.operation_mode = "concept"
    with pytest.raises(es3.MissingAbilityError, match="cannot do this"):
        dataset.apply_model(model, label_field="esam3", prompt_field="boxes")


def test_fields_of_apply_model_do_not_stay(dataset: Any, load: Load) -> None:
    model = load(classes=["bus"])
    apply(dataset, model, text_prompt_field="words")
    assert model.needs_fields == {}
    dataset.delete_sample_field("esam3")
    assert set(apply(dataset, model)[1]) == {"bus"}


def test_masks_can_be_written_to_files(dataset: Any, load: Load, tmp_path: Path) -> None:
    apply(dataset, load(classes=["bus"], max_instances=1), output_dir=str(tmp_path / "masks"))
    detection = dataset.first().esam3.detections[0]
    assert detection.mask is None
    assert detection.mask_path.startswith(str(tmp_path))


@pytest.mark.slow
def test_the_labels_can_be_exported_and_made_patches(
    dataset: Any, load: Load, tmp_path: Path
) -> None:
    """FiftyOne's own functions accept the attributes that we add."""
    apply(dataset, load(classes=["person", "no.2 bus"]))
    dataset.add_dynamic_sample_fields()
    assert isinstance(dataset.get_field("esam3.concept_presence"), fo.DictField)
    good = dataset.exists("esam3")
    assert len(good.to_patches("esam3")) == good.count("esam3.detections")
    good.export(
        str(tmp_path / "coco"),
        dataset_type=fo.types.COCODetectionDataset,
        label_field="esam3",
        classes=["person", "no.2 bus"],
    )
    exported = json.loads((tmp_path / "coco" / "labels.json").read_text())
    assert len(exported["annotations"]) == good.count("esam3.detections")
    assert all(a["segmentation"] and a["presence"] for a in exported["annotations"])


def test_nothing_is_logged_without_errors(
    dataset: Any, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fiftyone_esam3"):
        apply(dataset.select([dataset.first().id]), load(classes=["bus"]))
    assert not caplog.records


def test_half_precision_and_core_arguments_reach_the_core(load: Load) -> None:
    model = load(dtype=None, use_half_precision=True, speed="fast")
    assert model._model.dtype == torch.bfloat16
    assert model._model.speed == "fast"
    assert model.device == torch.device("cpu")


def test_a_model_of_the_table_is_loaded_with_its_arguments(
    monkeypatch: Any, tmp_path: Path
) -> None:
    (tmp_path / "adapter.safetensors").touch()
    received: dict[str, Any] = {}

    def refuse(name: str, **kwargs: Any) -> None:
        received.update(kwargs, name=name)
        raise es3.WeightsNotFoundError("as expected")

    from fiftyone_esam3 import load_model

    monkeypatch.setattr(es3, "load", refuse)
    options = {
        "checkpoint": "a.pt",
        "base": "b.pt",
        "text": "mobileclip-s1",
        "context": 16,
        "device": "cpu",
        "dtype": "float32",
        "speed": "fast",
        "adapter": str(tmp_path),  # a folder of a run
    }
    with pytest.raises(es3.WeightsNotFoundError):
        load_model("efficientsam3-tinyvit-11m", classes="person", **options)
    assert received == {"name": "efficientsam3-tinyvit-11m", **options}


def test_confidence_without_presence(dataset: Any, load: Load) -> None:
    found = {}
    for presence in ("multiply", "separate"):
        apply(dataset, load(classes=["person"], presence=presence), existing="overwrite")
        found[presence] = dataset.first().esam3.detections
    for product, alone in zip(found["multiply"], found["separate"], strict=True):
        assert product.presence == pytest.approx(alone.presence)
        assert product.confidence == pytest.approx(alone.confidence * alone.presence)
    with pytest.raises(es3.ArgumentError, match="'multiply' or 'separate'"):
        load(classes=["person"], presence="both")
