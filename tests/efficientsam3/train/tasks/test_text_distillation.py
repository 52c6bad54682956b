"""Distillation of a text encoder: losses by hand, learning, saved features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.bpe import END, START
from efficientsam3.config import TextConfig
from efficientsam3.errors import DataError
from efficientsam3.nn.text import ClipText, MobileClipText
from efficientsam3.train.errors import FeatureFileError
from efficientsam3.train.features import open_features
from efficientsam3.train.features.extract import extract_text_features
from efficientsam3.train.tasks.text_distillation import (
    TextDistillation,
    TextSettings,
    common_tokens,
    pool_tokens,
    shuffle_words,
    token_losses,
    tokenize_captions,
)
from efficientsam3.train.teachers import TextTeacher

from ..conftest import tiny_net, train_steps

PHRASES = ["red apple", "dog", "small upside down dog", "a cat on a mat", "tree", "two red cars"]


def make_teacher(context: int = 16) -> TextTeacher:
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


def test_pooling_ignores_padding() -> None:
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    assert pool_tokens(features, torch.tensor([[START, END, 0]]) != 0).tolist() == [[2.0, 3.0]]


def test_common_tokens() -> None:
    long = tokenize_captions(["a cat on a mat"], 16)
    short = tokenize_captions(["a cat on a mat"], 5)  # start, a, cat, on, end
    assert short[0, -1] == END
    assert common_tokens(short, long).tolist() == [[True, True, True, True, False]]
    assert common_tokens(long, short).tolist() == [[True, True, True, True, False]]
    assert common_tokens(tokenize_captions(["dog"], 5), tokenize_captions(["dog"], 16)).sum() == 3


def test_words_are_shuffled() -> None:
    random = np.random.default_rng(0)
    orders = {shuffle_words("a b c", random) for _ in range(100)}
    assert orders == {"a b c", "a c b", "b a c", "b c a", "c a b", "c b a"}
    assert shuffle_words(" dog ", random) == "dog"


@pytest.mark.slow
def test_the_loss_falls_with_a_teacher() -> None:
    task = TextDistillation(
        student(),
        PHRASES,
        make_teacher(),
        settings=TextSettings(batch=6),
        held_out=PHRASES,
    )
    with torch.no_grad():
        before = task.validate(task.module)
    first, last = train_steps(task, 40, lr=6e-3)
    assert last < 0.5 * first
    task.module.eval()
    with torch.no_grad():
        after = task.validate(task.module)
    assert after["mse"] < 0.6 * before["mse"]
    assert after["pooled_cosine"] > max(0.8, before["pooled_cosine"])


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    settings = TextSettings(batch=3, mse_weight=0.5, cosine_weight=3, consistency_weight=7)
    task = TextDistillation(student().eval(), PHRASES, make_teacher(), settings=settings)
    task.module.eval()
    batch = next(task.batches(0, 0, 1))
    with torch.no_grad():
        out = {k: float(v) for k, v in task.loss(task.module, batch).items()}
        ours, turned = task.module(batch.tokens), task.module(batch.shuffled)
    difference = pool_tokens(ours, batch.tokens != 0) - pool_tokens(turned, batch.shuffled != 0)
    assert out["consistency"] == pytest.approx(float(difference.square().mean()), rel=1e-4)
    total = 0.5 * out["mse"] + 3 * out["cosine"] + 7 * out["consistency"]
    assert out["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), [(16, 5), (5, 16)])
def test_student_and_teacher_may_have_different_contexts(ours: int, theirs: int) -> None:
    """A copy of a causal teacher has no error, whichever context is shorter."""
    teacher = make_teacher(16)
    teacher.context = theirs
    copy = ClipText(32, 1, 2, ours, out=16)
    state = dict(teacher.module.state_dict())
    state["positions"] = state["positions"][..., :ours, :]
    copy.load_state_dict(state)
    task = TextDistillation(
        copy,
        ["a cat on a mat", "dog"],
        teacher,
        settings=TextSettings(batch=2, consistency_weight=0),
    )
    out = task.loss(task.module, next(task.batches(0, 0, 1)))
    assert float(out["mse"]) < 1e-10
    assert float(out["cosine"]) < 1e-5


def test_saved_features_give_the_same_loss(tmp_path: Path) -> None:
    teacher = make_teacher(16)
    extract_text_features(teacher, PHRASES, tmp_path)
    net = student(16).eval()
    settings = TextSettings(batch=3)
    live = TextDistillation(net, PHRASES, teacher, settings=settings)
    saved = TextDistillation(net, PHRASES, features=open_features(tmp_path), settings=settings)
    for task in (live, saved):
        task.module.eval()
    with torch.no_grad():
        losses = [t.loss(t.module, next(t.batches(2, 0, 1))) for t in (live, saved)]
    for name in losses[0]:
        assert float(losses[0][name]) == pytest.approx(float(losses[1][name]), rel=1e-2, abs=1e-6)


def test_saved_features_and_a_student_of_shorter_context(tmp_path: Path) -> None:
    teacher = make_teacher(16)
    extract_text_features(teacher, PHRASES, tmp_path)
    task = TextDistillation(student(5), PHRASES, features=open_features(tmp_path))
    batch = next(task.batches(0, 0, 1))
    assert batch.tokens.shape[1] == 5
    assert batch.target is not None
    assert batch.target.shape[1:] == (16, 16)
    assert torch.isfinite(task.loss(task.module, batch)["loss"])


def test_unusable_teachers_and_features_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pass a teacher"):
        TextDistillation(student(), PHRASES)
    with pytest.raises(FeatureFileError, match="widths must be equal"):
        TextDistillation(student(out=8), PHRASES, make_teacher())
    with pytest.raises(DataError, match="empty"):
        TextDistillation(student(), [], make_teacher())
    extract_text_features(make_teacher(), PHRASES[:2], tmp_path)
    with pytest.raises(FeatureFileError, match="lacks the features of 4 samples"):
        TextDistillation(student(), PHRASES, features=open_features(tmp_path))
