"""Stage 1 of the text encoder: phrases are as alike as they are for a sentence encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from efficientsam3.io.atomic import replacing
from efficientsam3.nn.text import MobileClipText
from efficientsam3.nn.tokenizer import tokenize
from efficientsam3.segmenter import VISUAL
from efficientsam3.train.task import Task

from ..concepts import Concept, part_of
from ..queries import ATTRIBUTES
from .teacher_files import SentenceEncoder

TEMPERATURE = 0.05
SHARES = (0.25, 0.125)
"""Shares of a batch: phrases of concepts, and names with an attribute; the rest are words."""
COSINE, CONTRAST = 4.0, 0.25
"""Weights of the distance to the teacher's vector, and of telling a batch's phrases apart."""


class Phrases(NamedTuple):
    """Phrases and the teacher's vectors.

    Attributes:
        texts: Phrases of concepts, then names with attributes, then words and pairs of words.
        vectors: (P, 384) float16.
        counts: Number of phrases of each of the three kinds.
    """

    texts: list[str]
    vectors: NDArray[np.float16]
    counts: tuple[int, int, int]


def collect_phrases(concepts: Iterable[Concept], words: Sequence[str]) -> list[list[str]]:
    """The phrases that are learned.

    Names of unseen concepts are left out, except for those that are words of the vocabulary: the
    text encoder knows words of which the image encoder has seen nothing.

    Args:
        concepts: All concepts.
        words: Whole words of English.

    Returns:
        Phrases of seen concepts; their names with attributes; words, and pairs of words.
    """
    seen = [c for c in concepts if part_of(c.name) == "seen"]
    own = dict.fromkeys(p for c in seen for p in (c.name, *c.synonyms, *c.categories))
    own[VISUAL] = None
    named = [f"{word} {c.name}" for c in seen for word in ATTRIBUTES]
    rng = np.random.default_rng(0)
    pairs = [f"{words[i]} {words[j]}" for i, j in rng.integers(0, len(words), (8000, 2))]
    chosen = rng.permutation(len(words))[:6000]
    kinds = rng.integers(0, len(ATTRIBUTES), len(chosen))
    told = [f"{ATTRIBUTES[k]} {words[i]}" for k, i in zip(kinds, chosen, strict=True)]
    groups: list[list[str]] = []
    taken: set[str] = set()
    for group in (list(own), named, [*words, *pairs, *told]):
        groups.append([p for p in dict.fromkeys(group) if p not in taken])
        taken.update(group)
    return groups


def load_phrases(path: Path, concepts: Iterable[Concept]) -> Phrases:
    """Phrases with the teacher's vectors, from a file that is written if it is missing.

    Args:
        path: The file, ``.npz``.
        concepts: All concepts.

    Raises:
        MissingPackageError: what the teacher needs is not installed.
        ArchiveError: the teacher cannot be downloaded.
    """
    if not path.is_file():
        teacher = SentenceEncoder()
        groups = collect_phrases(concepts, teacher.words)
        texts = [p for group in groups for p in group]
        vectors = teacher(texts).astype(np.float16)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, Path(temporary).open("wb") as file:
            np.savez(file, texts=np.array(texts), vectors=vectors, counts=[len(g) for g in groups])
    with np.load(path) as content:
        first, second, third = content["counts"].tolist()
        return Phrases(content["texts"].tolist(), content["vectors"], (first, second, third))


class PhraseModule(nn.Module):
    """A text encoder, and the layer that maps the mean of its tokens to the teacher's space.

    Args:
        text: The text encoder.
        width: Channels of its features.
        out: Channels of the teacher's vectors.
    """

    def __init__(self, text: MobileClipText, width: int, out: int = SentenceEncoder.WIDTH) -> None:
        super().__init__()
        self.text = text
        self.head = nn.Linear(width, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors of phrases.

        Args:
            tokens: (P, L) token ids; 0 is padding.

        Returns:
            (P, 384) of length 1.
        """
        weight = (tokens != 0)[..., None].float()
        pooled = (self.text(tokens) * weight).sum(1) / weight.sum(1)
        return F.normalize(self.head(pooled), dim=-1)


class PhraseDistillation(Task):
    """Trains a text encoder on a sentence encoder's vectors.

    Args:
        text: The text encoder.
        width: Channels of its features.
        phrases: Phrases and vectors.
        probe: Phrases that are not trained on, and their vectors; validation compares them.
        batch: Phrases of a step.
        seed: Seed of the batches.
    """

    def __init__(
        self,
        text: MobileClipText,
        width: int,
        phrases: Phrases,
        probe: tuple[Sequence[str], NDArray[np.float32]] | None = None,
        batch: int = 256,
        seed: int = 0,
    ) -> None:
        self.module: PhraseModule = PhraseModule(text, width)
        self.seed, self.batch = seed, batch
        self.counts = phrases.counts
        context = text.context
        self.tokens = tokenize(phrases.texts, context).int()
        vectors = torch.from_numpy(phrases.vectors.astype(np.float32))
        center = vectors[: phrases.counts[0]].mean(0)
        self.targets = F.normalize(vectors - center, dim=1).half()
        self.probe = None
        if probe is not None:
            wanted = F.normalize(torch.from_numpy(probe[1]) - center, dim=1)
            self.probe = tokenize(list(probe[0]), context), wanted

    def training(self, number: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) and targets (B, 384) of a batch.

        Args:
            number: Its number.
            rng: Source of random numbers.
        """
        first, second, third = self.counts
        a, b = (int(share * self.batch) for share in SHARES)
        rows = np.concatenate(
            [
                rng.integers(0, first, a),
                first + rng.integers(0, second, b),
                first + second + rng.integers(0, third, self.batch - a - b),
            ]
        )
        return self.tokens[rows].long(), self.targets[rows].float()

    def loss(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        """Distance to the teacher's vectors, and a contrastive term among the batch's phrases.

        Args:
            module: The module.
            batch: Tokens and targets.
        """
        tokens, targets = batch
        found = self.module(tokens)
        cosine = (1 - (found * targets).sum(1)).mean()
        alike = targets @ targets.T > 0.999
        alike.fill_diagonal_(False)
        logits = (found @ targets.T / TEMPERATURE).masked_fill(alike, -1e4)
        contrast = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        loss = COSINE * cosine + CONTRAST * contrast
        return {"loss": loss, "cosine": cosine.detach(), "contrast": contrast.detach()}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Cosine to the teacher's vectors of phrases that are not trained on, and their retrieval.

        Args:
            module: The module.
        """
        if self.probe is None:
            return {}
        tokens, wanted = self.probe
        found = self.module(tokens)
        best = (found @ wanted.T).argmax(1)
        return {
            "cosine": float((found * wanted).sum(1).mean()),
            "retrieved": float((best == torch.arange(len(best))).float().mean()),
        }

    def describe(self) -> dict[str, Any]:
        """Batch size, seed, and numbers of phrases."""
        return {"batch": self.batch, "seed": self.seed, "phrases": list(self.counts)}
