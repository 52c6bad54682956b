"""Before Stage 3 from scratch: each image token learns the name of what it lies on.

Presence and boxes are learned from features that already tell concepts apart; without that
the heads learn nothing for a long time. No part of a released checkpoint needs this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..build import ModelConfig
from ..nn.detector import Detector
from ..nn.tokenizer import tokenize
from .data.sample import TrainingSample
from .errors import DataError
from .stage3 import Draw
from .stream import stream
from .task import Task

UNSURE = -100
"""Of tokens on a border: no loss."""


class AlignBatch(NamedTuple):
    """pixels: (B, 3, R, R). tokens: (K, L) of K names. names: (B, N), which of the names (from
    1) each image token shows; 0: none of them; ``UNSURE``. shares: (B, O, N), of each object
    how much lies in each cell, sums of 1. objects: (B, O), their names; ``UNSURE``: padding.
    """

    pixels: Tensor
    tokens: Tensor
    names: Tensor
    shares: Tensor
    objects: Tensor


class AlignBatches:
    """Args:
    names: phrases that images are about; ``most`` of them are offered in a batch, among
        them all that are shown.
    """

    def __init__(
        self, config: ModelConfig, draw: Draw, size: int, names: Sequence[str], most: int = 192
    ) -> None:
        self.config, self.draw, self.size, self.most = config, draw, size, most
        self.names = tuple(names)
        if not self.names:
            raise DataError("there is no name to learn: give the phrases that images are about")
        self.tokens = tokenize(list(self.names), config.context)
        self.index = {name: i for i, name in enumerate(self.names)}

    def __call__(self, n: int, rng: np.random.Generator) -> AlignBatch:
        c = self.config
        samples = [self.draw(n * self.size + i) for i in range(self.size)]
        shown = {q.phrase for s in samples for q in s.queries if q.objects}
        here = [self.index[p] for p in sorted(shown) if p in self.index]
        others = rng.permutation(len(self.names))[: self.most].tolist()
        offered = list(dict.fromkeys([*here, *others]))[: max(self.most, len(here))]
        place = {self.names[i]: k + 1 for k, i in enumerate(offered)}
        most = max(len(s) for s in samples)
        labels = torch.zeros(len(samples), c.grid**2, dtype=torch.long)
        shares = torch.zeros(len(samples), most, c.grid**2)
        objects = torch.full((len(samples), most), UNSURE)
        for row, sample in enumerate(samples):
            self._label(sample, place, labels[row], shares[row], objects[row])
        pixels = torch.cat([s.pixels(c.resolution, c.mean, c.std) for s in samples])
        return AlignBatch(pixels, self.tokens[offered], labels, shares, objects)

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
        share = sample.masks_at(self.config.grid).flatten(1)  # (objects, N)
        label[share.sum(0) > 0.1] = UNSURE
        shares[: len(sample)] = share / share.sum(1, keepdim=True).clamp(min=1e-6)
        for query in sample.queries:
            if query.kind == "name" and query.phrase in place:
                for i in query.objects:
                    label[share[i] > 0.5] = place[query.phrase]
                    objects[i] = place[query.phrase]


class AlignTask(Task):
    """Trains trunk, coarse pyramid level, text encoder and scoring; the rest stays as it is."""

    def __init__(
        self,
        net: Detector,
        make: AlignBatches,
        *,
        held_out: Sequence[AlignBatch] = (),
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        self.module: Detector = net
        self.make, self.held_out = make, held_out
        self.seed, self.workers = seed, workers

    def batches(self, start: int, rank: int, world: int) -> Iterator[AlignBatch]:
        return stream(
            self.make, seed=self.seed, start=start, rank=rank, world=world, workers=self.workers
        )

    def loss(self, module: nn.Module, batch: AlignBatch) -> dict[str, Tensor]:
        logits: Tensor = module(lambda net: self.logits(net, batch))
        # Logits are linear in the tokens: their mean over an object is the object's. It is
        # learned first, since hardly any single token tells a horn from a tail.
        whole = self._cross_entropy(batch.shares @ logits, batch.objects)
        losses = F.cross_entropy(
            logits.flatten(0, 1), batch.names.flatten(), ignore_index=UNSURE, reduction="none"
        ).view_as(batch.names)
        # Most of an image is background: each half of the loss has the same weight.
        things, nothing = batch.names > 0, batch.names == 0
        named = (losses * things).sum() / things.sum().clamp(min=1)
        empty = (losses * nothing).sum() / nothing.sum().clamp(min=1)
        rates = self._rates(logits.detach(), batch)
        parts = {"objects": whole.detach(), "named": named.detach()}
        return {"loss": whole + 0.5 * (named + empty), **parts, **rates}

    @staticmethod
    def _cross_entropy(logits: Tensor, names: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), names.flatten(), ignore_index=UNSURE)

    @staticmethod
    def logits(net: Detector, batch: AlignBatch) -> Tensor:
        """(B, N, 1 + K): of nothing (always 0), then of each name."""
        tokens = net.coarse_level(net.part("trunk")(batch.pixels)).flatten(2).transpose(1, 2)
        words, valid = net.read_text(batch.tokens)
        tokens = F.layer_norm(tokens.float(), tokens.shape[-1:])  # as queries are
        return F.pad(net.part("scoring").compare(tokens, words, valid), (1, 0))

    @staticmethod
    def _rates(logits: Tensor, batch: AlignBatch) -> dict[str, Tensor]:
        best, names = logits.argmax(-1), batch.names
        things, nothing = names > 0, names == 0
        hits = (best == names).float()
        whole = (batch.shares @ logits).argmax(-1)
        there = batch.objects > 0
        return {
            "objects_right": ((whole == batch.objects) & there).sum() / there.sum().clamp(min=1),
            "things_right": (hits * things).sum() / things.sum().clamp(min=1),
            "nothing_right": (hits * nothing).sum() / nothing.sum().clamp(min=1),
        }

    def validate(self, module: nn.Module) -> dict[str, float]:
        if not self.held_out:
            return {}
        device = next(self.module.parameters()).device
        batches = (AlignBatch(*(t.to(device) for t in b)) for b in self.held_out)
        rates = [self._rates(self.logits(self.module, b), b) for b in batches]
        return {k: float(torch.stack([r[k] for r in rates]).mean()) for k in rates[0]}

    def describe(self) -> dict[str, Any]:
        return {"batch": self.make.size, "seed": self.seed, "names": len(self.make.names)}
