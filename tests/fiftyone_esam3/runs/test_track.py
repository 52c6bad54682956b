"""The run track_video: identities in the database, for videos and for images in order."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone.operators.executor import ExecutionError
from PIL import Image

from fiftyone_esam3.labels import ERROR_FIELD
from fiftyone_esam3.plugin import PLUGIN
from fiftyone_esam3.runs import clips, run_over_clips

from ..conftest import make_picture

av = pytest.importorskip("av")
pytestmark = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg and ffprobe"
)


def run(samples: Any, tiny_folder: Path, **params: Any) -> dict[str, Any]:
    options = {"model": str(tiny_folder), "concepts": ["bus"], "threshold": 0.0, "tracker": "iou"}
    found = foo.execute_operator(
        f"{PLUGIN}/track_video", ctx={"view": samples.view()}, params={**options, **params}
    )
    return dict(found.result)


def test_videos_have_identities_in_every_frame(
    videos: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "FRAMES_AT_ONCE", 3)
    summary = run(videos, tiny_folder)
    assert (summary["done"], summary["failed"], summary["frames"]) == (2, 1, 11)
    assert summary["field"] == "frames.esam3_tracks"
    videos.reload()
    a, b, c = videos
    assert sorted(a.frames) == list(range(1, 8)) and sorted(b.frames) == [1, 2, 3, 4]
    identities: dict[int, set[str]] = {}
    for number in a.frames:
        labels = a.frames[number].esam3_tracks.detections
        assert len({d.index for d in labels}) == len(labels)
        for d in labels:
            identities.setdefault(d.index, set()).add(str(d.instance.id))
    assert identities and all(len(ids) == 1 for ids in identities.values())
    assert any(
        len([n for n in a.frames if i in {d.index for d in a.frames[n].esam3_tracks.detections}])
        > 3
        for i in identities
    )
    assert c[ERROR_FIELD].startswith("VideoError")


@pytest.mark.slow
def test_finished_videos_are_left_as_they_are(
    videos: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(videos[:1], tiny_folder)
    summary = run(videos[:2], tiny_folder)
    assert (summary["before"], summary["done"], summary["frames"]) == (1, 1, 4)
    real, calls = clips.LabelWriter.answer, []

    def stop(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*args)

    before = [d.id for d in videos.first().frames[1].esam3_tracks.detections]
    with monkeypatch.context() as patch:
        patch.setattr(clips, "FRAMES_AT_ONCE", 2)
        patch.setattr(clips.LabelWriter, "answer", stop)
        with pytest.raises(KeyboardInterrupt):
            run(videos[:1], tiny_folder, concepts=["dog"])
    anew = run(videos[:2], tiny_folder, concepts=["dog"])
    assert (anew["before"], anew["frames"]) == (0, 11)
    videos.reload()
    labels = videos.first().frames[1].esam3_tracks.detections
    assert [d.id for d in labels if d.label == "bus"] == before
    for number in range(1, 8):  # each track once, and no identity in two classes
        labels = videos.first().frames[number].esam3_tracks.detections
        assert len({d.index for d in labels}) == len(labels)


@pytest.mark.parametrize("sequence_field", [None, "scene"])
def test_images_in_order(tmp_path: Path, tiny_folder: Path, sequence_field: str | None) -> None:
    dataset = fo.Dataset()
    image = np.array(make_picture(3))
    for i in (3, 1, 0, 2):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.roll(image, 2 * i, 1)).save(path)
        dataset.add_sample(fo.Sample(filepath=str(path), scene="ab"[i // 2], number=i))
    with pytest.raises(ExecutionError, match="order_field"):
        run(dataset, tiny_folder)
    summary = run(dataset, tiny_folder, order_field="number", sequence_field=sequence_field)
    assert summary["samples"] == (2 if sequence_field else 1) and summary["frames"] == 4
    first, second = dataset.sort_by("number").limit(2)
    shared = {d.index for d in first.esam3_tracks.detections} & {
        d.index for d in second.esam3_tracks.detections
    }
    assert shared
    dataset.delete()


def test_the_dataset_is_deleted_while_it_tracks(
    videos: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, real = videos.name, run_over_clips.write_clip

    def delete(*args: Any) -> None:
        real(*args)
        fo.delete_dataset(name)

    monkeypatch.setattr(run_over_clips, "write_clip", delete)
    with pytest.raises(ExecutionError, match="was deleted while this run worked on it"):
        run(videos, tiny_folder)


@pytest.mark.slow
def test_concepts_on_a_view_of_frames(videos: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """The operator for images labels each frame; the labels are also in the video."""
    frames = videos[:1].to_frames(sample_frames=True, output_dir=str(tmp_path / "frames"))
    params = {
        "model": str(tiny_folder),
        "concepts": ["bus"],
        "threshold": 0.0,
        "label_field": "found",
    }
    for done, before in ((7, 0), (0, 7)):
        result = foo.execute_operator(
            f"{PLUGIN}/segment_concepts", ctx={"view": frames}, params=params
        )
        assert (result.result["done"], result.result["before"]) == (done, before)
    videos.reload()
    assert all(videos.first().frames[n].found.detections for n in range(1, 8))
