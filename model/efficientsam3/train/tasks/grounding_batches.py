"""Batches of the grounding task: which phrases an image is asked for, and with which exemplars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from ...config import ModelConfig
from ...data.sample import TrainingSample
from ...data.types import PhraseQuery
from ...errors import DataError
from ...nn.layers import cxcywh_to_xyxy
from ...nn.tokenizer import tokenize
from ...segmenter import VISUAL
from ...values import is_share
from ..losses.grounding import GroundingBatch
from ..losses.matcher import Targets
from ..prompts import BOX_NOISE, BOX_NOISE_LIMIT, jitter_boxes, pad_exemplars
from ..settings import check

NEGATIVE_EXEMPLARS = 0.2
"""Share of the prompts with boxes that get a negative one, if there is another object to box."""


@dataclass(frozen=True)
class PromptSettings:
    """How the prompts of an image are drawn.

    Attributes:
        prompts: Prompts of an image, at most.
        positive_share: Share of the prompts that name something in the image, if there are phrases
            of both kinds.
        text_and_box: Share of the positive prompts that have the phrase and boxes of its objects.
        box_only: Share of the positive prompts that have boxes instead of the phrase.
        max_boxes: Positive boxes of a prompt, at most; one negative box may join them.
        box_noise: Standard deviation of the noise of a box's edges, as a part of its sides.
        box_noise_limit: The most by which an edge moves, as a part of the image.
        max_objects: Target objects of a prompt. Further ones are left out, and the prompt is not
            exhaustive.
        kind_weights: By kind of a query, how much likelier it is drawn than others, which have 1.

    Raises:
        SettingsError: a value is outside its range.
    """

    prompts: int = 4
    positive_share: float = 0.5
    text_and_box: float = 0.1
    box_only: float = 0.15
    max_boxes: int = 3
    box_noise: float = BOX_NOISE
    box_noise_limit: float = BOX_NOISE_LIMIT
    max_objects: int = 32
    kind_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("prompts", "max_boxes", "max_objects"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("positive_share", "text_and_box", "box_only"):
            check(self, name, is_share(getattr(self, name)), "from 0 to 1")
        both = self.text_and_box + self.box_only <= 1
        check(self, "text_and_box", both, f"with box_only {self.box_only} at most 1")
        for name in ("box_noise", "box_noise_limit"):
            check(self, name, getattr(self, name) >= 0, "0 or more")
        weights = self.kind_weights.values()
        check(self, "kind_weights", all(v >= 0 for v in weights), "factors of 0 or more")


class GroundingCollator:
    """Make a ``GroundingBatch`` of samples.

    Args:
        config: of the model; resolution, grid, context and normalization are used.
        settings: of the prompts.
        extra_targets: makes what an extra loss needs from the samples and the generator.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: PromptSettings | None = None,
        extra_targets: Callable[[Sequence[TrainingSample], np.random.Generator], Any] | None = None,
    ) -> None:
        self.config, self.extra_targets = config, extra_targets
        self.settings = settings or PromptSettings()

    def __call__(
        self, samples: Iterable[TrainingSample], rng: np.random.Generator
    ) -> GroundingBatch:
        """Draw the prompts of samples.

        Args:
            samples: images with objects and phrases.
            rng: decides all that is random.

        Raises:
            DataError: no sample has a phrase.
        """
        samples, c = list(samples), self.config
        pixels = torch.cat([s.pixels(c.resolution, c.mean, c.std) for s in samples])
        prompts = [(i, q) for i, s in enumerate(samples) for q in self._choose(s, rng)]
        if not prompts:
            keys = ", ".join(s.key for s in samples[:3])
            raise DataError(
                f"the images of a batch ({keys}, ...) have no phrases; the grounding task needs "
                "data with phrases, such as SA-Co, COCO and LVIS"
            )
        drawn = [self._prompt(samples[i], query, rng) for i, query in prompts]
        phrases, boxes, labels = zip(*drawn, strict=True)
        return GroundingBatch(
            pixels,
            tokenize(list(phrases), c.context),
            torch.tensor([i for i, _ in prompts]),
            self._targets(samples, prompts),
            pad_exemplars(boxes, labels) if any(labels) else None,
            None if self.extra_targets is None else self.extra_targets(samples, rng),
        )

    def _choose(self, sample: TrainingSample, rng: np.random.Generator) -> list[PhraseQuery]:
        """Draw queries of a sample, positive ones first."""
        s = self.settings
        positive = [q for q in sample.queries if q.objects]
        negative = [q for q in sample.queries if not q.objects]
        wanted = min(int(s.prompts * s.positive_share + rng.random()), len(positive))
        negatives = min(s.prompts - wanted, len(negative))
        positives = min(s.prompts - negatives, len(positive))
        chosen: list[PhraseQuery] = []
        for pool, count in ((positive, positives), (negative, negatives)):
            if count:
                weights = np.array([s.kind_weights.get(q.kind, 1.0) for q in pool]) + 1e-9
                picks = rng.choice(len(pool), count, replace=False, p=weights / weights.sum())
                chosen += [pool[int(k)] for k in picks]
        return chosen

    def _prompt(
        self, sample: TrainingSample, query: PhraseQuery, rng: np.random.Generator
    ) -> tuple[str, Tensor, list[int]]:
        """The phrase, exemplar boxes (K, 4) cxcywh in [0, 1], and their labels."""
        s, draw = self.settings, rng.random()
        # A box alone cannot tell which attribute is meant.
        box_only = draw < s.box_only and query.kind in ("name", "")
        with_text = s.box_only <= draw < s.box_only + s.text_and_box
        objects = _without_crowds(sample, query.objects)
        if not objects or not (box_only or with_text):
            return query.phrase, torch.zeros(0, 4), []
        count = int(rng.integers(1, min(s.max_boxes, len(objects)) + 1))
        chosen = [int(i) for i in rng.choice(objects, count, replace=False)]
        labels = [1] * count
        # An object that the query does not name may still be an instance, unless all are named.
        others = sorted(set(range(len(sample))) - set(query.objects)) if query.exhaustive else []
        others = _without_crowds(sample, others)
        if others and rng.random() < NEGATIVE_EXEMPLARS:
            chosen.append(int(rng.choice(others)))
            labels.append(0)
        corners = cxcywh_to_xyxy(sample.boxes_in_unit()[chosen])
        noise = torch.from_numpy(rng.normal(size=tuple(corners.shape)).astype(np.float32))
        moved = jitter_boxes(corners, noise, s.box_noise, s.box_noise_limit)
        boxes = box_convert(moved, "xyxy", "cxcywh")
        return (VISUAL if box_only else query.phrase), boxes, labels

    def _targets(
        self, samples: Sequence[TrainingSample], prompts: Sequence[tuple[int, PhraseQuery]]
    ) -> Targets:
        """The objects of each prompt; each mask is resized once, however many prompts name it."""
        cells, most = 4 * self.config.grid, self.settings.max_objects
        boxes = [s.boxes_in_unit() for s in samples]
        named = [_without_crowds(samples[i], q.objects)[:most] for i, q in prompts]
        size = max(map(len, named), default=0)
        targets = torch.zeros(len(prompts), size, 4)
        valid = torch.zeros(len(prompts), size, dtype=torch.bool)
        exhaustive = torch.ones(len(prompts), dtype=torch.bool)
        for row, ((i, query), objects) in enumerate(zip(prompts, named, strict=True)):
            targets[row, : len(objects)] = boxes[i][objects]
            valid[row, : len(objects)] = True
            exhaustive[row] = query.exhaustive and len(objects) == len(query.objects)
        masks = None
        if all(s.masks is not None for s in samples):
            masks = torch.zeros(len(prompts), size, cells, cells, dtype=torch.float16)
            for i, sample in enumerate(samples):
                rows = [row for row, (image, _) in enumerate(prompts) if image == i]
                used = tuple(sorted({o for row in rows for o in named[row]}))
                maps = dict(zip(used, sample.masks_at(cells, used).half(), strict=True))
                for row in rows:
                    for place, index in enumerate(named[row]):
                        masks[row, place] = maps[index]
        return Targets(targets, valid, masks, exhaustive)


def _without_crowds(sample: TrainingSample, objects: Sequence[int]) -> list[int]:
    """Objects without regions of several instances, which are neither targets nor exemplars."""
    return [o for o in objects if sample.crowd is None or not sample.crowd[o]]
