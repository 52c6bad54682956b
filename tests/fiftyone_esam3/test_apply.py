"""``apply_model``: from fields and files to labels in the database."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
import torch
from fiftyone import ViewField as F

import efficientsam3 as es3
from fiftyone_esam3.model import ERROR_FIELD, ImageGetItem, Item

GOOD = [0, 1, 3]  # of the four pictures of the dataset
BAD = 2

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
def test_a_corrupt_image_costs_itself_and_says_so(
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
    assert failed.values("filepath") == [dataset.values("filepath")[BAD]]
    assert "cannot be" in failed.first()[ERROR_FIELD]
    assert failed.first().esam3 is None


def test_the_record_goes_when_the_image_is_repaired(
    dataset: Any, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(classes=["bus"])
    apply(dataset, model)
    assert "trouble with 1 images" in caplog.text
    paths = dataset.values("filepath")
    with open(paths[0], "rb") as good, open(paths[BAD], "wb") as bad:
        bad.write(good.read())
    caplog.clear()
    apply(dataset.exists(ERROR_FIELD), model)
    assert len(dataset.exists(ERROR_FIELD)) == 0
    assert len(dataset.exists("esam3")) == 4
    assert not caplog.records


def test_order_and_numbers_repeat(dataset: Any, load: Load) -> None:
    model = load(classes=["person", "bus"])
    runs = []
    for batch_size in (1, 3):
        apply(dataset, model, batch_size=batch_size)
        runs.append(dataset.exists("esam3").values("esam3.detections.confidence"))
    assert runs[0] == runs[1]
    for found in labels(dataset):
        assert found is None or found == sorted(found, key=["person", "bus"].index)


# Concepts -----------------------------------------------------------------------------------


def test_each_sample_has_its_own_concepts(dataset: Any, load: Load) -> None:
    found = apply(dataset, load(), text_prompt_field="words")
    assert set(found[0]) == {"bus"}
    assert set(found[1]) <= {"red car", "dog"}
    assert set(dataset.values("esam3.concept_presence")[1]) == {"red car", "dog"}
    assert found[3] == []


def test_labels_can_be_concepts(dataset: Any, load: Load) -> None:
    assert set(apply(dataset, load(), text_prompt_field="scene")[0]) == {"street"}


def test_fields_can_be_named_when_loading(dataset: Any, load: Load) -> None:
    assert set(apply(dataset, load(text_prompt_field="words"))[0]) == {"bus"}


def test_a_sample_s_concepts_come_before_the_model_s(dataset: Any, load: Load) -> None:
    found = apply(dataset, load(classes=["person"]), text_prompt_field="words")
    assert set(found[0]) == {"bus"}


@pytest.mark.parametrize(
    ("loaded", "asked", "concepts"),
    [
        (None, ["dog", "cat"], ["cat", "dog"]),
        (["person", "bus", "dog"], ["dog", "bus"], ["bus", "dog"]),
        (["person"], ["zebra"], ["zebra"]),
    ],
)
def test_classes_of_apply_model_are_asked_for(
    dataset: Any, load: Load, loaded: Any, asked: list[str], concepts: list[str]
) -> None:
    model = load(classes=loaded)
    apply(dataset, model, classes=asked)
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


def test_confidence_thresh_takes_the_place_of_threshold(dataset: Any, load: Load) -> None:
    apply(dataset, load(classes=["bus"], threshold=0.999))
    assert dataset.count("esam3.detections") == 0
    apply(dataset, load(classes=["bus"], threshold=0.999), confidence_thresh=0.0)
    scores = [c for s in dataset.exists("esam3").values("esam3.detections.confidence") for c in s]
    middle = float(np.median(scores))
    apply(dataset, load(classes=["bus"], confidence_thresh=middle))
    kept = [c for s in dataset.exists("esam3").values("esam3.detections.confidence") for c in s]
    assert 0 < len(kept) < len(scores)
    assert min(kept) > middle


def test_max_instances_counts_all_concepts_and_examples(dataset: Any, load: Load) -> None:
    model = load(classes=["person", "bus"], max_instances=2)
    assert all(len(f) <= 2 for f in apply(dataset, model) if f is not None)
    found = apply(dataset, model, prompt_field="boxes")
    assert all(len(f) <= 2 for f in found if f is not None)


def test_nms_leaves_fewer(dataset: Any, load: Load) -> None:
    counts = []
    for nms in (None, 0.01):
        apply(dataset, load(classes=["bus"], nms=nms, max_instances=None))
        counts.append(dataset.count("esam3.detections"))
    assert 0 < counts[1] < counts[0]


# Examples and single objects ----------------------------------------------------------------


class Recorder:
    """Stands before the core and writes down what it is asked."""

    def __init__(self, core: Any) -> None:
        self.core, self.asked = core, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def encode(self, image: Any) -> Any:
        self.asked.append(("encode", {}))
        return self.core.encode(image)

    def segment(self, image: Any, concepts: Any = None, **kwargs: Any) -> Any:
        self.asked.append((concepts, kwargs))
        return self.core.segment(image, concepts, **kwargs)


def test_examples_sharpen_their_concept(dataset: Any, load: Load) -> None:
    model = load(classes=["person", "cat"])
    model._model = recorder = Recorder(model._model)
    found = apply(dataset[:1], model, box_prompt_field="boxes")
    encode, words, cat, dog = recorder.asked
    assert encode[0] == "encode"
    assert words[0] == ["person"]
    assert cat[0] == ["cat"]
    np.testing.assert_allclose(cat[1]["boxes"], [[6.4, 4.8, 32, 28.8]], rtol=1e-5)
    assert dog[0] == ["visual"]  # not a concept of this run: its examples alone define it
    assert dog[1]["box_labels"].tolist() == [0, 1]
    assert found[0] == sorted(found[0], key=["person", "cat", "dog"].index)
    assert list(dataset.first().esam3.concept_presence) == ["person", "cat", "dog"]


def test_examples_alone_are_enough(dataset: Any, load: Load) -> None:
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
    assert results[BAD] is None
    assert results[0] == found


def test_visual_mode_asks_the_interactive_head(dataset: Any, load: Load) -> None:
    model = load()
    model.operation_mode = "visual"
    apply(dataset, model, box_prompt_field="boxes")
    core = model._model
    sample = dataset.first()
    corners = [[6.4, 4.8, 32, 28.8], [32, 24, 57.6, 43.2], [12.8, 14.4, 38.4, 33.6]]
    expected = core.segment_objects(sample.filepath, boxes=corners)
    scores = [d.confidence for d in sample.esam3.detections]
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-4)


def test_points_mask_index_goes_by_size(dataset: Any, load: Load) -> None:
    areas = []
    for index in (0, 1, 2):
        model = load(operation_mode="visual", points_mask_index=index)
        apply(dataset[:1], model, point_prompt_field="clicks")
        areas.append([d.mask.sum() for d in dataset.first().esam3.detections])
    assert len({len(a) for a in areas}) == 1
    assert all(a <= b <= c for a, b, c in zip(*areas, strict=True))


def test_classes_and_confidence_hold_in_visual_mode(dataset: Any, load: Load) -> None:
    model = load(operation_mode="visual")
    assert apply(dataset, model, prompt_field="boxes", classes=["dog"])[0] == ["dog", "dog"]
    assert apply(dataset, model, prompt_field="boxes", confidence_thresh=1.0)[0] == []


def test_a_bad_prompt_costs_no_other_image(dataset: Any, load: Load) -> None:
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


def test_as_many_boxes_as_keypoints(dataset: Any, load: Load) -> None:
    sample = dataset.first()
    sample.clicks.keypoints.pop()
    sample.save()
    fields = {"box_prompt_field": "boxes", "point_prompt_field": "clicks"}
    apply(dataset, load(operation_mode="visual"), **fields)
    assert "3 boxes and 2 keypoints" in dataset.first()[ERROR_FIELD]


# Mistakes are told once, before any work ----------------------------------------------------


@pytest.mark.parametrize(
    ("loaded", "applied", "message"),
    [
        ({}, {}, "nothing to look for"),
        ({"operation_mode": "visual"}, {"classes": ["a"]}, "no field holds boxes or points"),
        ({"classes": ["a"]}, {"txt_field": "words"}, r"unknown arguments \['txt_field'\]"),
        ({"classes": ["a"]}, {"prompt_field": "boxs"}, "no field 'boxs'"),
        ({"classes": ["a"]}, {"confidence_thresh": 50}, "it can be 0 to 1"),
        ({"clases": ["a"]}, {}, r"unknown arguments \['clases'\]; known are classes"),
        ({"classes": ["a", " "]}, {}, "must be a word or a phrase"),
        ({"operation_mode": "auto"}, {}, "'concept' or 'visual'"),
        ({"points_mask_index": 3}, {}, "can be 0, 1 or 2"),
    ],
)
def test_mistakes_are_not_skipped(
    dataset: Any, load: Load, loaded: Any, applied: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataset.apply_model(load(**loaded), label_field="esam3", num_workers=0, **applied)


def test_a_missing_ability_is_not_skipped(
    dataset: Any, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(operation_mode="visual")
    monkeypatch.setattr(model._model, "abilities", frozenset({"concepts", "masks"}))
    with pytest.raises(es3.MissingAbilityError, match="cannot do 'interactive', only concepts"):
        dataset.apply_model(model, label_field="esam3", prompt_field="boxes")
    model.operation_mode = "concept"
    with pytest.raises(es3.MissingAbilityError, match="cannot do 'exemplars'"):
        dataset.apply_model(model, label_field="esam3", prompt_field="boxes")


def test_fields_are_forgotten_after_a_run(dataset: Any, load: Load) -> None:
    model = load(classes=["bus"])
    apply(dataset, model, text_prompt_field="words")
    assert model.needs_fields == {}
    assert set(apply(dataset, model)[1]) == {"bus"}


# Without apply_model ------------------------------------------------------------------------


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


def test_predict_raises_where_nobody_would_hear(load: Load, photos: list[str]) -> None:
    with pytest.raises(es3.ImageError):
        load(classes=["bus"]).predict(photos[BAD])


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


def test_items_cross_process_borders(dataset: Any, load: Load, photos: list[str]) -> None:
    """Also where worker processes are spawned, and so are sent all that they need."""
    mapping = {"box_prompt_field": "boxes", "point_prompt_field": "clicks"}
    get_item = pickle.loads(pickle.dumps(load().build_get_item(mapping)))
    sample = dataset.first()
    for path in (photos[0], photos[BAD]):
        values = {"filepath": path, **{k: sample[v] for k, v in mapping.items()}}
        item = get_item(values)
        again = pickle.loads(pickle.dumps(item))
        assert len(again.prompts.boxes) == len(item.prompts.boxes)
        assert str(again.error) == str(item.error)
        assert (again.image is None) == (path == photos[BAD])


def test_interactive_reads_an_image_once(dataset: Any, load: Load) -> None:
    model = load()
    model._model = recorder = Recorder(model._model)
    first, second = dataset[:2]
    box = [[5, 5, 30, 30]]
    once = model.predict_interactive(first, boxes=box, prompt_classes=["cat"])
    model.predict_interactive(first, points=[[[10, 10]], [[3, 3], [40, 40]]])
    again = model.predict_interactive(boxes=box, points=[[[10, 10], [1, 1]]], point_labels=[[1, 0]])
    assert len(recorder.asked) == 1
    model.predict_interactive(second, boxes=box)
    assert len(recorder.asked) == 2
    assert once.detections[0].label == "cat"
    assert len(again.detections) == 1


def test_interactive_needs_an_image_first(load: Load) -> None:
    with pytest.raises(es3.PromptError, match="pass a sample first"):
        load().predict_interactive(boxes=[[0, 0, 5, 5]])


def test_masks_can_be_written_to_files(dataset: Any, load: Load, tmp_path: Path) -> None:
    apply(dataset, load(classes=["bus"], max_instances=1), output_dir=str(tmp_path / "masks"))
    detection = dataset.first().esam3.detections[0]
    assert detection.mask is None
    assert detection.mask_path.startswith(str(tmp_path))


def test_the_labels_go_where_labels_go(dataset: Any, load: Load, tmp_path: Path) -> None:
    """What surrounds FiftyOne takes the attributes that we add."""
    apply(dataset, load(classes=["person", "mr. bus"]))
    dataset.add_dynamic_sample_fields()
    assert isinstance(dataset.get_field("esam3.concept_presence"), fo.DictField)
    good = dataset.exists("esam3")
    assert len(good.to_patches("esam3")) == good.count("esam3.detections")
    good.export(
        str(tmp_path / "coco"),
        dataset_type=fo.types.COCODetectionDataset,
        label_field="esam3",
        classes=["person", "mr. bus"],
    )
    exported = json.loads((tmp_path / "coco" / "labels.json").read_text())
    assert len(exported["annotations"]) == good.count("esam3.detections")
    assert all(a["segmentation"] and a["presence"] for a in exported["annotations"])


def test_nothing_is_logged_when_all_is_well(
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


def test_a_model_of_the_table_is_loaded_with_its_arguments(monkeypatch: Any) -> None:
    asked: dict[str, Any] = {}

    def refuse(name: str, **kwargs: Any) -> None:
        asked.update(kwargs, name=name)
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
    }
    with pytest.raises(es3.WeightsNotFoundError):
        load_model("efficientsam3-tinyvit-11m", classes="person", **options)
    assert asked == {"name": "efficientsam3-tinyvit-11m", **options}
