"""Samples -> a batch of prompts: which phrases are asked of an image, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..build import ModelConfig
from ..nn.geometry import Exemplars
from ..nn.tokenizer import tokenize
from .data.sample import PhraseQuery, TrainingSample
from .errors import DataError
from .grounding import GroundingBatch
from .matcher import Targets
from .naming import Vocabulary
from .settings import SettingsError

BY_EXAMPLE = "visual"
"""What SAM3's text encoder is told where the exemplars alone are the prompt."""
NEGATIVE_EXEMPLARS = 0.2
"""Share of prompts with boxes that get a negative one, if there is anything else to box."""
KNOWN_PHRASES = 1 << 16
"""Tokens of so many phrases are kept; data sets have millions."""


@dataclass(frozen=True)
class PromptSettings:
    """How prompts are drawn.

    Args:
        prompts: of an image. positive: share of them that are true of something, where an
            image has both kinds.
        text_and_box, box_only: shares of the positive text prompts that get boxes of their
            objects as well, or boxes instead of the phrase.
        most_boxes: positive exemplars of a prompt, at most; one negative may join them.
        jitter: standard deviation of what boxes are off, over their sides (SAM3: 0.1).
        most_jitter: pixels of a 1008-pixel image that they are off at most (SAM3: 20).
        most_objects: of a prompt; a crowd beyond is cut, and the prompt not exhaustive.
        kinds: how much likelier a query of a kind is drawn; others have 1.
    """

    prompts: int = 4
    positive: float = 0.5
    text_and_box: float = 0.1
    box_only: float = 0.15
    most_boxes: int = 3
    jitter: float = 0.1
    most_jitter: float = 20.0
    most_objects: int = 32
    kinds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("prompts", "most_boxes", "most_objects"):
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("positive", "text_and_box", "box_only"):
            _check(self, name, 0 <= getattr(self, name) <= 1, "a share, from 0 to 1")
        both = self.text_and_box + self.box_only <= 1
        _check(self, "text_and_box", both, f"with box_only {self.box_only} at most 1")
        for name in ("jitter", "most_jitter"):
            _check(self, name, getattr(self, name) >= 0, "0 or more")
        _check(self, "kinds", all(v >= 0 for v in self.kinds.values()), "factors of 0 or more")


def _check(settings: PromptSettings, name: str, good: bool, rule: str) -> None:
    if not good:
        raise SettingsError(f"{name} is {getattr(settings, name)!r}; it must be {rule}")


