"""Distillation of a text encoder (Stage 1): the student's tokens become like its teacher's."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...bpe import TruncatedTextWarning
from ...nn.tokenizer import tokenize
from ..errors import FeatureFileError
from ..features import FeatureSource
from ..teachers import TextTeacher
from .feature_task import FeatureTask, feature_shape


@dataclass(frozen=True)
class TextSettings:
    """Numbers of this task, beside the loop's.

    Attributes:
        batch: Phrases of a process and step.
        workers: Processes that prepare phrases.
        seed: Of the order of phrases and of words.
        mse_weight: Weight of the squared error, a mean over tokens and channels.
        cosine_weight: Weight of 1 - cosine similarity, a mean over tokens.
        consistency_weight: Weight of the squared distance between the mean tokens of a phrase and
            of the same words in another order (upstream's consistency loss, which it applies
            twice).
        validation: Held-out phrases that are compared.
    """

    batch: int = 64
    workers: int = 0
    seed: int = 0
    mse_weight: float = 1.0
    cosine_weight: float = 2.0
    consistency_weight: float = 0.05
    validation: int = 1024


class TextBatch(NamedTuple):
    """B phrases.

    Attributes:
        phrases: the text.
        tokens: (B, L) int64, the phrases as the student reads them.
        shuffled: (B, L) int64, the same with the words in another order.
        teacher_tokens: (B, T) int64, the phrases as the teacher reads them.
        target: (B, T, C) float16 saved features, or None.
    """

    phrases: list[str]
    tokens: Tensor
    shuffled: Tensor
    teacher_tokens: Tensor
    target: Tensor | None

    @property
    def size(self) -> int:
        """Number of phrases."""
        return len(self.phrases)


def common_tokens(student: Tensor, teacher: Tensor) -> Tensor:
    """The places where both encoders read the same token, without padding.

    The encoder with the shorter context has its end token where the other still reads words, so
    such a place has no target.

    Args:
        student: (B, L) tokens.
        teacher: (B, T) tokens.

    Returns:
        (B, min(L, T)) bool.
    """
    length = min(student.shape[1], teacher.shape[1])
    student, teacher = student[:, :length], teacher[:, :length]
    return (student == teacher) & (student != 0)


def token_losses(student: Tensor, teacher: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """How far a student's features of tokens are from its teacher's.

    Args:
        student: (B, L, C).
        teacher: (B, T, C).
        valid: (B, min(L, T)) bool, the tokens that count.

    Returns:
        Two scalars: the squared error, and 1 - cosine similarity.
    """
    length = valid.shape[1]
    student, teacher = student[:, :length].float(), teacher[:, :length].float()
    weight = valid.float()
    count = weight.sum().clamp(min=1)
    error = ((student - teacher).square().mean(2) * weight).sum() / count
    distance = ((1 - F.cosine_similarity(student, teacher, dim=2)) * weight).sum() / count
    return error, distance


def pool_tokens(features: Tensor, valid: Tensor) -> Tensor:
    """Mean of features over tokens.

    Args:
        features: (B, L, C).
        valid: (B, L) bool, the tokens that count.

    Returns:
        (B, C) float32.
    """
    weight = valid.float()[..., None]
    return (features.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


def shuffle_words(phrase: str, rng: np.random.Generator) -> str:
    """The words of a phrase in a random order.

    Args:
        phrase: words with spaces between them.
        rng: decides the order.
    """
    words = phrase.split()
    return " ".join(words[i] for i in rng.permutation(len(words)))


def tokenize_captions(phrases: Sequence[str], context: int) -> Tensor:
    """Tokens of phrases, without warnings: captions are longer than any context.

    Args:
        phrases: B phrases.
        context: tokens of a phrase.

    Returns:
        (B, context) int64.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedTextWarning)
        return tokenize(list(phrases), context)


