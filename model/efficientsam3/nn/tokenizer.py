"""CLIP's byte-pair tokenizer: open_clip's vocabulary, upstream's padding and cut."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

START, END, PAD = 49406, 49407, 0


class TruncatedTextWarning(UserWarning):
    """A phrase was longer than the text encoder's context."""


@functools.cache
def _bpe():  # type: ignore[no-untyped-def]  # open_clip is untyped
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(clean="lower")


def tokenize(texts: list[str], context: int) -> Tensor:
    """Phrases -> (B, context) int64 tokens: start, words, end, then zeros.

    A phrase that does not fit keeps its first tokens and its end token, with a warning
    that quotes what was cut.
    """
    bpe = _bpe()
    tokens = torch.full((len(texts), context), PAD, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        words = bpe.encode(text)
        if len(words) > context - 2:
            kept, cut = words[: context - 2], words[context - 2 :]
            warnings.warn(
                f"{text!r} has {len(words) + 2} tokens but this text encoder reads {context}: "
                f"it sees {bpe.decode(kept).strip()!r} and not {bpe.decode(cut).strip()!r}. "
                "Shorten the phrase, or load a model with a longer context.",
                TruncatedTextWarning,
                stacklevel=2,
            )
            words = kept
        row[: len(words) + 2] = torch.tensor([START, *words, END])
    return tokens
