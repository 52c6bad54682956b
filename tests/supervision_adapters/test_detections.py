"""Instances to Detections and back: every pixel, every column, and what is empty."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import supervision as sv

from efficientsam3.types import Instances
from supervision_adapters import AdapterError, from_detections, to_detections

from .conftest import make, shapes

CLASSES = ["cat", "dog", "bird"]


def test_columns_are_what_supervision_checks(four: Instances) -> None:
    out = to_detections(four)
    assert out.xyxy.dtype == np.float32 and out.xyxy.shape == (4, 4)
    assert out.confidence.dtype == np.float32
    assert out.class_id.dtype == int and out.class_id.tolist() == [1, 0, 1, 0]
    assert out.data["class_name"].tolist() == ["dog", "cat", "dog", "cat"]
    assert out.data["presence"].tolist() == [0.75] * 4
    assert out.tracker_id is None
    assert out.metadata == {}


def test_classes_are_counted_as_they_are_given(four: Instances) -> None:
    out = to_detections(four, class_names=["bird", "dog", "cat"])
    assert out.class_id.tolist() == [1, 2, 1, 2]
    with pytest.raises(AdapterError, match="class_names has no 'cat'"):
        to_detections(four, class_names=["dog"])


def test_identities_are_whole_numbers(four: Instances) -> None:
    out = to_detections(make(shapes(), track_ids=np.array([3, -1, 0, 7])))
    assert out.tracker_id.dtype == int and out.tracker_id.tolist() == [3, -1, 0, 7]


def test_compact_masks_hold_every_pixel(four: Instances) -> None:
    """The model's boxes are too tight here; cut by them, pixels would be lost."""
    for box_source in ("mask", "model"):
        out = to_detections(four, box_source=box_source)
        assert isinstance(out.mask, sv.CompactMask)
        assert np.array_equal(np.asarray(out.mask), shapes())
    dense = to_detections(four, mask_format="dense").mask
    assert dense.dtype == bool and np.array_equal(dense, shapes())
    assert to_detections(four, mask_format=None).mask is None
    lossy = sv.CompactMask.from_dense(shapes(), four.boxes, four.size)
    assert not np.array_equal(np.asarray(lossy), shapes()), "this test shows nothing"


def test_boxes_are_the_masks_or_the_models(four: Instances) -> None:
    by_mask, by_model = to_detections(four), to_detections(four, box_source="model")
    assert by_mask.xyxy[0].tolist() == [50, 36, 64, 48]
    assert by_mask.xyxy[3].tolist() == [40, 10, 41, 11]
    assert np.array_equal(by_model.xyxy, four.boxes)


def test_an_empty_mask_is_left_out_unless_rows_answer_prompts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in every format; the warning counts it."""
    masks = shapes()
    masks[1] = False
    found = make(masks)
    for mask_format in ("compact", "dense"):
        out = to_detections(found, mask_format=mask_format)
        assert np.array_equal(np.asarray(out.mask), masks[[0, 2, 3]])
        assert out.data["class_name"].tolist() == ["dog", "dog", "cat"]
        out = to_detections(found, mask_format=mask_format, keep_empty=True)
        assert np.array_equal(np.asarray(out.mask), masks)
        assert out.xyxy[1].tolist() == found.boxes[1].tolist()
    assert caplog.text.count("1 instance without a pixel is left out") == 2
    assert len(to_detections(found, mask_format=None, box_source="model")) == 3


def test_nothing_found_is_still_typed(nothing: Instances) -> None:
    out = to_detections(nothing)
    assert len(out) == 0 and out.xyxy.shape == (0, 4)
    assert out.mask.shape == (0, 48, 64)
    assert out.class_id.dtype == int and out.confidence.dtype == np.float32
    assert out.data["class_name"].dtype.kind == "U"
    tracked = make(shapes()[:0], track_ids=np.zeros(0, np.int64))
    assert to_detections(tracked).tracker_id.dtype == int
    assert len(from_detections(out)) == 0


@pytest.mark.parametrize("mask_format", ["compact", "dense"])
def test_the_way_back_loses_nothing(mask_format: str) -> None:
    four = make(shapes(), track_ids=np.array([3, -1, 0, 7]))
    back = from_detections(to_detections(four, mask_format=mask_format, box_source="model"))
    assert back.labels == four.labels and back.size == four.size
    assert np.array_equal(back.masks, four.masks)
    assert np.array_equal(back.scores, four.scores)
    assert np.array_equal(back.presence, four.presence)
    assert np.array_equal(back.track_ids, four.track_ids)
    assert np.allclose(back.boxes, four.boxes.clip(0, [64, 48, 64, 48]))


def test_detections_of_others_need_their_size_and_names() -> None:
    strange = sv.Detections(xyxy=np.array([[-3, 5, 70, 20]]), class_id=np.array([1]))
    with pytest.raises(AdapterError, match=r"size=\(H, W\)"):
        from_detections(strange)
    found = from_detections(strange, (48, 64), CLASSES)
    assert found.labels == ["dog"] and found.patches is None
    assert found.boxes.tolist() == [[0, 5, 64, 20]]
    assert found.scores.tolist() == [1]
    assert from_detections(strange, (48, 64)).labels == ["class 1"]
    with pytest.raises(AdapterError, match="class_id 1 is not one of the 1"):
        from_detections(strange, (48, 64), ["cat"])
    with pytest.raises(AdapterError, match="masks have 64 x 48"):
        from_detections(to_detections(make(shapes())), (50, 64))
    nameless = sv.Detections(xyxy=np.zeros((2, 4)))
    assert from_detections(nameless, (48, 64)).labels == ["object", "object"]


def test_words_that_are_no_choice() -> None:
    with pytest.raises(AdapterError, match="mask_format is 'compact'"):
        to_detections(make(shapes()), mask_format="rle")  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match="box_source is 'mask'"):
        to_detections(make(shapes()), box_source="best")  # type: ignore[arg-type]


def test_merge_across_frames(four: Instances, nothing: Instances) -> None:
    """Keys, and metadata, are the same in every frame, or Supervision refuses to merge."""
    parts = [to_detections(f, class_names=CLASSES) for f in (four, nothing, make(shapes()[:2]))]
    merged = sv.Detections.merge(parts)
    assert len(merged) == 6 and isinstance(merged.mask, sv.CompactMask)
    assert np.array_equal(np.asarray(merged.mask), np.concatenate([shapes(), shapes()[:2]]))


def test_a_thousand_instances() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((1000, 48, 64), bool)
    for mask in masks:
        y, x = rng.integers(0, 40), rng.integers(0, 56)
        mask[y : y + 8, x : x + 8] = rng.random((8, 8)) > 0.4
    out = to_detections(make(masks, ["dog"] * 1000))
    assert np.array_equal(np.asarray(out.mask), masks)
    assert len(pickle.dumps(out)) < 1_000_000
    assert np.array_equal(from_detections(out).masks, masks)


def test_importing_the_adapters_imports_nothing_else() -> None:
    code = (
        "import sys, supervision_adapters\n"
        "lost = {'supervision', 'ultralytics', 'trackers', 'torch', 'cv2'} & set(sys.modules)\n"
        "assert not lost, lost"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from supervision_adapters import MissingPackageError

    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingPackageError, match=r'pip install "efficientsam3\[supervision\]"'):
        to_detections(make(shapes()))
