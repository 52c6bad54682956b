"""Batches of the grounding task: phrases, exemplars and targets."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.config import tiny_config
from efficientsam3.data.sample import TrainingSample
from efficientsam3.data.types import PhraseQuery
from efficientsam3.errors import DataError
from efficientsam3.nn.layers import cxcywh_to_xyxy
from efficientsam3.nn.tokenizer import tokenize
from efficientsam3.segmenter import VISUAL
from efficientsam3.train.errors import SettingsError
from efficientsam3.train.losses.grounding import GroundingBatch
from efficientsam3.train.tasks.grounding_batches import GroundingCollator, PromptSettings

from ..conftest import Shapes, replace

CONFIG = tiny_config(parts=("geometry", "masks"))
LIMIT = 20 / 1008
PLAIN = {"box_only": 0.0, "text_and_box": 0.0}


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make(samples: list[TrainingSample], seed: int = 0, **settings: Any) -> GroundingBatch:
    return GroundingCollator(CONFIG, PromptSettings(**{**PLAIN, **settings}))(samples, random(seed))


def sample_with(*queries: PhraseQuery, **changes: Any) -> TrainingSample:
    return replace(Shapes()[0], queries=queries, **changes)


def phrases(batch: GroundingBatch) -> list[list[int]]:
    return [row[row != 0].tolist() for row in batch.tokens]


def tokens(phrase: str) -> list[int]:
    row = tokenize([phrase], CONFIG.context)[0]
    return row[row != 0].tolist()


def test_contents_of_a_batch() -> None:
    samples = [Shapes()[0], Shapes()[1]]
    batch = make(samples, prompts=3)
    assert batch.pixels.shape == (2, 3, 112, 112)
    assert batch.tokens.shape == (6, 16)
    assert batch.images.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.exemplars is None
    targets = batch.targets
    assert targets.boxes.shape == (6, 2, 4)
    assert targets.masks is not None
    assert targets.masks.shape == (6, 2, 32, 32)
    names = phrases(batch)
    for row, image in enumerate(batch.images.tolist()):
        sample = samples[image]
        (query,) = (q for q in sample.queries if tokens(q.phrase) == names[row])
        count = len(query.objects)
        assert targets.valid[row].tolist() == [i < count for i in range(2)]
        wanted = sample.boxes_in_unit()[list(query.objects)]
        torch.testing.assert_close(targets.boxes[row, :count], wanted)
        masks = sample.masks_at(32, query.objects)
        torch.testing.assert_close(targets.masks[row, :count].float(), masks, atol=1e-3, rtol=0)
        assert float(targets.masks[row, count:].sum()) == 0
    assert targets.exhaustive.all()


def test_the_same_generator_gives_the_same_batch() -> None:
    samples = [Shapes()[i] for i in range(3)]
    settings = {"prompts": 2, "box_only": 0.4, "text_and_box": 0.4}
    one, same, other = (make(samples, seed, **settings) for seed in (1, 1, 2))
    assert torch.equal(one.tokens, same.tokens)
    assert one.exemplars is not None
    assert same.exemplars is not None
    assert all(torch.equal(a, b) for a, b in zip(one.exemplars, same.exemplars, strict=True))
    assert not (
        torch.equal(one.tokens, other.tokens)
        and other.exemplars is not None
        and torch.equal(one.exemplars.boxes, other.exemplars.boxes)
    )


def test_positive_and_negative_prompts() -> None:
    there = [PhraseQuery(f"thing {i}", (0,)) for i in range(6)]
    absent = [PhraseQuery(f"none {i}") for i in range(6)]
    for share in (0.0, 0.25, 1.0):
        counts = [
            int(
                make(
                    [sample_with(*there, *absent)], s, prompts=4, positive_share=share
                ).targets.present.sum()
            )
            for s in range(40)
        ]
        assert set(counts) <= {int(4 * share), int(4 * share) + 1}
    # If there are too few queries of one kind, those of the other fill up.
    assert make([sample_with(*there[:1], *absent)], prompts=4).targets.present.sum() == 1
    assert len(make([sample_with(*there, *absent[:1])], prompts=4).images) == 4
    assert len(make([sample_with(there[0])], prompts=4).images) == 1


def test_kinds_of_queries_have_weights() -> None:
    queries = [PhraseQuery("a", (0,), kind="name"), PhraseQuery("b", (0,), kind="synonym")]
    settings = {"prompts": 1, "positive_share": 1.0, "kind_weights": {"synonym": 9.0}}
    drawn = Counter(
        tuple(phrases(make([sample_with(*queries)], seed, **settings))[0]) for seed in range(200)
    )
    assert drawn[tuple(tokens("b"))] > 160


# Exemplars ------------------------------------------------------------------------------------


def test_boxes_instead_of_the_phrase() -> None:
    batch = make([sample_with(PhraseQuery("rectangle", (0, 1)), PhraseQuery("dog"))], box_only=1.0)
    names = phrases(batch)
    assert sorted(names) == sorted([tokens(VISUAL), tokens("dog")])
    row = names.index(tokens(VISUAL))
    assert batch.exemplars is not None
    assert batch.exemplars.box_valid[row].any()
    assert not batch.exemplars.box_valid[1 - row].any()  # an absent concept has no box
    assert batch.targets.valid[row].all()  # all instances are targets, whichever are boxed


def test_boxes_in_addition_to_the_phrase() -> None:
    batch = make([sample_with(PhraseQuery("rectangle", (0, 1)))], text_and_box=1.0)
    assert phrases(batch) == [tokens("rectangle")]
    assert batch.exemplars is not None
    assert batch.exemplars.box_valid.any()


def test_queries_of_attributes_keep_their_phrase() -> None:
    query = PhraseQuery("left rectangle", (0,), kind="attribute")
    batch = make([sample_with(query)], box_only=1.0)
    assert phrases(batch) == [tokens("left rectangle")]
    assert batch.exemplars is None


@pytest.mark.parametrize("noise", [0.1, 0.5, 0.0])
def test_the_noise_of_boxes_is_limited(noise: float) -> None:
    sample = sample_with(PhraseQuery("rectangle", (0, 1)))
    true = cxcywh_to_xyxy(sample.boxes_in_unit())
    off = []
    for seed in range(60):
        settings = {"text_and_box": 1.0, "box_noise": noise, "box_noise_limit": LIMIT}
        shown = make([sample], seed, **settings).exemplars
        assert shown is not None
        for box in shown.boxes[0][shown.box_valid[0]]:
            off.append((cxcywh_to_xyxy(box) - true).abs().amax(1).min())
            assert bool(((box >= 0) & (box <= 1)).all())
    largest = float(torch.stack(off).max())
    assert largest <= LIMIT + 1e-6
    assert (largest > 0.5 * LIMIT) == (noise > 0)


def test_positive_and_negative_exemplars() -> None:
    seen = Counter()
    sample = sample_with(PhraseQuery("left one", (0,)))
    left, right = sample.boxes_in_unit()
    for seed in range(100):
        shown = make([sample], seed, text_and_box=1.0, box_noise=0.0).exemplars
        assert shown is not None
        given = shown.boxes[0][shown.box_valid[0]]
        names = shown.box_labels[0][shown.box_valid[0]].tolist()
        torch.testing.assert_close(given[0], left)
        if len(names) > 1:
            torch.testing.assert_close(given[1], right)
        seen[tuple(names)] += 1
    assert set(seen) == {(1,), (1, 0)}
    assert 5 < seen[(1, 0)] < 40


def test_no_negative_exemplar_without_exhaustive_annotation() -> None:
    sample = sample_with(PhraseQuery("left one", (0,), exhaustive=False))
    for seed in range(50):
        shown = make([sample], seed, text_and_box=1.0).exemplars
        assert shown is not None
        assert shown.box_labels[shown.box_valid].tolist() == [1]


def test_the_number_of_boxes_is_limited() -> None:
    sample = sample_with(PhraseQuery("rectangle", (0, 1)))
    counts = {
        int(made.exemplars.box_valid.sum())
        for seed in range(20)
        if (made := make([sample], seed, text_and_box=1.0, max_boxes=1)).exemplars is not None
    }
    assert counts == {1}


# Targets --------------------------------------------------------------------------------


def test_crowds_are_neither_targets_nor_exemplars() -> None:
    sample = sample_with(PhraseQuery("rectangle", (0, 1)), crowd=np.array([False, True]))
    batch = make([sample])
    assert batch.targets.valid.tolist() == [[True]]
    assert batch.targets.exhaustive.tolist() == [False]  # instances of the crowd are missing
    wanted = sample.boxes_in_unit()[0]
    torch.testing.assert_close(batch.targets.boxes[0, 0], wanted)
    for seed in range(30):
        shown = make([sample], seed, text_and_box=1.0, box_noise=0.0).exemplars
        assert shown is not None
        torch.testing.assert_close(shown.boxes[shown.box_valid], wanted[None])
    alone = sample_with(PhraseQuery("rectangle", (1,)), crowd=np.array([False, True]))
    batch = make([alone], text_and_box=1.0)
    assert not batch.targets.present.any()
    assert not batch.targets.exhaustive.any()
    assert batch.exemplars is None


def test_queries_that_are_not_exhaustive_stay_so() -> None:
    sample = sample_with(
        PhraseQuery("a", (0,), exhaustive=False), PhraseQuery("b", exhaustive=False)
    )
    batch = make([sample])
    assert sorted(batch.targets.present.tolist()) == [False, True]
    assert not batch.targets.exhaustive.any()


def test_objects_beyond_the_limit_are_left_out() -> None:
    batch = make([sample_with(PhraseQuery("rectangle", (0, 1)))], max_objects=1)
    assert batch.targets.valid.tolist() == [[True]]
    assert batch.targets.exhaustive.tolist() == [False]


def test_samples_without_masks_have_no_mask_targets() -> None:
    batch = make([replace(Shapes()[0], masks=None), Shapes()[1]])
    assert batch.targets.masks is None
    assert batch.targets.present.any()


# Errors ---------------------------------------------------------------------------------------


def test_a_batch_without_phrases_is_an_error() -> None:
    with pytest.raises(DataError, match=r"\(shape 0, \.\.\.\) have no phrases; the grounding"):
        make([sample_with()])
    assert make([sample_with(), Shapes()[1]]).images.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": 0}, "prompts is 0; it must be at least 1"),
        ({"positive_share": 1.5}, r"positive_share is 1\.5; it must be from 0 to 1"),
        ({"box_only": 0.7, "text_and_box": 0.6}, r"text_and_box is 0\.6; .* box_only 0\.7 at most"),
        ({"box_noise": -0.1}, r"box_noise is -0\.1; it must be 0 or more"),
        ({"kind_weights": {"name": -1.0}}, "kind_weights is .*; it must be factors of 0 or more"),
    ],
)
def test_invalid_settings_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        PromptSettings(**settings)