@dataclass(frozen=True)
class PhraseCollator:
    """Make a ``TextBatch`` of phrases.

    Attributes:
        context: Tokens that the student reads.
        teacher_context: Tokens that the teacher reads.
        features: The teacher's saved features, by phrase.
    """

    context: int
    teacher_context: int
    features: FeatureSource | None = None

    def __call__(self, phrases: Iterable[str], rng: np.random.Generator) -> TextBatch:
        """Tokens of phrases, in the given and in a random order of words."""
        phrases = list(phrases)
        shuffled = [shuffle_words(p, rng) for p in phrases]
        target, contexts = None, (self.context, self.teacher_context)
        if self.features is not None:
            tokens, teacher_tokens = (tokenize_captions(phrases, c) for c in contexts)
            target = torch.from_numpy(np.stack([self.features[p] for p in phrases]))
        else:  # both encoders read the words that fit the shorter context
            common = tokenize_captions(phrases, min(contexts))
            tokens, teacher_tokens = (F.pad(common, (0, c - common.shape[1])) for c in contexts)
        shuffled_tokens = tokenize_captions(shuffled, self.context)
        return TextBatch(phrases, tokens, shuffled_tokens, teacher_tokens, target)


class TextStudent(nn.Module):
    """A text encoder under the name that it has in the whole model.

    Args:
        text: the encoder.
    """

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the features of tokens.

        Args:
            tokens: (B, L) int64.

        Returns:
            (B, L, C).
        """
        out: Tensor = self.text(tokens)
        return out


class TextDistillation(FeatureTask[TextBatch]):
    """Train a student's text encoder to compute its teacher's features of tokens.

    Args:
        text: the student's text encoder, with ``context`` and ``projector``.
        phrases: training phrases, by index.
        teacher: computes targets at every step, and those of held-out phrases.
        features: the teacher's saved features of the phrases; None: ``teacher`` computes them.
        settings: numbers of the task.
        held_out: phrases for validation; without a teacher they are not used.

    Raises:
        DataError: there are no phrases, or neither teacher nor features.
        FeatureFileError: features are missing, or of another width.
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
        s = settings or TextSettings()
        shape = feature_shape(teacher, features)
        context, width = int(text.context), text.projector.out_features  # type: ignore[arg-type, union-attr]
        if len(shape) != 2 or shape[1] != width:
            raise FeatureFileError(
                f"the teacher's features are {shape}, but this student has (context, {width}): "
                "the widths must be equal"
            )
        collate = functools.partial(PhraseCollator, context, shape[0])
        student = TextStudent(text)
        super().__init__(student, phrases, phrases, held_out, collate, s, teacher, features)

    def _compute_target(self, batch: TextBatch) -> Tensor:
        """The teacher's features of tokens: (B, T, C)."""
        target: Tensor = self.teacher(batch.teacher_tokens)
        return target

    def loss(self, module: nn.Module, batch: TextBatch) -> Mapping[str, Tensor]:
        """Scalar "loss", and its parts "mse", "cosine" (1 - similarity), "consistency".

        Args:
            module: the module that is trained.
            batch: on the module's device.
        """
        s = self.settings
        # One call for both orders, so that batch norms see the same mixture in every step.
        student, other = module(torch.cat([batch.tokens, batch.shuffled])).chunk(2)
        valid = common_tokens(batch.tokens, batch.teacher_tokens)
        error, distance = token_losses(student, self._target(batch), valid)
        consistency = F.mse_loss(
            pool_tokens(other, batch.shuffled != 0), pool_tokens(student, batch.tokens != 0)
        )
        total = s.mse_weight * error + s.cosine_weight * distance
        total = total + s.consistency_weight * consistency
        parts = {"mse": error, "cosine": distance, "consistency": consistency}
        return {"loss": total, **{k: v.detach() for k, v in parts.items()}}

    def _figures(self, module: nn.Module, batch: TextBatch) -> dict[str, Tensor]:
        """Scalars "mse", "cosine" (1 - similarity), "pooled_cosine" (similarity of mean tokens)."""
        student = module(batch.tokens)
        teacher = self._target(batch).to(student.device)
        valid = common_tokens(batch.tokens, batch.teacher_tokens)
        error, distance = token_losses(student, teacher, valid)
        length = valid.shape[1]
        ours, theirs = (pool_tokens(f[:, :length], valid) for f in (student, teacher))
        similarity = F.cosine_similarity(ours, theirs).mean()
        return {"mse": error, "cosine": distance, "pooled_cosine": similarity}
