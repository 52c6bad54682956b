"""ConceptDetector as Supervision's own detectors behave, on a tiny model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from PIL import Image

import efficientsam3 as es3
from efficientsam3.config import tiny_config
from supervision_adapters import AdapterError, ConceptDetector, to_detections
from supervision_adapters.detector import match_boxes

from ..conftest import tiny_model
from .conftest import make, shapes

WORDS = ["cat", "dog"]


@pytest.fixture
def detector(tiny: es3.ImageModel) -> ConceptDetector:
    return ConceptDetector(tiny, WORDS, threshold=0.3)


def same(a: Any, b: Any) -> bool:
    return (
        np.array_equal(a.xyxy, b.xyxy)
        and np.allclose(a.confidence, b.confidence, atol=1e-5)  # batches round otherwise
        and np.array_equal(a.class_id, b.class_id)
        and np.array_equal(np.asarray(a.mask), np.asarray(b.mask))
    )


def test_it_says_what_the_model_says(detector: ConceptDetector, photo: Any) -> None:
    found = detector.model.segment(photo, WORDS, threshold=0.3)
    out = detector.predict(photo)
    assert len(out) == len(found) > 4
    assert set(out.class_id.tolist()) == {0, 1}
    assert np.array_equal(np.asarray(out.mask), found.masks)
    assert detector.class_names == WORDS
    assert len(detector.predict(photo, threshold=0.999)) == 0


def test_one_in_one_out_a_list_in_a_list_out(detector: ConceptDetector, photo: Any) -> None:
    single = detector.predict(photo)
    assert isinstance(single, sv.Detections)
    pair = detector.predict([photo, photo[:, ::-1]])
    assert [type(d) for d in pair] == [sv.Detections] * 2
    assert same(single, pair[0]) and not same(single, pair[1])
    assert detector.predict([]) == []
    assert same(detector(photo), single) and same(detector([photo])[0], single)


def test_images_of_any_kind(detector: ConceptDetector, photo: Any, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    expected = detector.predict(photo)
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(photo)):
        assert same(detector.predict(image), expected)
    assert same(detector.predict(detector.model.encode(photo)), expected)


def test_the_order_of_channels_is_said_once(tiny: es3.ImageModel, photo: Any) -> None:
    rgb = ConceptDetector(tiny, WORDS, threshold=0.3)
    bgr = ConceptDetector(tiny, WORDS, threshold=0.3, color="bgr")
    frame = photo[..., ::-1]
    assert same(rgb.predict(photo), bgr.predict(frame))
    assert not same(rgb.predict(photo), rgb.predict(frame)), "the colors do not matter here"
    picture = Image.fromarray(photo)
    assert same(rgb.predict(picture), bgr.predict(picture)), "a PIL image knows its own"
    kept = bgr.predict(frame, include_source_image=True).metadata["source_image"]
    assert np.array_equal(kept, frame), "the source image has the frame's own order"
    with pytest.raises(AdapterError, match="color is 'rgb' or 'bgr'"):
        ConceptDetector(tiny, WORDS, color="RGB")  # type: ignore[arg-type]


def test_other_concepts_for_a_call(detector: ConceptDetector, photo: Any) -> None:
    out = detector.predict(photo, concepts="bird")
    assert set(out.data["class_name"]) == {"bird"} and set(out.class_id.tolist()) == {0}
    assert detector.class_names == WORDS
    detector.set_concepts("bird")
    assert same(detector.predict(photo), out)
    detector.set_concepts([])
    with pytest.raises(AdapterError, match="nothing to find"):
        detector.predict(photo)


BOX = [[4, 4, 30, 30]]


def test_exemplars_of_one_concept(detector: ConceptDetector, photo: Any) -> None:
    expected = detector.model.segment(photo, "cat", boxes=BOX, box_labels=[0], threshold=0.3)
    out = detector.predict(photo, concepts="cat", exemplars=BOX, exemplar_labels=[0])
    assert np.array_equal(np.asarray(out.mask), expected.masks)
    nameless = detector.predict(photo, concepts=[], exemplars=BOX, threshold=0)
    assert set(nameless.data["class_name"]) == {"visual"}
    with pytest.raises(AdapterError, match=r"Pass a mapping: exemplars=\{'cat': boxes\}"):
        detector.predict(photo, exemplars=BOX)
    with pytest.raises(AdapterError, match="boxes in one image, and there are 2"):
        detector.predict([photo, photo], exemplars=BOX)
    with pytest.raises(AdapterError, match="without exemplars"):
        detector.predict(photo, exemplar_labels=[1])
    with pytest.raises(AdapterError, match="1 exemplars have labels of shape"):
        detector.predict(photo, concepts="cat", exemplars=BOX, exemplar_labels=[1, 0])


def test_exemplars_by_concept(detector: ConceptDetector, photo: Any) -> None:
    out = detector.predict(photo, exemplars={"dog": BOX, "bird": BOX}, exemplar_labels={"dog": [0]})
    assert out.class_id.tolist() == sorted(out.class_id.tolist())
    dog = detector.model.segment(photo, "dog", boxes=BOX, box_labels=[0], threshold=0.3)
    plain = detector.model.segment(photo, "cat", threshold=0.3)
    assert np.array_equal(np.asarray(out[out.class_id == 1].mask), dog.masks)
    assert np.array_equal(np.asarray(out[out.class_id == 0].mask), plain.masks)
    assert set(out[out.class_id == 2].data["class_name"]) <= {"bird"}
    with pytest.raises(AdapterError, match="exemplar_labels must have the same"):
        detector.predict(photo, exemplars={"dog": BOX}, exemplar_labels={"cat": [1]})


def test_detections_are_exemplars(detector: ConceptDetector, photo: Any) -> None:
    shown = sv.Detections(
        xyxy=np.array(BOX * 2, float), data={"class_name": np.array(["dog", "bird"])}
    )
    by_name = detector.predict(photo, exemplars={"dog": BOX, "bird": BOX})
    assert same(detector.predict(photo, exemplars=shown), by_name)


def test_the_best_are_kept(tiny: es3.ImageModel, photo: Any) -> None:
    everything = ConceptDetector(tiny, WORDS, threshold=0.3).predict(photo)
    few = ConceptDetector(tiny, WORDS, threshold=0.3, max_instances=3).predict(photo)
    best = np.sort(everything.confidence)[::-1][:3]
    assert np.allclose(np.sort(few.confidence)[::-1], best)
    shown = ConceptDetector(tiny, WORDS, threshold=0.3, max_instances=3)
    assert len(shown.predict(photo, exemplars={"dog": BOX})) == 3
    merged = ConceptDetector(tiny, WORDS, threshold=0.3, nms=0.1).predict(photo)
    assert 0 < len(merged) < len(everything)


# The slicer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"thread_workers": 4}, {"batch_size": 3}, {"batch_size": 2, "thread_workers": 2}],
)
def test_the_slicer_in_both_forms_and_from_threads(
    detector: ConceptDetector, options: dict[str, int]
) -> None:
    scene = np.random.default_rng(0).integers(0, 255, (90, 130, 3), np.uint8)
    whole = detector.slicer(48, 8, overlap_filter=sv.OverlapFilter.NONE)
    expected = whole(scene)
    again = detector.slicer(48, 8, overlap_filter=sv.OverlapFilter.NONE, **options)(scene)
    assert len(expected) > 20 and len(again) == len(expected)
    if "batch_size" in options:  # batches round otherwise, which changes ties
        for name in ("confidence", "class_id"):
            values = [np.sort(getattr(d, name)) for d in (expected, again)]
            np.testing.assert_allclose(*values, atol=1e-4)
        areas = [int(np.asarray(d.mask).sum()) for d in (expected, again)]
        assert areas[0] == pytest.approx(areas[1], rel=1e-3)
    else:
        order_a, order_b = (np.lexsort((*d.xyxy.T, d.confidence)) for d in (expected, again))
        assert same(expected[order_a], again[order_b])
    assert expected.mask.shape[1:] == (90, 130)
    assert isinstance(expected.mask, sv.CompactMask)


def test_the_slicer_joins_what_tiles_cut(tiny: es3.ImageModel, photo: Any) -> None:
    """One block over the border of two tiles is one object again."""

    class Blocks(ConceptDetector):
        def __call__(self, tile: Any) -> Any:
            mask = tile[..., 0] == 255
            return to_detections(make(mask[None], ["cat"]))

    scene = np.zeros((48, 96, 3), np.uint8)
    scene[10:30, 36:60] = 255
    out = Blocks(tiny, WORDS).slicer(48, 16)(scene)
    assert len(out) == 1
    assert np.array_equal(np.asarray(out.mask)[0], scene[..., 0] == 255)


def test_threads_share_a_detector(detector: ConceptDetector, photo: Any) -> None:
    images = [np.roll(photo, 5 * i, 1) for i in range(12)]
    expected = [detector.predict(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(expected, pool.map(detector.predict, images), strict=True):
            assert same(a, b)


# Masks for boxes -----------------------------------------------------------------------------


def boxes_of_another() -> Any:
    return sv.Detections(
        xyxy=np.array([[2, 3, 40, 30], [5, 5, 5, 20], [20, 10, 900, 44]], np.float32),
        confidence=np.array([0.9, 0.8, 0.7], np.float32),
        class_id=np.array([7, 3, 7]),
        tracker_id=np.array([4, 5, -1]),
        data={"class_name": np.array(["dog", "cat", "dog"]), "note": ["a", "b", "c"]},
        metadata={"camera": "left"},
    )


@pytest.mark.parametrize("interactive", [True, False])
def test_boxes_get_masks_and_stay_as_they_are(photo: Any, interactive: bool) -> None:
    parts = tiny_config().parts if interactive else ("geometry", "masks")
    model = tiny_model(config=tiny_config(parts=parts))
    given = boxes_of_another()
    out = ConceptDetector(model).segment_boxes(photo, given)
    assert np.array_equal(out.xyxy, given.xyxy)
    assert out.class_id.tolist() == [7, 3, 7] and out.tracker_id.tolist() == [4, 5, -1]
    assert out.data["note"] == ["a", "b", "c"] and out.metadata == {"camera": "left"}
    assert out.mask.shape == (3, 48, 64)
    assert out.mask.area[1] == 0 and out.data["mask_score"][1] == 0, "a box without an area"
    assert given.mask is None and "mask_score" not in given.data, "the input was changed"
    found = out.mask.area > 0
    assert np.array_equal(found, out.data["mask_score"] > 0)
    if interactive:
        said = model.segment_objects(photo, boxes=[[2, 3, 40, 30], [20, 10, 64, 44]])
        assert np.array_equal(np.asarray(out.mask)[[0, 2]], said.masks)
    empty = ConceptDetector(model).segment_boxes(photo, sv.Detections.empty())
    assert empty.mask.shape == (0, 48, 64) and len(empty.data["mask_score"]) == 0
    dense = ConceptDetector(model, mask_format="dense").segment_boxes(photo, given)
    assert np.array_equal(dense.mask, np.asarray(out.mask))


@pytest.mark.slow
def test_boxes_without_names_are_shown_without_words(
    photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(config=tiny_config(parts=("geometry", "masks")))
    asked, segment = [], model.segment

    def listen(image: Any, concepts: Any = None, **prompts: Any) -> Any:
        asked.append((concepts, prompts["boxes"].tolist()))
        return segment(image, concepts, **prompts)

    monkeypatch.setattr(model, "segment", listen)
    given = boxes_of_another()
    ConceptDetector(model).segment_boxes(photo, given)
    both = [[2, 3, 40, 30], [20, 10, 64, 44]]
    del given.data["class_name"]
    ConceptDetector(model).segment_boxes(photo, given)
    assert asked == [("dog", both), (None, both)]


def test_each_box_takes_the_instance_that_fills_it() -> None:
    found = make(shapes(), scores=np.array([0.5, 0.9, 0.5, 0.9], np.float32))
    pairs = match_boxes(np.array([[4, 4, 21, 20], [49, 35, 64, 48], [0, 0, 64, 48]], float), found)
    assert [(box, row) for box, row, _ in pairs] == [(0, 1), (1, 0)]
    assert pairs[0][2] == pytest.approx(16 / 17)
    assert match_boxes(np.zeros((0, 4)), found) == []
    assert match_boxes(np.array([[0, 0, 9, 9.0]]), make(shapes()[:0])) == []


def test_single_objects(detector: ConceptDetector, photo: Any) -> None:
    out = detector.segment(photo, points=[[[20, 20]], [[40, 30]]])
    assert len(out) == 2 and set(out.data["class_name"]) == {"object"}
    number = len(detector.class_names)
    assert set(out.class_id) == {number}, "an object is none of the concepts"


def test_tiles_of_large_pictures(tiny: es3.ImageModel, photo: Any) -> None:
    large = np.tile(photo, (3, 4, 1))
    detector = ConceptDetector(tiny, WORDS, threshold=0.2, tile=(128, 16), color="bgr")
    out = detector.predict(large[..., ::-1])
    found = tiny.segment(large, WORDS, threshold=0.2, tile=(128, 16))
    assert len(out) == len(found) > 0
    assert np.array_equal(np.asarray(out.mask), found.masks)
    with pytest.raises(AdapterError, match="exemplars are in one place"):
        detector.predict(large, exemplars={"cat": [[2, 2, 30, 30]]})
    with pytest.raises(es3.PromptError, match="at least 32"):
        ConceptDetector(tiny, WORDS, tile=3)


def test_exemplars_of_another_image(detector: ConceptDetector, photo: Any) -> None:
    other = np.ascontiguousarray(photo[::-1, ::-1])
    shown = detector.exemplars(other, {"dog": BOX, "bird": BOX}, {"dog": [0]})
    assert list(shown) == ["dog", "bird"]
    pair = detector.predict([photo, other], exemplars=shown)
    assert all(
        same(found, detector.predict(image, exemplars=shown))
        for found, image in zip(pair, (photo, other), strict=True)
    )
    drawn = detector.predict(
        other, exemplars={"dog": BOX, "bird": BOX}, exemplar_labels={"dog": [0]}
    )
    assert same(pair[1], drawn) and len(drawn) > 0
    nameless = ConceptDetector(detector.model, threshold=0)
    alone = nameless.exemplars(other, BOX)
    core = detector.model.exemplar(other, boxes=BOX)
    expected = detector.model.segment(photo, exemplars=core, threshold=0)
    assert len(nameless.predict(photo, exemplars=alone)) == len(expected) > 0
    twice = [*alone.values(), *alone.values()]
    assert len(nameless.predict(photo, concepts="cat", exemplars=twice)) > 0
    tiled = ConceptDetector(detector.model, "cat", tile=40, threshold=0)
    assert len(tiled.predict(photo, exemplars={"cat": alone["visual"]})) > 0


def test_wrong_exemplars_of_another_image(detector: ConceptDetector, photo: Any) -> None:
    shown = detector.exemplars(photo, {"dog": BOX})
    with pytest.raises(AdapterError, match=r"exemplar_labels to detector\.exemplars"):
        detector.predict(photo, exemplars=shown, exemplar_labels={"dog": [0]})
    with pytest.raises(AdapterError, match="encoded already"):
        detector.exemplars(photo, shown)
    with pytest.raises(AdapterError, match="there is no example"):
        detector.exemplars(photo, None)
    with pytest.raises(AdapterError, match=r"exemplars=detector.exemplars\(image, boxes\)"):
        detector.predict([photo, photo], exemplars={"dog": BOX})


def test_masks_of_detections_are_exemplars(detector: ConceptDetector, photo: Any) -> None:
    mask = np.zeros((1, *photo.shape[:2]), bool)
    mask[0, 5:30, 5:30] = True
    shown = sv.Detections(
        xyxy=np.array([[0.0, 0.0, 64.0, 48.0]]), mask=mask, data={"class_name": np.array(["dog"])}
    )
    by_box = detector.predict(photo, exemplars={"dog": [[5, 5, 30, 30]]})
    assert same(detector.predict(photo, exemplars=shown), by_box)


def test_confidence_without_presence(tiny: es3.ImageModel, photo: Any) -> None:
    product, alone = (
        ConceptDetector(tiny, WORDS, threshold=0, presence=p).predict(photo, exemplars=e)
        for p, e in (("multiply", {"cat": BOX}), ("separate", {"cat": BOX}))
    )
    expected = alone.confidence * alone.data["presence"]
    np.testing.assert_allclose(product.confidence, expected, atol=1e-5)
    with pytest.raises(es3.PromptError, match="'multiply'"):
        ConceptDetector(tiny, WORDS, presence="none")


def test_everything_without_a_word(detector: ConceptDetector, photo: Any) -> None:
    settings: dict[str, Any] = {"points_per_side": 3, "threshold": 0.0, "stability_threshold": 0.0}
    found = detector.model.segment_everything(photo, **settings)
    bgr = ConceptDetector(detector.model, WORDS, color="bgr", mask_format="dense")
    out = bgr.everything(photo[..., ::-1], **settings)
    assert len(out) == len(found) > 0
    assert np.array_equal(out.mask, found.masks)
    assert np.array_equal(out.confidence, found.scores)
    assert set(out.class_id.tolist()) == {len(WORDS)} and set(out.data["class_name"]) == {"object"}
    with pytest.raises(es3.PromptError, match="points_per_side is a whole number"):
        detector.everything(photo, points_per_side=0)
