"""Labels that the frames of videos hold before a run, and what a run leaves when it fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_esam3.labels import ERROR_FIELD
from fiftyone_esam3.ownership.merge import ExistingLabelsError
from fiftyone_esam3.runs import run_over_clips
from fiftyone_esam3.runs.field_lock import cancel_runs
from fiftyone_esam3.runs.steps import RunError, Step, finish
from fiftyone_esam3.runs.track import track_video
from fiftyone_esam3.runs.track_objects import track_objects
from fiftyone_esam3.runs.undo import undo_run

pytest.importorskip("av")
pytestmark = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg and ffprobe"
)

FIELD = "human"


@pytest.fixture
def video(videos: Any) -> Any:
    """A dataset of one video of 4 frames."""
    videos.delete_samples([s.id for s in videos if not s.filepath.endswith("b.mp4")])
    return videos


def track(samples: Any, tiny_folder: Path, *concepts: str, **options: Any) -> dict[str, Any]:
    options = {"threshold": 0.0, "tracker": "iou", "label_field": FIELD, **options}
    on_step = options.pop("on_step", None)
    return finish(track_video(samples, list(concepts), model=str(tiny_folder), **options), on_step)


def label_by_hand(dataset: Any, kind: str = "Detections") -> None:
    """24 labels of a person in four frames of each video."""
    for sample in dataset:
        for number in range(1, 5):
            if kind == "Detections":
                box = [0.1, 0.1, 0.3, 0.3]
                some = [
                    fo.Detection(label="cow", bounding_box=box, index=i, tags=["mine"])
                    for i in range(6)
                ]
                value: Any = fo.Detections(detections=some)
            else:
                some = [fo.Classification(label="cow") for _ in range(6)]
                value = fo.Classifications(classifications=some)
            sample.frames[number] = fo.Frame(**{FIELD: value})
        sample.save()


def stored(dataset: Any) -> list[Any]:
    """The field of all frames, as the database holds it."""
    found = dataset._frame_collection.find({}, {FIELD: True}).sort([("frame_number", 1)])
    return [document.get(FIELD) for document in found]


def frame_labels(dataset: Any, number: int) -> list[Any]:
    dataset.reload()
    return list(dataset.first().frames[number][FIELD].detections)


def test_people_s_labels_in_frames_are_not_touched_unasked(video: Any, tiny_folder: Path) -> None:
    label_by_hand(video)
    before = stored(video)
    with pytest.raises(ExistingLabelsError, match=r"'frames.human' holds 24 labels in 1 clips"):
        track(video, tiny_folder, "bus")
    assert stored(video) == before


@pytest.mark.parametrize("existing", ["add", "overwrite"])
def test_a_video_that_fails_keeps_its_labels(video: Any, tiny_folder: Path, existing: str) -> None:
    label_by_hand(video)
    before = stored(video)
    Path(video.first().filepath).unlink()
    summary = track(video, tiny_folder, "bus", existing=existing)
    assert summary["failed"] == 1 and stored(video) == before
    video.reload()
    assert video.first()[ERROR_FIELD]


def test_a_field_of_something_else_is_refused_before_anything_is_done(
    video: Any, tiny_folder: Path
) -> None:
    label_by_hand(video, "Classifications")
    before = stored(video)
    with pytest.raises(RunError, match="'human' holds Classifications; Detections is needed"):
        track(video, tiny_folder, "bus", existing="overwrite")
    assert stored(video) == before


def test_tracks_join_people_s_labels_and_can_be_undone(video: Any, tiny_folder: Path) -> None:
    label_by_hand(video)
    summary = track(video, tiny_folder, "bus", existing="add")
    labels = frame_labels(video, 1)
    assert [d.label for d in labels[:6]] == ["cow"] * 6 and len(labels) > 6
    assert min(d.index for d in labels[6:]) == 6, "an identity of a person's label is used again"
    sample = video.first()
    sample.frames[1][FIELD].detections[6].label = "truck"
    sample.save()
    undone = finish(undo_run(video, summary["run_key"]))
    assert undone["spared"] == 1 and undone["removed"] == summary["added"] - 1
    assert [d.label for d in frame_labels(video, 1)] == ["cow"] * 6 + ["truck"]
    assert [d.label for d in frame_labels(video, 2)] == ["cow"] * 6
    assert not video.first()[f"{FIELD}_run"]


def test_corrections_of_tracks_survive_a_run_with_more_concepts(
    video: Any, tiny_folder: Path
) -> None:
    track(video, tiny_folder, "bus")
    sample = video.first()
    sample.frames[1][FIELD].detections[0].label = "truck"
    sample.frames[3][FIELD].detections[0].tags.append("checked")
    deleted = sample.frames[2][FIELD].detections.pop().id
    sample.save()
    before = {n: [d.id for d in sample.frames[n][FIELD].detections] for n in range(1, 5)}
    summary = track(video, tiny_folder, "bus", "dog")
    assert (summary["before"], summary["done"]) == (0, 1)
    for number, ids in before.items():
        labels = frame_labels(video, number)
        assert [d.id for d in labels[: len(ids)]] == ids and deleted not in {d.id for d in labels}
        assert {d.label for d in labels[len(ids) :]} <= {"dog"}
        assert len({d.index for d in labels}) == len(labels)
    assert frame_labels(video, 1)[0].label == "truck"
    assert frame_labels(video, 3)[0].tags == ["checked"]
    assert track(video, tiny_folder, "dog")["before"] == 1
    with pytest.raises(ExistingLabelsError):
        track(video, tiny_folder, "bus", detect_every=2)


def test_a_cancelled_clip_keeps_what_it_had(
    video: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track(video, tiny_folder, "bus")
    before = stored(video)
    monkeypatch.setattr(run_over_clips, "FRAMES_AT_ONCE", 2)
    steps: list[Step] = []

    def cancel(step: Step) -> None:
        steps.append(step)
        if "frame 2" in step.note:
            cancel_runs(video)

    summary = track(video, tiny_folder, "bus", threshold=0.1, on_step=cancel)
    assert summary["cancelled"] and summary["done"] == 0 and stored(video) == before
    assert (steps[-1].done, steps[-1].total) == (2, 4), "progress counts frames"


# Objects ---------------------------------------------------------------------------------------


def objects(samples: Any, tiny_folder: Path, **options: Any) -> dict[str, Any]:
    return finish(
        track_objects(samples, f"frames.{FIELD}", model=str(tiny_folder), **options), None
    )


def test_a_person_s_labels_are_propagated_into_a_field_of_their_own(
    video: Any, tiny_folder: Path
) -> None:
    sample = video.first()
    mask = np.ones((20, 20), bool)
    shown = [
        fo.Detection(label="cow", bounding_box=[0.1, 0.1, 0.4, 0.5]),
        fo.Detection(label="pig", bounding_box=[0.5, 0.4, 0.4, 0.4], mask=mask, index=0),
        fo.Detection(label="hen", bounding_box=[0.2, 0.5, 0.3, 0.3]),
    ]
    sample.frames[2] = fo.Frame(**{FIELD: fo.Detections(detections=shown)})
    sample.save()
    before = stored(video)
    chosen = [
        {"sample_id": sample.id, "field": f"frames.{FIELD}", "label_id": d.id} for d in shown[:2]
    ]
    summary = objects(video, tiny_folder, selected=chosen)
    assert summary["frames"] == 4 and summary["field"] == "frames.esam3_objects"
    assert [held for held in stored(video) if held] == before
    video.reload()
    found = {n: video.first().frames[n].esam3_objects.detections for n in range(1, 5)}
    assert {(d.index, d.label) for d in found[2]} <= {(0, "pig"), (1, "cow")} and found[2]
    for labels in found.values():
        assert len({d.index for d in labels}) == len(labels)
    assert objects(video, tiny_folder, selected=chosen)["before"] == 1
    forward = objects(
        video, tiny_folder, frame_numbers=[2], direction="forward", label_field="later"
    )
    assert forward["frames"] == 3


def test_prompts_that_cannot_be_used(video: Any, tiny_folder: Path) -> None:
    with pytest.raises(RunError, match="there is no field 'human'"):
        objects(video, tiny_folder)
    label_by_hand(video)
    with pytest.raises(RunError, match="name another field for the tracks"):
        objects(video, tiny_folder, label_field=FIELD)
    with pytest.raises(RunError, match="no frame has boxes"):
        objects(video, tiny_folder, frame_numbers=[9])
    with pytest.raises(RunError, match="'both', 'forward', 'backward'"):
        objects(video, tiny_folder, direction="up")
