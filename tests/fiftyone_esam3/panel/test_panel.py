"""The panel without a browser: its events and what it sends. test_app.py uses a browser."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from PIL import Image

import efficientsam3 as es3
from efficientsam3.types import BitPatch, Instances
from fiftyone_esam3.model_cache import MODEL_LOCK
from fiftyone_esam3.panel.picture import GRID_SIDE, Shapes, grid_size
from fiftyone_esam3.panel.state import ENCODED, LIKE_THIS, NOT_THIS, OBJECT_OFF, Recent
from fiftyone_esam3.runs.field_lock import FieldLock

from .client import PanelClient


def test_the_panel_shows_the_sample_and_its_labels(client: PanelClient) -> None:
    assert client.data["title"] == "0.png" and client.message == ""
    picture = client.data["picture"]
    assert picture["source"].startswith("data:image/jpeg;base64,")
    assert (picture["width"], picture["height"]) == (64, 48)
    client.controls["label_field"] = "boxes"
    client("open")
    existing = client.sent["existing"]
    assert existing["grid"] == [576, 768]
    assert [shape["label"] for shape in existing["shapes"]] == ["cat", "dog", "dog"]
    assert existing["shapes"][0]["box"] == pytest.approx((76.8, 57.6, 384, 345.6))
    assert {"cat", "dog"} <= set(client.sent["choices"]["classes"])
    assert {"boxes", "esam3"} == set(client.sent["choices"]["fields"])


def test_no_event_changes_the_workspace(client: PanelClient) -> None:
    """The App keeps panel state in the workspace, and loads the grid anew when it changes."""
    client.controls["concepts"] = ["bus"]
    for event in ("open", "find", "next_object", "discard", "undo"):
        client(event)
        assert client.requests == []
    client("on_load")
    assert client.requests == ["patch_panel_data", "show_panel_output"]


def test_only_what_changed_is_sent(client: PanelClient, dataset: Any) -> None:
    client.controls["concepts"] = ["bus"]
    client("find")
    assert "picture" not in client.sent and "existing" not in client.sent
    assert client.sent["found"]["shapes"]
    client("click", x=0.5, y=0.5)
    assert not {"picture", "existing", "found", "choices"} & set(client.sent)
    client("discard")
    assert client.sent["found"] is None
    client("undo")
    assert client.sent["found"]["shapes"]


def test_work_on_a_sample_is_there_when_one_comes_back(client: PanelClient, dataset: Any) -> None:
    client.controls["concepts"] = ["bus"]
    client("find")
    client("click", x=0.2, y=0.2)
    before, first = client.data["found"]["key"], client.sample
    client.sample = dataset.skip(1).first().id
    client("open")
    assert client.data["title"] == "1.png" and client.data["found"] is None
    assert client.result["points"] == [] and client.result["undo"] == 0
    client("on_unload")
    client.sample = first
    client("open")
    assert client.data["found"]["key"] == before
    assert client.result["points"] == [pytest.approx([0.2, 0.2, 1])]


@pytest.mark.slow
def test_clicks_refine_one_object(client: PanelClient, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = es3.ImageModel.segment_objects
    read = []
    encode = es3.ImageModel.encode

    def segment_objects(self: Any, image: Any, **prompts: Any) -> Any:
        calls.append(prompts)
        return real(self, image, **prompts)

    def count(self: Any, image: Any) -> Any:
        if not isinstance(image, es3.EncodedImage):
            read.append(image)
        return encode(self, image)

    monkeypatch.setattr(es3.ImageModel, "segment_objects", segment_objects)
    monkeypatch.setattr(es3.ImageModel, "encode", count)
    ENCODED.values.clear()
    client("click", x=0.5, y=0.5)
    assert calls[-1]["points"] == [[(32, 24)]] and calls[-1]["multimask"]
    client.controls["meaning"] = OBJECT_OFF
    client("click", x=0, y=0)
    assert calls[-1]["point_labels"] == [[1, 0]] and not calls[-1]["multimask"]
    client("box", corners=[0.75, 0.75, 0.25, 0.125])
    np.testing.assert_allclose(calls[-1]["boxes"], [(16, 6, 48, 36)])
    assert client.result["boxes"] == [[0.25, 0.125, 0.75, 0.75, 1]]
    client("next_object")
    client.controls["meaning"] = "on"
    client("click", x=0.1, y=0.1)
    assert len(calls[-1]["points"][0]) == 1 and calls[-1]["boxes"] is None
    assert [s["label"] for s in client.result["objects"]["shapes"]] == ["object", "object"]
    assert len(read) == 1
    for _ in range(5):
        client("undo")
    assert client.result["objects"] is None and client.message == ""
    client("undo")
    assert client.message == "there is nothing to undo"


def test_objects_get_the_first_concept_as_their_class(client: PanelClient, dataset: Any) -> None:
    client.controls["concepts"] = ["tram", "bus"]
    client("click", x=0.5, y=0.5)
    client("accept", objects=[0])
    assert dataset.distinct("esam3.detections.label") == ["tram"]


def test_boxes_and_clicks_can_be_examples(
    client: PanelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = es3.ImageModel.segment

    def segment(self: Any, image: Any, concepts: Any = None, **rest: Any) -> Any:
        calls.append((concepts, rest["boxes"].tolist(), rest["box_labels"].tolist()))
        return real(self, image, concepts, **rest)

    monkeypatch.setattr(es3.ImageModel, "segment", segment)
    client.controls["meaning"] = LIKE_THIS
    client("box", corners=[0.2, 0.1, 0.8, 0.8])
    client.controls["meaning"] = NOT_THIS
    client("click", x=0.01, y=0.01)
    assert calls[0][0] is None and calls[1][2] == [1, 0]
    assert client.result["concepts"] == ["visual"]
    client("undo")
    assert [box[4] for box in client.result["boxes"]] == [1]
    client.controls["concepts"] = ["bus"]
    client("find")
    assert calls[-1][0] == ["bus"] and client.result["concepts"] == ["bus"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("find", "nothing to look for"),
        ("accept", "nothing to accept"),
        ("undo", "nothing to undo"),
        ("box", "the box is a line"),
    ],
)
def test_errors_are_shown_in_the_panel(client: PanelClient, method: str, message: str) -> None:
    client(method, corners=[0.1, 0.1, 0.1, 0.5])
    assert message in client.message and client.data["message"]["kind"] == "error"


def test_runs_are_cancelled(client: PanelClient, dataset: Any) -> None:
    assert client.data["running"] == []
    client("cancel")
    assert "no run is writing" in client.message
    lock = FieldLock(dataset, "boxes", "a run")
    client("open")
    assert client.sent["running"] == ["boxes"], "so that the panel shows its button"
    client("cancel")
    assert "the runs on boxes end" in client.message and lock.is_cancelled()
    lock.release()


def test_a_click_while_the_model_is_busy(client: PanelClient) -> None:
    inside, done = threading.Event(), threading.Event()

    def load() -> None:
        with MODEL_LOCK:
            inside.set()
            done.wait(20)

    thread = threading.Thread(target=load)
    thread.start()
    inside.wait(20)
    client("click", x=0.1, y=0.1)
    done.set()
    thread.join()
    assert "try again in a moment" in client.message
    client("click", x=0.1, y=0.1)
    assert client.message == ""


@pytest.mark.slow
def test_samples_that_cannot_be_shown(client: PanelClient, dataset: Any, tmp_path: Path) -> None:
    client.sample = dataset.skip(2).first().id  # corrupt
    client("open")
    assert "2.png" in client.message and client.data["picture"] is None
    client("find")
    assert client.data["message"]["kind"] == "error"
    (tmp_path / "clip.mp4").write_bytes(b"")
    videos = fo.Dataset()
    videos.add_sample(fo.Sample(filepath=str(tmp_path / "clip.mp4")))
    other = PanelClient(videos, videos.first().id)
    other("open")
    assert "track_video" in other.message
    empty = fo.Dataset()
    no_sample = PanelClient(empty, None)
    no_sample("open")
    assert no_sample.message == "" and no_sample.data["sample"] is None
    no_sample("find")
    assert "there is no sample here" in no_sample.message
    for one in (videos, empty):
        one.delete()


def test_live_searches_at_once(client: PanelClient, dataset: Any) -> None:
    client.controls |= {"concepts": ["bus"], "live": True}
    client.sample = dataset.skip(1).first().id
    client("open")
    assert client.data["title"] == "1.png" and client.result["concepts"] == ["bus"]
    undo = client.result["undo"]
    client("open")  # the work that is there is not replaced
    assert client.result["undo"] == undo


# The parts ------------------------------------------------------------------------------------


def instances(*masks: Any) -> Instances:
    """Instances with these masks."""
    n = len(masks)
    return Instances(
        boxes=np.zeros((n, 4), np.float32),
        scores=np.ones(n, np.float32),
        presence=np.ones(n, np.float32),
        labels=["a"] * n,
        size=masks[0].shape,
        patches=[BitPatch.cut(mask) for mask in masks],
    )


def read_runs(shape: dict[str, Any], grid: tuple[int, int]) -> Any:
    """The mask that panel.js makes of run lengths."""
    x0, y0, x1, y1 = (round(v) for v in shape["box"])
    runs = [int(run) for run in shape["runs"].split(" ")]
    bits = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    out = np.zeros(grid, bool)
    out[y0:y1, x0:x1] = bits.reshape(y1 - y0, x1 - x0)
    return out


@pytest.mark.parametrize("size", [(48, 64), (2000, 1000), (1, 1), (1, 4000)])
def test_the_grid_has_the_form_of_the_image(size: tuple[int, int]) -> None:
    grid = grid_size(size)
    assert max(grid) == GRID_SIDE and min(grid) >= 1


def test_masks_are_drawn_where_they_are() -> None:
    mask = np.zeros((40, 80), bool)
    mask[10:20, 40:60] = True
    mask[12:15, 45:50] = False
    sent = Shapes.of_instances("key", instances(mask)).to_json()
    drawn = read_runs(sent["shapes"][0], sent["grid"])
    small = np.asarray(Image.fromarray(drawn).resize((80, 40), Image.Resampling.NEAREST))
    assert (small == mask).mean() > 0.99


def test_an_instance_without_a_pixel_has_no_cells() -> None:
    empty = Shapes.of_instances("key", instances(np.zeros((40, 80), bool)))
    (shape,) = empty.to_json()["shapes"]
    assert read_runs(shape, empty.grid).sum() == 0
    assert empty.overlap(empty) == [0]


def test_overlap_of_masks_with_masks_and_boxes() -> None:
    left, right = np.zeros((2, 40, 80), bool)
    left[10:30, 10:30], right[10:30, 50:70] = True, True
    found = Shapes.of_instances("key", instances(left, right))
    half = fo.Detection(label="b", bounding_box=[10 / 80, 10 / 40, 10 / 80, 20 / 40])
    whole = fo.Detection.from_mask(right, label="b")
    labels = fo.Detections(detections=[half, whole])
    existing = Shapes.of_labels("key", labels, (40, 80))
    assert found.overlap(existing) == pytest.approx([0.5, 1.0], abs=0.03)
    assert found.overlap(Shapes.of_labels("key", None, (40, 80))) == [0, 0]


def test_few_encoded_images_are_kept() -> None:
    encoded: list[str] = []
    recent: Recent[str] = Recent(4)
    for name in "abcdeae":
        recent.get(name, lambda name=name: encoded.append(name) or name)
    assert encoded == list("abcdea")
    assert list(recent.values) == list("cdae")
