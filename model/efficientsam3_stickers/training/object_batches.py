"""Batches for late fusion: all objects of scenes, and phrases and exemplars about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from efficientsam3.config import ModelConfig
from efficientsam3.io.images import normalize
from efficientsam3.nn.geometry import Exemplars
from efficientsam3.segmenter import VISUAL
from efficientsam3.train.errors import SettingsError
from efficientsam3.train.prompts import BOX_NOISE, BOX_NOISE_LIMIT, jitter_boxes, pad_exemplars
from efficientsam3.train.settings import check
from efficientsam3.values import is_share

from ..queries import Query
from ..scenes import Scene, SceneGenerator

LAG = 64
"""Batches between two uses of a scene."""
BEFORE_FIRST = 1 << 40
"""Seed from which scenes before the first one count."""
FLIP = np.array([-1, 1, -1, 1], np.float32)


class ObjectBatch(NamedTuple):
    """B scenes with up to T objects each, and P prompts about them.

    Attributes:
        pixels: (B, 3, R, R) float32, normalized.
        boxes: (B, T, 4) cxcywh in [0, 1].
        valid: (B, T) bool, False for padding, which comes last.
        masks: (B, T, 4 * grid, 4 * grid) uint8, the covered share of each cell times 255.
        shares: (B, T, grid * grid) float32, the covered share of each token's cell.
        concepts: (B, T) int64, the number of each object's concept; -1 for padding.
        styles: (B, T) int64, the number of each object's style.
        phrases: The phrase of each prompt.
        images: (P,) int64, the image of each prompt.
        meant: (P, T) bool, the objects that each prompt means.
        exemplars: Exemplars of the prompts, or None if no prompt has any.
    """

    pixels: Tensor
    boxes: Tensor
    valid: Tensor
    masks: Tensor
    shares: Tensor
    concepts: Tensor
    styles: Tensor
    phrases: tuple[str, ...]
    images: Tensor
    meant: Tensor
    exemplars: Exemplars | None


@dataclass(frozen=True)
class PromptShares:
    """How the prompts of a scene are drawn.

    Attributes:
        prompts: Prompts of a scene, at most.
        box_only: Share of the positive prompts that have boxes and no phrase.
        text_and_box: Share of the positive prompts that have a phrase and boxes.
        negative_box: Share of the prompts with a phrase or boxes to which a negative box is added,
            where the scene shows something else.
        most_boxes: Positive boxes of a prompt, at most.
        most_objects: Objects of a scene, at most; others are neither targets nor errors.

    Raises:
        SettingsError: a value is outside its range.
    """

    prompts: int = 6
    box_only: float = 0.2
    text_and_box: float = 0.1
    negative_box: float = 0.15
    most_boxes: int = 3
    most_objects: int = 20

    def __post_init__(self) -> None:
        for name in ("prompts", "most_boxes", "most_objects"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("box_only", "text_and_box", "negative_box"):
            check(self, name, is_share(getattr(self, name)), "from 0 to 1")


class ObjectBatches:
    """Makes batches by number. It can be pickled for workers.

    Args:
        config: Configuration of the model.
        generators: Generators of scenes, which take turns.
        size: Scenes of a batch.
        names: Names of all concepts, in the order of their numbers.
        shares: How prompts are drawn.
        first_seed: Seed of scene 0.
        uses: How often each scene is used, every other time mirrored, with new prompts. It divides
            ``size``. Making a scene takes a fifth of the time of learning from it.
    """

    def __init__(
        self,
        config: ModelConfig,
        generators: Sequence[SceneGenerator],
        size: int,
        names: Sequence[str],
        shares: PromptShares | None = None,
        first_seed: int = 0,
        uses: int = 1,
    ) -> None:
        if size % uses:
            raise SettingsError(f"uses is {uses!r}; it must divide the {size} scenes of a batch")
        self.uses = uses
        self._kept: dict[int, list[Scene]] = {}
        self.config, self.generators, self.size = config, tuple(generators), size
        self.number = {name: i for i, name in enumerate(names)}
        self.shares = shares or PromptShares()
        self.first_seed = first_seed

    def __call__(self, number: int, rng: np.random.Generator) -> ObjectBatch:
        """A batch.

        Args:
            number: Its number, from 0.
            rng: Source of random numbers.
        """
        scenes: list[Scene] = []
        for use in range(self.uses):
            new = self._new_scenes(number - use * LAG)
            scenes += [mirror(scene) for scene in new] if use % 2 else new
        return self.collate(scenes, rng)

    def _new_scenes(self, number: int) -> list[Scene]:
        """The scenes that a batch uses first; those of recent batches are kept in memory."""
        if number not in self._kept:
            made = []
            each = self.size // self.uses
            for i in range(number * each, (number + 1) * each):
                turn, which = divmod(i, len(self.generators))
                seed = self.first_seed + turn if turn >= 0 else BEFORE_FIRST - turn
                made.append(self.generators[which].scene(seed))
            self._kept[number] = made
            for old in [n for n in self._kept if n <= number - self.uses * LAG]:
                del self._kept[old]
        return self._kept[number]

    def collate(self, scenes: Sequence[Scene], rng: np.random.Generator) -> ObjectBatch:
        """A batch of given scenes.

        Args:
            scenes: The scenes.
            rng: Source of random numbers.
        """
        c, s = self.config, self.shares
        count = max(1, min(s.most_objects, max(len(scene.objects) for scene in scenes)))
        size, cells = len(scenes), 4 * c.grid
        styles = self.generators[0].split.styles
        boxes = torch.zeros(size, count, 4)
        valid = torch.zeros(size, count, dtype=torch.bool)
        masks = torch.zeros(size, count, cells, cells, dtype=torch.uint8)
        concepts = torch.full((size, count), -1)
        kinds = torch.zeros(size, count, dtype=torch.long)
        prompts: list[tuple[int, str, list[int], list[tuple[int, int]]]] = []
        for row, scene in enumerate(scenes):
            height, width = scene.image.shape[:2]
            unit = np.array([width, height, width, height], np.float32)
            chosen = list(range(len(scene.objects)))
            if len(chosen) > count:
                chosen = sorted(rng.permutation(len(scene.objects))[:count].tolist())
            place = {index: i for i, index in enumerate(chosen)}
            for index, i in place.items():
                found = scene.objects[index]
                corners = torch.from_numpy(np.asarray(found.box / unit, np.float32))
                boxes[row, i, :2] = (corners[:2] + corners[2:]) / 2
                boxes[row, i, 2:] = corners[2:] - corners[:2]
                masks[row, i] = shrink(found.mask, cells)
                concepts[row, i] = self.number.get(found.concept.name, -1)
                kinds[row, i] = styles.index(found.style)
            valid[row, : len(place)] = True
            for query in self._choose(scene.queries, place, rng):
                here = [place[o] for o in query.objects]
                phrase, shown = self._prompt(query, here, len(place), rng)
                prompts.append((row, phrase, here, shown))
        pixels = torch.cat(
            [
                normalize(
                    torch.from_numpy(np.ascontiguousarray(s.image)).permute(2, 0, 1),
                    c.resolution,
                    c.mean,
                    c.std,
                )
                for s in scenes
            ]
        )
        shares = masks.float().div_(255).unflatten(2, (c.grid, 4)).unflatten(4, (c.grid, 4))
        meant = torch.zeros(len(prompts), count, dtype=torch.bool)
        given: list[Tensor] = []
        labels: list[list[int]] = []
        for p, (row, _, here, shown) in enumerate(prompts):
            meant[p, here] = True
            which = [i for i, _ in shown]
            given.append(_noised(boxes[row, which], rng) if which else torch.zeros(0, 4))
            labels.append([label for _, label in shown])
        return ObjectBatch(
            pixels,
            boxes,
            valid,
            masks,
            shares.mean((3, 5)).flatten(2),
            concepts,
            kinds,
            tuple(phrase for _, phrase, _, _ in prompts),
            torch.tensor([row for row, _, _, _ in prompts], dtype=torch.long),
            meant,
            pad_exemplars(given, labels) if any(labels) else None,
        )

    def _choose(
        self, queries: Sequence[Query], place: dict[int, int], rng: np.random.Generator
    ) -> list[Query]:
        """Queries of a scene, half of them of absent things where there are enough."""
        known = [q for q in queries if all(o in place for o in q.objects)]
        positive = [q for q in known if q.objects]
        negative = [q for q in known if not q.objects]
        most = self.shares.prompts
        absent = min(len(negative), max(most // 2, most - len(positive)))
        there = min(len(positive), most - absent)
        return [positive[i] for i in rng.permutation(len(positive))[:there]] + [
            negative[i] for i in rng.permutation(len(negative))[:absent]
        ]

    def _prompt(
        self, query: Query, here: list[int], count: int, rng: np.random.Generator
    ) -> tuple[str, list[tuple[int, int]]]:
        """The phrase of a prompt, and its exemplars as (object, label)."""
        s, draw = self.shares, rng.random()
        phrase = query.phrase
        shown: list[tuple[int, int]] = []
        alone = query.kind in ("name", "synonym") and draw < s.box_only
        if here and (alone or s.box_only <= draw < s.box_only + s.text_and_box):
            most = int(rng.integers(1, min(s.most_boxes, len(here)) + 1))
            shown = [(here[i], 1) for i in rng.permutation(len(here))[:most]]
            phrase = VISUAL if alone else phrase
        others = sorted(set(range(count)) - set(here))
        if others and rng.random() < s.negative_box:
            shown.append((others[int(rng.integers(len(others)))], 0))
        return phrase, shown


def mirror(scene: Scene) -> Scene:
    """Exchange left and right of a scene. No phrase tells them apart.

    Args:
        scene: The scene.
    """
    width = scene.image.shape[1]
    objects = tuple(
        replace(o, mask=o.mask[:, ::-1], box=o.box[[2, 1, 0, 3]] * FLIP + [width, 0, width, 0])
        for o in scene.objects
    )
    return replace(scene, image=scene.image[:, ::-1], objects=objects)


def shrink(mask: np.ndarray, size: int) -> Tensor:
    """Average a mask over square cells: (size, size) uint8, the covered share times 255.

    Args:
        mask: (H, H) bool, with H a multiple of ``size``.
        size: Cells a side.
    """
    side = mask.shape[0] // size
    rows = mask.reshape(size, side, -1).sum(1, dtype=np.uint16)  # one axis at a time is faster
    counts = rows.reshape(size, size, side).sum(2, dtype=np.uint16)
    return torch.from_numpy((counts * (255 / side**2)).astype(np.uint8))


def _noised(boxes: Tensor, rng: np.random.Generator) -> Tensor:
    """Move the edges of boxes (N, 4) cxcywh a little, as of boxes that people draw."""
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    noise = torch.from_numpy(rng.normal(size=(len(boxes), 4)).astype(np.float32))
    moved = jitter_boxes(torch.cat([low, high], 1), noise, BOX_NOISE, BOX_NOISE_LIMIT)
    return torch.cat([(moved[:, :2] + moved[:, 2:]) / 2, moved[:, 2:] - moved[:, :2]], 1)
