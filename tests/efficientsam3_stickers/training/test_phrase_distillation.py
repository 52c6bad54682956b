"""Stage 1 of the text encoder: phrases become as alike as a sentence encoder has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from efficientsam3.nn.text import MobileClipText
from efficientsam3_stickers.art import StickerArt
from efficientsam3_stickers.concepts import part_of
from efficientsam3_stickers.training.phrase_distillation import (
    PhraseDistillation,
    Phrases,
    collect_phrases,
    load_phrases,
)

WORDS = tuple(f"{a}{b}{c}" for a in "bdfg" for b in "aeiou" for c in "lmnr")


def phrases() -> Phrases:
    vectors = np.random.default_rng(0).normal(size=(60, 384)).astype(np.float16)
    return Phrases([*WORDS[:60]], vectors, (20, 20, 20))


def test_phrases_leave_out_names_of_unseen_concepts(stickers: StickerArt) -> None:
    own, named, words = collect_phrases(stickers.concepts.values(), WORDS)
    unseen = {n for n in stickers.concepts if part_of(n) == "unseen"}
    assert unseen and not unseen & {*own, *words}
    assert ("visual" in own and "small red apple" in named) or "red apple" not in own
    assert len({*own, *named, *words}) == len(own) + len(named) + len(words)


def test_saved_phrases_are_read_without_the_teacher(stickers: StickerArt, tmp_path: Path) -> None:
    given = phrases()
    np.savez(tmp_path / "p.npz", texts=given.texts, vectors=given.vectors, counts=given.counts)
    found = load_phrases(tmp_path / "p.npz", stickers.concepts.values())
    assert found.texts == given.texts and found.counts == given.counts
    np.testing.assert_array_equal(found.vectors, given.vectors)


def test_it_learns_the_vectors() -> None:
    torch.manual_seed(0)
    given = phrases()
    text = MobileClipText(16, 1, 2, 8, out=32, vocabulary=49408)
    probe = given.texts, given.vectors.astype(np.float32)
    task = PhraseDistillation(text, 32, given, probe, batch=24)
    with torch.no_grad():
        before = task.validate(task.module)
    optimizer = torch.optim.AdamW(task.module.parameters(), 3e-3)
    for number in range(40):
        batch = task.training(number, np.random.default_rng(number))
        loss = task.loss(task.module, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = task.validate(task.module)
    assert after["retrieved"] > before["retrieved"] + 0.3
    assert after["cosine"] > before["cosine"] + 0.1
