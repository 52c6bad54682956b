"""Phrases that every object is compared with, and their features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from efficientsam3.nn.late_detector import LateDetector
from efficientsam3.nn.tokenizer import tokenize


class PhraseTable:
    """Text features of phrases, each computed once by a text encoder that does not train.

    Args:
        phrases: Phrases that every object is compared with, names first.
        names: How many of them are names of concepts.
        truth: (concepts, phrases) from ``phrase_truth``.
        context: Tokens of a phrase.
    """

    def __init__(self, phrases: Iterable[str], names: int, truth: Tensor, context: int) -> None:
        self.phrases, self.names, self.truth, self.context = tuple(phrases), names, truth, context
        self._features: dict[str, tuple[Tensor, Tensor]] = {}
        self._pooled: Tensor | None = None

    @torch.no_grad()
    def read(self, net: LateDetector, phrases: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Features (P, L, C) of phrases and their mask (P, L).

        Args:
            net: The model, whose text encoder does not train.
            phrases: The phrases.
        """
        phrases = list(phrases)
        new = [p for p in dict.fromkeys(phrases) if p not in self._features]
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            features, valid = net.read_text(tokenize(part, self.context))
            self._features.update(zip(part, zip(features, valid, strict=True), strict=True))
        found = [self._features[p] for p in phrases]
        return torch.stack([f for f, _ in found]), torch.stack([v for _, v in found])

    def pooled(self, net: LateDetector) -> Tensor:
        """Mean text features (V, C) of the phrases of the table.

        Args:
            net: The model.
        """
        if self._pooled is None:
            features, valid = self.read(net, self.phrases)
            weight = valid[..., None].float()
            self._pooled = (features * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self._pooled
