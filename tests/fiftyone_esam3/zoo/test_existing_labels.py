"""``apply_model`` on a field that holds labels: FiftyOne alone would replace them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest

from fiftyone_esam3.labels import ERROR_FIELD
from fiftyone_esam3.ownership.merge import ExistingLabelsError
from fiftyone_esam3.runs.steps import RunError, finish
from fiftyone_esam3.runs.undo import list_runs, undo_run

from ..conftest import READABLE, UNREADABLE

Load = Callable[..., Any]


def stored(dataset: Any, field: str) -> list[Any]:
    return [d.get(field) for d in dataset._sample_collection.find({}).sort([("_id", 1)])]


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"num_workers": 0}])
def test_people_s_labels_are_not_touched_unasked(
    dataset: Any, load: Load, options: dict[str, Any]
) -> None:
    before = stored(dataset, "boxes")
    with pytest.raises(ExistingLabelsError, match="'boxes' holds 12 labels in 4 samples"):
        dataset.apply_model(load(classes=["bus"]), label_field="boxes", **options)
    assert stored(dataset, "boxes") == before


def test_labels_are_added_and_taken_back(dataset: Any, load: Load) -> None:
    dataset.tag_labels("mine", label_fields="boxes")
    before = stored(dataset, "boxes")
    model = load(classes=["bus"])
    dataset.apply_model(model, label_field="boxes", existing="add", overlap=1.0)
    for i, (old, new) in enumerate(zip(before, stored(dataset, "boxes"), strict=True)):
        count = len(old["detections"])
        assert new["detections"][:count] == old["detections"]
        assert (len(new["detections"]) > count) == (i in READABLE)
    assert dataset[dataset.values("id")[UNREADABLE]][ERROR_FIELD]
    (key,) = list_runs(dataset)
    assert finish(undo_run(dataset, key))["spared"] == 0
    after = stored(dataset, "boxes")
    assert [d["detections"] for d in after] == [d["detections"] for d in before]


def test_overwrite_is_explicit(dataset: Any, load: Load) -> None:
    model = load(classes=["bus"], existing="overwrite")
    dataset.apply_model(model, label_field="boxes")
    classes = [{d["label"] for d in one["detections"]} for one in stored(dataset, "boxes")]
    assert [c == {"bus"} for c in classes] == [i in READABLE for i in range(4)]


@pytest.mark.slow
def test_labels_of_the_model_are_replaced_and_corrections_stay(dataset: Any, load: Load) -> None:
    model = load(classes=["bus"])
    dataset.apply_model(model, label_field="found")
    first = {d["_id"] for d in stored(dataset, "found")[0]["detections"]}
    dataset.apply_model(model, label_field="found")
    assert not first & {d["_id"] for d in stored(dataset, "found")[0]["detections"]}
    sample = dataset.first()
    sample.found.detections[0].label = "coach"
    sample.save()
    with pytest.raises(ExistingLabelsError, match="holds 1 labels in 1 samples"):
        dataset.apply_model(model, label_field="found")
    dataset.apply_model(load(classes=["bus", "dog"]), label_field="found", existing="replace")
    assert dataset.first().found.detections[0].label == "coach"


def test_a_field_of_something_else_is_refused(dataset: Any, load: Load) -> None:
    before = stored(dataset, "scene")
    with pytest.raises(RunError, match="'scene' holds Classification; Detections is needed"):
        dataset.apply_model(load(classes=["bus"]), label_field="scene")
    assert stored(dataset, "scene") == before


def test_embeddings_need_no_field(dataset: Any, load: Load) -> None:
    dataset.compute_embeddings(load(classes=["bus"]), embeddings_field="vector")
    assert not list_runs(dataset)


needs_video = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg and ffprobe"
)


@needs_video
@pytest.mark.parametrize("kind", ["image", "video"])
def test_labels_in_frames_are_not_touched_unasked(
    videos: Any, load: Load, tiny_folder: Path, kind: str
) -> None:
    pytest.importorskip("av")
    from fiftyone_esam3 import load_model

    clip = videos[1:2]
    sample = clip.first()
    for number in range(1, 5):
        cow = fo.Detection(label="cow", bounding_box=[0.1, 0.1, 0.2, 0.2], tags=["mine"])
        sample.frames[number] = fo.Frame(human=fo.Detections(detections=[cow]))
    sample.save()
    if kind == "image":
        model = load(classes=["bus"])
    else:
        options = {"device": "cpu", "dtype": "float32", "threshold": 0.0, "tracker": "iou"}
        model = load_model(
            "efficientsam3-video", variant=str(tiny_folder), classes=["bus"], **options
        )
    with pytest.raises(ExistingLabelsError, match=r"'frames.human' holds 4 labels in 1 samples"):
        clip.apply_model(model, label_field="human", skip_failures=False)
    clip.apply_model(model, label_field="human", existing="add", skip_failures=False)
    videos.reload()
    for number in range(1, 5):
        labels = clip.first().frames[number].human.detections
        assert labels[0].label == "cow" and labels[0].tags == ["mine"]
    assert any(len(clip.first().frames[n].human.detections) > 1 for n in range(1, 5))
    (key,) = list_runs(videos)
    finish(undo_run(videos, key))
    videos.reload()
    assert all(len(clip.first().frames[n].human.detections) == 1 for n in range(1, 5))


@needs_video
def test_a_prefix_that_would_write_nothing_is_refused(videos: Any, tiny_folder: Path) -> None:
    from fiftyone_esam3 import load_model

    model = load_model("efficientsam3-video", variant=str(tiny_folder), classes=["bus"])
    with pytest.raises(ValueError, match="so name it 'found'"):
        videos.apply_model(model, label_field="frames.found")
