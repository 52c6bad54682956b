"""A video is one partition: its rows are the frames that `track` gives."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import efficientsam3 as es3
from efficientsam3.distributed.run import annotate
from efficientsam3.distributed.settings import Work
from efficientsam3.distributed.shards import decode_masks, read_shard
from efficientsam3.distributed.sources import make_plan
from efficientsam3.distributed.videos import local_file, track_settings
from efficientsam3.distributed.worker import Places, Worker
from efficientsam3.errors import ArgumentError, DataError
from efficientsam3.video.settings import IoUSettings, TrackSettings

from .conftest import CONCEPTS, write_pictures

pytest.importorskip("pyarrow")
pytest.importorskip("av")
from ..video.films import write_film

ASK = {"concepts": CONCEPTS, "threshold": 0.0}
TRACKING: dict[str, Any] = {"tracker": "iou", "stride": 2}


@pytest.fixture(scope="module")
def worker(model_folder: Path) -> Worker:
    load = {"dtype": "float32", "device": "cpu"}
    return Worker(Work(str(model_folder), load, ASK, tracking=TRACKING))


def do(worker: Worker, source: Path, out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the only partition, and its COCO file."""
    plan = make_plan([str(source)], out=str(out))
    assert plan.kind == "video" and plan.images is None
    asked = {"model": "tiny", "concepts": CONCEPTS}
    places = Places(f"{out}/7.parquet", f"{out}/7.json", "run", asked)
    worker.annotate(plan[0], places)
    return read_shard(places.shard), json.loads((out / "7.json").read_text())


@pytest.mark.slow
def test_rows_are_the_frames_of_track(
    worker: Worker, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The scores of an untrained model are too low to begin tracks.
    low = TrackSettings(detection_threshold=0.0, iou=IoUSettings(new_track_threshold=0.0))
    monkeypatch.setattr("efficientsam3.distributed.videos.track_settings", lambda *_: low)
    film = write_film(tmp_path / "a.mp4", 7)
    rows, coco = do(worker, film, tmp_path / "out")
    model = es3.load(model_folder, dtype="float32", device="cpu")
    expected = list(es3.track(model, str(film), CONCEPTS, settings=low, **TRACKING))
    assert [row["key"] for row in rows] == [f"{film}#frame={n}" for n in (0, 2, 4, 6)]
    assert [(r["frame"], r["time"]) for r in rows] == [(f.index, f.time) for f in expected]
    tracks = 0
    for row, frame in zip(rows, expected, strict=True):
        found = frame.instances
        whole = [i for i in range(len(found)) if found.mask(i).any()]
        assert [one["label"] for one in row["instances"]] == [found.labels[i] for i in whole]
        assert [one["track"] for one in row["instances"]] == [found.track_ids[i] for i in whole]
        for i, mask in zip(whole, decode_masks(row), strict=True):
            assert (mask == found.mask(i)).all()
        tracks += len(whole)
    assert tracks > 4
    assert [image["frame_index"] for image in coco["images"]] == [0, 2, 4, 6]
    assert [a["track_id"] for a in coco["annotations"]] == [
        one["track"] for row in rows for one in row["instances"]
    ]


@pytest.mark.slow
def test_a_video_that_breaks_off_keeps_its_frames(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "lost.mp4").write_bytes(b"no video")
    (row,), _ = do(worker, tmp_path / "lost.mp4", tmp_path / "out")
    assert row["frame"] is None and f"{tmp_path}/lost.mp4" in row["error"]


def test_a_video_in_a_store_is_copied_for_the_time_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"content")
    place = (tmp_path / "a.mp4").as_uri()
    with local_file(place) as path:
        assert path.endswith(".mp4") and Path(path).read_bytes() == b"content"
        assert path != str(tmp_path / "a.mp4")
    assert not os.path.exists(path)
    with local_file(str(tmp_path / "a.mp4")) as path:
        assert path == str(tmp_path / "a.mp4")


def test_images_and_videos_are_annotated_apart(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path, 2)
    (photos / "a.MOV").write_bytes(b"")
    with pytest.raises(DataError, match="2 images and 1 video: name one kind"):
        make_plan([str(photos)], out="nowhere")


def test_settings_are_those_of_track() -> None:
    asked: dict[str, Any] = {"threshold": 0.3, "nms": None, "overlap_metric": "iou", "tile": None}
    assert track_settings(asked) == TrackSettings(detection_threshold=0.3)
    asked |= {"nms": 0.5, "class_agnostic": True, "overlap_metric": "iom"}
    assert track_settings(asked) == TrackSettings(
        detection_threshold=0.3, nms=0.5, class_agnostic=True, overlap_metric="iom"
    )


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray is not started."""

    def fail(*_: Any) -> None:
        raise AssertionError("the cluster was started")

    monkeypatch.setattr("efficientsam3.distributed.run.connected", fail)
    yield


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("video", {"max_instances": 5}, "max_instances is for images, and the source has videos"),
        ("video", {"tile": "auto"}, "tile is for images"),
        ("images", {"stride": 2}, "stride is for videos, and the source has images; got 2"),
        ("video", {"stride": 0}, "stride is a whole number from 1; got 0"),
        ("video", {"tracker": "sort"}, "tracker is .*auto.*; got 'sort'"),
    ],
)
@pytest.mark.usefixtures("nothing_runs")
def test_arguments_of_the_other_kind_are_refused(
    source: str, options: dict[str, Any], message: str, model_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    place = tmp_path / source
    write_pictures(place, 1)
    if source == "video":
        place = tmp_path / "a.mp4"
        place.write_bytes(b"")
    with pytest.raises(ArgumentError, match=message):
        annotate(place, tmp_path / "out", ["bus"], model=str(model_folder), **options)
