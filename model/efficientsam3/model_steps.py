"""The steps that a runtime implements: an image is read, prompts are answered, masks computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from .exemplar_prompts import ExemplarPrompts
from .io.samples import ImageLike
from .types import Array


class Shown(NamedTuple):
    """Prompt tokens of the exemplars of one image, tensors or arrays of a runtime."""

    tokens: Any
    """(1, E, C) float32; the last one is the class token."""
    valid: Any
    """(1, E) bool, False where there is no exemplar."""


class Answers(NamedTuple):
    """What a runtime says of B prompts."""

    scores: Array
    """(B, Q) float32 in [0, 1]: score of the query, without presence."""
    presence: Array
    """(B,) float32 in [0, 1]: whether the concept is in the image."""
    boxes: Array
    """(B, Q, 4) float32 cxcywh in [0, 1]."""
    raw: Any
    """What the runtime needs to compute masks."""


class ObjectAnswers(NamedTuple):
    """What a runtime says of B prompts of single objects."""

    logits: Array
    """(B, M, h, w) float32 mask logits."""
    quality: Array
    """(B, M) float32 predicted IoU."""
    presence: Array
    """(B,) float32 in [0, 1]: whether there is an object."""


class ModelSteps(ABC):
    """The steps of a model, which give arrays."""

    name: str
    config: Any
    device: Any
    key: Any
    abilities: frozenset[str]
    _batch_size: int

    @abstractmethod
    def require(self, ability: str) -> None:
        """Check that the weights have an ability.

        Args:
            ability: "concepts", "exemplars", "masks", "interactive" or "video".

        Raises:
            MissingAbilityError: They do not; the message says which part is missing.
        """

    @abstractmethod
    def _read(self, image: ImageLike) -> tuple[Any, tuple[int, int]]:
        """Features of an image and its (height, width)."""

    def _read_several(self, images: Sequence[ImageLike]) -> list[tuple[Any, tuple[int, int]]]:
        """Features and sizes of images; a runtime can encode them together."""
        return [self._read(image) for image in images]

    @abstractmethod
    def _read_exemplars(self, features: Any, exemplars: ExemplarPrompts) -> Shown:
        """Encode the exemplars of an image, which need not be the one that is asked about."""

    def _answer_several(
        self, features: Sequence[Any], phrases: list[str], shown: Sequence[Shown]
    ) -> Answers | None:
        """Answer each phrase for the image of the same place; None where a runtime cannot."""
        return None

    @abstractmethod
    def _answer(self, features: Any, phrases: list[str], shown: Sequence[Shown]) -> Answers:
        """Answer B phrases, each with all of the exemplars that are shown, or with none."""

    @abstractmethod
    def _masks(self, features: Any, answers: Answers, row: int, queries: Array) -> Array:
        """Mask logits (K, h, w) of the queries (K,) of one prompt."""

    @abstractmethod
    def _answer_objects(
        self, features: Any, xy: Array, labels: Array, earlier: Array | None, multimask: bool
    ) -> ObjectAnswers:
        """Answer B prompts of single objects, as ``read_object_prompts`` gives them."""
