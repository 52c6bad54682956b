"""Labels that a field holds before a run: of people, of earlier runs, and edited ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_esam3.labels import ERROR_FIELD
from fiftyone_esam3.ownership.merge import ExistingLabelsError
from fiftyone_esam3.runs.field_lock import cancel_runs
from fiftyone_esam3.runs.find_similar import find_similar
from fiftyone_esam3.runs.segment import segment_concepts, segment_prompts
from fiftyone_esam3.runs.steps import RunError, finish
from fiftyone_esam3.runs.undo import list_runs, undo_run

from ..conftest import READABLE, SIDE


@pytest.fixture
def images(dataset: Any) -> Any:
    """The samples whose images can be read, as a dataset of their own."""
    dataset.delete_samples([dataset.values("id")[i] for i in range(4) if i not in READABLE])
    return dataset


@pytest.fixture
def run(tiny_folder: Path) -> Callable[..., dict[str, Any]]:
    def call(samples: Any, *concepts: Any, **options: Any) -> dict[str, Any]:
        options = {"model": str(tiny_folder), "label_field": "found", **options}
        asked = concepts[0] if isinstance(concepts[0], dict) else list(concepts)
        return finish(segment_concepts(samples, asked, **options))

    return call


Run = Callable[..., dict[str, Any]]


def labels(sample: Any, field: str = "found") -> list[tuple[str, list[str]]]:
    """The classes and tags of a sample's labels, in a fixed order."""
    found = sample.dataset[sample.id][field]
    return sorted((d.label, list(d.tags)) for d in (found.detections if found else []))


def names(sample: Any, field: str = "found") -> list[str]:
    return [label for label, _ in labels(sample, field)]


def contents(dataset: Any, field: str) -> list[Any]:
    return [s.to_dict() if s is not None else None for s in dataset.values(field)]


def correct(sample: Any) -> None:
    """Relabel one, delete one, tag one, and add one."""
    found = sample.found.detections
    assert [d.label for d in found] == ["hippo"] * 3
    found[0].label = "rhino"
    found[2].tags.append("checked")
    del found[1]
    found.append(fo.Detection(label="bird", bounding_box=[0.7, 0.7, 0.1, 0.1], tags=["mine"]))
    sample.save()


CORRECTED = [("bird", ["mine"]), ("hippo", ["checked"]), ("rhino", [])]


# People's labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["segment_concepts", "segment_prompts", "find_similar"])
def test_people_s_labels_are_not_touched_unasked(
    images: Any, tiny_folder: Path, squares: list[str], name: str
) -> None:
    images.tag_labels("checked", label_fields="boxes")
    before = contents(images, "boxes")
    options: dict[str, Any] = {"label_field": "boxes", "model": str(tiny_folder)}
    if name == "segment_concepts":
        steps = segment_concepts(images, ["hippo"], **options)
    elif name == "segment_prompts":
        steps = segment_prompts(images, "clicks", **options)
    else:
        chosen = images.first()
        one = {"sample_id": chosen.id, "field": "boxes", "label_id": chosen.boxes.detections[0].id}
        steps = find_similar(images, [one], **options)
    with pytest.raises(
        ExistingLabelsError, match="'boxes' holds 9 labels in 3 samples that people"
    ):
        finish(steps)
    assert contents(images, "boxes") == before and not squares
    assert not list_runs(images)


def test_add_keeps_all_and_appends_what_overlaps_none(
    images: Any, run: Run, squares: list[str]
) -> None:
    sample = images.first()
    sample["found"] = fo.Detections(
        detections=[fo.Detection(label="cow", bounding_box=[0, 0, 0.2, 0.25], tags=["mine"])]
    )
    sample.save()
    summary = run(images, "hippo", existing="add")
    assert labels(sample) == [("cow", ["mine"]), ("hippo", []), ("hippo", [])]
    assert (summary["kept"], summary["added"], summary["left_out"]) == (1, 8, 1)
    with pytest.raises(ExistingLabelsError):
        run(images, "food")  # the field holds a label that no run made
    run(images, "hippo", threshold=0.4, existing="add", overlap=1)
    assert names(sample) == ["cow"] + ["hippo"] * 3


