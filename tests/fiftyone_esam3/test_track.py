"""track_video: identities in the database, of videos and of images in order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone.operators.executor import ExecutionError
from PIL import Image

from fiftyone_esam3 import track
from fiftyone_esam3.labels import ERROR_FIELD
from fiftyone_esam3.plugin import PLUGIN

from .conftest import picture

av = pytest.importorskip("av")
pytestmark = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg and ffprobe"
)


def write(path: Path, frames: int) -> str:
    """A video of a picture that moves."""
    image = np.array(picture(3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            shifted = np.ascontiguousarray(np.roll(image, 2 * i, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, "rgb24")))
        container.mux(stream.encode())
    return str(path)


@pytest.fixture
def videos(tmp_path: Path) -> Iterator[Any]:
    """Two videos, and one that is none."""
    dataset = fo.Dataset()
    paths = [write(tmp_path / "a.mp4", 7), write(tmp_path / "b.mp4", 4), str(tmp_path / "c.mp4")]
    Path(paths[2]).write_bytes(b"no video")
    dataset.add_samples([fo.Sample(filepath=p) for p in paths])
    yield dataset
    if fo.dataset_exists(dataset.name):
        dataset.delete()


def run(samples: Any, tiny: Path, **params: Any) -> dict[str, Any]:
    options = {"model": str(tiny), "concepts": ["bus"], "threshold": 0.0, "tracker": "masks"}
    found = foo.execute_operator(
        f"{PLUGIN}/track_video", ctx={"view": samples.view()}, params={**options, **params}
    )
    return dict(found.result)


def test_videos_have_identities_in_every_frame(
    videos: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track, "CHUNK", 3)
    summary = run(videos, tiny)
    assert (summary["done"], summary["failed"], summary["frames"]) == (2, 1, 11)
    assert summary["field"] == "frames.esam3_tracks"
    videos.reload()
    a, b, c = videos
    assert sorted(a.frames) == list(range(1, 8)) and sorted(b.frames) == [1, 2, 3, 4]
    people: dict[int, set[str]] = {}
    for number in a.frames:
        labels = a.frames[number].esam3_tracks.detections
        assert len({d.index for d in labels}) == len(labels)
        for d in labels:
            people.setdefault(d.index, set()).add(str(d.instance.id))
    assert people and all(len(ids) == 1 for ids in people.values())
    assert any(
        len([n for n in a.frames if i in {d.index for d in a.frames[n].esam3_tracks.detections}])
        > 3
        for i in people
    )
    assert c[ERROR_FIELD].startswith("VideoError")


def test_finished_videos_are_left_alone(
    videos: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(videos[:1], tiny)
    summary = run(videos[:2], tiny)
    assert (summary["before"], summary["done"], summary["frames"]) == (1, 1, 4)
    real, calls = track._to_frames, []

    def stop(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(track, "CHUNK", 2)
    monkeypatch.setattr(track, "_to_frames", stop)
    with pytest.raises(KeyboardInterrupt):
        run(videos[:1], tiny, concepts=["dog"])
    monkeypatch.setattr(track, "_to_frames", real)
    again = run(videos[:2], tiny, concepts=["dog"])
    assert (again["before"], again["frames"]) == (0, 11)


@pytest.mark.parametrize("sequence_field", [None, "scene"])
def test_images_in_order(tmp_path: Path, tiny: Path, sequence_field: str | None) -> None:
    dataset = fo.Dataset()
    image = np.array(picture(3))
    for i in (3, 1, 0, 2):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.roll(image, 2 * i, 1)).save(path)
        dataset.add_sample(fo.Sample(filepath=str(path), scene="ab"[i // 2], number=i))
    with pytest.raises(ExecutionError, match="order_field"):
        run(dataset, tiny)
    summary = run(dataset, tiny, order_field="number", sequence_field=sequence_field)
    assert summary["samples"] == (2 if sequence_field else 1) and summary["frames"] == 4
    first, second = dataset.sort_by("number").limit(2)
    shared = {d.index for d in first.esam3_tracks.detections} & {
        d.index for d in second.esam3_tracks.detections
    }
    assert shared
    dataset.delete()


def test_the_dataset_is_deleted_while_it_tracks(
    videos: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, real = videos.name, track._to_frames

    def delete(*args: Any) -> None:
        real(*args)
        fo.delete_dataset(name)

    monkeypatch.setattr(track, "_to_frames", delete)
    monkeypatch.setattr(track, "CHUNK", 2)
    with pytest.raises(ExecutionError, match="was deleted while this run worked on it"):
        run(videos, tiny)


# The zoo's model ------------------------------------------------------------------------------


def load(tiny: Path, **options: Any) -> Any:
    from fiftyone_esam3 import load_model

    chosen = {"variant": str(tiny), "device": "cpu", "dtype": "float32", "threshold": 0.0}
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
def test_the_video_model_follows_concepts(
    videos: Any, tiny: Path, direction: str, frames: range
) -> None:
    model = load(
        tiny, classes=["bus"], tracker="masks", text_frame_idx=3, propagation_direction=direction
    )
    videos[:1].apply_model(model, label_field="found", skip_failures=False)
    found = indices(videos.first())
    assert sorted(found) == list(frames)
    assert set.intersection(*list(found.values())[:2])
    labels = videos.first().frames[3].found
    assert {d.label for d in labels.detections} == {"bus"}
    assert len({d.instance.id for d in labels.detections}) == len(labels.detections)


def test_the_video_model_s_filter_is_its_question(videos: Any, tiny: Path) -> None:
    """As the built-in model's own example does it."""
    model = load(tiny, tracker="masks")
    videos[:1].apply_model(model, label_field="found", classes=["dog"], skip_failures=False)
    labels = videos.first().frames[1].found.detections
    assert {d.label for d in labels} == {"dog"}


@pytest.mark.parametrize("kind", ["boxes", "clicks"])
def test_the_video_model_follows_what_is_shown(videos: Any, tiny: Path, kind: str) -> None:
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
    model = load(tiny, operation_mode="visual")
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
        ({"propagation_direction": "up"}, {}, "'both' or 'forward'"),
        ({"clases": ["a"]}, {}, "unknown arguments"),
    ],
)
def test_the_video_model_s_mistakes(
    videos: Any, tiny: Path, options: Any, params: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        videos[:1].apply_model(
            load(tiny, **options), label_field="found", skip_failures=False, **params
        )


def test_concepts_on_a_view_of_frames(videos: Any, tiny: Path, tmp_path: Path) -> None:
    """Each frame for itself, by the operator for images; the labels get back to the video."""
    frames = videos[:1].to_frames(sample_frames=True, output_dir=str(tmp_path / "frames"))
    params = {"model": str(tiny), "concepts": ["bus"], "threshold": 0.0, "label_field": "found"}
    for done, before in ((7, 0), (0, 7)):
        result = foo.execute_operator(
            f"{PLUGIN}/segment_concepts", ctx={"view": frames}, params=params
        )
        assert (result.result["done"], result.result["before"]) == (done, before)
    videos.reload()
    assert all(videos.first().frames[n].found.detections for n in range(1, 8))
