"""Classes of several phrases in a video: labels, phrases and suppression across classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientsam3 import PromptError, TrackSettings
from efficientsam3.types import Instances
from efficientsam3.video.concept_tracker import ConceptTracker
from efficientsam3.video.track import track
from efficientsam3.video.track_file import TrackFile, read_tracked
from efficientsam3.video.track_writers import write_coco, write_mot
from efficientsam3.video.types import TrackedFrame

from .scripted import ScriptedMemory, ScriptedModel, disc, frames, instances

CLASSES = {"vehicle": ["car", "truck"], "dog": ["dog"]}


class Reader(ScriptedModel):
    """Finds a car and a dog; answers for classes as a model does."""

    def segment(self, image: Any, concepts: Any = None, **options: Any) -> Instances:  # type: ignore[override]
        self.asked.append((image.index, concepts, options.get("boxes")))
        classes = concepts if isinstance(concepts, dict) else {name: [name] for name in concepts}
        owners = {phrase: name for name, phrases in classes.items() for phrase in phrases}
        found = self.script(image.index)
        rows = [row for row, phrase in enumerate(found.labels) if phrase in owners]
        found = found[rows]
        return replace(
            found,
            labels=[owners[p] for p in found.labels],
            phrases=found.labels,
            concepts=(*classes,),
        )


def two(index: int) -> Instances:
    return instances([disc(20, 20, 8), disc(40, 60 - index, 8)], ["car", "dog"], logits=True)


def seen(frame: int, id: int) -> tuple[Any, float]:
    mask = disc(20, 20, 8) if id == 0 else disc(40, 60 - frame, 8)
    return np.where(mask, 4.0, -4.0), 5.0


def same_place(index: int) -> Instances:
    return instances([disc(20, 20, 8), disc(20, 21, 8)], ["car", "dog"], [0.9, 0.8], logits=True)


@pytest.mark.parametrize("memory", [False, True])
def test_objects_have_the_class_and_the_phrase(memory: bool, tmp_path: Path) -> None:
    model = Reader(two)
    tracker = ConceptTracker(
        model,  # type: ignore[arg-type]
        CLASSES,
        tracker=ScriptedMemory(seen) if memory else "iou",  # type: ignore[arg-type]
        settings=TrackSettings(hotstart_delay=0),
    )
    shown = [one for frame in frames(4) for one in tracker.step(frame)]
    assert tracker.concepts == ("vehicle", "dog")
    assert model.asked[0][1] == CLASSES
    file = TrackFile(
        tmp_path / "a.jsonl",
        {"concepts": CLASSES},
        {"name": "a", "rate": None, "frames": 4, "concepts": list(CLASSES)},
    )
    with file:
        for frame in shown:
            assert frame.instances.labels == ["vehicle", "dog"]
            assert frame.instances.phrases == ["car", "dog"]
            file.add_frame(TrackedFrame(frame.index, frame.time, frame.instances))
    for frame in read_tracked(tmp_path / "a.jsonl"):
        assert frame.instances.phrases == ["car", "dog"]
    write_coco(tmp_path / "a.jsonl", tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["vehicle", "dog"]
    names = [path.name for path in write_mot(tmp_path / "a.jsonl", tmp_path / "a.txt")]
    assert names == ["a-vehicle.txt", "a-dog.txt"]


def test_across_classes_one_object_is_tracked_once() -> None:
    model = Reader(same_place)
    both = [*track(model, frames(3), ["car", "dog"], tracker="iou")]  # type: ignore[arg-type]
    assert [f.instances.labels for f in both] == [["car", "dog"]] * 3
    settings = TrackSettings(class_agnostic=True)
    one = [*track(model, frames(3), ["car", "dog"], tracker="iou", settings=settings)]  # type: ignore[arg-type]
    assert [f.instances.labels for f in one] == [["car"]] * 3
    with pytest.raises(PromptError, match="'iou'"):
        TrackSettings(overlap_metric="x")


def test_classes_are_added_and_removed() -> None:
    tracker = ConceptTracker(Reader(two), tracker="iou")  # type: ignore[arg-type]
    tracker.add_concept("vehicle", ["car", "truck"])
    tracker.add_concept("Dog")
    tracker.add_concept("dog")
    assert tracker.concepts == ("vehicle", "Dog")
    with pytest.raises(PromptError, match="is tracked with the phrases car, truck"):
        tracker.add_concept("vehicle", ["bus"])
    tracker.remove_concept("dog")
    assert tracker.concepts == ("vehicle",)
    with pytest.raises(PromptError, match="'dog' is not tracked; concepts are vehicle"):
        tracker.remove_concept("dog")
    (frame,) = tracker.step(frames(1)[0])
    assert frame.instances.labels == ["vehicle"]


def test_exemplars_of_a_class_are_shown_with_its_phrases() -> None:
    model = Reader(two)
    boxes = np.array([[10.0, 10, 30, 30]])
    shown = track(
        model,  # type: ignore[arg-type]
        frames(2),
        {"vehicle": ["car", "truck"]},
        boxes=boxes,
        tracker="iou",
    )
    assert [f.instances.labels for f in shown] == [["vehicle"]] * 2
    assert model.asked[0][1] == {"vehicle": ["car", "truck"]} and model.asked[0][2] is not None
