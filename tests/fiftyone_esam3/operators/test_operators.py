"""Operators: through FiftyOne's executor, on a real database."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.plugins as fop
import numpy as np
import pytest
from fiftyone.operators.executor import (
    ExecutionContext,
    ExecutionError,
    execute_or_delegate_operator,
)
from fiftyone.operators.registry import OperatorRegistry

import efficientsam3 as es3
from fiftyone_esam3.labels import ERROR_FIELD
from fiftyone_esam3.panel.segment_panel import SegmentPanel
from fiftyone_esam3.plugin import OPERATORS, PLUGIN
from fiftyone_esam3.runs import find_similar
from fiftyone_esam3.runs import run as runs
from fiftyone_esam3.runs.segment import segment_concepts
from fiftyone_esam3.runs.steps import RunError

from ..conftest import READABLE, UNREADABLE, make_picture
from .calls import Run, everything

GRID: dict[str, Any] = {"points_per_side": 2, "threshold": 0.0, "stability_threshold": 0.0}

# Registration ---------------------------------------------------------------------------------


def test_everything_is_listed_once() -> None:
    (plugin,) = (p for p in fop.list_plugins() if p.name == PLUGIN)
    assert plugin.operators == [*(o.NAME for o in OPERATORS), SegmentPanel.NAME]
    registry = OperatorRegistry()
    assert registry.list_errors() == []
    for operator in OPERATORS:
        found = registry.get_operator(f"{PLUGIN}/{operator.NAME}")
        assert type(found).__module__.startswith("fiftyone_esam3.operators")
        assert found.config.allow_delegated_execution and found.config.allow_immediate_execution
        assert found.config.icon and found.config.description


# segment_concepts -----------------------------------------------------------------------------


def test_concepts_are_segmented(dataset: Any, run: Run) -> None:
    summary = run("segment_concepts", **everything(concepts=["person, bus"], max_instances=None))
    assert (summary["samples"], summary["done"], summary["failed"]) == (4, 3, 1)
    assert set(summary["instances"]) == {"person", "bus"}
    assert "1 failed (1 x ImageError)" in summary["message"]
    first = dataset.first().esam3
    assert set(first.concept_presence) == {"person", "bus"}
    assert all(d.mask.any() and 0 <= d.confidence <= 1 for d in first.detections)
    assert [bool(s[ERROR_FIELD]) for s in dataset] == [False, False, True, False]


@pytest.mark.parametrize("how", ["dataset", "view", "selected"])
def test_a_run_works_on_the_dataset_the_view_or_the_selection(
    dataset: Any, run: Run, how: str
) -> None:
    ids = dataset.values("id")
    context: dict[str, Any] = {}
    target = None
    if how == "view":
        target = dataset[:1]
    if how == "selected":
        context = {"selected": ids[:1]}
    params = {"view_target": "SELECTED_SAMPLES"} if how == "selected" else {}
    run("segment_concepts", target=target, ctx=context, **everything(**params))
    assert len(dataset.exists("esam3")) == (3 if how == "dataset" else 1)


def test_concepts_come_from_a_field_of_each_sample(dataset: Any, run: Run) -> None:
    run("segment_concepts", **everything(concepts=[], text_field="words"))
    assert set(dataset.first().esam3.concept_presence) == {"bus"}
    assert set(dataset.skip(1).first().esam3.concept_presence) == {"red car", "dog"}


@pytest.mark.slow
def test_a_run_continues_what_another_one_began(dataset: Any, run: Run, tiny_folder: Path) -> None:
    first = run("segment_concepts", target=dataset[:2], **everything())
    assert (first["done"], first["before"]) == (2, 0)
    ids = [d.id for d in dataset.first().esam3.detections]
    rest = run("segment_concepts", **everything())
    assert (rest["done"], rest["before"], rest["failed"]) == (1, 2, 1)
    assert [d.id for d in dataset.first().esam3.detections] == ids
    other = run("segment_concepts", **everything(concepts=["dog"]))
    assert (other["done"], other["before"]) == (3, 0)
    anew = run("segment_concepts", **everything(concepts=["dog"], restart=True))
    assert (anew["done"], anew["before"], anew["failed"]) == (3, 0, 1)


def test_a_run_that_stops_continues_where_it_was(
    dataset: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a killed process: what has been written stays, and the next run does the rest."""
    real, calls = es3.ImageModel.segment, []

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(runs, "CHUNK_SECONDS", 0.0)  # one sample in each chunk
    with monkeypatch.context() as patch:
        patch.setattr(es3.ImageModel, "segment", stop)
        with pytest.raises(KeyboardInterrupt):
            run("segment_concepts", **everything())
    assert len(dataset.exists("esam3")) == 2
    summary = run("segment_concepts", **everything())
    assert (summary["before"], summary["done"], summary["failed"]) == (2, 1, 1)


