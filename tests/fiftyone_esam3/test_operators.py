"""Operators: through FiftyOne's executor, at once and delegated, on a real database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.plugins as fop
import numpy as np
import pytest
from fiftyone.operators.delegated import DelegatedOperationService
from fiftyone.operators.executor import (
    ExecutionContext,
    ExecutionError,
    execute_or_delegate_operator,
)
from fiftyone.operators.registry import OperatorRegistry

from fiftyone_esam3 import runs, similar
from fiftyone_esam3.labels import ERROR_FIELD
from fiftyone_esam3.operators.form import describe, split
from fiftyone_esam3.panel import Workbench
from fiftyone_esam3.plugin import OPERATORS, PLUGIN

from .conftest import picture

GOOD, BAD = [0, 1, 3], 2

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tiny: Path, dataset: Any) -> Run:
    """Runs an operator on the dataset and gives its summary."""

    def execute(name: str, *, target: Any = None, **params: Any) -> dict[str, Any]:
        context = params.pop("ctx", {})
        if name not in ("evaluate", "prepare_annotation"):
            params = {"model": str(tiny), **params}
        result = foo.execute_operator(
            f"{PLUGIN}/{name}",
            ctx={"view": dataset.view() if target is None else target, **context},
            params=params,
        )
        return dict(result.result)

    return execute


def everything(**params: Any) -> dict[str, Any]:
    """Parameters with which the untrained model finds something."""
    return {"concepts": ["person", "bus"], "threshold": 0.0, "max_instances": 4, **params}


# What FiftyOne knows --------------------------------------------------------------------------


def test_everything_is_listed_once() -> None:
    (plugin,) = (p for p in fop.list_plugins() if p.name == PLUGIN)
    assert plugin.operators == [*(o.NAME for o in OPERATORS), Workbench.NAME]
    registry = OperatorRegistry()
    assert registry.list_errors() == []
    for operator in OPERATORS:
        found = registry.get_operator(f"{PLUGIN}/{operator.NAME}")
        assert type(found).__module__.startswith("fiftyone_esam3.operators")
        assert found.config.allow_delegated_execution and found.config.allow_immediate_execution
        assert found.config.icon and found.config.description


# segment_concepts -----------------------------------------------------------------------------


def test_concepts_are_labelled(dataset: Any, run: Run) -> None:
    summary = run("segment_concepts", **everything(concepts=["person, bus"]))
    assert (summary["samples"], summary["done"], summary["failed"]) == (4, 3, 1)
    assert set(summary["instances"]) == {"person", "bus"}
    assert "1 failed (1 x ImageError)" in summary["message"]
    first = dataset.first().esam3
    assert set(first.concept_presence) == {"person", "bus"}
    assert all(d.mask.any() and 0 <= d.confidence <= 1 for d in first.detections)
    assert [bool(s[ERROR_FIELD]) for s in dataset] == [False, False, True, False]


@pytest.mark.parametrize("how", ["dataset", "view", "selected"])
def test_where_it_works(dataset: Any, run: Run, how: str) -> None:
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


def test_each_sample_s_own_concepts(dataset: Any, run: Run) -> None:
    run("segment_concepts", **everything(concepts=[], text_field="words"))
    assert set(dataset.first().esam3.concept_presence) == {"bus"}
    assert set(dataset.skip(1).first().esam3.concept_presence) == {"red car", "dog"}


def test_a_run_continues_and_shares(dataset: Any, run: Run, tiny: Path) -> None:
    first = run("segment_concepts", target=dataset[:2], **everything())
    assert (first["done"], first["before"]) == (2, 0)
    ids = [d.id for d in dataset.first().esam3.detections]
    rest = run("segment_concepts", **everything())
    assert (rest["done"], rest["before"], rest["failed"]) == (1, 2, 1)
    assert [d.id for d in dataset.first().esam3.detections] == ids
    other = run("segment_concepts", **everything(concepts=["dog"]))
    assert (other["done"], other["before"]) == (3, 0)
    again = run("segment_concepts", **everything(concepts=["dog"], again=True))
    assert (again["done"], again["before"], again["failed"]) == (3, 0, 1)


def test_what_stops_a_run_costs_one_chunk(
    dataset: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a killed process: what has been written stays, and the next run goes on from there."""
    from fiftyone_esam3.model import EfficientSam3

    real, seen = EfficientSam3.predict_all, []

    def stop(self: Any, imgs: Any, samples: Any = None) -> Any:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, imgs, samples)

    monkeypatch.setattr(EfficientSam3, "predict_all", stop)
    monkeypatch.setattr(runs, "CHUNK_SECONDS", 0.0)  # one sample a chunk
    with pytest.raises(KeyboardInterrupt):
        run("segment_concepts", **everything())
    monkeypatch.setattr(EfficientSam3, "predict_all", real)
    summary = run("segment_concepts", **everything())
    assert (summary["before"], summary["done"], summary["failed"]) == (2, 1, 1)


