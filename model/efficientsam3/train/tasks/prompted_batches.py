"""Batches of the prompt in the loop: images, and prompts of single objects or phrases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from ...data.sample import TrainingSample
from ...nn.geometry import Exemplars
from ...nn.layers import cxcywh_to_xyxy
from ...segmenter import VISUAL
from ..prompts import BOX_NOISE, BOX_NOISE_LIMIT, jitter_boxes, pad_exemplars
from ..settings import check
from .image_distillation import ImageBatch, ImageCollator

BOX, POINT, PHRASE = range(3)


@dataclass(frozen=True)
class PromptedSettings:
    """Numbers of the prompt in the loop, beside the loop's.

    Defaults are those of upstream's geometry fine-tune, which follows EdgeSAM.

    Attributes:
        batch: Images of a process and step.
        prompts: Objects of an image that are prompted, at most, each by itself.
        workers: Processes that read images.
        seed: Of the order of images and of the prompts.
        box: Share of the prompts that are a box, relative to ``point`` and ``phrase``.
        point: Share of the prompts that are a point.
        phrase: Share of the prompts that are a phrase; samples without phrases have boxes and
            points.
        box_noise: Standard deviation of the noise of a box's edges, as a part of its sides.
        box_noise_limit: The most by which an edge moves, as a part of the image.
        iterations: Answers to a prompt; after each but the last, a point is added where teacher and
            student differ.
        error_pixels: Pixels of the mask head that must differ for a point to be added.
        feature_weight: Weight of the squared error of the maps, a mean over channels (upstream's
            0.0015 of the sum over 1024).
        cosine_weight: Weight of 1 - cosine similarity of the maps.
        mask_weight: Weight of the cross-entropy with the teacher's mask.
        dice_weight: Weight of the Dice loss with the teacher's mask.
        answer_weight: Weight of the cross-entropy with the teacher's scores and presence.
        exemplar_phrase: The phrase of prompts by a box or point; None: no text, as upstream.
        validation: Held-out images that are compared.

    Raises:
        SettingsError: a value is outside its range.
    """

    batch: int = 4
    prompts: int = 4
    workers: int = 0
    seed: int = 0
    box: float = 0.5
    point: float = 0.5
    phrase: float = 0.0
    box_noise: float = BOX_NOISE
    box_noise_limit: float = BOX_NOISE_LIMIT
    iterations: int = 2
    error_pixels: int = 10
    feature_weight: float = 1.5
    cosine_weight: float = 0.0
    mask_weight: float = 1.0
    dice_weight: float = 1.0
    answer_weight: float = 0.0
    exemplar_phrase: str | None = VISUAL
    validation: int = 32

    def __post_init__(self) -> None:
        shares = self.box, self.point, self.phrase
        for name, value in zip(("box", "point", "phrase"), shares, strict=True):
            check(self, name, value >= 0, "0 or more")
        check(self, "box", sum(shares) > 0, "above 0 if point and phrase are 0")
        for name in ("batch", "prompts", "iterations"):
            check(self, name, getattr(self, name) >= 1, "at least 1")


class PromptBatch(NamedTuple):
    """B images with P prompts.

    Attributes:
        images: the images.
        rows: (P,) int64, the image of each prompt.
        exemplars: of the prompts, with room for the points of all iterations.
        phrases: of the prompts, "" for those by a box or point.
        seed: of the points that are added.
    """

    images: ImageBatch
    rows: Tensor
    exemplars: Exemplars
    phrases: list[str]
    seed: int

    @property
    def size(self) -> int:
        """Number of images."""
        return self.images.size

    @property
    def target(self) -> Tensor | None:
        """Saved maps of the images, or None."""
        return self.images.target


class Prompt(NamedTuple):
    """One prompt: a box, a point or a phrase.

    Attributes:
        boxes: (0 or 1, 4) cxcywh in [0, 1].
        points: (0 or 1, 2) xy in [0, 1].
        phrase: "" for a box or point.
    """

    boxes: Tensor
    points: Tensor
    phrase: str


@dataclass(frozen=True)
class PromptCollator:
    """Make a ``PromptBatch`` of samples.

    Attributes:
        images: Prepares the images.
        settings: Decide the prompts.
    """

    images: ImageCollator
    settings: PromptedSettings

    def __call__(self, samples: Iterable[TrainingSample], rng: np.random.Generator) -> PromptBatch:
        """Draw the prompts of samples, which are read one after the other.

        Args:
            samples: with masks or points; those without objects have no prompt.
            rng: decides all that is random.
        """
        drawn: list[list[Prompt]] = []

        def watched() -> Iterable[TrainingSample]:
            for sample in samples:
                drawn.append(self.draw(sample, rng))
                yield sample

        images = self.images(watched(), rng)
        rows = [i for i, prompts in enumerate(drawn) for _ in prompts]
        prompts = [p for prompts in drawn for p in prompts]
        exemplars = pad_exemplars(
            [p.boxes for p in prompts],
            [[1] * len(p.boxes) for p in prompts],
            [p.points for p in prompts],
            self.settings.iterations,
        )
        seed = int(rng.integers(2**31))
        phrases = [p.phrase for p in prompts]
        return PromptBatch(images, torch.tensor(rows).long(), exemplars, phrases, seed)

    def draw(self, sample: TrainingSample, rng: np.random.Generator) -> list[Prompt]:
        """Draw the prompts of a sample: each object at most once, no crowds.

        Args:
            sample: with masks or points.
            rng: decides all that is random.
        """
        s = self.settings
        phrases = [q.phrase for q in sample.queries if q.objects]
        shares = np.array([s.box, s.point, s.phrase if phrases else 0.0])
        if not shares.sum():
            return []
        usable = (sample.boxes[:, 2:] > sample.boxes[:, :2]).all(1)
        if sample.crowd is not None:
            usable &= ~sample.crowd
        objects = iter(rng.permutation(np.flatnonzero(usable)).tolist())
        none = Prompt(torch.zeros(0, 4), torch.zeros(0, 2), "")
        prompts: list[Prompt] = []
        for _ in range(s.prompts):
            kind = int(rng.choice(3, p=shares / shares.sum()))
            if kind == PHRASE:
                phrase = phrases[int(rng.integers(len(phrases)))]
                prompts.append(none._replace(phrase=phrase))
                continue
            index = next(objects, None)
            if index is None:
                break
            if kind == BOX:
                prompts.append(none._replace(boxes=self._box(sample, index, rng)))
            elif (point := _point(sample, index, rng)) is not None:
                prompts.append(none._replace(points=point))
        return prompts

    def _box(self, sample: TrainingSample, index: int, rng: np.random.Generator) -> Tensor:
        """The noised box of an object, (1, 4) cxcywh."""
        corners = cxcywh_to_xyxy(sample.boxes_in_unit()[index : index + 1])
        noise = torch.from_numpy(rng.normal(size=(1, 4)).astype(np.float32))
        moved = jitter_boxes(corners, noise, self.settings.box_noise, self.settings.box_noise_limit)
        return box_convert(moved, "xyxy", "cxcywh")


def _point(sample: TrainingSample, index: int, rng: np.random.Generator) -> Tensor | None:
    """The data set's point on an object, or any of its mask, (1, 2); None for an empty mask."""
    height, width = sample.size
    if sample.points is not None:
        x, y = sample.points[index]
    else:
        rows, columns = np.nonzero(sample.mask(index))
        if not len(rows):
            return None
        chosen = int(rng.integers(len(rows)))
        x, y = columns[chosen] + 0.5, rows[chosen] + 0.5
    return torch.tensor([[x / width, y / height]], dtype=torch.float32).clamp(0, 1)
