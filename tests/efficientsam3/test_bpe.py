"""The tokenizer gives the ids of open_clip's, and a file of it gives the same."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from efficientsam3.bpe import Tokenizer, clean, clip_tokenizer

PHRASES = [
    "a dog",
    "Yellow School-Bus's",
    "naïve café",
    "日本語 の犬",
    "it's 42.5€ & more &amp;amp; x",
    "don't we'll I'D",
    "emoji 🐶🐱 ok",
    "<end_of_text> hi <start_of_text>",
    "ﬁne ligature",
    "schÃ¶n mojibake",
    "ΑΒΓ straße İstanbul",
    "tab\tnew\nline",
    "“quoted” – dash…",
    "中文字符，标点。",
    "x²³ ½",
    "é combining",
    "हिन्दी 한국어",
    "a_b-c/d\\e !!!???",
]
LETTERS = "abcdefghij XYZ'0123456789.,-!?éüßñ日本語🐶©™½²&;#<>_\u00a0\u2019"


def test_ids_are_open_clip_s() -> None:
    tokenizer = pytest.importorskip("open_clip.tokenizer")
    theirs = tokenizer.SimpleTokenizer(clean="lower")
    rng = random.Random(0)
    made = ["".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 40))) for _ in range(300)]
    phrases = [*PHRASES, *made]
    ours = clip_tokenizer()(phrases, 77)
    for phrase, row in zip(phrases, ours, strict=True):
        ids = theirs.encode(phrase)
        assert row[: len(ids) + 2].tolist() == [49406, *ids, 49407], phrase
        assert not row[len(ids) + 2 :].any()
        assert clean(phrase) == theirs.clean_fn(phrase)


def test_a_file_has_the_same_ids(tmp_path: Path) -> None:
    made = clip_tokenizer()
    made.save(tmp_path / "tokenizer.json")
    read = Tokenizer.read(tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(read(PHRASES, 77), made(PHRASES, 77))
