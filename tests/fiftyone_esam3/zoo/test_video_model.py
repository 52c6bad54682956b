"""The video model of the zoo: concepts and prompted objects through videos."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest

pytest.importorskip("av")
pytestmark = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg and ffprobe"
)


def load(tiny_folder: Path, **options: Any) -> Any:
    from fiftyone_esam3 import load_model

    chosen = {"variant": str(tiny_folder), "device": "cpu", "dtype": "float32", "threshold": 0.0}
    return load_model("efficientsam3-video", **{**chosen, **options})


def indices(sample: Any, field: str = "found") -> dict[int, set[int]]:
    return {
        n: {d.index for d in sample.frames[n][field].detections}
        for n in sample.frames
        if sample.frames[n][field] is not None
    }


@pytest.mark.parametrize(
    ("direction", "frames"),
    [("both", range(1, 8)), ("forward", range(3, 8)), ("backward", range(1, 4))],
)
def test_concepts_are_tracked(
    videos: Any, tiny_folder: Path, direction: str, frames: range
) -> None:
    model = load(
        tiny_folder,
        classes=["bus"],
        tracker="iou",
        text_frame_idx=3,
        propagation_direction=direction,
    )
    videos[:1].apply_model(model, label_field="found", skip_failures=False)
    found = indices(videos.first())
    assert sorted(found) == list(frames)
    assert set.intersection(*list(found.values())[:2])
    labels = videos.first().frames[3].found
    assert {d.label for d in labels.detections} == {"bus"}
    assert len({d.instance.id for d in labels.detections}) == len(labels.detections)


def test_classes_of_apply_model_are_searched_for(videos: Any, tiny_folder: Path) -> None:
    """FiftyOne's own model is used in this way in its example."""
    model = load(tiny_folder, tracker="iou")
    videos[:1].apply_model(model, label_field="found", classes=["dog"], skip_failures=False)
    labels = videos.first().frames[1].found.detections
    assert {d.label for d in labels} == {"dog"}


@pytest.mark.parametrize("kind", ["boxes", "clicks"])
def test_prompted_objects_are_tracked(videos: Any, tiny_folder: Path, kind: str) -> None:
    sample = videos.first()
    if kind == "boxes":
        shown = fo.Detections(
            detections=[
                fo.Detection(label="a", bounding_box=[0.1, 0.1, 0.4, 0.5]),
                fo.Detection(label="b", bounding_box=[0.5, 0.5, 0.4, 0.4]),
            ]
        )
    else:
        shown = fo.Keypoints(
            keypoints=[
                fo.Keypoint(label="a", points=[(0.5, 0.5)]),
                fo.Keypoint(label="b", points=[(0.2, 0.2), (0.8, 0.8)], sam_labels=[1, 0]),
            ]
        )
    sample.frames[3] = fo.Frame(shown=shown)
    sample.save()
    model = load(tiny_folder, operation_mode="visual")
    videos[:1].apply_model(
        model, label_field="found", prompt_field="frames.shown", skip_failures=False
    )
    found = indices(videos.first())
    assert sorted(found) == list(range(1, 8))
    labels = videos.first().frames[3].found.detections
    assert {(d.index, d.label) for d in labels} <= {(0, "a"), (1, "b")} and labels


@pytest.mark.parametrize(
    ("options", "params", "message"),
    [
        ({}, {}, "nothing to look for"),
        ({"operation_mode": "visual"}, {}, "no frame has boxes"),
        ({"classes": ["a"]}, {"prompt_field": "filepath"}, "'frames.filepath'"),
        ({"operation_mode": "auto"}, {}, "'concept' or 'visual'"),
        ({"propagation_direction": "up"}, {}, "'both', 'forward' or 'backward'"),
        ({"clases": ["a"]}, {}, "unknown arguments"),
    ],
)
def test_errors_of_the_request_are_raised(
    videos: Any, tiny_folder: Path, options: Any, params: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        videos[:1].apply_model(
            load(tiny_folder, **options), label_field="found", skip_failures=False, **params
        )