def test_overwrite_is_explicit_and_can_be_undone(images: Any, run: Run, squares: list[str]) -> None:
    images.tag_labels("checked", label_fields="boxes")
    before = contents(images, "boxes")
    summary = run(images, "hippo", label_field="boxes", existing="overwrite")
    assert names(images.first(), "boxes") == ["hippo"] * 3 and summary["replaced"] == 9
    again = run(images, "hippo", label_field="boxes", existing="overwrite")
    assert (again["before"], again["done"]) == (3, 0)
    undone = finish(undo_run(fo.load_dataset(images.name), summary["run_key"]))
    assert (undone["removed"], undone["restored"], undone["spared"]) == (9, 9, 0)
    after = contents(images, "boxes")
    for old, new in zip(before, after, strict=True):
        assert old["detections"] == new["detections"]
    with pytest.raises(ExistingLabelsError):
        run(images, "hippo", label_field="boxes")


@pytest.mark.parametrize("copy", ["clone", "rename"])
def test_copied_labels_are_people_s(images: Any, run: Run, squares: list[str], copy: str) -> None:
    run(images, "hippo")
    if copy == "clone":
        images.clone_sample_field("found", "truth")
    else:
        images.rename_sample_field("found", "truth")
    with pytest.raises(ExistingLabelsError, match="9 labels"):
        run(images, "hippo", label_field="truth", threshold=0.4)


def test_a_wrong_policy_is_refused(images: Any, run: Run) -> None:
    with pytest.raises(ValueError, match="'refuse', 'add', 'replace' or 'overwrite'"):
        run(images, "hippo", existing="merge")
    with pytest.raises(ValueError, match="an IoU between 0 and 1"):
        run(images, "hippo", overlap=2)


# Corrections -----------------------------------------------------------------------------------


def test_corrections_survive_a_run_with_more_concepts(
    images: Any, run: Run, squares: list[str]
) -> None:
    run(images, "hippo")
    sample = images.first()
    correct(sample)
    squares.clear()
    summary = run(images, "hippo", "food")
    assert set(squares) == {"food"} and summary["kept"] == 3
    assert labels(sample) == sorted([*CORRECTED, ("food", [])])
    assert names(images.last()) == ["food", "hippo", "hippo", "hippo"]
    assert sample.dataset[sample.id].found.concept_presence == {"hippo": 1.0, "food": 1.0}
    rest = run(images, "food")
    assert (rest["before"], rest["done"]) == (3, 0)


@pytest.mark.parametrize("options", [{"threshold": 0.4}, {"restart": True}])
def test_a_question_that_is_asked_again_keeps_corrections(
    images: Any, run: Run, squares: list[str], options: dict[str, Any]
) -> None:
    run(images, "hippo")
    sample, other = images.first(), images.last()
    correct(sample)
    ids = {d.id for d in other.found.detections}
    with pytest.raises(ExistingLabelsError, match="holds 3 labels in 1 samples"):
        run(images, "hippo", **options)
    run(images, "hippo", existing="replace", **options)
    assert labels(sample) == CORRECTED
    again = images[other.id].found.detections
    assert len(again) == 3 and not ids & {d.id for d in again}
    # Once more: labels of people and deleted ones are still known.
    run(images, "hippo", existing="replace", threshold=0.3)
    assert labels(sample) == CORRECTED


def test_deleting_is_no_reason_to_refuse(images: Any, run: Run, squares: list[str]) -> None:
    run(images, "hippo")
    images.delete_labels(ids=[images.first().found.detections[0].id])
    run(images, "hippo", threshold=0.4)
    assert names(images.first()) == ["hippo"] * 2 and names(images.last()) == ["hippo"] * 3


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.tags.append("x"),
        lambda d: setattr(d, "bounding_box", [0.0, 0.0, 0.2, 0.25]),
        lambda d: setattr(d, "mask", np.eye(SIDE, dtype=bool)),
        lambda d: setattr(d, "confidence", 0.5),
        lambda d: d.set_field("occluded", True, create=True),
    ],
)
def test_every_change_makes_a_label_a_person_s(
    images: Any, run: Run, squares: list[str], change: Callable[[Any], Any]
) -> None:
    run(images, "hippo")
    sample = images.first()
    change(sample.found.detections[0])
    sample.save()
    kept = sample.found.detections[0].id
    with pytest.raises(ExistingLabelsError, match="holds 1 labels in 1 samples"):
        run(images, "hippo", threshold=0.4)
    run(images, "hippo", threshold=0.4, existing="replace")
    assert [d.id == kept for d in images[sample.id].found.detections] == [True, False, False]