class Collator:
    """Makes a ``GroundingBatch`` of samples; the generator decides all that is random.

    Args:
        vocabulary: names that images are also labelled with, where they are learned along.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: PromptSettings | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.config, self.vocabulary = config, vocabulary
        self.settings = settings or PromptSettings()
        self._tokens: dict[str, Tensor] = {}

    def __call__(
        self, samples: Sequence[TrainingSample], rng: np.random.Generator
    ) -> GroundingBatch:
        c = self.config
        pixels = torch.cat([s.pixels(c.resolution, c.mean, c.std) for s in samples])
        asked = [(i, q) for i, s in enumerate(samples) for q in self._choose(s, rng)]
        if not asked:
            keys = ", ".join(s.key for s in samples[:3])
            raise DataError(
                f"nothing can be asked of a batch: its images ({keys}, ...) have no phrases; "
                "Stage 3 needs data with phrases, as SA-Co, COCO and LVIS have them"
            )
        texts, shown = [], []
        for i, query in asked:
            text, boxes, labels = self._prompt(samples[i], query, rng)
            texts.append(text)
            shown.append((boxes, labels))
        return GroundingBatch(
            pixels,
            self._tokenize(texts),
            torch.tensor([i for i, _ in asked]),
            self._targets(samples, asked),
            pack_boxes(shown) if any(len(labels) for _, labels in shown) else None,
            torch.tensor([text != BY_EXAMPLE for text in texts]),
            None if self.vocabulary is None else self.vocabulary(samples, rng),
        )

    def _choose(self, sample: TrainingSample, rng: np.random.Generator) -> list[PhraseQuery]:
        s = self.settings
        pools = (
            [q for q in sample.queries if q.objects],
            [q for q in sample.queries if not q.objects],
        )
        wanted = int(s.prompts * s.positive + rng.random())
        counts = [min(wanted, len(pools[0])), 0]
        counts[1] = min(s.prompts - counts[0], len(pools[1]))
        counts[0] = min(s.prompts - counts[1], len(pools[0]))
        chosen: list[PhraseQuery] = []
        for pool, count in zip(pools, counts, strict=True):
            if count:
                weights = np.array([s.kinds.get(q.kind, 1.0) for q in pool]) + 1e-9
                picks = rng.choice(len(pool), count, replace=False, p=weights / weights.sum())
                chosen += [pool[int(k)] for k in picks]
        return chosen

    def _prompt(
        self, sample: TrainingSample, query: PhraseQuery, rng: np.random.Generator
    ) -> tuple[str, Tensor, list[int]]:
        """The text, exemplar boxes (K, 4) cxcywh in [0, 1] and their labels."""
        s, draw = self.settings, rng.random()
        none = torch.zeros(0, 4)
        by_example = draw < s.box_only and query.kind in ("name", "")
        objects = _whole(sample, query.objects)
        if not objects or not (by_example or s.box_only <= draw < s.box_only + s.text_and_box):
            return query.phrase, none, []
        count = int(rng.integers(1, min(s.most_boxes, len(objects)) + 1))
        chosen = [int(i) for i in rng.choice(objects, count, replace=False)]
        labels = [1] * count
        # What is not named may still be an instance, unless all instances are.
        others = sorted(set(range(len(sample))) - set(query.objects)) if query.exhaustive else []
        others = _whole(sample, others)
        if others and rng.random() < NEGATIVE_EXEMPLARS:
            chosen.append(int(rng.choice(others)))
            labels.append(0)
        boxes = self._jitter(sample.boxes_in_unit()[chosen], rng)
        return (BY_EXAMPLE if by_example else query.phrase), boxes, labels

    def _jitter(self, boxes: Tensor, rng: np.random.Generator) -> Tensor:
        s = self.settings
        side = boxes[:, [2, 3, 2, 3]]
        noise = torch.from_numpy(rng.normal(0, s.jitter, tuple(boxes.shape)).astype(np.float32))
        most = s.most_jitter / 1008
        moved = boxes + (noise * side).clamp(-most, most)
        return torch.cat([moved[:, :2], moved[:, 2:].clamp(min=1e-3)], 1).clamp(0, 1)

    def _tokenize(self, texts: list[str]) -> Tensor:
        """(P, L), padded to the context: encoders attend to padding, as they were trained to."""
        if len(self._tokens) > KNOWN_PHRASES:
            self._tokens.clear()
        new = [t for t in dict.fromkeys(texts) if t not in self._tokens]
        if new:
            self._tokens.update(zip(new, tokenize(new, self.config.context), strict=True))
        return torch.stack([self._tokens[t] for t in texts])

    def _targets(
        self, samples: Sequence[TrainingSample], asked: Sequence[tuple[int, PhraseQuery]]
    ) -> Targets:
        cells = 4 * self.config.grid
        boxes = [s.boxes_in_unit() for s in samples]
        masked = all(s.masks is not None for s in samples)
        lists = [self._objects(samples[i], q) for i, q in asked]
        size = max((len(objects) for objects in lists), default=0)
        needed = [
            sorted({o for (j, _), ls in zip(asked, lists, strict=True) if j == i for o in ls})
            for i in range(len(samples))
        ]
        maps = [
            s.masks_at(cells, tuple(n)) if masked else None
            for s, n in zip(samples, needed, strict=True)
        ]
        out = torch.zeros(len(asked), size, 4)
        valid = torch.zeros(len(asked), size, dtype=torch.bool)
        masks = torch.zeros(len(asked), size, cells, cells, dtype=torch.float16) if masked else None
        whole = torch.ones(len(asked), dtype=torch.bool)
        for row, ((i, query), objects) in enumerate(zip(asked, lists, strict=True)):
            n = len(objects)
            out[row, :n] = boxes[i][objects]
            valid[row, :n] = True
            whole[row] = query.exhaustive and n == len(query.objects)
            found = maps[i]
            if masks is not None and found is not None and n:
                masks[row, :n] = found[[needed[i].index(o) for o in objects]].half()
        return Targets(out, valid, masks, whole)

    def _objects(self, sample: TrainingSample, query: PhraseQuery) -> list[int]:
        return _whole(sample, query.objects)[: self.settings.most_objects]


def _whole(sample: TrainingSample, objects: Sequence[int]) -> list[int]:
    """Without regions of many instances, which are neither targets nor exemplars."""
    return [o for o in objects if sample.crowd is None or not sample.crowd[o]]


def pack_boxes(shown: Sequence[tuple[Tensor, Sequence[int]]]) -> Exemplars:
    """Boxes (K, 4) and labels of each prompt, padded to the longest."""
    rows, size = len(shown), max(len(labels) for _, labels in shown)
    boxes = torch.zeros(rows, size, 4)
    boxes[..., 2:] = 0.1  # padding is masked, but it is still pooled
    labels = torch.zeros(rows, size, dtype=torch.long)
    valid = torch.zeros(rows, size, dtype=torch.bool)
    for row, (given, names) in enumerate(shown):
        n = len(names)
        if n:
            boxes[row, :n], valid[row, :n] = given, True
            labels[row, :n] = torch.tensor(list(names))
    none = torch.zeros(rows, 0)
    return Exemplars(torch.zeros(rows, 0, 2), none.long(), none.bool(), boxes, labels, valid)
