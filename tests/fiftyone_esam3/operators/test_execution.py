"""Operators at once, in the App, delegated, and two at a time."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import pytest
from fiftyone.operators.delegated import DelegatedOperationService
from fiftyone.operators.executor import ExecutionError, execute_or_delegate_operator

from fiftyone_esam3.plugin import PLUGIN
from fiftyone_esam3.runs import run as runs
from fiftyone_esam3.runs.field_lock import DatasetWatch, FieldLock
from fiftyone_esam3.runs.image_task import LabelTask
from fiftyone_esam3.runs.label_writer import LabelWriter
from fiftyone_esam3.runs.segment import segment_concepts
from fiftyone_esam3.runs.steps import finish

from ..conftest import READABLE
from .calls import Run, everything, execute_in_app, resolve_form

# Delegated, and in the App --------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[DelegatedOperationService]:
    service = DelegatedOperationService()
    yield service
    for operation in service.list_operations():
        service.delete_operation(operation.id)


def queue(dataset: Any, tiny_folder: Path, name: str = "segment_concepts", **params: Any) -> Any:
    return foo.execute_operator(
        f"{PLUGIN}/{name}",
        ctx={"dataset": dataset},
        params={"model": str(tiny_folder), **params},
        request_delegation=True,
    )


@pytest.mark.slow
def test_a_delegated_run(
    dataset: Any, tiny_folder: Path, service: DelegatedOperationService
) -> None:
    queue(dataset, tiny_folder, **everything())
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
    tiny_folder: Path,
    service: DelegatedOperationService,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = fo.Dataset()
    dataset.add_samples([fo.Sample(filepath=photos[i]) for i in READABLE])
    monkeypatch.setattr(runs, "CHUNK_SECONDS", 0.0)
    name, real = dataset.name, LabelTask.process

    def delete_after(*args: Any) -> None:
        real(*args)
        fo.delete_dataset(name)

    monkeypatch.setattr(LabelTask, "process", delete_after)
    queue(dataset, tiny_folder, **everything())
    (result,) = service.execute_queued_operations(limit=1)
    assert result.error  # the operation was deleted with its dataset, so the log has to tell
    assert f"the dataset {name!r} was deleted while this run worked on it; 0 of 3" in caplog.text
    assert not fo.dataset_exists(name)


def test_the_app_gets_progress_and_the_result(dataset: Any, tiny_folder: Path) -> None:
    messages = execute_in_app(dataset, "segment_concepts", model=str(tiny_folder), **everything())
    names = [m["operator_uri"].rpartition("/")[2] for m in messages]
    assert names[0] == "set_progress" and names[-2:] == ["reload_dataset", "notify"]
    shown = [m["params"].get("results", m["params"]) for m in messages]
    progress = [one["progress"] for one in shown if "progress" in one]
    assert progress == sorted(progress) and progress[-1] == 1
    buttons = [m["params"]["outputs"] for m in messages if "outputs" in m["params"]]
    assert 0 < len(buttons) < len(progress), "while there is a run to cancel"
    assert messages[-1]["params"]["variant"] == "warning"
    dataset.reload()
    assert len(dataset.exists("esam3")) == 3


def test_a_run_is_cancelled_by_the_button_of_its_dialog(
    dataset: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MAX_CHUNK", 1)
    params = {"model": str(tiny_folder), **everything()}
    request = {"dataset_name": dataset.name, "view": [], "filters": {}, "params": params}
    uri = f"{PLUGIN}/segment_concepts"
    pressed, last = 0, {}
    for message in asyncio.run(execute_or_delegate_operator(uri, request)).result:
        last = message.body.to_json()["params"]
        if "outputs" in last and not pressed:
            button = last["outputs"]["type"]["properties"]["cancel_runs"]["view"]
            assert button["label"].startswith("Cancel") and button["params"] == {"field": "esam3"}
            press = {**request, "params": button["params"]}
            asyncio.run(execute_or_delegate_operator(button["operator"], press))
            pressed += 1
    assert pressed == 1 and "cancelled: 4 are left" in last["message"]
    assert not dataset.has_sample_field("esam3")


def test_a_run_is_cancelled_in_another_tab(dataset: Any) -> None:
    request = {"dataset_name": dataset.name, "view": [], "filters": {}, "params": {}}

    def cancel() -> tuple[Any, list[dict[str, Any]]]:
        result = asyncio.run(execute_or_delegate_operator(f"{PLUGIN}/cancel_runs", request))
        said = [r.params for r in result.executor._requests if "notify" in r.operator_uri]
        return result, said

    _, said = cancel()
    assert "no run is writing to this dataset" in said[0]["message"]
    lock = FieldLock(dataset, "esam3", "a run")
    offered = resolve_form(dataset, "cancel_runs").type.properties["field"].view.to_json()
    assert [choice["value"] for choice in offered["choices"]] == ["esam3"]
    result, said = cancel()
    assert said[0]["message"] == "the runs on esam3 end after the images in hand"
    assert not result.is_generator and lock.is_cancelled()
    lock.release()


def test_the_app_gets_the_error_of_a_run(
    dataset: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DatasetWatch, "exists", lambda self: False)
    *_, last = execute_in_app(dataset, "segment_concepts", model=str(tiny_folder), **everything())
    assert last["params"]["variant"] == "error" and "was deleted" in last["params"]["message"]


def test_an_unexpected_error_is_one_sentence(
    dataset: Any,
    tiny_folder: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the App and in Python; the log has the traceback at level DEBUG only."""

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("no such key")

    monkeypatch.setattr(LabelTask, "process", fail)
    with caplog.at_level(logging.INFO, "fiftyone_esam3"):
        *_, last = execute_in_app(
            dataset, "segment_concepts", model=str(tiny_folder), **everything()
        )
        with pytest.raises(ExecutionError, match="KeyError: 'no such key'"):
            run("segment_concepts", **everything(label_field="other"))
    assert last["params"]["variant"] == "error"
    assert "KeyError: 'no such key'" in last["params"]["message"]
    assert "Traceback" not in last["params"]["message"] and "Traceback" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "fiftyone_esam3"):
        execute_in_app(dataset, "segment_concepts", model=str(tiny_folder), **everything())
    assert "Traceback" in caplog.text