def test_an_error_of_one_sample_does_not_stop_the_run(
    dataset: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = es3.ImageModel.segment, []

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(es3.ImageModel, "segment", fail)
    summary = run("segment_concepts", **everything())
    assert summary["failed"] == 2 and summary["reasons"] == {"RuntimeError": 1, "ImageError": 1}
    assert dataset.first()[ERROR_FIELD] == "RuntimeError: out of memory"
    assert len(dataset.exists("esam3")) == 2


@pytest.mark.slow
def test_threads_read_images_in_order(dataset: Any, run: Run) -> None:
    run("segment_concepts", **everything())
    run("segment_concepts", **everything(label_field="ahead", num_workers=2))
    for sample in dataset:
        one, two = sample.esam3, sample.ahead
        assert (one is None) == (two is None)
        if one is not None:
            assert [d.confidence for d in one.detections] == [d.confidence for d in two.detections]


@pytest.mark.slow
def test_images_are_encoded_together(
    dataset: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, counts = es3.ImageModel.encode, []

    def listen(self: Any, images: Any, **options: Any) -> Any:
        if isinstance(images, list):
            counts.append(len(images))
        return real(self, images, **options)

    run("segment_concepts", **everything())
    assert not counts, "one by one on a CPU"
    monkeypatch.setattr(es3.ImageModel, "encode", listen)
    monkeypatch.setattr(runs, "CHUNK_SECONDS", 1e6)
    summary = run("segment_concepts", **everything(label_field="together", batch_size=4))
    assert max(counts) > 1 and (summary["done"], summary["failed"]) == (3, 1)
    for sample in dataset:
        one, two = sample.esam3, sample.together
        assert (one is None) == (two is None)
        if one is not None:
            scores = [[d.confidence for d in found.detections] for found in (one, two)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    with pytest.raises(es3.PromptError, match="batch_size is a whole number from 1"):
        next(segment_concepts(dataset, "cat", label_field="no", model="x", batch_size=0))


def test_everything_is_segmented(dataset: Any, run: Run, tiny_folder: Path) -> None:
    summary = run("segment_everything", **GRID, max_instances=3)
    assert (summary["done"], summary["failed"]) == (3, 1)
    assert summary["field"] == "everything" and set(summary["instances"]) == {"object"}
    core = es3.load(tiny_folder, device="cpu")
    found = core.segment_everything(dataset.first().filepath, **GRID, max_instances=3)
    labels = dataset.first().everything.detections
    assert [d.confidence for d in labels] == pytest.approx(found.scores.tolist(), abs=1e-6)
    assert [d.mask.sum() for d in labels] == found.masks.sum((1, 2)).tolist()
    assert run("segment_everything", **GRID, max_instances=3)["before"] == 3
    assert run("segment_everything", **GRID, max_instances=2)["before"] == 0


def test_the_dataset_records_each_run(dataset: Any, run: Run) -> None:
    """All labels name their run, and the dataset holds what the run was asked for."""
    summary = run("segment_concepts", **everything(concepts=["a.b"]))
    dataset.reload()
    assert {s.esam3["run"] for s in dataset.exists("esam3")} == {summary["run_key"]}
    config = dataset.get_run_info(summary["run_key"]).config
    assert config.field == "esam3"
    request = json.loads(config.request)
    assert (request["concepts"], request["threshold"]) == (["a.b"], 0.0)


def test_a_run_says_what_changed_since_the_last_one(dataset: Any, tiny_folder: Path) -> None:
    options = {"model": str(tiny_folder), "max_instances": 1}
    first = list(segment_concepts(dataset[:1], ["cat"], threshold=0.5, **options))
    assert "starting" in [step.note for step in first]
    second = list(segment_concepts(dataset[:1], ["cat"], threshold=0.25, **options))
    assert any("threshold was 0.5 and is 0.25" in step.note for step in second)


# segment_prompts ------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "labels"), [("boxes", ["cat", "dog", "dog"]), ("clicks", "abc")])
def test_boxes_and_keypoints_become_masks(dataset: Any, run: Run, field: str, labels: Any) -> None:
    summary = run("segment_prompts", prompt_field=field)
    assert summary["field"] == f"{field}_masks"
    found = dataset.first()[f"{field}_masks"].detections
    assert {d.label for d in found} <= set(labels) and found
    assert all(d.mask is not None for d in found)
    assert dataset.first()[field] is not None


# find_similar ---------------------------------------------------------------------------------


def select(dataset: Any, *places: tuple[int, int]) -> list[dict[str, str]]:
    """Labels as the App selects them, by sample and position."""
    samples = list(dataset)
    return [
        {
            "sample_id": samples[s].id,
            "field": "boxes",
            "label_id": samples[s].boxes.detections[d].id,
        }
        for s, d in places
    ]


def test_similar_objects_are_found_in_all_images(
    dataset: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []
    real = find_similar.search_image

    def search(core: Any, sample: str, *args: Any) -> Any:
        found = real(core, sample, *args)
        searched.append((sample, found.size))
        return found

    monkeypatch.setattr(find_similar, "search_image", search)
    summary = run(
        "find_similar",
        ctx={"selected_labels": select(dataset, (0, 0), (0, 1))},
        threshold=0.0,
    )
    ids = dataset.values("id")
    assert searched == [(ids[i], (48, 64)) for i in READABLE]
    assert summary["examples"] == 2 and set(summary["instances"]) == {"cat"}
    for i in READABLE:
        sample = dataset[ids[i]]
        assert sample.similar.concept_presence.keys() == {"cat"}
        for d in sample.similar.detections:
            x, y, w, h = d.bounding_box
            assert x >= 0 and y >= 0 and x + w <= 1 + 1e-6 and y + h <= 1 + 1e-6
    assert dataset[ids[UNREADABLE]].similar is None and dataset[ids[UNREADABLE]][ERROR_FIELD]


def test_tags_and_attributes_make_examples_negative(dataset: Any, tiny_folder: Path) -> None:
    sample = dataset.first()
    sample.boxes.detections[2].tags = ["negative"]
    sample.save()
    chosen = select(dataset, (0, 0), (0, 1), (0, 2))
    signs = [e.cutout.positive for e in find_similar.read_examples(dataset, chosen)]
    assert signs == [True, False, False]  # sam_label=False, and the tag
    extra = [chosen[0]["label_id"]]
    with pytest.raises(RunError, match="no selected label shows what to look for"):
        find_similar.read_examples(dataset, chosen, extra)
    other = [{**chosen[0], "field": "clicks"}]
    with pytest.raises(RunError, match="'clicks' holds Keypoints; examples are detections"):
        find_similar.read_examples(dataset, other)


# compute_embeddings, evaluate, prepare_annotation ---------------------------------------------


@pytest.mark.slow
def test_embeddings_and_their_index(dataset: Any, run: Run, tiny_folder: Path) -> None:
    good = dataset.select([dataset.values("id")[i] for i in READABLE])
    summary = run("compute_embeddings", target=good, brain_key="like")
    assert (summary["done"], summary["failed"]) == (3, 0)
    query = good.first().id
    assert good.sort_by_similarity(query, brain_key="like").first().id == query
    rest = run("compute_embeddings")
    assert (rest["before"], rest["failed"]) == (3, 1)
    with pytest.raises(ExecutionError, match="holds embeddings of"):
        run("compute_embeddings", model=str(tiny_folder) + "/.")
    for before in (0, 3):
        patches = run("compute_embeddings", patches_field="boxes", embeddings_field="vector")
        assert patches["before"] == before
    good.reload()  # a field was added since the view was made
    assert good.first().boxes.detections[0].vector.ndim == 1


@pytest.mark.slow
def test_evaluating_the_truth_gives_full_figures(dataset: Any, run: Run) -> None:
    mask = np.zeros((24, 32), bool)
    mask[2:-2, 3:-3] = True
    for sample in dataset:
        labels = [
            fo.Detection(label=name, bounding_box=[x, 0.1, 0.5, 0.5], mask=mask, confidence=0.9)
            for name, x in (("cat", 0.1), ("dog", 0.45))
        ]
        sample["truth"] = fo.Detections(detections=[d.copy() for d in labels])
        sample["found"] = fo.Detections(
            detections=labels, concept_presence={"cat": 0.9, "dog": 0.9, "bus": 0.1}
        )
        sample["worse"] = fo.Detections(detections=labels[:1])
        sample.save()
    summary = run("evaluate", field="found", truth="truth")
    assert (summary["mAP"], summary["IL_MCC"]) == (100, 1)
    assert summary["cgF1"] == pytest.approx(100, abs=0.01)
    assert summary["counts"]["negative_pairs"] == 4
    assert dataset.sum("esam3_eval_fp") == 0
    worse = run("evaluate", field="worse", truth="truth", eval_key="worse_eval")
    assert worse["recall"] == 50 and worse["mAP"] < 60 and "recall 50.0" in worse["message"]


def test_the_app_shows_the_figures_of_an_evaluation(dataset: Any) -> None:
    label = fo.Detection.from_mask(np.ones((48, 64), bool), label="cat", confidence=0.9)
    good = dataset[:2]
    good.set_values("truth", [fo.Detections(detections=[label.copy()]) for _ in good])
    good.set_values("found", [fo.Detections(detections=[label.copy()]) for _ in good])

    def shown(**params: Any) -> dict[str, Any]:
        request = {"dataset_name": dataset.name, "view": [], "filters": {}, "params": params}
        name = f"{PLUGIN}/evaluate"
        result = asyncio.run(execute_or_delegate_operator(name, request)).to_json()
        operator = OperatorRegistry().get_operator(name)
        context = ExecutionContext({**request, "results": result["result"]})
        return dict(operator.resolve_output(context).type.properties)

    table = shown(field="found", truth="truth")["figures"].default
    assert "| mAP | 100.0 |" in table and "| cgF1 |" in table
    failed = shown(field="boxes", truth="truth", eval_key="other")["error"].view.label
    assert "have no mask" in failed and "Traceback" not in failed


def test_fields_get_label_schemas(dataset: Any, run: Run) -> None:
    run("segment_concepts", **everything(max_instances=None))
    summary = run("prepare_annotation", fields=["esam3"])
    assert dataset.active_label_schemas == ["esam3"]
    assert set(summary["classes"]["esam3"]) == {"person", "bus"}
    run("prepare_annotation", fields=["boxes"])
    assert dataset.active_label_schemas == ["esam3", "boxes"]


# Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("segment_concepts", {}, "Required property"),
        ("segment_concepts", {"concepts": [" , "]}, "name something to look for"),
        ("segment_concepts", {"concepts": ["a"], "text_field": "nope"}, "no field 'nope'"),
        ("segment_concepts", {"concepts": ["a"], "label_field": "words"}, "holds ListField"),
        (
            "segment_concepts",
            {"concepts": ["a"], "label_field": "a b"},
            "cannot be the name of a field",
        ),
        ("segment_concepts", {"concepts": ["a"], "model": "tinyvit"}, "unknown model"),
        ("segment_concepts", {"concepts": ["a"], "threshold": 2}, "less than 1"),
        ("segment_prompts", {"prompt_field": "words"}, "Detections or Detection or Keypoints"),
        ("segment_prompts", {"prompt_field": "boxes", "label_field": "boxes"}, "name another one"),
        ("find_similar", {}, "no labels are selected"),
        ("compute_embeddings", {"brain_key": "a b"}, "use letters"),
        ("compute_embeddings", {"embeddings_field": "words"}, "holds no embeddings"),
        ("evaluate", {"field": "boxes", "truth": "boxes"}, "this is the field with the pred"),
        ("evaluate", {"field": "boxes", "truth": "nope"}, "there is no field 'nope'"),
        ("prepare_annotation", {"fields": ["words"]}, "no field of labels words"),
    ],
)
def test_errors_are_shown_under_their_field(
    run: Run, name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExecutionError, match=message):
        run(name, **params)


def test_boxes_without_masks_cannot_be_the_truth(dataset: Any, run: Run) -> None:
    run("segment_concepts", **everything())
    with pytest.raises(ExecutionError, match="12 of 12 labels in 'boxes' have no mask"):
        run("evaluate", field="esam3", truth="boxes")


def test_views_that_cannot_be_labeled(dataset: Any, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="no samples in this view"):
        run("segment_concepts", target=dataset.match_tags("nothing"), **everything())
    with pytest.raises(ExecutionError, match="view of patches"):
        run("segment_concepts", target=dataset.to_patches("boxes"), **everything())


def test_videos_and_images_mixed(run: Run, tmp_path: Path) -> None:
    make_picture(0).save(tmp_path / "image.png")
    (tmp_path / "clip.mp4").write_bytes(b"")
    group = fo.Group()
    dataset = fo.Dataset()
    dataset.add_group_field("group", default="left")
    dataset.add_samples(
        [
            fo.Sample(filepath=str(tmp_path / "image.png"), group=group.element("left")),
            fo.Sample(filepath=str(tmp_path / "clip.mp4"), group=group.element("right")),
        ]
    )
    mixed = dataset.select_group_slices(_allow_mixed=True)
    with pytest.raises(ExecutionError, match="mixes image and video; choose one kind"):
        run("segment_concepts", target=mixed, **everything())
    summary = run("segment_concepts", target=dataset.view(), **everything())
    assert summary["done"] == 1  # of the slice that is shown
    videos = dataset.select_group_slices("right")
    with pytest.raises(ExecutionError, match="for videos use track_video"):
        run("segment_concepts", target=videos, **everything())
    dataset.delete()


def test_missing_weights_name_a_way_that_the_form_has(
    dataset: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, **_: Any) -> Any:
        raise es3.WeightsNotFoundError(f"no weights of {name}", ", and pass checkpoint='<path>'.")

    monkeypatch.setattr(es3, "load", missing)
    with pytest.raises(ExecutionError) as caught:
        run("segment_concepts", **everything(model="efficientsam3-tinyvit-11m"))
    message = str(caught.value).strip().splitlines()[-1]
    assert "no weights of efficientsam3-tinyvit-11m. To use a file that you have" in message
    assert "give the folder as the model" in message and "pass checkpoint=" not in message


def test_a_missing_file_fails_alone(dataset: Any, run: Run, photos: list[str]) -> None:
    Path(photos[0]).unlink()
    summary = run("segment_concepts", **everything())
    assert (summary["done"], summary["failed"]) == (2, 2)
    assert "0.png" in dataset.first()[ERROR_FIELD]


@pytest.mark.slow
def test_a_thousand_instances_in_one_image(
    dataset: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientsam3.types import BitPatch, Instances

    count = 1000
    rng = np.random.default_rng(0)
    places = rng.integers(0, [44, 60], (count, 2))

    def segment(self: Any, image: Any, concepts: Any, **_: Any) -> Instances:
        patches = [BitPatch(np.ones((4, 4), bool), int(y), int(x)) for y, x in places]
        boxes = np.concatenate([places[:, ::-1], places[:, ::-1] + 4], 1).astype(np.float32)
        ones = np.ones(count, np.float32)
        presence = {concepts[0]: 1.0}
        labels = list(concepts) * count
        return Instances(boxes, ones, ones, labels, (48, 64), patches, tuple(concepts), presence)

    monkeypatch.setattr(es3.ImageModel, "segment", segment)
    summary = run("segment_concepts", target=dataset[:1], **everything(concepts=["leaf"]))
    assert summary["instances"] == {"leaf": count}
    assert len({d.id for d in dataset.first().esam3.detections}) == count
