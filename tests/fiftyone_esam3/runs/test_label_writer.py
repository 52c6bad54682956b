"""The one class that writes labels to a dataset."""

from __future__ import annotations

from typing import Any

import fiftyone as fo

from fiftyone_esam3.labels import ERROR_FIELD
from fiftyone_esam3.runs.label_writer import LabelWriter


def make_labels(name: str, **attributes: Any) -> fo.Detections:
    box = fo.Detection(label=name, bounding_box=[0.1, 0.1, 0.5, 0.5])
    return fo.Detections(detections=[box], **attributes)


def test_a_success_clears_an_old_error(dataset: Any) -> None:
    sample = dataset.first()
    sample[ERROR_FIELD] = "an old error"
    LabelWriter(dataset, "found", "esam3_1").write(sample, make_labels("cat"))
    sample.save()
    assert dataset.first().found.detections[0].label == "cat"
    assert dataset.first()[ERROR_FIELD] is None


def test_the_runs_that_finished_a_clip_are_listed(dataset: Any) -> None:
    ids = dataset.values("id")[:2]
    for key in ("esam3_1", "esam3_2", "esam3_1"):
        LabelWriter(dataset, "found", key).mark_finished(ids, dataset.values("filepath")[:2], "")
    assert dataset.values("found_run") == ["esam3_2 esam3_1"] * 2 + [None] * 2
