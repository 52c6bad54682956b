"""Cuts and suppression in the runs that track, and in the video model of the zoo."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from fiftyone import operators as foo
from PIL import Image

from efficientsam3.errors import EfficientSam3Error
from fiftyone_esam3.ownership.overlap import label_iou
from fiftyone_esam3.plugin import PLUGIN
from fiftyone_esam3.runs.steps import finish
from fiftyone_esam3.runs.track import track_video
from fiftyone_esam3.runs.track_objects import track_objects
from fiftyone_esam3.zoo.source import load_model

pytest.importorskip("av")
pytestmark = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg and ffprobe"
)

from ...efficientsam3.video.films import shot  # noqa: E402
from ..conftest import write_frames  # noqa: E402

CUT = 4
FRAMES = [*shot(1, CUT), *shot(2, CUT)]


@pytest.fixture
def pictures(tmp_path: Path, new_dataset: Callable[..., Any]) -> Any:
    """Eight images in order, of which the fifth begins another scene."""
    for i, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    return new_dataset([fo.Sample(filepath=str(p)) for p in sorted(tmp_path.glob("*.png"))])


@pytest.fixture
def film(tmp_path: Path, new_dataset: Callable[..., Any]) -> Any:
    """The same as a video, with a box on its first frame."""
    sample = fo.Sample(filepath=write_frames(tmp_path / "film.mp4", FRAMES))
    shown = fo.Detection(label="cow", bounding_box=[0.1, 0.3, 0.4, 0.4])
    sample.frames[1] = fo.Frame(shown=fo.Detections(detections=[shown]))
    return new_dataset([sample])


def track(samples: Any, tiny_folder: Path, *concepts: str, **options: Any) -> dict[str, Any]:
    chosen = {"model": str(tiny_folder), "tracker": "iou", "threshold": 0.0, **options}
    return finish(track_video(samples, concepts or ["bus"], **chosen))


def scenes(labels: Any) -> list[set[int]]:
    """The identities before the cut, and those from it on."""
    held = [{d.index for d in one.detections} if one is not None else set() for one in labels]
    return [set().union(*held[:CUT]), set().union(*held[CUT:])]


@pytest.mark.slow
def test_tracks_end_at_cuts_unless_they_are_not_to(pictures: Any, tiny_folder: Path) -> None:
    options = {"order_field": "filepath", "nms": 0.9}
    summary = track(pictures, tiny_folder, **options)
    before, after = scenes(pictures.values("esam3_tracks"))
    assert summary["cuts"] == 1 and before and after and not before & after
    summary = track(pictures, tiny_folder, **options, cuts=False, label_field="whole")
    before, after = scenes(pictures.values("whole"))
    assert summary["cuts"] == 0 and before & after
    assert track(pictures, tiny_folder, **options)["before"] == 1, "the setting is part of the run"
    assert track(pictures, tiny_folder, **options, cuts=False)["before"] == 0


def test_the_operator_says_how_many_cuts_there_are(pictures: Any, tiny_folder: Path) -> None:
    params = {"concepts": ["bus"], "model": str(tiny_folder), "tracker": "iou"}
    found = foo.execute_operator(
        f"{PLUGIN}/track_video",
        ctx={"dataset": pictures},
        params={**params, "order_field": "filepath", "threshold": 0.0},
    )
    assert found.result["message"].endswith("; tracks end at 1 cut")


def test_objects_that_labels_show_end_at_cuts(film: Any, tiny_folder: Path) -> None:
    options = {"model": str(tiny_folder), "direction": "forward"}
    summary = finish(track_objects(film, "frames.shown", **options))
    assert summary["cuts"] == 1
    whole = finish(track_objects(film, "frames.shown", **options, cuts=False, label_field="whole"))
    assert whole["cuts"] == 0
    film.reload()
    frames = film.first().frames
    _, after = scenes([frames[n].esam3_objects for n in range(1, 2 * CUT + 1)])
    assert not after
    assert scenes([frames[n].whole for n in range(1, 2 * CUT + 1)])[0]


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [True, False])
def test_the_zoo_s_video_model_ends_tracks_at_cuts(
    film: Any, tiny_folder: Path, cuts: bool
) -> None:
    model = load_model(
        "efficientsam3-video",
        variant=str(tiny_folder),
        classes={"vehicle": ["bus", "car"]},
        tracker="iou",
        threshold=0.0,
        cuts=cuts,
    )
    film.apply_model(model, label_field="found", skip_failures=False)
    frames = film.first().frames
    labels = [frames[n].found for n in range(1, 2 * CUT + 1)]
    before, after = scenes(labels)
    assert before and after and bool(before & after) is not cuts
    assert {d.label for one in labels for d in one.detections} == {"vehicle"}


def test_one_track_for_an_object_of_two_classes(pictures: Any, tiny_folder: Path) -> None:
    options = {"order_field": "filepath", "nms": 0.2}
    track(pictures, tiny_folder, "bus", "car", **options)
    track(
        pictures,
        tiny_folder,
        "bus",
        "car",
        **options,
        class_agnostic=True,
        overlap_metric="iom",
        label_field="alone",
    )
    assert 0 < pictures.count("alone.detections") < pictures.count("esam3_tracks.detections")
    for labels in pictures.values("alone"):
        overlap = label_iou(labels.detections, labels.detections)
        np.fill_diagonal(overlap, 0)
        assert overlap.max(initial=0) < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuts": "yes"}, "True or False"),
        ({"nms": 2}, "nms is between 0 and 1"),
        ({"overlap_metric": "dice"}, "'iou'"),
        ({"class_agnostic": 3}, "class_agnostic is True or False"),
    ],
)
def test_wrong_settings_are_refused(
    pictures: Any, tiny_folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EfficientSam3Error, match=message):
        track(pictures, tiny_folder, order_field="filepath", **options)
    assert not pictures.has_field("esam3_tracks")
