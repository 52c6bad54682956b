"""The panel: without a browser, what its buttons do; the rest is in test_app.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from fiftyone.operators.executor import ExecutionContext, Executor
from fiftyone.operators.registry import OperatorRegistry
from PIL import Image

import efficientsam3 as es3
from fiftyone_esam3.panel import panel as panels
from fiftyone_esam3.panel.bench import LIKE_THIS, NOT_THIS, OBJECT_OFF, Bench, Prompts
from fiftyone_esam3.panel.picture import SIDE, draw, screen_size, to_image
from fiftyone_esam3.plugin import PLUGIN
from fiftyone_esam3.shared import COMPUTING

GOOD = [0, 1, 3]


class Hand:
    """Presses the panel's buttons, and remembers the panel's state as the App does."""

    def __init__(self, dataset: Any, sample: str | None) -> None:
        self.dataset, self.sample = dataset, sample
        self.state: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.asked: list[str] = []

    def __call__(self, method: str, **params: Any) -> None:
        request = {
            "dataset_name": self.dataset.name,
            "view": [],
            "current_sample": self.sample,
            "params": {
                "panel_id": f"panel of {self.dataset.name}",
                "panel_state": self.state,
                "__method__": method,
                **params,
            },
        }
        operator = OperatorRegistry().get_operator(f"{PLUGIN}/efficientsam3_workbench")
        executor = Executor()
        operator.execute(ExecutionContext(request, executor=executor, operator_uri=operator.uri))
        self.asked = []
        for told in executor._requests:
            name = told.operator_uri.rpartition("/")[2]
            self.asked.append(name)
            if name == "patch_panel_state":
                self.state = {**self.state, **told.params["state"]}
            if name == "patch_panel_data":
                self.data = {**self.data, **told.params["data"]}


@pytest.fixture
def hand(dataset: Any, tiny: Path) -> Iterator[Hand]:
    hand = Hand(dataset, dataset.first().id)
    hand.state["model"] = str(tiny)
    hand("on_load")
    yield hand
    panels._benches.clear()


def test_it_shows_the_sample(hand: Hand) -> None:
    assert hand.state["title"] == "0.png" and hand.state["threshold"] == 0.5
    assert (hand.state["width"], hand.state["height"]) == (520, 390)
    image, grid = hand.data["picture"]
    assert image["source"].startswith("data:image/jpeg;base64,")
    assert len(grid["x"]) == len(grid["y"]) == 65 * 49
    assert "show_panel_output" in hand.asked


def test_preview_slider_and_accept(
    hand: Hand, dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand.state["concepts"] = "bus, person"
    hand.state["threshold"] = 0.0
    hand("preview")
    assert hand.state["told"] == "" and "| bus |" in hand.state["counts"]
    many = hand.state["counts"]
    picture = hand.data["picture"][0]["source"]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was asked")

    with monkeypatch.context() as patch:
        for name in ("encode", "segment", "segment_objects"):
            patch.setattr(es3.ImageModel, name, refuse)
        bench = panels._benches[f"panel of {dataset.name}"]
        hand.state["threshold"] = float(np.median(bench.view.found.scores))
        hand("slide")
        assert hand.state["counts"] != many and hand.data["picture"][0]["source"] != picture
        shown = sum(bench.counts(hand.state["threshold"]).values())
        assert 0 < shown < len(bench.view.found)
        hand("accept")
    dataset.reload()
    labels = dataset.first().esam3
    assert 0 < len(labels.detections) <= shown
    assert set(labels.concept_presence) == {"bus", "person"}
    assert {"reload_dataset", "notify"} <= set(hand.asked)
    hand("undo")
    assert dataset.first().esam3 is None
    assert "| bus |" in hand.state["counts"]  # the preview is there again
    hand("undo")
    assert hand.state["counts"] == ""


def test_accepting_adds_to_what_is_there(hand: Hand, dataset: Any) -> None:
    before = [d.label for d in dataset.first().boxes.detections]
    hand.state.update(concepts="bus", threshold=0.0, label_field="boxes")
    hand("preview")
    hand("accept")
    dataset.reload()
    assert [d.label for d in dataset.first().boxes.detections][:3] == before
    assert len(dataset.first().boxes.detections) > 3
    hand("undo")
    assert [d.label for d in dataset.first().boxes.detections] == before


def test_clicks_refine_one_object(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = es3.ImageModel.segment_objects
    read = []
    encode = es3.ImageModel.encode

    def segment_objects(self: Any, image: Any, **prompts: Any) -> Any:
        asked.append(prompts)
        return real(self, image, **prompts)

    def count(self: Any, image: Any) -> Any:
        if not isinstance(image, es3.EncodedImage):
            read.append(image)
        return encode(self, image)

    monkeypatch.setattr(es3.ImageModel, "segment_objects", segment_objects)
    monkeypatch.setattr(es3.ImageModel, "encode", count)
    panels._encoded._kept.clear()
    hand("click", idx=[195, 260])  # row and column of the picture, 390 x 520
    assert asked[-1]["points"] == [[pytest.approx((32, 24), abs=0.1)]] and asked[-1]["multimask"]
    hand.state["meaning"] = OBJECT_OFF
    hand("click", idx=[0, 0])
    assert asked[-1]["point_labels"] == [[1, 0]] and not asked[-1]["multimask"]
    hand("box", data=[{"x": 80, "y": 40}, {"x": 400, "y": 300}, {"x": None}])
    np.testing.assert_allclose(asked[-1]["boxes"], [(9.85, 4.92, 49.23, 36.92)], atol=0.1)
    hand("next_object")
    hand.state["meaning"] = "on"
    hand("click", idx=[10, 10])
    assert len(asked[-1]["points"][0]) == 1 and asked[-1]["boxes"] is None
    assert "| object | 2 |" in hand.state["counts"]
    assert len(read) == 1
    for _ in range(5):
        hand("undo")
    assert hand.state["counts"] == "" and hand.state["told"] == ""
    hand("undo")
    assert hand.state["told"] == "there is nothing to undo"


def test_boxes_as_examples(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = es3.ImageModel.segment

    def segment(self: Any, image: Any, concepts: Any = None, **rest: Any) -> Any:
        asked.append((concepts, rest["boxes"].tolist(), rest["box_labels"].tolist()))
        return real(self, image, concepts, **rest)

    monkeypatch.setattr(es3.ImageModel, "segment", segment)
    hand.state.update(meaning=LIKE_THIS, threshold=0.0)
    hand("box", data=[{"x": 80, "y": 40}, {"x": 400, "y": 300}])
    hand.state["meaning"] = NOT_THIS
    hand("click", idx=[5, 5])
    assert asked[0][0] is None and asked[1][2] == [1, 0]
    assert "| visual |" in hand.state["counts"]
    hand("undo")
    bench = panels._benches[f"panel of {hand.dataset.name}"]
    assert len(bench.view.prompts.examples) == 1
    hand.state["concepts"] = "bus"
    hand("preview")
    assert asked[-1][0] == ["bus"] and "| bus |" in hand.state["counts"]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("preview", "nothing to look for"),
        ("accept", "nothing to accept"),
        ("undo", "nothing to undo"),
    ],
)
def test_trouble_is_told_in_the_panel(hand: Hand, method: str, words: str) -> None:
    hand(method)
    assert words in hand.state["told"]


def test_a_click_while_the_model_is_loading(hand: Hand) -> None:
    inside, done = threading.Event(), threading.Event()

    def load() -> None:
        with COMPUTING:
            inside.set()
            done.wait(20)

    thread = threading.Thread(target=load)
    thread.start()
    inside.wait(20)
    hand("click", idx=[5, 5])
    done.set()
    thread.join()
    assert "try again in a moment" in hand.state["told"]
    hand("click", idx=[5, 5])
    assert hand.state["told"] == ""


def test_samples_that_cannot_be_shown(hand: Hand, dataset: Any, tmp_path: Path) -> None:
    hand.sample = dataset.skip(2).first().id  # corrupt
    hand("on_change_current_sample")
    assert "2.png" in hand.state["told"]
    hand("preview")
    assert hand.state["told"]
    (tmp_path / "clip.mp4").write_bytes(b"")
    videos = fo.Dataset()
    videos.add_sample(fo.Sample(filepath=str(tmp_path / "clip.mp4")))
    other = Hand(videos, videos.first().id)
    other("on_load")
    assert "track_video" in other.state["told"]
    empty = fo.Dataset()
    nobody = Hand(empty, None)
    nobody("on_load")
    nobody("preview")
    assert "there is no sample here" in nobody.state["told"]
    for one in (videos, empty):
        one.delete()


def test_live_looks_at_once(hand: Hand, dataset: Any) -> None:
    hand.state.update(concepts="bus", live=True, threshold=0.0)
    hand.sample = dataset.skip(1).first().id
    hand("on_change_current_sample")
    assert hand.state["title"] == "1.png" and "| bus |" in hand.state["counts"]


# The parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 64), (2000, 1000), (1, 1), (1, 4000)])
def test_a_place_on_the_screen_is_one_in_the_image(size: tuple[int, int]) -> None:
    height, width = screen_size(size)
    assert max(height, width) == SIDE
    x, y = to_image((width - 1) / 2, (height - 1) / 2, size)
    assert (x, y) == pytest.approx((size[1] / 2, size[0] / 2))
    assert draw(np.zeros((*size, 3), np.uint8), None, Prompts()).size == (width, height)


def test_masks_are_drawn_where_they_are() -> None:
    from efficientsam3.types import BitPatch, Instances

    mask = np.zeros((40, 80), bool)
    mask[10:20, 40:60] = True
    found = Instances(
        boxes=np.array([[40, 10, 60, 20]], np.float32),
        scores=np.ones(1, np.float32),
        presence=np.ones(1, np.float32),
        labels=["a"],
        size=(40, 80),
        patches=[BitPatch.cut(mask)],
    )
    blank = np.full((40, 80, 3), 128, np.uint8)
    pixels = np.asarray(draw(blank, found, Prompts()), int)
    changed = (np.abs(pixels - 128).max(-1) > 10).astype(np.uint8) * 255
    ys, xs = np.nonzero(changed)
    corners = np.array([40, 60, 10, 20]) * SIDE / 80
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == pytest.approx(corners, abs=2)
    small = np.asarray(Image.fromarray(changed).resize((80, 40))) > 127
    assert (small == mask).mean() > 0.97


def test_features_of_few_images_are_kept(tmp_path: Path) -> None:
    read = []
    model = SimpleNamespace(encode=lambda path: read.append(path) or path)
    bench = Bench()
    for name in "abcdea":
        bench.encoded.read(model, name)
    bench.encoded.read(model, "e")
    assert read == list("abcdea")