def test_one_sample_s_failure_is_its_own(
    dataset: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import efficientsam3 as es3

    real, count = es3.ImageModel.segment, []

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        count.append(1)
        if len(count) in (1, 2):  # the first sample's, in its batch and alone
            raise RuntimeError("out of memory")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(es3.ImageModel, "segment", fail)
    summary = run("segment_concepts", **everything())
    assert summary["failed"] == 2 and summary["reasons"]["RuntimeError"] == 1
    assert dataset.first()[ERROR_FIELD] == "RuntimeError: out of memory"
    assert len(dataset.exists("esam3")) == 2


# segment_prompts ------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "labels"), [("boxes", ["cat", "dog", "dog"]), ("clicks", "abc")])
def test_prompts_become_masks(dataset: Any, run: Run, field: str, labels: Any) -> None:
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


def test_similar_in_this_and_other_images(
    dataset: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = similar.search

    def search(core: Any, sample: str, *args: Any) -> Any:
        found = real(core, sample, *args)
        asked.append((sample, found.size))
        return found

    monkeypatch.setattr(similar, "search", search)
    summary = run(
        "find_similar",
        ctx={"selected_labels": select(dataset, (0, 0), (0, 1))},
        threshold=0.0,
    )
    ids = dataset.values("id")
    assert asked == [(ids[i], (48, 64)) for i in GOOD]
    assert summary["examples"] == 2 and set(summary["instances"]) == {"cat"}
    for i in GOOD:
        sample = dataset[ids[i]]
        assert sample.similar.concept_presence.keys() == {"cat"}
        for d in sample.similar.detections:
            x, y, w, h = d.bounding_box
            assert x >= 0 and y >= 0 and x + w <= 1 + 1e-6 and y + h <= 1 + 1e-6
    assert dataset[ids[BAD]].similar is None and dataset[ids[BAD]][ERROR_FIELD]


def test_negative_examples(dataset: Any, tiny: Path) -> None:
    sample = dataset.first()
    sample.boxes.detections[2].tags = ["negative"]
    sample.save()
    chosen = select(dataset, (0, 0), (0, 1), (0, 2))
    signs = [e.cutting.positive for e in similar.read_examples(dataset, chosen)]
    assert signs == [True, False, False]  # sam_label=False, and the tag
    extra = [chosen[0]["label_id"]]
    with pytest.raises(runs.RunError, match="no selected label shows what to look for"):
        similar.read_examples(dataset, chosen, extra)


# compute_embeddings, evaluate, prepare_annotation ---------------------------------------------


def test_embeddings_and_their_index(dataset: Any, run: Run, tiny: Path) -> None:
    good = dataset.select([dataset.values("id")[i] for i in GOOD])
    summary = run("compute_embeddings", target=good, brain_key="like")
    assert (summary["done"], summary["failed"]) == (3, 0)
    query = good.first().id
    assert good.sort_by_similarity(query, brain_key="like").first().id == query
    rest = run("compute_embeddings")
    assert (rest["before"], rest["failed"]) == (3, 1)
    with pytest.raises(ExecutionError, match="holds embeddings of"):
        run("compute_embeddings", model=str(tiny) + "/.")
    for before in (0, 3):
        patches = run("compute_embeddings", patches_field="boxes", embeddings_field="vector")
        assert patches["before"] == before
    assert good.first().boxes.detections[0].vector.ndim == 1


def test_evaluation_of_the_truth_is_perfect(dataset: Any, run: Run) -> None:
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
    worse = run("evaluate", field="worse", truth="truth", eval_key=None)
    assert worse["recall"] == 50 and worse["mAP"] < 60 and "recall 50.0" in worse["message"]


def test_annotation_finds_its_schemas(dataset: Any, run: Run) -> None:
    run("segment_concepts", **everything())
    summary = run("prepare_annotation", fields=["esam3"])
    assert dataset.active_label_schemas == ["esam3"]
    assert set(summary["classes"]["esam3"]) == {"person", "bus"}
    run("prepare_annotation", fields=["boxes"])
    assert dataset.active_label_schemas == ["esam3", "boxes"]


# In the background, and in the App ------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[DelegatedOperationService]:
    service = DelegatedOperationService()
    yield service
    for operation in service.list_operations():
        service.delete_operation(operation.id)


def queue(dataset: Any, tiny: Path, name: str = "segment_concepts", **params: Any) -> Any:
    return foo.execute_operator(
        f"{PLUGIN}/{name}",
        ctx={"dataset": dataset},
        params={"model": str(tiny), **params},
        request_delegation=True,
    )


def test_a_delegated_run(dataset: Any, tiny: Path, service: DelegatedOperationService) -> None:
    queue(dataset, tiny, **everything())
    assert not dataset.has_field("esam3")
    (result,) = service.execute_queued_operations(limit=1)
    assert result.result["done"] == 3
    (operation,) = service.list_operations()
    assert operation.run_state == "completed" and operation.status.progress == 1.0
    assert "3 samples" in operation.status.label
    dataset.reload()
    assert len(dataset.exists("esam3")) == 3


def test_the_dataset_is_deleted_under_a_delegated_run(
    photos: list[str],
    tiny: Path,
    service: DelegatedOperationService,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = fo.Dataset()
    dataset.add_samples([fo.Sample(filepath=photos[i]) for i in GOOD])
    monkeypatch.setattr(runs, "CHUNK_SECONDS", 0.0)
    name, real = dataset.name, runs._attempt

    def attempt(view: Any, work: Any) -> Any:
        found = real(view, work)
        fo.delete_dataset(name)
        return found

    monkeypatch.setattr(runs, "_attempt", attempt)
    queue(dataset, tiny, **everything())
    (result,) = service.execute_queued_operations(limit=1)
    assert result.error  # the operation was deleted with its dataset, so the log has to tell
    assert f"the dataset {name!r} was deleted while this run worked on it; 0 of 3" in caplog.text
    assert not fo.dataset_exists(name)


def test_the_app_hears_how_far_it_is(dataset: Any, tiny: Path) -> None:
    """The App sends its filters, and reads messages; an SDK's caller gets the summary."""
    params = {"model": str(tiny), **everything()}
    request = {
        "dataset_name": dataset.name,
        "view": [],
        "filters": {},
        "params": params,
    }
    result = asyncio.run(execute_or_delegate_operator(f"{PLUGIN}/segment_concepts", request))
    assert result.is_generator
    told = [m.body.to_json() for m in result.result]
    names = [t["operator_uri"].rpartition("/")[2] for t in told]
    assert names[0] == "set_progress" and names[-2:] == ["reload_dataset", "notify"]
    progress = [t["params"]["progress"] for t in told if "progress" in t["params"]]
    assert progress == sorted(progress) and progress[-1] == 1
    assert told[-1]["params"]["variant"] == "warning"
    dataset.reload()
    assert len(dataset.exists("esam3")) == 3


def test_the_app_is_told_what_is_wrong(
    dataset: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs.Watch, "is_there", lambda self: False)
    request = {"dataset_name": dataset.name, "view": [], "filters": {}}
    request["params"] = {"model": str(tiny), **everything()}
    result = asyncio.run(execute_or_delegate_operator(f"{PLUGIN}/segment_concepts", request))
    *_, last = [m.body.to_json() for m in result.result]
    assert last["params"]["variant"] == "error" and "was deleted" in last["params"]["message"]


# Two at once ----------------------------------------------------------------------------------


def test_other_settings_have_to_wait(dataset: Any, run: Run) -> None:
    other = runs.Claim(dataset, "esam3", "another question")
    with pytest.raises(ExecutionError, match="another run with other settings is writing"):
        run("segment_concepts", **everything())
    run("segment_concepts", **everything(label_field="elsewhere"))
    other.release()
    run("segment_concepts", **everything())


def test_the_same_settings_share_the_work(
    dataset: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fiftyone_esam3.model import EfficientSam3
    from fiftyone_esam3.segment import segment_concepts

    done: list[str] = []
    real = EfficientSam3.predict_all

    def record(self: Any, imgs: Any, samples: Any = None) -> Any:
        done.extend(s.id for s in samples)
        return real(self, imgs, samples)

    monkeypatch.setattr(EfficientSam3, "predict_all", record)
    monkeypatch.setattr(runs, "CHUNK_SECONDS", 0.0)
    good = dataset.select([dataset.values("id")[i] for i in GOOD])
    limits = {"threshold": 0.0, "max_instances": 2, "model": str(tiny)}
    threads = [
        threading.Thread(target=lambda: runs.finish(segment_concepts(good, ["bus"], **limits)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(good.exists("esam3")) == 3
    assert set(done) == set(good.values("id")) and len(done) < 6


# Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("segment_concepts", {}, "Required property"),
        ("segment_concepts", {"concepts": [" , "]}, "name something to look for"),
        ("segment_concepts", {"concepts": ["a"], "text_field": "nope"}, "no field 'nope'"),
        ("segment_concepts", {"concepts": ["a"], "label_field": "words"}, "holds ListField"),
        ("segment_concepts", {"concepts": ["a"], "label_field": "a b"}, "cannot be a field's"),
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
def test_mistakes_are_said_under_their_field(
    run: Run, name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExecutionError, match=message):
        run(name, **params)


def test_boxes_are_no_truth_for_masks(dataset: Any, run: Run) -> None:
    run("segment_concepts", **everything())
    with pytest.raises(ExecutionError, match="12 of 12 labels in 'boxes' have no mask"):
        run("evaluate", field="esam3", truth="boxes")


def test_views_that_cannot_be_labelled(dataset: Any, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="no samples in this view"):
        run("segment_concepts", target=dataset.match_tags("nothing"), **everything())
    with pytest.raises(ExecutionError, match="view of patches"):
        run("segment_concepts", target=dataset.to_patches("boxes"), **everything())


def test_videos_and_images_mixed(run: Run, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "image.png")
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


def test_missing_media_costs_itself(dataset: Any, run: Run, photos: list[str]) -> None:
    Path(photos[0]).unlink()
    summary = run("segment_concepts", **everything())
    assert (summary["done"], summary["failed"]) == (2, 2)
    assert "0.png" in dataset.first()[ERROR_FIELD]


def test_a_thousand_instances_in_one_image(
    dataset: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import efficientsam3 as es3
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


# Parts of forms -------------------------------------------------------------------------------


def test_classes_that_are_there_are_offered(dataset: Any, tiny: Path) -> None:
    operator = OperatorRegistry().get_operator(f"{PLUGIN}/segment_concepts")
    request = {"dataset_name": dataset.name, "view": [], "params": {}}
    form = operator.resolve_input(ExecutionContext(request))
    properties = form.type.properties
    offered = [c.value for c in properties["concepts"].view.choices]
    assert {"cat", "dog", "street"} <= set(offered)
    assert {"words", "scene"} <= {c.value for c in properties["text_field"].view.choices}
    labels = [c.label for c in properties["model"].view.choices]
    assert any("M parameters" in label and "is downloaded first" in label for label in labels)


def test_words_are_split_at_commas() -> None:
    assert split(["a, b", " c ,,"]) == ["a", "b", "c"]


def test_a_model_s_speed_is_what_a_run_measured() -> None:
    from fiftyone_esam3.speed import remember

    remember("efficientsam3-tinyvit-11m", {"done": 10, "seconds": 25.0})
    assert "2.5 s an image here" in describe("efficientsam3-tinyvit-11m", True)
    assert "here" not in describe("efficientsam3-tinyvit-11m", False)
