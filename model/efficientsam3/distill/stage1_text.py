"""Stage 1, text: a student's tokens become like its teacher's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.tokenizer import TruncatedTextWarning, tokenize
from .data.batches import Batches
from .errors import FeatureFileError
from .feature_source import FeatureSource
from .stage1 import FeatureTask, shape_of
from .teachers import TextTeacher


@dataclass(frozen=True)
class TextSettings:
    """Numbers of this stage, beside the loop's.

    Args:
        batch: phrases a rank and step. workers, seed: as for images.
        mse_weight: of the squared error, mean over tokens and channels.
        cosine_weight: of 1 - cosine, mean over tokens.
        consistency_weight: of the squared distance between the mean tokens of a phrase and of
            the same words in another order; applied once, not twice as upstream does.
        validation: phrases of the held-out set that are looked at.
    """

    batch: int = 64
    workers: int = 0
    seed: int = 0
    mse_weight: float = 1.0
    cosine_weight: float = 2.0
    consistency_weight: float = 0.05
    validation: int = 1024


class TextBatch(NamedTuple):
    """tokens: (B, L) as the student reads them. shuffled: the same of the words in another order.

    shown: (B, T) as the teacher reads, or read, them. target: (B, T, C) float16, or None.
    """

    phrases: list[str]
    tokens: Tensor
    shuffled: Tensor
    shown: Tensor
    target: Tensor | None


def common_tokens(student: Tensor, teacher: Tensor) -> Tensor:
    """(B, min(L, T)) bool: places where both encoders read the same token, padding apart.

    The one with the shorter context puts its end token where the other still reads words;
    such a place teaches nothing.
    """
    length = min(student.shape[1], teacher.shape[1])
    student, teacher = student[:, :length], teacher[:, :length]
    return (student == teacher) & (student != 0)


def token_losses(student: Tensor, teacher: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(squared error, 1 - cosine), means over valid tokens.

    Args:
        student: (B, L, C). teacher: (B, T, C). valid: (B, min(L, T)) bool.
    """
    length = valid.shape[1]
    student, teacher = student[:, :length].float(), teacher[:, :length].float()
    weight = valid.float()
    count = weight.sum().clamp(min=1)
    error = ((student - teacher).square().mean(2) * weight).sum() / count
    apart = ((1 - F.cosine_similarity(student, teacher, dim=2)) * weight).sum() / count
    return error, apart


