"""What Supervision itself does with our detections: all its annotators, zones, sinks, metrics."""

from __future__ import annotations

import csv
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from supervision.metrics import F1Score, MeanAveragePrecision, MetricTarget

from supervision_adapters import MaskIoUTracker, to_detections

from .conftest import make, shapes

CLASSES = ["cat", "dog", "bird"]
# Those that need something else than detections and a scene.
ELSEWHERE = {
    "BaseAnnotator": "abstract",
    "EdgeAnnotator": "key points",
    "VertexAnnotator": "key points",
    "VertexLabelAnnotator": "key points",
    "VertexEllipseAnnotator": "key points",
    "VertexEllipseAreaAnnotator": "key points",
    "VertexEllipseOutlineAnnotator": "key points",
    "VertexEllipseHaloAnnotator": "key points",
    "IconAnnotator": "files of icons",
    "ComparisonAnnotator": "two detections",
    "LineZoneAnnotator": "a line",
    "LineZoneAnnotatorMulticlass": "lines",
    "PolygonZoneAnnotator": "a zone",
    "DepthAnnotator": "depths",
    "OrientedBoxAnnotator": "turned boxes",
}


def annotators() -> list[str]:
    names = [n for n in dir(sv) if n.endswith("Annotator") or n == "LineZoneAnnotatorMulticlass"]
    return [n for n in names if n not in ELSEWHERE and inspect.isclass(getattr(sv, n))]


def tracked(kind: str) -> Any:
    masks = shapes() if kind != "empty" else shapes()[:0]
    found = make(masks, track_ids=np.arange(len(masks)) - 1)
    mask_format = "dense" if kind == "dense" else "compact"
    return to_detections(found, class_names=CLASSES, mask_format=mask_format)


def test_there_are_annotators_to_try() -> None:
    assert len(annotators()) >= 18, annotators()


@pytest.mark.parametrize("kind", ["empty", "compact", "dense"])
@pytest.mark.parametrize("name", annotators())
def test_every_annotator(name: str, kind: str, photo: Any) -> None:
    kind_of = getattr(sv, name)
    out = kind_of().annotate(photo.copy(), tracked(kind))
    assert out.shape == photo.shape and out.dtype == np.uint8
    if kind == "empty":
        if name != "BackgroundOverlayAnnotator":  # nothing is background's opposite
            assert np.array_equal(out, photo)
    elif name not in ("TraceAnnotator", "HeatMapAnnotator"):  # these draw what came before
        assert not np.array_equal(out, photo), "nothing was drawn"


@pytest.mark.parametrize("name", ["MaskAnnotator", "PolygonAnnotator", "HaloAnnotator"])
def test_compact_masks_are_drawn_like_dense_ones(name: str, photo: Any) -> None:
    annotator = getattr(sv, name)()
    dense, compact = (annotator.annotate(photo.copy(), tracked(k)) for k in ("dense", "compact"))
    assert np.array_equal(dense, compact)


def test_labels_are_the_concepts(photo: Any) -> None:
    named = ["dog", "cat", "dog", "cat"]
    for annotator in (sv.LabelAnnotator(), sv.RichLabelAnnotator()):
        own = annotator.annotate(photo.copy(), tracked("compact"))
        asked = annotator.annotate(photo.copy(), tracked("compact"), labels=named)
        assert np.array_equal(own, asked)


def test_a_zone_counts_by_where_masks_are() -> None:
    zone = sv.PolygonZone(
        np.array([[0, 0], [30, 0], [30, 47], [0, 47]]),
        triggering_anchors=[sv.Position.CENTER_OF_MASS],
    )
    assert zone.trigger(tracked("compact")).tolist() == [False, True, True, False]
    assert zone.trigger(tracked("empty")).tolist() == []


def moving(x: int) -> Any:
    mask = np.zeros((48, 64), bool)
    mask[20:28, x : x + 8] = True
    return to_detections(make(mask[None], ["cat"]), class_names=CLASSES)


