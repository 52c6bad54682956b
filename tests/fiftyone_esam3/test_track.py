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
from fiftyone_esam3.operators import PLUGIN

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