def test_an_unexpected_error_of_a_form_is_one_sentence(
    dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("no such key")

    monkeypatch.setattr("fiftyone_esam3.operators.form.existing_classes", fail)
    form = resolve_form(dataset, "segment_concepts")
    assert "KeyError: 'no such key'" in form.type.properties["refused"].error_message


# Two at once ----------------------------------------------------------------------------------


def test_a_run_with_other_settings_has_to_wait(dataset: Any, run: Run) -> None:
    other = FieldLock(dataset, "esam3", "another run")
    with pytest.raises(ExecutionError, match="another run with other settings is writing"):
        run("segment_concepts", **everything())
    run("segment_concepts", **everything(label_field="elsewhere"))
    other.release()
    run("segment_concepts", **everything())


def test_runs_with_the_same_settings_share_the_work(
    dataset: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run starts at the other end, so that both meet in the middle."""
    labeled: list[str] = []
    began = threading.Event()
    real = LabelWriter.write

    def record(self: Any, document: Any, value: Any) -> None:
        labeled.append(document.id)
        began.set()
        real(self, document, value)

    monkeypatch.setattr(LabelWriter, "write", record)
    monkeypatch.setattr(runs, "CHUNK_SECONDS", 0.0)
    good = dataset.select([dataset.values("id")[i] for i in READABLE])
    limits = {"threshold": 0.0, "max_instances": 2, "model": str(tiny_folder)}
    threads = [
        threading.Thread(target=lambda: finish(segment_concepts(good, ["bus"], **limits)))
        for _ in range(2)
    ]
    threads[0].start()
    assert began.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(good.exists("esam3")) == 3
    assert set(labeled) == set(good.values("id")) and len(labeled) < 6