def test_a_line_counts_who_crosses_it() -> None:
    line = sv.LineZone(sv.Point(32, 47), sv.Point(32, 0), minimum_crossing_threshold=1)
    tracker = MaskIoUTracker()
    for x in range(0, 56, 4):
        line.trigger(tracker.update(moving(x)))
    assert (line.in_count, line.out_count) in ((1, 0), (0, 1))
    before = line.in_count + line.out_count
    pending = MaskIoUTracker(minimum_consecutive_frames=99)
    for x in range(0, 56, 4):
        line.trigger(pending.update(moving(x)))
    assert line.in_count + line.out_count == before, "what is pending is not counted"


def test_the_smoother_tears_boxes_from_masks() -> None:
    """Supervision says that it is not for segmentation; this is why we do not offer it."""
    smoother = sv.DetectionsSmoother(length=5)
    tracker = MaskIoUTracker()
    for x in range(0, 24, 4):
        out = smoother.update_with_detections(tracker.update(moving(x)))
    left = sv.mask_to_xyxy(np.asarray(out.mask))[0, 0]
    assert left == 20 and out.xyxy[0, 0] < 15


def test_sinks_write_our_columns(tmp_path: Path) -> None:
    with (
        sv.CSVSink(str(tmp_path / "a.csv")) as table,
        sv.JSONSink(str(tmp_path / "a.json")) as lines,
    ):
        for frame, kind in enumerate(("compact", "empty", "compact")):
            table.append(tracked(kind), {"frame": frame})
            lines.append(tracked(kind), {"frame": frame})
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert len(rows) == 8 == len(json.loads((tmp_path / "a.json").read_text()))
    assert rows[0]["class_name"] == "dog" and float(rows[0]["presence"]) == 0.75
    assert rows[1]["tracker_id"] == "0" and rows[-1]["frame"] == "2"


def test_metrics_of_masks() -> None:
    truth, answer = tracked("compact"), tracked("compact")
    for metric in (MeanAveragePrecision, F1Score):
        result = metric(metric_target=MetricTarget.MASKS).update([answer], [truth]).compute()
        score = result.map50_95 if metric is MeanAveragePrecision else result.f1_50
        assert score == pytest.approx(1)
    half = answer[:2]
    result = MeanAveragePrecision(metric_target=MetricTarget.MASKS).update([half], [truth])
    assert 0 < result.compute().map50_95 < 1
    matrix = sv.ConfusionMatrix.from_detections([answer], [truth], CLASSES)
    assert np.trace(matrix.matrix) == 4


def test_suppression_and_merging_work_on_masks() -> None:
    double = sv.Detections.merge([tracked("compact"), tracked("compact")])
    for suppress in (double.with_nms, double.with_nmm):
        out = suppress(threshold=0.5)
        assert len(out) == 4 and out.mask.shape == (4, 48, 64)
    frames = sv.Detections.merge([tracked("compact"), tracked("empty"), tracked("compact")])
    assert len(frames) == 8 and len(frames[frames.tracker_id != -1]) == 6


def test_datasets_take_them(tmp_path: Path, photo: Any) -> None:
    import PIL.Image

    PIL.Image.fromarray(photo).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    data = sv.DetectionDataset(CLASSES, [path], {path: tracked("compact")})
    data.as_pascal_voc(annotations_directory_path=str(tmp_path / "voc"))
    back = sv.DetectionDataset.from_pascal_voc(str(tmp_path), str(tmp_path / "voc"))
    ((_, _, found),) = list(back)
    # Supervision writes one object for each part of a mask, so the extents of classes are compared.
    given = tracked("compact")
    for name in ("cat", "dog"):
        written = found.xyxy[[back.classes[i] == name for i in found.class_id]]
        true = given.xyxy[given.data["class_name"] == name]
        assert written[:, :2].min(0) == pytest.approx(true[:, :2].min(0), abs=1)
        assert written[:, 2:].max(0) == pytest.approx(true[:, 2:].max(0), abs=1)
