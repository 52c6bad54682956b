"""Instances of concepts: their scores, boxes and masks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

import efficientsam3 as es3
from efficientsam3.bpe import TruncatedTextWarning
from efficientsam3.nn.tokenizer import tokenize

from ...conftest import tiny_model
from .conftest import CONCEPTS, same

Pixels = npt.NDArray[np.uint8]


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
    center = [[size[1] / 2, size[0] / 2]]
    one = tiny.segment(image, points=center)
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
