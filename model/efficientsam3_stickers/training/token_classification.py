"""Classification of image tokens for training from scratch: each token and object has a name.

A prompt tells a token whether it is a dog; a vocabulary tells it which of hundreds of things it is.
That is far more to learn from, at little cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from efficientsam3.config import ModelConfig
from efficientsam3.data.sample import TrainingSample
from efficientsam3.errors import DataError
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.tokenizer import tokenize
from efficientsam3.train.losses.grounding import GroundingStep

IGNORED = -100
"""Label of tokens on a border and of padded objects: they have no loss."""


class TokenLabels(NamedTuple):
    """Names of what B images of N tokens and up to O objects show.

    Attributes:
        tokens: (K, L) int64, the text tokens of K names.
        names: (B, N) int64, the name (from 1) of each image token; 0: none of them; ``IGNORED``.
        shares: (B, O, N), of each object the part that lies in each cell; sums of 1.
        objects: (B, O) int64, the name of each object; ``IGNORED`` for padding and objects whose
            name is not among the K.
    """

    tokens: Tensor
    names: Tensor
    shares: Tensor
    objects: Tensor


class TokenLabeler:
    """Label the tokens and objects of images with names.

    Args:
        config: of the model; its grid and context are used.
        names: all phrases that images are about.
        max_names: names of a batch; those that its images show are always among them.

    Raises:
        DataError: there are no names.
    """

    def __init__(self, config: ModelConfig, names: Sequence[str], max_names: int = 192) -> None:
        self.grid, self.max_names = config.grid, max_names
        self.names = tuple(names)
        if not self.names:
            raise DataError("there is no name to learn: pass the phrases that images are about")
        self.tokens = tokenize(list(self.names), config.context)
        self.index = {name: i for i, name in enumerate(self.names)}

    def __call__(self, samples: Sequence[TrainingSample], rng: np.random.Generator) -> TokenLabels:
        """Labels of a batch.

        Args:
            samples: with masks.
            rng: chooses the names that no image shows.
        """
        shown = {q.phrase for s in samples for q in s.queries if q.objects}
        here = [self.index[p] for p in sorted(shown) if p in self.index]
        others = rng.permutation(len(self.names))[: self.max_names].tolist()
        offered = list(dict.fromkeys([*here, *others]))[: max(self.max_names, len(here))]
        number = {self.names[i]: k + 1 for k, i in enumerate(offered)}
        most = max(len(s) for s in samples)
        names = torch.zeros(len(samples), self.grid**2, dtype=torch.long)
        shares = torch.zeros(len(samples), most, self.grid**2)
        objects = torch.full((len(samples), most), IGNORED)
        for row, sample in enumerate(samples):
            self._label(sample, number, names[row], shares[row], objects[row])
        return TokenLabels(self.tokens[offered], names, shares, objects)

    def _label(
        self,
        sample: TrainingSample,
        number: Mapping[str, int],
        names: Tensor,
        shares: Tensor,
        objects: Tensor,
    ) -> None:
        """Fill the rows of one sample."""
        if not len(sample):
            return
        share = sample.masks_at(self.grid).flatten(1)  # (objects, N)
        names[share.sum(0) > 0.1] = IGNORED
        shares[: len(sample)] = share / share.sum(1, keepdim=True).clamp(min=1e-6)
        for query in sample.queries:
            if query.kind == "name" and query.phrase in number:
                for i in query.objects:
                    names[share[i] > 0.5] = number[query.phrase]
                    objects[i] = number[query.phrase]


class TokenClassification:
    """Classify image tokens and objects among all names; an extra loss of ``GroundingLoss``.

    It adds the term "names" if the batch's ``extra_targets`` come from a ``TokenLabeler``.

    Args:
        weight: of the term.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def to(self, device: torch.device) -> None:
        """Nothing to move.

        Args:
            device: is not used.
        """

    def describe(self) -> dict[str, Any]:
        """Plain values on which the loss depends."""
        return {"names": self.weight}

    def __call__(self, net: Detector, step: GroundingStep) -> list[tuple[str, Tensor, float]]:
        """The term of a batch."""
        labels = step.batch.extra_targets
        if labels is None:
            return []
        logits = name_logits(net, step.image.tokens, labels.tokens)
        return [("names", name_losses(logits, labels)["loss"], self.weight)]


def name_logits(net: Detector, tokens: Tensor, names: Tensor) -> Tensor:
    """Compare image tokens with names.

    Args:
        net: the detector.
        tokens: (B, N, C) image tokens.
        names: (K, L) text tokens.

    Returns:
        (B, N, 1 + K) logits: of no name (always 0), then of each name.
    """
    words, valid = net.read_text(names)
    normed = F.layer_norm(tokens.float(), tokens.shape[-1:])  # as queries are
    return F.pad(net.part("scoring").compare(normed, words, valid), (1, 0))


def name_losses(logits: Tensor, labels: TokenLabels) -> dict[str, Tensor]:
    """Cross-entropy of the names of objects and tokens.

    Args:
        logits: (B, N, 1 + K), from ``name_logits``.
        labels: of the B images.

    Returns:
        The sum as "loss"; its parts "objects", and "named" (tokens that have a name).
    """
    # Logits are linear in the tokens, so their mean over an object is the object's. Objects are
    # learned first: hardly any single token tells a horn from a tail.
    averaged = labels.shares @ logits
    objects = F.cross_entropy(
        averaged.flatten(0, 1), labels.objects.flatten(), ignore_index=IGNORED, reduction="sum"
    ) / (labels.objects != IGNORED).sum().clamp(min=1)
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.names.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(labels.names)
    # Most of an image is background, so both halves of the loss have the same weight.
    named, unnamed = labels.names > 0, labels.names == 0
    loss_named = (losses * named).sum() / named.sum().clamp(min=1)
    loss_unnamed = (losses * unnamed).sum() / unnamed.sum().clamp(min=1)
    total = objects + 0.5 * (loss_named + loss_unnamed)
    return {"loss": total, "objects": objects, "named": loss_named}


def name_accuracies(logits: Tensor, labels: TokenLabels) -> dict[str, Tensor]:
    """Shares of objects, named tokens and other tokens whose best name is the right one.

    Args:
        logits: (B, N, 1 + K), from ``name_logits``.
        labels: of the B images.
    """
    best, names = logits.argmax(-1), labels.names
    named, unnamed = names > 0, names == 0
    hits = (best == names).float()
    objects = (labels.shares @ logits).argmax(-1)
    known = labels.objects > 0
    return {
        "objects_right": ((objects == labels.objects) & known).sum() / known.sum().clamp(min=1),
        "named_right": (hits * named).sum() / named.sum().clamp(min=1),
        "unnamed_right": (hits * unnamed).sum() / unnamed.sum().clamp(min=1),
    }
