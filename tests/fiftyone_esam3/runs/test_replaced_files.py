"""Files that were replaced since a run are done again, and the run says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest

from fiftyone_esam3.operators.base import describe_counts
from fiftyone_esam3.ownership.merge import ExistingLabelsError
from fiftyone_esam3.runs.embed import compute_embeddings
from fiftyone_esam3.runs.segment import segment_concepts
from fiftyone_esam3.runs.steps import Step, finish
from fiftyone_esam3.runs.track import track_video
from fiftyone_esam3.runs.undo import undo_run

from ..conftest import make_picture, write_video


@pytest.fixture
def images(dataset: Any, photos: list[str]) -> Any:
    """The three pictures that can be read."""
    return dataset.match(~fo.ViewField("filepath").ends_with("2.png"))


def segment(samples: Any, tiny_folder: Path, *concepts: str, **options: Any) -> dict[str, Any]:
    limits = {"threshold": 0.0, "max_instances": 3, "model": str(tiny_folder), **options}
    return finish(segment_concepts(samples, list(concepts or ["bus"]), **limits))


def ids(samples: Any, field: str = "esam3") -> list[list[str]]:
    samples._root_dataset.reload()
    return samples.values(f"{field}.detections.id")


def test_a_replaced_image_is_segmented_again(
    images: Any, tiny_folder: Path, photos: list[str]
) -> None:
    segment(images, tiny_folder)
    before = ids(images)
    assert segment(images, tiny_folder)["before"] == 3
    make_picture(9).save(photos[1])
    steps: list[Step] = []
    limits = {"threshold": 0.0, "max_instances": 3, "model": str(tiny_folder)}
    summary = finish(segment_concepts(images, ["bus"], **limits), steps.append)
    assert (summary["done"], summary["before"], summary["replaced_files"]) == (1, 2, 1)
    assert any(step.note == "1 replaced since, done again" for step in steps)
    assert "1 were done again, because their files were replaced" in describe_counts(summary)
    after = ids(images)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert segment(images, tiny_folder)["before"] == 3


def test_labels_of_people_on_a_replaced_image_are_not_replaced_unasked(
    images: Any, tiny_folder: Path, photos: list[str]
) -> None:
    segment(images, tiny_folder)
    sample = images.first()
    sample.esam3.detections[0].tags.append("checked")
    sample.save()
    before = ids(images)
    make_picture(9).save(photos[0])
    with pytest.raises(ExistingLabelsError, match="1 labels in 1 samples"):
        segment(images, tiny_folder)
    assert ids(images) == before
    segment(images, tiny_folder, existing="replace")
    assert before[0][0] in ids(images)[0]


def test_a_copy_with_another_time_is_the_same_image(
    images: Any, tiny_folder: Path, photos: list[str]
) -> None:
    segment(images, tiny_folder)
    for path in photos:
        os.utime(path, (1, 1))
    assert segment(images, tiny_folder)["before"] == 3
    os.remove(photos[0])  # an error of its own, when it is asked about
    assert segment(images, tiny_folder)["before"] == 3


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg and ffprobe"
)
def test_a_replaced_video_is_tracked_again(videos: Any, tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    two = videos.limit(2)

    def track(*concepts: str) -> dict[str, Any]:
        options = {"model": str(tiny_folder), "tracker": "iou", "threshold": 0.0}
        return finish(track_video(two, list(concepts), **options))

    first = track("bus")
    track("car")
    write_video(tmp_path / "b.mp4", 6)
    summary = track("bus")
    assert (summary["done"], summary["before"], summary["replaced_files"]) == (1, 1, 1)
    assert summary["frames"] == 6
    again = track("bus")
    assert (again["before"], again["replaced_files"]) == (2, 0)
    assert track("car")["done"] == 1, "the other question is asked of the new video too"
    finish(undo_run(videos, first["run_key"]))
    assert track("bus")["done"] == 2


def test_images_in_order_that_were_replaced(
    images: Any, tiny_folder: Path, photos: list[str]
) -> None:
    pytest.importorskip("av")
    options = {"model": str(tiny_folder), "tracker": "iou", "order_field": "filepath"}
    finish(track_video(images, ["bus"], **options))
    assert finish(track_video(images, ["bus"], **options))["before"] == 1
    make_picture(9).save(photos[3])
    summary = finish(track_video(images, ["bus"], **options))
    assert (summary["done"], summary["replaced_files"]) == (1, 1)


@pytest.mark.parametrize("patches", [None, "boxes"])
def test_embeddings_of_a_replaced_image(
    images: Any, tiny_folder: Path, photos: list[str], patches: str | None
) -> None:
    options = {"model": str(tiny_folder), "patches_field": patches, "brain_key": "index"}

    def vectors() -> list[Any]:
        images._root_dataset.reload()
        path = "esam3_embedding" if patches is None else "boxes.detections.esam3_embedding"
        return [np.asarray(one) for one in images.values(path)]

    finish(compute_embeddings(images, **options))
    before = vectors()
    make_picture(9).save(photos[1])
    summary = finish(compute_embeddings(images, existing="add", **options))
    assert (summary["done"], summary["before"], summary["replaced_files"]) == (1, 2, 1)
    same = [np.array_equal(a, b) for a, b in zip(before, vectors(), strict=True)]
    assert same == [True, False, True]
    index = images._root_dataset.load_brain_results("index")
    found, samples, labels = index.get_embeddings()
    of_one = samples == images.values("id")[1]
    np.testing.assert_allclose(found[of_one], np.atleast_2d(vectors()[1]), rtol=1e-6)
    assert len(found) == len(set(samples if labels is None else labels))


@pytest.fixture
def old(images: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Label the images as versions did that knew no marks."""

    def label() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("fiftyone_esam3.runs.image_task.mark_files", lambda paths: "")
            segment(images, tiny_folder)

    return label


def test_answers_without_a_mark_are_kept(
    images: Any, tiny_folder: Path, photos: list[str], old: Callable[[], None]
) -> None:
    old()
    make_picture(9).save(photos[1])
    assert segment(images, tiny_folder)["before"] == 3
