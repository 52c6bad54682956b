"""Distilling a text encoder: the losses are what they say, and they fall."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.build import TextConfig
from efficientsam3.distill.errors import DataError, FeatureFileError
from efficientsam3.distill.features import open_features, save_text_features
from efficientsam3.distill.stage1_text import (
    TextDistillation,
    TextSettings,
    common_tokens,
    pooled,
    read,
    shuffle_words,
    token_losses,
)
from efficientsam3.distill.teachers import TextTeacher
from efficientsam3.nn.text import ClipText, MobileClipText
from efficientsam3.nn.tokenizer import END, START

from .conftest import descend, tiny_net

PHRASES = ["red apple", "dog", "small upside down dog", "a cat on a mat", "tree", "two red cars"]


def teacher(context: int = 16) -> TextTeacher:
    text = TextConfig("clip", 32, 1, 2)
    config, net = tiny_net(text=text, context=context)
    return TextTeacher.of(net, config)


def student(context: int = 16, out: int = 16) -> MobileClipText:
    return MobileClipText(32, 1, 2, context, mixers=True, out=out)


def test_losses_by_hand() -> None:
    # One phrase of three places, the last of which is padding; two channels.
    ours = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
    theirs = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]])
    valid = torch.tensor([[True, True, False]])
    error, apart = token_losses(ours, theirs, valid)
    assert float(error) == pytest.approx((0 + 1 + 4) / (2 * 2))
    assert float(apart) == pytest.approx((0 + 1) / 2)
    # A teacher with a longer context: the places that both have count.
    longer = torch.cat([theirs, torch.full((1, 5, 2), 7.0)], 1)
    assert token_losses(ours, longer, valid) == (error, apart)


def test_pooling_leaves_padding_out() -> None:
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    assert pooled(features, torch.tensor([[START, END, 0]])).tolist() == [[2.0, 3.0]]


def test_tokens_in_common() -> None:
    long = read(["a cat on a mat"], 16)
    short = read(["a cat on a mat"], 5)  # start, a, cat, on, end
    assert short[0, -1] == END
    assert common_tokens(short, long).tolist() == [[True, True, True, True, False]]
    assert common_tokens(long, short).tolist() == [[True, True, True, True, False]]
    assert common_tokens(read(["dog"], 5), read(["dog"], 16)).sum() == 3


def test_words_in_another_order() -> None:
    random = np.random.default_rng(0)
    orders = {shuffle_words("a b c", random) for _ in range(100)}
    assert orders == {"a b c", "a c b", "b a c", "b c a", "c a b", "c b a"}
    assert shuffle_words(" dog ", random) == "dog"


def test_the_loss_falls_with_a_teacher_at_hand() -> None:
    task = TextDistillation(
        student(),
        PHRASES,
        teacher(),
        settings=TextSettings(batch=6),
        held_out=PHRASES,
    )
    with torch.no_grad():
        before = task.validate(task.module)
    first, last = descend(task, 40, lr=6e-3)
    assert last < 0.5 * first
    task.module.eval()
    with torch.no_grad():
        after = task.validate(task.module)
    assert after["mse"] < 0.6 * before["mse"]
    assert after["pooled_cosine"] > max(0.8, before["pooled_cosine"])


def test_the_sum_of_its_parts() -> None:
    settings = TextSettings(batch=3, mse_weight=0.5, cosine_weight=3, consistency_weight=7)
    task = TextDistillation(student().eval(), PHRASES, teacher(), settings=settings)
    task.module.eval()
    batch = next(task.batches(0, 0, 1))
    with torch.no_grad():
        out = {k: float(v) for k, v in task.loss(task.module, batch).items()}
        ours, turned = task.module(batch.tokens), task.module(batch.shuffled)
    difference = pooled(ours, batch.tokens) - pooled(turned, batch.shuffled)
    assert out["consistency"] == pytest.approx(float(difference.square().mean()), rel=1e-4)
    total = 0.5 * out["mse"] + 3 * out["cosine"] + 7 * out["consistency"]
    assert out["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), [(16, 5), (5, 16)])
def test_contexts_may_differ(ours: int, theirs: int) -> None:
    """A copy of a causal teacher is a perfect student of it, whatever is cut."""
    taught = teacher(16)
    taught.context = theirs
    copy = ClipText(32, 1, 2, ours, out=16)
    state = dict(taught.module.state_dict())
    state["positions"] = state["positions"][..., :ours, :]
    copy.load_state_dict(state)
    task = TextDistillation(
        copy,
        ["a cat on a mat", "dog"],
        taught,
        settings=TextSettings(batch=2, consistency_weight=0),
    )
    out = task.loss(task.module, next(task.batches(0, 0, 1)))
    assert float(out["mse"]) < 1e-10
    assert float(out["cosine"]) < 1e-5


def test_saved_tokens_teach_the_same(tmp_path: Path) -> None:
    taught = teacher(16)
    save_text_features(taught, PHRASES, tmp_path)
    net = student(16).eval()
    settings = TextSettings(batch=3)
    live = TextDistillation(net, PHRASES, taught, settings=settings)
    saved = TextDistillation(net, PHRASES, features=open_features(tmp_path), settings=settings)
    for task in (live, saved):
        task.module.eval()
    with torch.no_grad():
        losses = [t.loss(t.module, next(t.batches(2, 0, 1))) for t in (live, saved)]
    for name in losses[0]:
        assert float(losses[0][name]) == pytest.approx(float(losses[1][name]), rel=1e-2, abs=1e-6)


def test_saved_tokens_and_a_shorter_student(tmp_path: Path) -> None:
    taught = teacher(16)
    save_text_features(taught, PHRASES, tmp_path)
    task = TextDistillation(student(5), PHRASES, features=open_features(tmp_path))
    batch = next(task.batches(0, 0, 1))
    assert batch.tokens.shape[1] == 5
    assert batch.target is not None
    assert batch.target.shape[1:] == (16, 16)
    assert torch.isfinite(task.loss(task.module, batch)["loss"])


def test_what_cannot_teach(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pass a teacher"):
        TextDistillation(student(), PHRASES)
    with pytest.raises(FeatureFileError, match="widths must agree"):
        TextDistillation(student(out=8), PHRASES, teacher())
    with pytest.raises(DataError, match="empty"):
        TextDistillation(student(), [], teacher())
    save_text_features(teacher(), PHRASES[:2], tmp_path)
    with pytest.raises(FeatureFileError, match="lacks the features of 4 samples"):
        TextDistillation(student(), PHRASES, features=open_features(tmp_path))