def test_what_evaluation_and_saving_write_is_no_change(
    images: Any, run: Run, squares: list[str]
) -> None:
    run(images, "hippo")
    images.clone_sample_field("found", "truth")
    images.evaluate_detections("found", gt_field="truth", eval_key="mine", progress=False)
    for sample in images:
        sample["found"] = sample.found
        sample.save()
    assert run(images, "hippo", threshold=0.4)["replaced"] == 9


def test_a_failed_sample_keeps_its_labels(images: Any, run: Run, squares: list[str]) -> None:
    run(images, "hippo")
    sample = images.first()
    before = contents(images, "found")[0]
    Path(sample.filepath).unlink()
    assert run(images, "hippo", threshold=0.4, existing="overwrite")["failed"] == 1
    assert contents(images, "found")[0] == before and images.first()[ERROR_FIELD]


def test_classes_have_several_phrases(images: Any, run: Run, squares: list[str]) -> None:
    summary = run(images, {"beast": ["hippo"], "food": None})
    assert summary["instances"] == {"beast": 9, "food": 3}
    assert run(images, {"beast": ["hippo"]})["before"] == 3
    # A further phrase makes the class a new question.
    summary = run(images, {"beast": ["hippo", "animal"], "food": None})
    assert (summary["done"], summary["replaced"]) == (3, 9)
    assert names(images.first()) == ["beast"] * 5 + ["food"]


# Undo and cancel --------------------------------------------------------------------------------


def test_undo_spares_what_people_changed(images: Any, run: Run, squares: list[str]) -> None:
    first = run(images, "hippo")
    second = run(images, "hippo", "food")
    sample = images.first()
    sample.found.detections[0].label = "rhino"
    sample.found.detections.append(fo.Detection(label="bird", bounding_box=[0.7, 0.7, 0.1, 0.1]))
    sample.save()
    assert list(list_runs(images)) == [second["run_key"], first["run_key"]]
    undone = finish(undo_run(images, first["run_key"]))
    assert (undone["removed"], undone["spared"]) == (8, 1)
    assert names(sample) == ["bird", "food", "rhino"] and names(images.last()) == ["food"]
    assert finish(undo_run(images, second["run_key"]))["removed"] == 3
    assert names(sample) == ["bird", "rhino"] and images.last().found is None
    with pytest.raises(RunError, match="there is no run"):
        finish(undo_run(images, second["run_key"]))


def test_undo_restores_what_a_run_replaced(images: Any, run: Run, squares: list[str]) -> None:
    run(images, "hippo")
    before = [d["detections"] for d in contents(images, "found")]
    second = run(images, "hippo", threshold=0.4)
    assert second["replaced"] == 9
    undone = finish(undo_run(images, second["run_key"]))
    assert (undone["removed"], undone["restored"]) == (9, 9)
    assert [d["detections"] for d in contents(images, "found")] == before
    assert run(images, "hippo")["before"] == 3  # the first answer counts again


def test_undo_does_not_restore_labels_of_the_same_run(
    images: Any, run: Run, squares: list[str]
) -> None:
    run(images, "hippo")
    again = run(images, "hippo", restart=True)
    assert again["replaced"] == 9
    undone = finish(undo_run(images, again["run_key"]))
    assert (undone["removed"], undone["restored"]) == (9, 0)
    assert images.values("found") == [None] * 3


