"""CLIP's byte-pair tokenizer: open_clip's vocabulary, upstream's padding and cut."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

START, END, PAD = 49406, 49407, 0


class TruncatedTextWarning(UserWarning):
    """A phrase was longer than the text encoder's context."""


@functools.cache
def _bpe() -> Any:
    """open_clip's tokenizer, from its file alone: the whole package is 30 MB and a second."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise ImportError("the tokenizer needs open_clip: pip install open_clip_torch")
    file = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("_open_clip_tokenizer", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"open_clip's tokenizer is not at {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer(clean="lower")


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
