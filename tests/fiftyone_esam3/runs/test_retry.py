"""A database that goes away for a while, and comes back, does not end a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from fiftyone_esam3.runs import retry, run_over_clips
from fiftyone_esam3.runs.field_lock import FieldLock
from fiftyone_esam3.runs.image_task import LabelTask
from fiftyone_esam3.runs.segment import segment_concepts
from fiftyone_esam3.runs.steps import RunError, finish
from fiftyone_esam3.runs.track import track_video


def failing(real: Any, times: int) -> Any:
    """A function that loses the database after its work, a number of times."""
    left = [times]

    def fail(*args: Any, **kwargs: Any) -> Any:
        value = real(*args, **kwargs)
        if left[0]:
            left[0] -= 1
            raise AutoReconnect("connection closed")
        return value

    return fail


@pytest.mark.slow
def test_a_part_that_loses_the_database_is_done_again_once(
    dataset: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabelTask, "process", failing(LabelTask.process, 3))
    monkeypatch.setattr(FieldLock, "renew", failing(FieldLock.renew, 1))
    summary = finish(
        segment_concepts(dataset, ["bus"], model=str(tiny_folder), threshold=0.0, max_instances=3)
    )
    assert (summary["done"], summary["failed"]) == (3, 1)
    dataset.reload()
    held = [one for one in dataset.values("esam3.detections.id") if one is not None]
    assert len(held) == 3 and summary["added"] >= sum(map(len, held)) > 0


def test_a_database_that_stays_away_ends_the_run_with_a_sentence(
    dataset: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(LabelTask, "process", failing(LabelTask.process, 1000))
    with pytest.raises(RunError, match=r"has not answered for .* the same request continues"):
        finish(segment_concepts(dataset, ["bus"], model=str(tiny_folder)))


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg and ffprobe"
)
def test_a_clip_is_written_once(
    videos: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    options = {"model": str(tiny_folder), "tracker": "iou", "threshold": 0.0}
    whole = finish(track_video(videos[:1], ["bus"], label_field="whole", **options))
    write = failing(run_over_clips.write_clip, 1)
    monkeypatch.setattr(run_over_clips, "write_clip", write)
    again = finish(track_video(videos[:1], ["bus"], label_field="again", **options))
    assert (again["done"], again["added"]) == (1, whole["added"])
    videos.reload()
    frames = videos.first().frames
    for number in frames:
        assert [d.index for d in frames[number].again.detections] == [
            d.index for d in frames[number].whole.detections
        ]