def test_a_cancelled_run_says_so_and_goes_on_later(
    images: Any, tiny_folder: Path, squares: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiftyone_esam3.runs.run.CHUNK_SECONDS", 0.0)
    options = {"label_field": "found", "model": str(tiny_folder)}
    cancelled = []

    def cancel(step: Any) -> None:
        if step.done == 1 and not cancelled:
            cancelled.extend(cancel_runs(images))

    summary = finish(segment_concepts(images, ["hippo"], **options), cancel)
    assert cancelled == ["found"] and cancel_runs(images) == []
    assert (summary["cancelled"], summary["done"]) == (True, 1)
    rest = finish(segment_concepts(images, ["hippo"], **options))
    assert (rest["cancelled"], rest["before"], rest["done"]) == (False, 1, 2)


# Views -----------------------------------------------------------------------------------------


def test_labels_that_a_view_hides_are_no_prompts(images: Any, tiny_folder: Path) -> None:
    view = images.filter_labels("boxes", fo.ViewField("label") == "cat")
    options = {"model": str(tiny_folder)}
    summary = finish(segment_prompts(view, "boxes", **options))
    assert summary["samples"] == 3 and set(summary["instances"]) == {"cat"}
    cats = {d.id for s in images for d in s.boxes_masks.detections}
    assert len(images.first().boxes.detections) == 3
    finish(segment_prompts(images, "boxes", **options))
    masks = images.first().boxes_masks.detections
    assert {d.label for d in masks} == {"cat", "dog"}
    assert cats & {d.id for d in masks}, "the masks that were there are made anew"


def test_a_moved_prompt_is_asked_again(images: Any, tiny_folder: Path) -> None:
    options = {"model": str(tiny_folder)}
    finish(segment_prompts(images, "boxes", **options))
    sample = images.first()
    before = [d.id for d in sample.boxes_masks.detections]
    sample.boxes.detections[0].bounding_box = [0.2, 0.2, 0.5, 0.5]
    sample.save()
    summary = finish(segment_prompts(images, "boxes", **options))
    after = [d.id for d in images.first().boxes_masks.detections]
    assert (summary["before"], summary["done"], summary["replaced"]) == (2, 1, 1)
    assert len(after) == len(before) and len(set(after) & set(before)) == len(before) - 1


def test_a_filtered_field_is_written_whole(images: Any, run: Run, squares: list[str]) -> None:
    run(images, "hippo")
    view = images.filter_labels("found", fo.ViewField("label") == "nothing", only_matches=False)
    run(view, "food")
    assert names(images.first()) == ["food", "hippo", "hippo", "hippo"]


@pytest.mark.parametrize("selected", ["boxes", ["boxes"], [{"label_id": "1"}]])
def test_examples_that_are_no_selected_labels(images: Any, selected: Any) -> None:
    with pytest.raises(RunError, match="each with sample_id, field, label_id"):
        finish(find_similar(images, selected, model="efficientsam3-stickers"))


# Another process --------------------------------------------------------------------------------


def in_another_process(dataset: Any, code: str) -> None:
    """Change a dataset where this process does not notice it."""
    code = f"import fiftyone as fo; dataset = fo.load_dataset({dataset.name!r}); {code}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow  # another process imports FiftyOne
def test_labels_of_people_that_another_process_wrote(images: Any, run: Run) -> None:
    kept = images.first()
    kept.tags.append("not saved yet")
    in_another_process(
        images,
        "dataset.set_values('found', [fo.Detections(detections=[fo.Detection(label='hippo', "
        "bounding_box=[0, 0, 0.5, 0.5])]) for _ in dataset])",
    )
    assert not images.has_sample_field("found"), "this process does not know the field"
    with pytest.raises(ExistingLabelsError):
        run(images, "hippo")
    assert images.count_values("found.detections.label") == {"hippo": len(images)}
    assert kept.tags == ["not saved yet"]


@pytest.mark.slow
def test_a_run_that_another_process_finished(images: Any, run: Run, tiny_folder: Path) -> None:
    in_another_process(
        images,
        "from fiftyone_esam3.runs.segment import segment_concepts; list(segment_concepts(dataset, "
        f"['hippo'], model={str(tiny_folder)!r}, label_field='found'))",
    )
    (key,) = list_runs(images)
    summary = run(images, "hippo")
    assert summary["before"] == len(images) and summary["run_key"] == key
    assert finish(undo_run(images, key))["field"] == "found"