def pooled(features: Tensor, tokens: Tensor) -> Tensor:
    """Mean over the tokens that are not padding: (B, L, C) -> (B, C)."""
    weight = (tokens != 0).float()[..., None]
    return (features.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


def shuffle_words(phrase: str, random: np.random.Generator) -> str:
    """The words of a phrase in any order."""
    words = phrase.split()
    return " ".join(words[i] for i in random.permutation(len(words)))


def read(phrases: Sequence[str], context: int) -> Tensor:
    """Tokens of phrases; captions are longer than any context, and cut without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedTextWarning)
        return tokenize(list(phrases), context)


def fit(tokens: Tensor, context: int) -> Tensor:
    """(B, N) tokens of a shorter context, padded to ``context``."""
    return F.pad(tokens, (0, context - tokens.shape[1]))


class Said(NamedTuple):
    phrase: str
    shuffled: str


def say(phrase: str, random: np.random.Generator) -> Said:
    """A phrase, and its words in another order."""
    return Said(phrase, shuffle_words(phrase, random))


@dataclass(frozen=True)
class CollatePhrases:
    """Phrases -> a batch.

    Args:
        context: of the student. taught: of the teacher. features: the teacher's saved tokens.
    """

    context: int
    taught: int
    features: FeatureSource | None = None

    def __call__(self, items: list[Said]) -> TextBatch:
        phrases = [i.phrase for i in items]
        shuffled = read([i.shuffled for i in items], self.context)
        if self.features is not None:
            tokens, shown = read(phrases, self.context), read(phrases, self.taught)
            target = torch.from_numpy(np.stack([self.features[p] for p in phrases]))
            return TextBatch(phrases, tokens, shuffled, shown, target)
        # Both read the words that fit the shorter of them.
        common = read(phrases, min(self.context, self.taught))
        tokens, shown = fit(common, self.context), fit(common, self.taught)
        return TextBatch(phrases, tokens, shuffled, shown, None)


class TextStudent(nn.Module):
    """The student's text encoder under the name that it has in the whole model."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens -> (B, L, C)."""
        out: Tensor = self.text(tokens)
        return out


class TextDistillation(FeatureTask[Said, TextBatch, TextTeacher]):
    """Train a student's text encoder to give its teacher's tokens.

    Args:
        text: the student's text encoder, with ``context`` and ``projector``.
        phrases: to learn from, by index.
        teacher: computes targets at every step; or features: holds them, keyed by phrase.
        held_out: phrases for validation, which the teacher answers.

    Raises:
        DataError, FeatureFileError: no phrases, missing features, another width.
    """

    def __init__(
        self,
        text: nn.Module,
        phrases: Sequence[str],
        teacher: TextTeacher | None = None,
        features: FeatureSource | None = None,
        settings: TextSettings | None = None,
        held_out: Sequence[str] | None = None,
    ) -> None:
        s = self.settings = settings or TextSettings()
        shape = shape_of(teacher, features)
        context, width = int(text.context), text.projector.out_features  # type: ignore[arg-type, union-attr]
        if len(shape) != 2 or shape[1] != width:
            raise FeatureFileError(
                f"the teacher's tokens are {shape}, but this student gives (context, {width}): "
                "widths must agree"
            )
        if features is not None:
            features.require(phrases)
        made = Batches(phrases, say, CollatePhrases(context, shape[0], features), s.batch, s.seed)
        asked: Batches[Said, TextBatch] | None = None
        if held_out is not None and teacher is not None:
            collate = CollatePhrases(context, teacher.context)
            asked = Batches(held_out, say, collate, s.batch, s.seed)
        super().__init__(TextStudent(text), teacher, made, asked, s)

    def _ask(self, teacher: TextTeacher, batch: TextBatch) -> Tensor:
        target: Tensor = teacher(batch.shown)
        return target

    def loss(self, module: nn.Module, batch: TextBatch) -> Mapping[str, Tensor]:
        """See ``Task``: "loss", "mse", "cosine" (1 - similarity), "consistency"."""
        s = self.settings
        # One call for both orders: batch norms then see the same mixture in every step.
        both = module(torch.cat([batch.tokens, batch.shuffled]))
        student, turned = both.chunk(2)
        valid = common_tokens(batch.tokens, batch.shown)
        error, apart = token_losses(student, self._target(batch), valid)
        consistency = F.mse_loss(pooled(turned, batch.shuffled), pooled(student, batch.tokens))
        total = s.mse_weight * error + s.cosine_weight * apart
        total = total + s.consistency_weight * consistency
        parts = {"mse": error, "cosine": apart, "consistency": consistency}
        return {"loss": total, **{k: v.detach() for k, v in parts.items()}}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Squared error and 1 - cosine a token on held-out phrases; "pooled_cosine": the
        cosine similarity of their means.
        """
        if self._held_out is None:
            return {}
        device = next(module.parameters()).device
        sums, count = np.zeros(3), 0
        for batch in self._held_out.once(self.settings.validation):
            tokens, shown = batch.tokens.to(device), batch.shown.to(device)
            student, teacher = module(tokens), self._target(batch).to(device)
            valid = common_tokens(tokens, shown)
            error, apart = token_losses(student, teacher, valid)
            length = valid.shape[1]
            ours, theirs = (pooled(f[:, :length], valid.long()) for f in (student, teacher))
            alike = F.cosine_similarity(ours, theirs).mean()
            sums += len(batch.phrases) * np.array([float(error), float(apart), float(alike)])
            count += len(batch.phrases)
        names = ("mse", "cosine", "pooled_cosine")
        return {name: float(v / count) for name, v in zip(names, sums, strict=True)}

    def describe(self) -> dict[str, Any]:
        """See ``Task``."""
        from .settings import plain

        free = ("workers", "validation")
        numbers = {k: v for k, v in plain(self.settings).items() if k not in free}
        return {"phrases": len(self._made.source), **numbers}
