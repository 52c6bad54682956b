"""Outputs of a model: raw ones, encoded images, and instances made of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .bpe import clean
from .errors import PromptError, shorten
from .io.samples import is_tensor
from .masks.nms import DEFAULT_NMS, nms_rows
from .masks.postprocess import small_regions
from .types import Array, Instances, LogitPatch, Patch, join

if TYPE_CHECKING:
    from torch import Tensor

    from .object_segmenter import ObjectSegmenter

OBJECT = "object"
"""Label of an instance that the interactive head found."""

MAX_HOLE_AREA = 256
"""Holes of an interactive mask up to this area, in low-resolution pixels, are filled."""


class Grounding(NamedTuple):
    """Raw outputs of one prompt per image, as tensors.

    Attributes:
        logits: (B, Q) score logits of all queries.
        presence: (B,) logits of the concept's presence in the image.
        boxes: (B, Q, 4) cxcywh in [0, 1].
        masks: (B, Q, h, w) logits; None without a mask head.
        memory: (B, N, C) tokens of the fusion encoder.
    """

    logits: Tensor
    presence: Tensor
    boxes: Tensor
    masks: Tensor | None
    memory: Tensor


@dataclass(eq=False)
class EncodedImage:
    """An image that a model has encoded. Pass it instead of the image to prompt it again.

    A pickled image holds its features and not the model. Models with the same weights, number
    format and speed take it, in any process.

    Attributes:
        features: Features, on the model's device; on the CPU in an unpickled image.
        size: (height, width) of the image in pixels.
        owner: The model that encoded it; None in an unpickled image.
        key: What models that can read the features have in common (``Segmenter.key``).
    """

    features: Any
    size: tuple[int, int]
    owner: ObjectSegmenter | None
    key: Any = None

    def __post_init__(self) -> None:
        if self.owner is not None:
            self.key = self.owner.key

    def __getstate__(self) -> dict[str, Any]:
        features = to_device(self.features, "cpu")
        return {"features": features, "size": self.size, "owner": None, "key": self.key}

    def __deepcopy__(self, memo: dict[int, Any]) -> EncodedImage:
        features = copy.deepcopy(self.features, memo)
        return EncodedImage(features, self.size, self.owner, self.key)

    def for_model(self, model: ObjectSegmenter) -> EncodedImage:
        """Return the image with its features on a model's device.

        Args:
            model: The model that is to be prompted.

        Raises:
            PromptError: The image was encoded by another model.
        """
        if self.owner is model:
            return self
        _check_key(self, model, "this image was", "it")
        return EncodedImage(to_device(self.features, model.device), self.size, model)


@dataclass(eq=False)
class EncodedExemplars:
    """Exemplars of one image that a model has encoded, to find the same in other images.

    They are pickled without the model, and taken by models with the same weights, number format and
    speed, as an ``EncodedImage`` is.

    Attributes:
        shown: Prompt tokens of the exemplars, on the model's device; on the CPU if unpickled.
        count: Number of exemplars.
        owner: The model that encoded them; None in unpickled ones.
        key: What models that can read the tokens have in common (``Segmenter.key``).
    """

    shown: Any
    count: int
    owner: ObjectSegmenter | None
    key: Any = None

    def __post_init__(self) -> None:
        if self.owner is not None:
            self.key = self.owner.key

    def __repr__(self) -> str:
        by = "" if self.owner is None else f" by {self.owner!r}"
        return f"EncodedExemplars({self.count}{by})"

    def __getstate__(self) -> dict[str, Any]:
        shown = to_device(self.shown, "cpu")
        return {"shown": shown, "count": self.count, "owner": None, "key": self.key}

    def __deepcopy__(self, memo: dict[int, Any]) -> EncodedExemplars:
        return EncodedExemplars(copy.deepcopy(self.shown, memo), self.count, self.owner, self.key)

    def for_model(self, model: ObjectSegmenter) -> EncodedExemplars:
        """Return the exemplars with their tokens on a model's device.

        Args:
            model: The model that is to be prompted.

        Raises:
            PromptError: They were encoded by another model.
        """
        if self.owner is model:
            return self
        _check_key(self, model, "these exemplars were", "their image")
        return EncodedExemplars(to_device(self.shown, model.device), self.count, model)


def read_encoded(exemplars: Any, model: ObjectSegmenter) -> list[EncodedExemplars]:
    """Check exemplars of other images that a user passed.

    Args:
        exemplars: From ``Segmenter.exemplar``, or a sequence of such.
        model: The model that is to be prompted.

    Raises:
        PromptError: A value is none of these, or of another model.
    """
    given = [exemplars] if isinstance(exemplars, EncodedExemplars) else exemplars
    wrong = given
    if isinstance(given, (list, tuple)):
        wrong = next((one for one in given if not isinstance(one, EncodedExemplars)), None)
        if given and wrong is None:
            return [one.for_model(model) for one in given]
    raise PromptError(
        "exemplars are those that model.exemplar(image, boxes=...) gives, or a list of them; got "
        f"{shorten(wrong)}. Examples in the image itself are boxes, points or masks"
    )


def _check_key(
    value: EncodedImage | EncodedExemplars, model: ObjectSegmenter, these_were: str, it: str
) -> None:
    """Check that a model can read what another has encoded.

    Raises:
        PromptError: It has other weights or settings.
    """
    if value.key != model.key:
        by = "a model of another process" if value.owner is None else repr(value.owner)
        raise PromptError(
            f"{these_were} encoded by {by}, with other weights or settings; encode {it} with "
            f"{model!r} first"
        )


def to_device(value: Any, device: Any) -> Any:
    """Copy tensors in tuples, lists, dictionaries and data classes to a device; arrays stay.

    Args:
        value: What contains the tensors.
        device: Where they are copied, unless they are there.
    """
    if is_tensor(value):
        return value.to(device)
    if isinstance(value, tuple):
        items = [to_device(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        return replace(value, **{name: to_device(getattr(value, name), device) for name in names})
    return value


def join_objects(found: Sequence[Instances], size: tuple[int, int]) -> Instances:
    """Join the instances of interactive prompts, with the masks that refine them.

    Args:
        found: Instances of each prompt, from ``object_instances``.
        size: (height, width) of the image in pixels.
    """
    if not found:
        no_masks, no_quality = np.zeros((0, 1, 1), np.float32), np.zeros(0, np.float32)
        return object_instances(no_masks, no_quality, 0.5, size)
    low_res = np.concatenate([f.low_res for f in found if f.low_res is not None])
    return replace(join(found), low_res=low_res)


def object_instances(
    logits: Array, quality: Array, presence: float, size: tuple[int, int]
) -> Instances:
    """Make instances of the masks for one interactive prompt.

    Args:
        logits: (M, h, w) mask logits.
        quality: (M,) predicted IoU.
        presence: Probability that there is an object.
        size: (height, width) of the image in pixels.

    Returns:
        M instances with the label ``OBJECT``, in the order of the masks.
    """
    patches: list[Patch] = [LogitPatch.cut(_fill_holes(m)) for m in logits]
    count = len(patches)
    boxes = np.array([p.crop(size)[1] for p in patches], np.float32).reshape(count, 4)
    return Instances(
        boxes=boxes,
        scores=quality.astype(np.float32),
        presence=np.full(count, presence, np.float32),
        labels=[OBJECT] * count,
        size=size,
        patches=patches,
        low_res=logits[:, None].clip(-32, 32),
    )


class Suppression(NamedTuple):
    """Which of the instances that overlap are dropped.

    Attributes:
        nms: Overlap above which the weaker of two instances of a class is dropped. None: instances
            of one phrase are kept, and those of two phrases of a class have ``DEFAULT_NMS``.
        class_agnostic: Whether instances of different classes are compared too.
        overlap_metric: "iou" or "iom", as in ``masks.nms``.
    """

    nms: float | None
    class_agnostic: bool
    overlap_metric: str

    @property
    def of_phrase(self) -> float | None:
        """Limit of the IoU of instances of one phrase, which is applied to each phrase alone."""
        return self.nms if self.overlap_metric == "iou" else None

    def compares(self, classes: Mapping[str, Sequence[str]]) -> bool:
        """Whether instances of several phrases, or by the smaller area, are compared at all.

        Args:
            classes: Phrases by class.
        """
        by_area = self.nms is not None and self.overlap_metric != "iou"
        several = self.class_agnostic and len(classes) > 1
        return by_area or several or any(len(phrases) > 1 for phrases in classes.values())

    def apply(self, found: Instances) -> Instances:
        """Drop instances that overlap a better one.

        Args:
            found: Instances of all phrases.
        """
        limit = DEFAULT_NMS if self.nms is None else self.nms
        within = self.nms if self.overlap_metric != "iou" else None
        across = limit if self.class_agnostic else None
        return found[nms_rows(found, within, limit, across, overlap_metric=self.overlap_metric)]


def join_classes(
    found: Mapping[str, Instances], classes: Mapping[str, Sequence[str]], suppression: Suppression
) -> Instances:
    """Join the instances that phrases found, and label them with their classes.

    Args:
        found: Instances by what ``bpe.clean`` makes of their phrase.
        classes: Phrases by class.
        suppression: Which of the instances that overlap are dropped.

    Returns:
        Instances in the order of classes, then of decreasing scores.
    """
    parts = []
    for name, phrases in classes.items():
        for phrase in phrases:
            part = found[clean(phrase)]
            parts.append(
                replace(
                    part,
                    labels=[name] * len(part),
                    phrases=[phrase] * len(part),
                    concepts=(name,),
                    concept_presence=dict.fromkeys([name], *part.concept_presence.values()),
                )
            )
    joined = join(parts)
    if not suppression.compares(classes):
        return joined
    order = {name: i for i, name in enumerate(classes)}
    numbers = np.array([order[label] for label in joined.labels], np.int64)
    return suppression.apply(joined[np.lexsort((-joined.scores, numbers))])


def best(found: Instances, count: int | None) -> Instances:
    """Select the instances with the highest scores, in the order that they have.

    Args:
        found: Instances of one image.
        count: How many at most; None: all.
    """
    if count is None or len(found) <= count:
        return found
    return found[np.sort(np.argsort(-found.scores, kind="stable")[:count])]


def to_pixels(boxes: Array, size: tuple[int, int]) -> Array:
    """Convert boxes of the network.

    Args:
        boxes: (N, 4) cxcywh in [0, 1].
        size: (height, width) of the image in pixels.

    Returns:
        (N, 4) float32 xyxy pixels, within the image.
    """
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    center, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.clip(np.concatenate([center - half, center + half], 1) * limits, 0, limits)


def _fill_holes(logits: Array) -> Array:
    """Fill holes of up to ``MAX_HOLE_AREA`` pixels, as SAM3 (``SAM2Transforms``) does."""
    holes = small_regions(logits <= 0, MAX_HOLE_AREA)
    return np.where(holes, np.float32(10), logits) if holes.any() else logits
