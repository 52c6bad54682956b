"""CLIP's byte-pair tokenizer: open_clip's vocabulary, upstream's padding and truncation.

It gives the ids of open_clip's tokenizer and needs neither torch nor open_clip: an exported model
has the vocabulary as a file.
"""

from __future__ import annotations

import functools
import gzip
import html
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EfficientSam3Warning, MissingPackageError, shorten
from .types import Array

START, END, PAD = 49406, 49407, 0

SPECIAL = ("<start_of_text>", "<end_of_text>")
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
MERGES = 49152 - 256 - 2
"""Lines of the vocabulary file that CLIP uses, after its head."""


class TruncatedTextWarning(EfficientSam3Warning):
    """A phrase is longer than the text encoder's context."""


def clean(text: str) -> str:
    """Return what the tokenizer reads of a text: repaired, unescaped, in lower case.

    Args:
        text: A phrase.
    """
    if not text.isascii() or "&" in text:
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class Tokenizer:
    """Converts phrases to token ids.

    Args:
        tokenizer: A tokenizer of the package tokenizers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def read(cls, path: Path) -> Tokenizer:
        """Read a file that ``save`` wrote.

        Args:
            path: The file.

        Raises:
            MissingPackageError: The package tokenizers is not installed.
        """
        return cls(_package().Tokenizer.from_file(str(path)))

    def save(self, path: Path) -> None:
        """Write vocabulary and rules to a JSON file of the package tokenizers.

        Args:
            path: The file.
        """
        self._tokenizer.save(str(path), pretty=False)

    def __call__(self, texts: list[str], context: int) -> Array:
        """Convert phrases to token ids.

        A phrase that is too long keeps its first tokens and the end token, and a
        ``TruncatedTextWarning`` quotes the part that is cut off.

        Args:
            texts: B phrases.
            context: Number of tokens of each phrase.

        Returns:
            (B, context) int64: the start token, the phrase, the end token, then zeros.
        """
        ids = np.full((len(texts), context), PAD, np.int64)
        for row, text in zip(ids, texts, strict=True):
            cleaned = clean(text)
            found = self._tokenizer.encode(cleaned, add_special_tokens=False)
            words = found.ids
            if len(words) > context - 2:
                end, start = found.offsets[context - 3][1], found.offsets[context - 2][0]
                warnings.warn(
                    f"{shorten(text, 120)} has {len(words) + 2} tokens but this text encoder reads "
                    f"{context}: it sees {shorten(cleaned[:end].strip(), 120)} and not "
                    f"{shorten(cleaned[start:].strip(), 120)}. "
                    "Shorten the phrase, or load a model with a longer context.",
                    TruncatedTextWarning,
                    stacklevel=3,
                )
                words = words[: context - 2]
            row[: len(words) + 2] = [START, *words, END]
        return ids


@functools.cache
def clip_tokenizer() -> Tokenizer:
    """Make the tokenizer from open_clip's vocabulary file; open_clip itself is not imported.

    Raises:
        MissingPackageError: open_clip or the package tokenizers is not installed.
    """
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise MissingPackageError("the tokenizer needs open_clip: pip install open_clip_torch")
    file = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    if not file.is_file():
        raise MissingPackageError(f"open_clip's vocabulary is not at {file}")
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")[1 : MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    tokenizers = _package()
    letters = _letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), *SPECIAL]
    model = tokenizers.models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        end_of_word_suffix="</w>",
    )
    out = tokenizers.Tokenizer(model)
    parts = tokenizers.pre_tokenizers
    words = parts.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True)
    out.pre_tokenizer = parts.Sequence([words, parts.ByteLevel(False, use_regex=False)])
    out.add_special_tokens(list(SPECIAL))
    return Tokenizer(out)


def _letters() -> list[str]:
    """The letters that stand for the 256 bytes, in the order of the vocabulary (GPT-2's)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    shown += range(ord("®"), ord("ÿ") + 1)
    return [chr(byte) for byte in shown] + [chr(256 + n) for n in range(256 - len(shown))]


def _package() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingPackageError(
            "the tokenizer needs tokenizers: pip install tokenizers"
        ) from error
    return tokenizers
