"""Names of what image tokens lie on: each token and each object against a whole vocabulary.

A prompt tells a token whether it is a dog; a vocabulary tells it what it is, of hundreds of
things. That is far more to learn from, and costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..build import ModelConfig
from ..nn.detector import Detector
from ..nn.tokenizer import tokenize
from .data.sample import TrainingSample
from .errors import DataError

UNSURE = -100
"""Of tokens on a border: no loss."""


class Naming(NamedTuple):
    """What B images of N tokens and up to O objects show.

    tokens: (K, L) of K names. names: (B, N), which of the names (from 1) each image token shows;
    0: none of them; ``UNSURE``. shares: (B, O, N), of each object how much lies in each cell,
    sums of 1. objects: (B, O), their names; ``UNSURE``: padding, or not among the names.
    """

    tokens: Tensor
    names: Tensor
    shares: Tensor
    objects: Tensor


class Vocabulary:
    """Labels images with names.

    Args:
        names: phrases that images are about; ``most`` of them are offered in a batch, among
            them all that are shown.
    """

    def __init__(self, config: ModelConfig, names: Sequence[str], most: int = 192) -> None:
        self.grid, self.most = config.grid, most
        self.names = tuple(names)
        if not self.names:
            raise DataError("there is no name to learn: give the phrases that images are about")
        self.tokens = tokenize(list(self.names), config.context)
        self.index = {name: i for i, name in enumerate(self.names)}

    def __call__(self, samples: Sequence[TrainingSample], rng: np.random.Generator) -> Naming:
        shown = {q.phrase for s in samples for q in s.queries if q.objects}
        here = [self.index[p] for p in sorted(shown) if p in self.index]
        others = rng.permutation(len(self.names))[: self.most].tolist()
        offered = list(dict.fromkeys([*here, *others]))[: max(self.most, len(here))]
        place = {self.names[i]: k + 1 for k, i in enumerate(offered)}
        most = max(len(s) for s in samples)
        labels = torch.zeros(len(samples), self.grid**2, dtype=torch.long)
        shares = torch.zeros(len(samples), most, self.grid**2)
        objects = torch.full((len(samples), most), UNSURE)
        for row, sample in enumerate(samples):
            self._label(sample, place, labels[row], shares[row], objects[row])
        return Naming(self.tokens[offered], labels, shares, objects)

    def _label(
        self,
        sample: TrainingSample,
        place: Mapping[str, int],
        label: Tensor,
        shares: Tensor,
        objects: Tensor,
    ) -> None:
        """Fill the rows of one sample."""
        if not len(sample):
            return
        share = sample.masks_at(self.grid).flatten(1)  # (objects, N)
        label[share.sum(0) > 0.1] = UNSURE
        shares[: len(sample)] = share / share.sum(1, keepdim=True).clamp(min=1e-6)
        for query in sample.queries:
            if query.kind == "name" and query.phrase in place:
                for i in query.objects:
                    label[share[i] > 0.5] = place[query.phrase]
                    objects[i] = place[query.phrase]


def compare(net: Detector, tokens: Tensor, names: Tensor) -> Tensor:
    """Image tokens (B, N, C) with names (K, L) -> logits (B, N, 1 + K): of nothing (always 0),
    then of each name.
    """
    words, valid = net.read_text(names)
    plain = F.layer_norm(tokens.float(), tokens.shape[-1:])  # as queries are
    return F.pad(net.part("scoring").compare(plain, words, valid), (1, 0))


def naming_losses(logits: Tensor, naming: Naming) -> dict[str, Tensor]:
    """(B, N, 1 + K) logits -> the sum as "loss", and two of its parts."""
    # Logits are linear in the tokens: their mean over an object is the object's. It is
    # learned first, since hardly any single token tells a horn from a tail.
    averaged = naming.shares @ logits
    whole = F.cross_entropy(
        averaged.flatten(0, 1), naming.objects.flatten(), ignore_index=UNSURE, reduction="sum"
    ) / (naming.objects != UNSURE).sum().clamp(min=1)
    losses = F.cross_entropy(
        logits.flatten(0, 1), naming.names.flatten(), ignore_index=UNSURE, reduction="none"
    ).view_as(naming.names)
    # Most of an image is background: each half of the loss has the same weight.
    things, nothing = naming.names > 0, naming.names == 0
    named = (losses * things).sum() / things.sum().clamp(min=1)
    empty = (losses * nothing).sum() / nothing.sum().clamp(min=1)
    return {"loss": whole + 0.5 * (named + empty), "objects": whole, "named": named}


def naming_rates(logits: Tensor, naming: Naming) -> dict[str, Tensor]:
    """Shares of objects, of their tokens and of the other tokens that are named rightly."""
    best, names = logits.argmax(-1), naming.names
    things, nothing = names > 0, names == 0
    hits = (best == names).float()
    whole = (naming.shares @ logits).argmax(-1)
    there = naming.objects > 0
    return {
        "objects_right": ((whole == naming.objects) & there).sum() / there.sum().clamp(min=1),
        "things_right": (hits * things).sum() / things.sum().clamp(min=1),
        "nothing_right": (hits * nothing).sum() / nothing.sum().clamp(min=1),
    }
