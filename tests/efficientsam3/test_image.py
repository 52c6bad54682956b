"""The predictor: encode once, ask many times, and be told what was asked wrongly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

import efficientsam3 as es3
from efficientsam3.build import tiny_config
from efficientsam3.image import OBJECT, VISUAL
from efficientsam3.nn.tokenizer import TruncatedTextWarning, tokenize

from .conftest import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

Pixels = npt.NDArray[np.uint8]
CONCEPTS = ["bus", "a person in black", "dog", "tree", "red car", "zebra"]  # more than one chunk


def same(a: es3.Instances, b: es3.Instances, tolerance: float = 0.0) -> None:
    """Equal results; with a tolerance scores and boxes may differ by it, masks by a few pixels."""
    assert a.labels == b.labels
    assert (a.size, a.concepts) == (b.size, b.concepts)
    np.testing.assert_allclose(a.scores, b.scores, rtol=0, atol=tolerance)
    np.testing.assert_allclose(a.boxes, b.boxes, rtol=0, atol=tolerance * max(a.size))
    if not tolerance:
        assert a.rles == b.rles
    elif len(a):
        assert (a.masks == b.masks).mean() > 0.999


# What goes in and out ------------------------------------------------------------------------


def test_concepts_are_found_with_box_score_and_mask(tiny: es3.ImageModel, photo: Pixels) -> None:
    out = tiny.segment(photo, ["bus", "dog"], threshold=0.0)
    assert len(out) == 2 * tiny.config.queries
    assert out.size == (48, 64)
    assert (out.concepts, set(out.labels)) == (("bus", "dog"), {"bus", "dog"})
    assert out.boxes.dtype == out.scores.dtype == out.presence.dtype == np.float32
    assert ((out.boxes >= 0) & (out.boxes <= [64, 48, 64, 48])).all()
    assert (out.boxes[:, :2] <= out.boxes[:, 2:]).all()
    assert ((out.scores > 0) & (out.scores < out.presence)).all()
    assert out.masks.shape == (len(out), 48, 64)
    assert 0.05 < out.masks.mean() < 0.95
    for label, presence in zip(out.labels, out.presence, strict=True):
        assert presence == np.float32(out.concept_presence[label])


def test_results_are_the_raw_answers_in_pixels(tiny: es3.ImageModel, photo: Pixels) -> None:
    raw = tiny.ground(tiny.preprocess(photo), ["bus"])
    assert raw.masks is not None
    scores = (raw.logits.sigmoid() * raw.presence.sigmoid())[0]
    order = scores.argsort(descending=True, stable=True)
    out = tiny.segment(photo, "bus", threshold=0.0)
    torch.testing.assert_close(torch.from_numpy(out.scores), scores[order], rtol=0, atol=1e-6)
    x, y, w, h = (raw.boxes[0, order] * torch.tensor([64, 48, 64, 48])).unbind(1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1).numpy()
    limits = np.array([64, 48, 64, 48])
    np.testing.assert_allclose(out.boxes, corners.clip(0, limits), atol=1e-3)
    dense = F.interpolate(raw.masks[:, order], (48, 64), mode="bilinear")[0] > 0
    assert (out.masks == dense.numpy()).mean() > 0.999


@pytest.mark.parametrize("size", [(1, 1), (33, 7), (300, 400), (500, 20000)], ids=str)
def test_results_have_the_size_of_the_image(tiny: es3.ImageModel, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    out = tiny.segment(image, ["bus"], threshold=0.0, max_instances=2)
    assert out.size == size
    assert out.mask(0).shape == size
    assert out.rles[0]["size"] == list(size)
    assert (out.boxes <= [size[1], size[0]] * 2).all()
    centre = [[size[1] / 2, size[0] / 2]]
    one = tiny.segment(image, points=centre)
    assert one.size == size
    assert one.mask(0).shape == size


def test_an_image_is_encoded_once(
    tiny: es3.ImageModel, photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = tiny.segment(photo, CONCEPTS, threshold=0.45)
    clicked = tiny.segment(photo, points=[[10, 10]])
    encoded = tiny.encode(photo)
    assert tiny.encode(encoded) is encoded
    monkeypatch.setattr(tiny.net, "read_image", None)
    for _ in range(2):
        same(tiny.segment(encoded, CONCEPTS, threshold=0.45), direct)
        same(tiny.segment(encoded, points=[[10, 10]]), clicked)


def test_an_image_of_another_model_is_refused(tiny: es3.ImageModel, photo: Pixels) -> None:
    stranger = tiny_model(dtype="bfloat16")
    encoded = stranger.encode(photo)
    asks: list[Callable[[], object]] = [
        lambda: tiny.segment(encoded, "bus"),
        lambda: tiny.segment_objects(encoded, boxes=[[1, 1, 9, 9]]),
        lambda: tiny.embed(encoded),
    ]
    for ask in asks:
        with pytest.raises(es3.PromptError, match=r"was encoded by .*bfloat16.*encode it with"):
            ask()


def test_the_same_question_has_the_same_answer(tiny: es3.ImageModel, photo: Pixels) -> None:
    for options in ({}, {"boxes": [[5, 5, 30, 30]]}, {"nms": 0.5}):
        concepts = CONCEPTS[:1] if "boxes" in options else CONCEPTS
        same(
            tiny.segment(photo, concepts, threshold=0.45, **options),
            tiny.segment(photo.copy(), concepts, threshold=0.45, **options),
        )


def test_embeddings(tiny: es3.ImageModel, photo: Pixels) -> None:
    vector, patches = tiny.embed(photo), tiny.embed_patches(photo)
    assert (vector.shape, patches.shape) == ((16,), (16, 8, 8))
    assert vector.dtype == patches.dtype == np.float32
    np.testing.assert_allclose(patches.mean((1, 2)), vector, atol=1e-5)
    encoded = tiny.encode(photo)
    assert (tiny.embed(encoded) == vector).all()
    other = tiny.embed(photo[:, ::-1])
    assert np.abs(other - vector).max() > 1e-3


# Concepts ------------------------------------------------------------------------------------


def test_asking_together_is_asking_one_by_one(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    together = tiny.segment(encoded, CONCEPTS, threshold=0.45)
    assert len(set(together.labels)) > 2
    for name in CONCEPTS:
        rows = [label == name for label in together.labels]
        alone = tiny.segment(encoded, [name], threshold=0.45)
        assert alone.concepts == (name,)
        part = together[rows]
        assert part.labels == alone.labels
        np.testing.assert_allclose(part.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(part.boxes, alone.boxes, atol=1e-3)
        assert (part.masks == alone.masks).all() or (part.masks == alone.masks).mean() > 0.999


def test_results_come_in_the_order_of_the_concepts(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    for concepts in (CONCEPTS, CONCEPTS[::-1]):
        out = tiny.segment(encoded, concepts, threshold=0.45)
        assert out.concepts == tuple(concepts)
        found = list(dict.fromkeys(out.labels))
        assert found == [c for c in concepts if c in found]
        for name in found:
            scores = out.scores[[label == name for label in out.labels]]
            assert (np.diff(scores) <= 0).all()


def test_repeated_concepts_and_stray_spaces_are_one(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    once = tiny.segment(encoded, ["bus", "dog"], threshold=0.45)
    same(tiny.segment(encoded, ["bus", " dog", "bus", "dog\n"], threshold=0.45), once)
    same(tiny.segment(encoded, ("bus", "dog"), threshold=0.45), once)
    one = tiny.segment(encoded, ["bus"], threshold=0.45)
    same(tiny.segment(encoded, "bus", threshold=0.45), one)


def test_capitals_are_read_as_small_letters() -> None:
    assert torch.equal(tokenize(["A Red  BUS"], 16), tokenize(["a red bus"], 16))
    tokens = tokenize(["a person in black"], 16)[0]
    assert tokens.tolist() == [49406, 320, 2533, 530, 1449, 49407] + [0] * 10


def test_a_text_is_read_once(
    tiny: es3.ImageModel, photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tiny.segment(photo, ["a phrase of this test"], threshold=0.45)
    monkeypatch.setattr(tiny.net, "read_text", None)
    same(tiny.segment(photo, ["a phrase of this test"], threshold=0.45), before)


def test_a_text_longer_than_the_context_is_cut_with_a_warning(
    tiny: es3.ImageModel, photo: Pixels
) -> None:
    seen = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    with pytest.warns(TruncatedTextWarning) as caught:
        cut = tiny.segment(photo, f"{seen} fifteen sixteen", threshold=0.45)
    (warning,) = caught
    for word in (f"{seen} fifteen sixteen", "18 tokens", "16", repr(seen), "'fifteen sixteen'"):
        assert word in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = tiny.segment(photo, seen, threshold=0.45)
    assert len(cut) == len(whole)
    assert (cut.scores == whole.scores).all()
    assert cut.labels[0] == f"{seen} fifteen sixteen"


def test_threshold(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    everything = tiny.segment(encoded, CONCEPTS, threshold=0.0)
    counts = []
    for threshold in (0.0, 0.4, 0.45, 0.5, 1.0):
        out = tiny.segment(encoded, CONCEPTS, threshold=threshold)
        assert (out.scores > threshold).all()
        same(out, everything.above(threshold), 1e-6)
        counts.append(len(out))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == len(CONCEPTS) * tiny.config.queries
    assert 0 < counts[2] < counts[0]
    assert counts[-1] == 0


def test_max_instances_keeps_the_best_of_all_concepts(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    everything = tiny.segment(encoded, CONCEPTS, threshold=0.0)
    for most in (0, 1, 5, 1000):
        out = tiny.segment(encoded, CONCEPTS, threshold=0.0, max_instances=most)
        assert len(out) == min(most, len(everything))
        assert sorted(out.scores) == sorted(np.sort(everything.scores)[::-1][:most])
        assert out.concepts == tuple(CONCEPTS)
        positions = [CONCEPTS.index(label) for label in out.labels]
        assert positions == sorted(positions)


def overlaps(masks: npt.NDArray[Any]) -> npt.NDArray[Any]:
    flat = masks.reshape(len(masks), -1).astype(float)
    shared = flat @ flat.T
    area = shared.diagonal()
    return shared / np.maximum(area[:, None] + area - shared, 1)


@pytest.mark.parametrize("limit", [0.0, 0.5, 0.8])
def test_nms_leaves_no_two_masks_of_a_concept_that_overlap(
    tiny: es3.ImageModel, photo: Pixels, limit: float
) -> None:
    encoded = tiny.encode(photo)
    everything = tiny.segment(encoded, ["bus", "dog"], threshold=0.0)
    out = tiny.segment(encoded, ["bus", "dog"], threshold=0.0, nms=limit)
    assert 2 <= len(out) < len(everything)
    for name in ("bus", "dog"):
        every = everything[[label == name for label in everything.labels]]
        kept = out[[label == name for label in out.labels]]
        assert kept.scores[0] == every.scores[0], "the best stays"
        assert set(kept.scores) <= set(every.scores)
        # At the image's own size overlaps differ a little from those at the model's.
        pairs = overlaps(kept.masks)[~np.eye(len(kept), dtype=bool)]
        assert (pairs <= limit + 0.05).all()
        # What is gone overlapped a better one that stayed.
        for i in np.flatnonzero(~np.isin(every.scores, kept.scores)):
            better = kept.above(float(every.scores[i]))
            assert (
                overlaps(np.concatenate([better.masks, every.masks[i : i + 1]]))[-1, :-1].max()
                > limit - 0.05
            )


def test_nms_that_forbids_nothing(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    same(
        tiny.segment(encoded, CONCEPTS, threshold=0.45, nms=1.0),
        tiny.segment(encoded, CONCEPTS, threshold=0.45),
        1e-6,
    )


def test_nms_goes_before_max_instances(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    thinned = tiny.segment(encoded, "bus", threshold=0.0, nms=0.9)
    assert len(thinned) > 1
    out = tiny.segment(encoded, "bus", threshold=0.0, nms=0.9, max_instances=len(thinned) - 1)
    same(out, thinned[: len(thinned) - 1])


def test_an_absent_concept_costs_no_masks(
    tiny: es3.ImageModel, photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = tiny.encode(photo)
    monkeypatch.setattr(tiny.net, "masks_of", None)
    out = tiny.segment(encoded, ["bus", "dog"], threshold=1.0)
    assert len(out) == 0
    assert out.masks.shape == (0, 48, 64)
    assert out.concepts == ("bus", "dog")
    assert all(0 < out.concept_presence[name] < 1 for name in ("bus", "dog"))


def test_several_images_in_one_batch_of_raw_answers(tiny: es3.ImageModel, photo: Pixels) -> None:
    photos = [photo, photo[::-1], photo[:, ::-1]]
    pixels = torch.cat([tiny.preprocess(p) for p in photos])
    raw = tiny.ground(pixels, ["bus", "dog", "bus"])
    assert raw.masks is not None
    for i, name in enumerate(["bus", "dog", "bus"]):
        alone = tiny.ground(pixels[i : i + 1], [name])
        assert alone.masks is not None
        torch.testing.assert_close(raw.logits[i], alone.logits[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(raw.boxes[i], alone.boxes[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(raw.masks[i], alone.masks[0], rtol=0, atol=1e-2)


# Exemplars -----------------------------------------------------------------------------------

BOXES = [[5, 5, 30, 30], [20.5, 10, 64, 48]]


def test_exemplars_are_boxes_in_pixels(tiny: es3.ImageModel, photo: Pixels) -> None:
    out = tiny.segment(photo, "bus", boxes=BOXES, box_labels=[1, 0], threshold=0.0)
    raw = tiny.ground(
        tiny.preprocess(photo),
        ["bus"],
        boxes=torch.tensor(
            [
                [
                    [17.5 / 64, 17.5 / 48, 25 / 64, 25 / 48],
                    [42.25 / 64, 29 / 48, 43.5 / 64, 38 / 48],
                ]
            ]
        ),
        box_labels=torch.tensor([[1, 0]]),
    )
    scores = (raw.logits.sigmoid() * raw.presence.sigmoid())[0].sort(descending=True).values
    torch.testing.assert_close(torch.from_numpy(out.scores), scores, rtol=0, atol=1e-5)


def test_exemplars_are_points_in_pixels(tiny: es3.ImageModel, photo: Pixels) -> None:
    points, labels = [[16, 12], [64, 0]], [1, 0]
    out = tiny.segment(photo, "bus", points=points, point_labels=labels, threshold=0.0)
    raw = tiny.ground(
        tiny.preprocess(photo),
        ["bus"],
        points=torch.tensor([[[0.25, 0.25], [1.0, 0.0]]]),
        point_labels=torch.tensor([labels]),
    )
    scores = (raw.logits.sigmoid() * raw.presence.sigmoid())[0].sort(descending=True).values
    torch.testing.assert_close(torch.from_numpy(out.scores), scores, rtol=0, atol=1e-5)


def test_positive_and_negative_exemplars_say_different_things(
    tiny: es3.ImageModel, photo: Pixels
) -> None:
    encoded = tiny.encode(photo)

    def ask(**options: Any) -> list[float]:
        return tiny.segment(encoded, "bus", threshold=0.0, **options).scores.tolist()

    answers = [
        ask(),
        ask(boxes=BOXES[:1]),
        ask(boxes=BOXES[:1], box_labels=[0]),
        ask(points=[[10, 10]]),
        ask(points=[[10, 10]], point_labels=[0]),
        ask(boxes=BOXES[:1], points=[[10, 10]]),
    ]
    for i, a in enumerate(answers):
        for b in answers[:i]:
            assert np.abs(np.subtract(a, b)).max() > 1e-3
    assert ask(boxes=BOXES[:1], box_labels=[1]) == answers[1]
    assert ask(points=[[10, 10]], point_labels=[1]) == answers[3]


def test_the_order_of_exemplars_means_nothing(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    a = tiny.segment(encoded, "bus", boxes=BOXES, box_labels=[1, 0], threshold=0.0)
    b = tiny.segment(encoded, "bus", boxes=BOXES[::-1], box_labels=[0, 1], threshold=0.0)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


@pytest.mark.parametrize(
    "form", [list, tuple, np.array, torch.tensor, lambda x: np.array(x, np.int64), torch.Tensor]
)
def test_prompts_of_any_array_type(
    tiny: es3.ImageModel, photo: Pixels, form: Callable[[Any], Any]
) -> None:
    encoded = tiny.encode(photo)
    whole = [[5, 5, 30, 30], [20, 10, 64, 48]]
    expected = tiny.segment(encoded, "bus", boxes=whole, box_labels=[1, 0], threshold=0.45)
    labels = torch.tensor([1, 0]) if form in (torch.tensor, torch.Tensor) else form([1, 0])
    same(
        tiny.segment(encoded, "bus", boxes=form(whole), box_labels=labels, threshold=0.45),
        expected,
    )
    objects = tiny.segment_objects(encoded, boxes=whole)
    same(tiny.segment_objects(encoded, boxes=form(whole)), objects)


def test_exemplars_alone_define_the_concept(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    alone = tiny.segment(encoded, boxes=BOXES, threshold=0.45)
    assert set(alone.labels) <= {VISUAL}
    assert alone.concepts == (VISUAL,)
    same(alone, tiny.segment(encoded, VISUAL, boxes=BOXES, threshold=0.45))
    raw = tiny.ground(tiny.preprocess(photo), [None], boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]))
    named = tiny.ground(
        tiny.preprocess(photo), [VISUAL], boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    )
    assert torch.equal(raw.logits, named.logits)
    with_point = tiny.segment(encoded, boxes=BOXES, points=[[3, 3]], threshold=0.0)
    assert with_point.concepts == (VISUAL,)


def test_a_box_that_reaches_over_the_edge_is_a_box(tiny: es3.ImageModel, photo: Pixels) -> None:
    assert len(tiny.segment(photo, "bus", boxes=[[-3, -5, 70, 50]], threshold=0.0)) == 12
    assert len(tiny.segment_objects(photo, boxes=[[-3, -5, 70, 50]])) == 1


# Single objects ------------------------------------------------------------------------------


def test_a_click_gives_one_mask_or_three(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    one = tiny.segment(encoded, points=[[20, 20]])
    assert (len(one), one.labels, one.size) == (1, [OBJECT], (48, 64))
    assert one.low_res is not None
    assert one.low_res.shape == (1, 1, 32, 32)
    assert np.abs(one.low_res).max() <= 32
    three = tiny.segment(encoded, points=[[20, 20]], multimask=True)
    assert len(three) == 3
    assert three.low_res is not None
    assert three.low_res.shape == (3, 1, 32, 32)
    assert (np.diff(three.scores) <= 0).all()
    assert ((three.scores >= 0) & (three.scores <= 1)).all()
    assert len(set(three.presence)) == 1
    same(one, tiny.segment_objects(encoded, points=[[[20, 20]]]))
    same(one, tiny.segment(encoded, points=[[20, 20]], point_labels=[1]))


def test_boxes_of_objects_are_those_of_their_masks(tiny: es3.ImageModel, photo: Pixels) -> None:
    out = tiny.segment_objects(photo, boxes=BOXES, multimask=True)
    assert len(out) == 6
    for i in range(6):
        assert tuple(out.boxes[i]) == out.crop(i)[1]


def test_low_resolution_logits_belong_to_their_mask(tiny: es3.ImageModel, photo: Pixels) -> None:
    out = tiny.segment(photo, points=[[20, 20]], multimask=True)
    assert out.low_res is not None
    dense = F.interpolate(torch.from_numpy(out.low_res), (48, 64), mode="bilinear")[:, 0] > 0
    for i in range(3):
        # Small holes are filled in the mask and not in the logits.
        assert (dense[i].numpy() <= out.mask(i)).mean() > 0.999


def test_clicks_and_their_labels_matter(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    answers = [
        tiny.segment(encoded, points=[[20, 20]]),
        tiny.segment(encoded, points=[[40, 20]]),
        tiny.segment(encoded, points=[[20, 20]], point_labels=[0]),
        tiny.segment(encoded, points=[[20, 20], [40, 20]]),
        tiny.segment(encoded, points=[[20, 20], [40, 20]], point_labels=[1, 0]),
        tiny.segment_objects(encoded, boxes=[[20, 20, 40, 40]]),
        tiny.segment_objects(encoded, boxes=[[20, 20, 40, 40]], points=[[[20, 20]]]),
    ]
    for i, a in enumerate(answers):
        for b in answers[:i]:
            assert a.low_res is not None
            assert b.low_res is not None
            assert np.abs(a.low_res - b.low_res).max() > 1e-3


def test_a_mask_refines_the_next(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    first = tiny.segment(encoded, points=[[20, 20]])
    refined = tiny.segment(encoded, points=[[20, 20]], mask_input=first.low_res)
    assert first.low_res is not None
    assert refined.low_res is not None
    assert np.abs(refined.low_res - first.low_res).max() > 1e-3
    same(refined, tiny.segment_objects(encoded, points=[[[20, 20]]], masks=first.low_res))
    alone = tiny.segment_objects(encoded, masks=first.low_res)
    assert len(alone) == 1


def test_many_objects_at_once_are_each_as_alone(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    rng = np.random.default_rng(1)
    low = rng.uniform(0, [40, 30], (19, 2))  # more than one chunk
    boxes = np.concatenate([low, low + rng.uniform(5, 15, (19, 2))], 1)
    together = tiny.segment_objects(encoded, boxes=boxes)
    assert len(together) == 19
    assert together.low_res is not None
    for i in (0, 7, 15, 16, 18):
        alone = tiny.segment_objects(encoded, boxes=boxes[i : i + 1])
        np.testing.assert_allclose(together.low_res[i], alone.low_res[0], atol=1e-3)
        np.testing.assert_allclose(together.scores[i], alone.scores[0], atol=1e-5)
    three = tiny.segment_objects(encoded, boxes=boxes[:2], multimask=True)
    first = tiny.segment_objects(encoded, boxes=boxes[:1], multimask=True)
    np.testing.assert_allclose(three.scores[:3], first.scores, atol=1e-5)


def test_no_boxes_are_no_objects(tiny: es3.ImageModel, photo: Pixels) -> None:
    out = tiny.segment_objects(photo, boxes=np.zeros((0, 4)))
    assert len(out) == 0
    assert out.masks.shape == (0, 48, 64)
    assert out.boxes.shape == (0, 4)


def test_padding_points_may_lie_anywhere(tiny: es3.ImageModel, photo: Pixels) -> None:
    encoded = tiny.encode(photo)
    answers = [
        tiny.segment_objects(encoded, points=[[[20, 20], padding]], point_labels=[[1, -1]])
        for padding in ([0, 0], [-1, -1], [9999, 5])
    ]
    same(answers[0], answers[1])
    same(answers[0], answers[2])


# How it computes -----------------------------------------------------------------------------


def test_the_fast_mode_is_deterministic_and_its_own(tiny: es3.ImageModel, photo: Pixels) -> None:
    fast = tiny_model(speed="fast")
    a, b = (fast.segment(photo, CONCEPTS, threshold=0.0) for _ in range(2))
    same(a, b)
    exact = tiny.segment(photo, CONCEPTS, threshold=0.0)
    assert not np.array_equal(np.sort(a.scores), np.sort(exact.scores))
    assert "fast" in repr(fast)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "torch.float32"])
def test_every_precision_answers(photo: Pixels, dtype: Any) -> None:
    model = tiny_model(dtype=dtype)
    assert str(model.dtype).endswith(str(dtype).removeprefix("torch."))
    out = model.segment(photo, CONCEPTS, threshold=0.0)
    assert np.isfinite(out.scores).all()
    assert len(out) == 72
    assert len(model.segment_objects(photo, boxes=BOXES)) == 2
    assert np.isfinite(model.embed(photo)).all()


def test_unknown_precision_speed_and_name() -> None:
    for options, words in (
        ({"dtype": "float8"}, ("float8", "bfloat16")),
        ({"dtype": "int64"}, ("int64", "bfloat16")),
        ({"speed": "warp"}, ("warp", "exact", "fast")),
    ):
        with pytest.raises(ValueError) as caught:
            tiny_model(**options)
        for word in words:
            assert word in str(caught.value)
    with pytest.raises(ValueError, match="'efficientsam3-tinyvit-12m'; did you mean"):
        es3.load("efficientsam3-tinyvit-12m")


def test_a_model_is_told_apart_by_its_repr() -> None:
    assert repr(tiny_model()) == "ImageModel('tiny', float32 on cpu, speed='exact')"


# Abilities -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "abilities"),
    [
        (("geometry",), {"concepts", "exemplars"}),
        (("geometry", "masks"), {"concepts", "exemplars", "masks"}),
        (("interactive", "interactive_neck"), {"interactive"}),
        (("interactive", "interactive_neck", "memory"), {"interactive", "video"}),
        (("interactive",), set()),
        ((), set()),
    ],
    ids=str,
)
def test_what_is_missing_is_named_when_it_is_asked_for(
    photo: Pixels, parts: tuple[str, ...], abilities: set[str]
) -> None:
    model = tiny_model(config=tiny_config(parts=parts))
    assert model.abilities == abilities
    pixels = model.preprocess(photo)
    asks: list[tuple[str, str, Callable[[], Any]]] = [
        ("concepts", "geometry encoder", lambda: model.segment(photo, "bus")),
        ("concepts", "geometry encoder", lambda: model.ground(pixels, ["bus"])),
        ("exemplars", "geometry encoder", lambda: model.segment(photo, boxes=BOXES)),
        ("interactive", "second neck", lambda: model.segment(photo, points=[[1, 1]])),
        ("interactive", "second neck", lambda: model.segment_objects(photo, boxes=BOXES)),
    ]
    for ability, part, ask in asks:
        if ability in abilities:
            ask()
            continue
        with pytest.raises(es3.MissingAbilityError) as caught:
            ask()
        message = str(caught.value)
        assert "base=" in message
        if not parts:
            assert part in message
    assert model.embed(photo).shape == (16,), "every model encodes images"


def test_without_a_mask_head_there_are_boxes(photo: Pixels) -> None:
    model = tiny_model(config=tiny_config(parts=("geometry",)))
    out = model.segment(photo, "bus", threshold=0.0)
    assert len(out) == 12
    assert model.ground(model.preprocess(photo), ["bus"]).masks is None
    with pytest.raises(es3.MissingAbilityError, match="no mask head"):
        _ = out.masks
    with pytest.raises(es3.MissingAbilityError, match="no mask head"):
        model.segment(photo, "bus", threshold=0.0, nms=0.5)


# Asked wrongly -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({}, ["nothing to find", "concepts=", "boxes", "points"]),
        ({"concepts": ""}, ["''", "'person'"]),
        ({"concepts": "  \n"}, [repr("  \n"), "'person'"]),
        ({"concepts": []}, ["empty", "['person']"]),
        ({"concepts": ["bus", ""]}, ["''", "'person'"]),
        ({"concepts": [None]}, ["None", "phrase"]),
        ({"concepts": [3]}, ["3", "phrase"]),
        ({"concepts": 3}, ["3", "phrase"]),
        ({"concepts": ["bus"], "threshold": 1.5}, ["1.5", "between 0 and 1"]),
        ({"concepts": ["bus"], "threshold": float("nan")}, ["nan", "between 0 and 1"]),
        ({"concepts": ["bus"], "max_instances": -1}, ["-1", "0 or more"]),
        ({"concepts": ["bus"], "nms": 1.5}, ["1.5", "between 0 and 1"]),
        ({"concepts": ["bus"], "nms": -0.1}, ["-0.1", "between 0 and 1"]),
        ({"concepts": ["bus"], "mask_input": np.zeros((1, 32, 32))}, ["mask_input", "points"]),
        # boxes
        ({"concepts": ["bus", "dog"], "boxes": BOXES}, ["2", "bus, dog", "once for each"]),
        ({"concepts": "bus", "boxes": []}, ["(K, 4)", "(0,)"]),
        ({"concepts": "bus", "boxes": np.zeros((0, 4))}, ["no exemplar", "at least one"]),
        ({"concepts": "bus", "boxes": [5, 5, 30, 30]}, ["(K, 4)", "(4,)"]),
        ({"concepts": "bus", "boxes": [[5, 5, 30]]}, ["(K, 4)", "(1, 3)"]),
        ({"concepts": "bus", "boxes": [[5, 5, 30, 30], [1, 2]]}, ["boxes are numbers"]),
        ({"concepts": "bus", "boxes": [["a", 5, 30, 30]]}, ["boxes are numbers", "'a'"]),
        ({"concepts": "bus", "boxes": [[5, 5, float("nan"), 30]]}, ["boxes", "NaN"]),
        ({"concepts": "bus", "boxes": [[5, 5, float("inf"), 30]]}, ["boxes", "infinite"]),
        ({"concepts": "bus", "boxes": [[30, 5, 5, 30]]}, ["[30.0, 5.0, 5.0, 30.0]", "x0 < x1"]),
        ({"concepts": "bus", "boxes": [[5, 30, 30, 5]]}, ["inverted", "y0 < y1"]),
        ({"concepts": "bus", "boxes": [[5, 5, 5, 30]]}, ["empty or inverted"]),
        ({"concepts": "bus", "boxes": [[64, 5, 90, 30]]}, ["[64.0, 5.0", "64 x 48"]),
        ({"concepts": "bus", "boxes": [[5, -30, 30, 0]]}, ["outside the image", "64 x 48"]),
        ({"concepts": "bus", "boxes": BOXES, "box_labels": [1]}, ["(1, 1)", "(1, 2)"]),
        ({"concepts": "bus", "boxes": BOXES, "box_labels": [1, 2]}, ["[[1, 2]]", "1", "0"]),
        ({"concepts": "bus", "boxes": BOXES, "box_labels": [1, -1]}, ["[[1, -1]]"]),
        ({"concepts": "bus", "box_labels": [1]}, ["box_labels", "boxes"]),
        # points
        ({"points": []}, ["(K, 2)", "(0,)"]),
        ({"points": np.zeros((0, 2))}, ["no point", "[[x, y]]"]),
        ({"points": [5, 5]}, ["(K, 2)", "(2,)"]),
        ({"points": [[5, 5, 5]]}, ["(K, 2)", "(1, 3)"]),
        ({"points": [[5, float("nan")]]}, ["points", "NaN"]),
        ({"points": [[65, 5]]}, ["[65.0, 5.0]", "outside the image of 64 x 48"]),
        ({"points": [[5, -1]]}, ["[5.0, -1.0]", "outside"]),
        ({"points": [[5, 5]], "point_labels": [1, 0]}, ["(1, 2)", "(1, 1)"]),
        ({"points": [[5, 5]], "point_labels": [2]}, ["[[2]]", "1", "0"]),
        ({"points": [[5, 5]], "mask_input": np.zeros((1, 31, 32))}, ["(1, 31, 32)", "low_res"]),
        ({"points": [[5, 5]], "mask_input": np.zeros((2, 1, 32, 32))}, ["[1, 2]"]),
        (
            {"points": [[5, 5]], "mask_input": np.full((1, 1, 32, 32), np.nan)},
            ["masks", "NaN"],
        ),
        ({"concepts": "bus", "points": np.zeros((0, 2))}, ["no point", "[[x, y]]"]),
        ({"concepts": "bus", "points": [[65, 5]]}, ["[65.0, 5.0]", "outside"]),
        ({"concepts": "bus", "points": [[5, 5]], "point_labels": [1, 1]}, ["(1, 2)", "(1, 1)"]),
        ({"concepts": "bus", "point_labels": [1]}, ["point_labels", "points"]),
    ],
    ids=lambda x: str(x)[:50] if isinstance(x, dict) else "",
)
def test_prompts_that_mean_nothing(
    tiny: es3.ImageModel, photo: Pixels, prompt: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(es3.PromptError) as caught:
        tiny.segment(photo, **prompt)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({}, ["nothing to segment", "boxes, points or masks"]),
        ({"boxes": [5, 5, 30, 30]}, ["(4,)"]),
        ({"boxes": [[30, 5, 5, 30]]}, ["inverted"]),
        ({"points": [[5, 5]]}, ["(N, K, 2)", "(1, 2)"]),
        ({"points": np.zeros((1, 0, 2))}, ["no point"]),
        ({"points": [[[5, 5]], [[65, 5]]]}, ["[65.0, 5.0]", "outside"]),
        ({"points": [[[5, 5]]], "point_labels": [[3]]}, ["[[3]]", "-1 is padding"]),
        ({"points": [[[5, 5]]], "point_labels": [1]}, ["(1,)", "(1, 1)"]),
        ({"boxes": BOXES, "points": [[[5, 5]]]}, ["[1, 2]", "one object each"]),
        ({"boxes": BOXES, "masks": np.zeros((1, 1, 32, 32))}, ["[1, 2]"]),
        ({"boxes": BOXES, "point_labels": [[1], [1]]}, ["point_labels", "points"]),
    ],
    ids=lambda x: str(x)[:50] if isinstance(x, dict) else "",
)
def test_objects_that_are_not_pointed_at(
    tiny: es3.ImageModel, photo: Pixels, prompt: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(es3.PromptError) as caught:
        tiny.segment_objects(photo, **prompt)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("pixels", "concepts", "words"),
    [
        (torch.zeros(3, 112, 112), ["bus"], ["(B, 3, 112, 112)", "(3, 112, 112)"]),
        (torch.zeros(1, 3, 100, 112), ["bus"], ["(1, 3, 100, 112)", "preprocess()"]),
        (torch.full((1, 3, 112, 112), float("nan")), ["bus"], ["NaN", "preprocess(image)"]),
        (torch.full((1, 3, 112, 112), float("inf")), ["bus"], ["infinite"]),
        (torch.zeros(1, 3, 112, 112), ["bus", "dog"], ["1 images", "1 concepts"]),
        (torch.zeros(1, 3, 112, 112), "bus", ["1 concepts"]),
        (torch.zeros(1, 3, 112, 112), [""], ["''"]),
    ],
    ids=["one image", "size", "nan", "inf", "two concepts", "string", "empty"],
)
def test_raw_questions_that_mean_nothing(
    tiny: es3.ImageModel, pixels: torch.Tensor, concepts: Any, words: list[str]
) -> None:
    with pytest.raises(es3.PromptError) as caught:
        tiny.ground(pixels, concepts)
    for word in words:
        assert word in str(caught.value)


def test_raw_exemplars_of_the_wrong_shape(tiny: es3.ImageModel) -> None:
    pixels = torch.zeros(1, 3, 112, 112)
    for name, value in (
        ("boxes", torch.zeros(1, 4)),
        ("boxes", torch.zeros(2, 1, 4)),
        ("points", torch.zeros(1, 1, 3)),
    ):
        with pytest.raises(es3.PromptError) as caught:
            tiny.ground(pixels, ["bus"], **{name: value})
        assert str(tuple(value.shape)) in str(caught.value)


def test_images_that_are_none(tiny: es3.ImageModel) -> None:
    for ask in (tiny.encode, tiny.preprocess, tiny.embed, tiny.embed_patches):
        with pytest.raises(es3.ImageError, match="a path, a PIL image"):
            ask(None)


def test_a_model_may_say_each_thing_once_by_itself() -> None:
    """``ModelConfig.nms``, for models that need it; who asks for another overlap gets that."""
    config = tiny_config()
    free = es3.ImageModel.from_config(config, device="cpu", dtype="float32")
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    every = free.segment(image, "dog", threshold=0)
    once = free.segment(image, "dog", threshold=0, nms=0.5)
    assert len(once) < len(every) == config.queries
    strict = es3.ImageModel(
        "strict", replace(config, nms=0.5), free.learned, device="cpu", dtype="float32"
    )
    np.testing.assert_array_equal(strict.segment(image, "dog", threshold=0).scores, once.scores)
    assert len(strict.segment(image, "dog", threshold=0, nms=1.0)) == len(every)
