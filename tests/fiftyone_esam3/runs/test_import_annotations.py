"""Results of many machines come into a dataset by file path; labels of people are safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest

import efficientsam3 as es3
from efficientsam3.distributed.folder import RunFolder
from efficientsam3.distributed.settings import Work
from efficientsam3.distributed.sources import make_plan
from efficientsam3.distributed.worker import Worker
from efficientsam3.errors import RunFileError
from efficientsam3.video.settings import IoUSettings, TrackSettings
from fiftyone_esam3.labels import ERROR_FIELD
from fiftyone_esam3.ownership.merge import ExistingLabelsError
from fiftyone_esam3.runs.import_annotations import import_annotations
from fiftyone_esam3.runs.steps import RunError, finish
from fiftyone_esam3.runs.undo import undo_run

pytest.importorskip("pyarrow")

ASK: dict[str, Any] = {"concepts": ["cat", "dog"], "threshold": 0.0, "max_instances": 3}


@pytest.fixture
def target(tiny_folder: Path, photos: list[str], tmp_path: Path) -> Path:
    """The results for the four pictures, the third of which cannot be read."""
    target = tmp_path / "results"
    worker = Worker(Work(str(tiny_folder), {"dtype": "float32", "device": "cpu"}, ASK))
    plan = make_plan(photos, out=str(target), rows=3)
    run = RunFolder(str(target), {"model": "tiny", **ASK}, len(plan))
    run.begin({})
    for number in range(len(plan)):
        worker.annotate(plan[number], run.places(number))
    return target


@pytest.mark.slow
def test_labels_are_those_of_the_model(
    dataset: Any, target: Path, tiny_folder: Path, photos: list[str]
) -> None:
    summary = finish(import_annotations(dataset, target, label_field="found"))
    assert (summary["done"], summary["failed"], summary["without_results"]) == (3, 1, 0)
    assert sum(summary["instances"].values()) == 9
    samples = list(dataset)
    assert "cannot be read" in samples[2][ERROR_FIELD] and samples[2].found is None
    found = es3.load(tiny_folder, dtype="float32", device="cpu").segment(photos[0], **ASK)
    labels = samples[0].found
    assert [d.label for d in labels.detections] == found.labels
    for i, label in enumerate(labels.detections):
        pixels, (x0, y0, x1, y1) = found.crop(i)
        assert np.array_equal(label.mask, pixels)
        assert label.bounding_box == pytest.approx(
            [x0 / 64, y0 / 48, (x1 - x0) / 64, (y1 - y0) / 48]
        )
        assert label.confidence == pytest.approx(float(found.scores[i]), abs=2e-5)
    assert labels.concept_presence == pytest.approx(found.concept_presence, abs=2e-5)

    again = finish(import_annotations(dataset, target, label_field="found"))
    assert (again["done"], again["added"], again["before"]) == (0, 0, 3)
    finish(undo_run(dataset, summary["run_key"]))
    assert not any(sample.found and sample.found.detections for sample in dataset)


@pytest.mark.slow
def test_labels_of_people_are_safe(dataset: Any, target: Path) -> None:
    before = [sample.boxes.to_dict() for sample in dataset]
    with pytest.raises(ExistingLabelsError, match="holds 9 labels in 3 samples that people made"):
        finish(import_annotations(dataset, target, label_field="boxes"))
    assert [sample.boxes.to_dict() for sample in dataset] == before
    summary = finish(import_annotations(dataset, target, label_field="boxes", existing="add"))
    assert summary["kept"] == 9
    for sample, old in zip(dataset, before, strict=True):
        kept = {str(d["_id"]) for d in old["detections"]}
        assert kept <= {d.id for d in sample.boxes.detections}

    finish(import_annotations(dataset, target, label_field="found"))
    sample = dataset.first()
    sample.found.detections = sample.found.detections[1:]
    sample.found.detections[0].label = "horse"
    sample.save()
    finish(import_annotations(dataset, target, label_field="found"))
    labels = [d.label for d in dataset.first().found.detections]
    assert labels[0] == "horse" and len(labels) == 2, "what a person changed stays so"


def test_files_at_another_place(new_dataset: Any, photos: list[str], target: Path) -> None:
    there, here = str(Path(photos[0]).parent), "/mnt/photos"
    dataset = new_dataset([fo.Sample(filepath=f"{here}/{Path(p).name}") for p in photos[:2]])
    with pytest.raises(RunError, match=r'no sample has one of the files .* pass moved=\("/start'):
        finish(import_annotations(dataset, target))
    summary = finish(import_annotations(dataset, target, moved=(there, here)))
    assert summary["done"] == 2


def test_no_results_are_said(dataset: Any, tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="there are no annotations in"):
        finish(import_annotations(dataset, tmp_path / "nothing"))


LOW = TrackSettings(detection_threshold=0.0, iou=IoUSettings(new_track_threshold=0.0))


@pytest.fixture
def tracks(tiny_folder: Path, videos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results for two videos, and a file that is none."""
    target = tmp_path / "results"
    asked = {"concepts": ["cat", "dog"], "threshold": 0.0}
    tracking = {"tracker": "iou", "stride": 1}
    load = {"dtype": "float32", "device": "cpu"}
    # The scores of an untrained model are too low to begin tracks.
    monkeypatch.setattr("efficientsam3.distributed.videos.track_settings", lambda *_: LOW)
    worker = Worker(Work(str(tiny_folder), load, asked, tracking=tracking))
    plan = make_plan(videos.values("filepath"), out=str(target))
    run = RunFolder(str(target), {"model": "tiny", "tracking": tracking, **asked}, len(plan))
    run.begin({})
    for number in range(len(plan)):
        worker.annotate(plan[number], run.places(number))
    return target


@pytest.mark.slow
def test_tracks_of_videos(videos: Any, tracks: Path, tiny_folder: Path, dataset: Any) -> None:
    with pytest.raises(RunError, match="has results of videos, and these samples are images"):
        finish(import_annotations(dataset, tracks))
    summary = finish(import_annotations(videos, tracks, label_field="found"))
    assert (summary["done"], summary["failed"], summary["frames"]) == (2, 1, 11)
    videos.reload()
    a, _, c = videos
    assert sorted(a.frames) == list(range(1, 8)) and ERROR_FIELD in c.field_names
    assert c[ERROR_FIELD].startswith("VideoError")
    model = es3.load(tiny_folder, dtype="float32", device="cpu")
    labels_seen = 0
    tracked = es3.track(model, a.filepath, ["cat", "dog"], tracker="iou", settings=LOW)
    for frame in tracked:
        labels = a.frames[frame.index + 1].found.detections
        found = frame.instances
        whole = [i for i in range(len(found)) if found.mask(i).any()]
        assert [d.label for d in labels] == [found.labels[i] for i in whole]
        identities = [int(found.track_ids[i]) for i in whole]  # type: ignore[index]
        assert len({d.index - i for d, i in zip(labels, identities, strict=True)}) <= 1
        for label, i in zip(labels, whole, strict=True):
            assert np.array_equal(label.mask, found.crop(i)[0])
        labels_seen += len(labels)
    assert labels_seen > 7
    again = finish(import_annotations(videos, tracks, label_field="found"))
    assert (again["done"], again["before"]) == (0, 2)
    finish(undo_run(videos, summary["run_key"]))
    videos.reload()
    assert not any(f.found and f.found.detections for f in videos.first().frames.values())
