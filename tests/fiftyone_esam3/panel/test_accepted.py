"""What Accept writes: labels of a run, which the panel and ``undo_run`` can take back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest

from fiftyone_esam3.panel import segment_panel
from fiftyone_esam3.runs.field_lock import FieldLock
from fiftyone_esam3.runs.segment import segment_concepts
from fiftyone_esam3.runs.steps import finish
from fiftyone_esam3.runs.undo import list_runs, undo_run

from .client import PanelClient


@pytest.fixture
def accept(client: PanelClient, squares: list[str]) -> Callable[[str], list[Any]]:
    """Find a concept and accept all of it; gives the labels of the sample."""

    def find_and_accept(concept: str) -> list[Any]:
        client.controls["concepts"] = [concept]
        client("find")
        client("accept", found=client.all_found())
        assert "added to" in client.message
        return names(client.dataset.first())

    return find_and_accept


def names(sample: Any, field: str = "esam3") -> list[str]:
    sample.reload()
    held = sample[field] if sample.has_field(field) else None
    return [] if held is None else [label.label for label in held.detections]


def test_find_accept_and_undo(client: PanelClient, dataset: Any) -> None:
    client.controls["concepts"] = ["bus, person"]
    client("find")
    assert client.message == "" and client.result["concepts"] == ["bus", "person"]
    assert set(client.result["presence"]) == {"bus", "person"}
    some = client.all_found()[:3]
    client("accept", found=some)
    labels = dataset.first().esam3
    assert 0 < len(labels.detections) <= 3
    assert set(labels.concept_presence) == {"bus", "person"}
    assert "reload_dataset" in client.requests and "added to esam3" in client.message
    client("undo")
    assert dataset.first().esam3 is None and "removed from esam3" in client.message
    assert client.data["found"]["shapes"]  # the preview is there again
    client("undo")
    assert client.data["found"] is None


def test_undo_removes_the_panel_s_own_labels_alone(client: PanelClient, dataset: Any) -> None:
    ids = [d.id for d in dataset.first().boxes.detections]
    client.controls |= {"concepts": ["bus"], "label_field": "boxes"}
    client("find")
    client("accept", found=client.all_found()[:4])
    sample = dataset.first()
    added = sample.boxes.detections[3:]
    assert [d.id for d in sample.boxes.detections[:3]] == ids and len(added) > 1
    added[0].label = "tram"  # a person corrects one, and draws another
    sample.boxes.detections.append(fo.Detection(label="mine", bounding_box=[0, 0, 0.1, 0.1]))
    sample.save()
    client.sample = dataset.skip(1).first().id  # to another sample and back
    client("open")
    client.sample = sample.id
    client("open")
    client("undo")
    after = dataset.first().boxes.detections
    assert [d.label for d in after] == ["cat", "dog", "dog", "tram", "mine"]
    assert [d.id for d in after[:3]] == ids and after[3].id == added[0].id
    assert "1 label is edited since, and kept" in client.message


@pytest.mark.slow
def test_instances_that_are_labels_already(client: PanelClient, dataset: Any) -> None:
    client.controls["concepts"] = ["bus"]
    client("find")
    assert client.result["taken"] == []
    everything = client.all_found()
    client("accept", found=everything)
    count = len(dataset.first().esam3.detections)
    client("find")
    drawn = [i for i, s in enumerate(client.data["found"]["shapes"]) if "1" in s.get("runs", "1")]
    assert set(drawn) <= set(client.result["taken"])
    client("accept", found=[], taken=len(drawn))
    assert "already" in client.message
    assert len(dataset.first().esam3.detections) == count


def test_what_was_accepted_is_a_run(
    accept: Callable[[str], list[Any]], client: PanelClient, dataset: Any
) -> None:
    assert accept("hippo") == ["hippo"] * 3
    assert accept("food") == ["hippo"] * 3 + ["food"]
    (key,) = list_runs(dataset)
    assert "esam3" in list_runs(dataset)[key] and "accepted in the panel" in list_runs(dataset)[key]
    assert dataset.get_field("esam3.detections.presence") is not None  # the sidebar filters by it
    sample = dataset.first()
    sample.esam3.detections[1].tags.append("checked")
    sample.esam3.detections.append(fo.Detection(label="mine", bounding_box=[0, 0, 0.1, 0.1]))
    sample.save()
    summary = finish(undo_run(dataset, key))
    assert (summary["removed"], summary["spared"]) == (3, 1)
    assert names(dataset.first()) == ["hippo", "mine"]
    assert dataset.first().esam3.concept_presence == {}


@pytest.mark.slow
def test_undo_in_another_session(
    accept: Callable[[str], list[Any]], client: PanelClient, dataset: Any
) -> None:
    accept("hippo")
    accept("food")
    segment_panel._states.values.clear()  # as in a new process
    client("open")
    assert client.result["undo"] == 1
    client("undo")
    assert names(dataset.first()) == ["hippo"] * 3 and "1 label is removed" in client.message
    assert set(dataset.first().esam3.concept_presence) == {"hippo"}
    client("undo")
    assert dataset.first().esam3 is None and client.result["undo"] == 0
    client("undo")
    assert client.message == "there is nothing to undo"


def test_presence_stays_while_a_label_of_the_class_does(
    accept: Callable[[str], list[Any]], client: PanelClient, dataset: Any
) -> None:
    client.controls["concepts"] = ["hippo"]
    client("find")
    client("accept", found=[0])
    first = dataset.first().esam3.detections[0].id
    client("find")
    client("accept", found=[1, 2])
    for _ in range(3):  # the second Accept, the search, the first Accept
        held = dataset.first().esam3
        if client.result["undo"] > 2:
            assert held.concept_presence == {"hippo": 1.0} and held.detections[0].id == first
        client("undo")
    assert dataset.first().esam3 is None


@pytest.mark.slow
def test_later_runs_keep_what_was_accepted(
    accept: Callable[[str], list[Any]], client: PanelClient, dataset: Any, tiny_folder: Path
) -> None:
    client.controls["concepts"] = ["hippo"]
    client("find")
    client("accept", found=[0, 1])
    ids = [label.id for label in dataset.first().esam3.detections]
    summary = finish(
        segment_concepts(dataset.limit(1), ["hippo", "animal"], model=str(tiny_folder))
    )
    held = dataset.first().esam3.detections
    assert [label.id for label in held[:2]] == ids
    assert [label.label for label in held] == ["hippo", "hippo", "hippo", "animal"]
    assert summary["left_out"] == 3  # two of the hippopotamuses, and the animal that is the first
    finish(undo_run(dataset, summary["run_key"]))
    assert [label.id for label in dataset.first().esam3.detections] == ids
    client("undo")
    assert names(dataset.first()) == []


def test_a_run_that_is_writing_is_waited_for(
    accept: Callable[[str], list[Any]], client: PanelClient, dataset: Any
) -> None:
    client.controls["concepts"] = ["hippo"]
    client("find")
    lock = FieldLock(dataset, "esam3", "another run")
    client("accept", found=[0])
    assert "another run" in client.message and not names(dataset.first())
    lock.release()
    client("accept", found=[0])
    assert names(dataset.first()) == ["hippo"]
    lock = FieldLock(dataset, "esam3", "another run")
    client("undo")
    assert "another run" in client.message and names(dataset.first()) == ["hippo"]
    lock.release()
    client("undo")
    assert names(dataset.first()) == []
