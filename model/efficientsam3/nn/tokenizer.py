"""Phrases as token ids in a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..bpe import clip_tokenizer


def tokenize(texts: list[str], context: int) -> Tensor:
    """Convert phrases to token ids, see ``bpe.Tokenizer``.

    Args:
        texts: B phrases.
        context: Number of tokens of each phrase.

    Returns:
        (B, context) int64: the start token, the phrase, the end token, then zeros.
    """
    return torch.from_numpy(clip_tokenizer()(texts, context))
