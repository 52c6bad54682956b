"""One training step of the whole detector: a batch of prompted images -> losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..nn.detector import Answer, Detector, ImageFeatures
from ..nn.geometry import Exemplars
from ..nn.masks import within
from .dense import DenseLoss
from .feature_distillation import FeatureDistillation
from .losses import (
    LossWeights,
    Terms,
    box_losses,
    count_objects,
    label_loss,
    mask_losses,
    presence_loss,
)
from .matcher import HungarianMatcher, Matches, OneToManyMatcher, Targets
from .naming import Naming, compare, naming_losses
from .settings import SettingsError


class GroundingBatch(NamedTuple):
    """B images with P prompts.

    pixels: (B, 3, R, R) normalised. tokens: (P, L) of the phrases. images: (P,), the image
    of each prompt. targets: of P prompts, masks at the mask head's resolution.
    exemplars: of P prompts, or None. named: (P,) bool, whether the phrase says what is meant;
    None: all do. naming: names of what the images show, where they are learned along.
    """

    pixels: Tensor
    tokens: Tensor
    images: Tensor
    targets: Targets
    exemplars: Exemplars | None = None
    named: Tensor | None = None
    naming: Naming | None = None


class Queries(NamedTuple):
    """How many queries of each kind a decoder layer answers, in this order."""

    learned: int
    many: int = 0
    noised: int = 0


class Group(NamedTuple):
    """Queries of one kind and what they say: logits (P, Q), boxes (P, Q, 4).

    name: ending of their terms; weight: of those. total: what sums over objects are divided
    by. counted: as in ``label_loss``.
    """

    name: str
    logits: Tensor
    boxes: Tensor
    weight: float
    total: Tensor
    counted: Tensor | None = None


@dataclass(frozen=True)
class GroundingLoss:
    """How a detector is taught to ground: what is asked of its answers.

    Args:
        weights: of the terms. matcher, many: one to one, one to many.
        many_on_aux: one-to-many terms of every decoder layer, not of the last one alone (SAM3:
            the last).
        noise: of its sides, by how much a denoising box is moved and resized at most.
        groups: noised copies of each box.
        most_masks: objects of a prompt whose masks are compared, at random, and as many of its
            noised ones; bounds memory.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    matcher: HungarianMatcher = field(default_factory=HungarianMatcher)
    many: OneToManyMatcher = field(default_factory=OneToManyMatcher)
    many_on_aux: bool = False
    noise: float = 0.4
    groups: int = 2
    most_masks: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.noise < 1:
            raise SettingsError(
                f"noise is {self.noise!r}; it is from 0 to below 1, else boxes have no sides"
            )
        for name in ("groups", "most_masks"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)!r}; it is at least 1")

    def __call__(
        self, net: Detector, batch: GroundingBatch, teacher: FeatureDistillation | None = None
    ) -> dict[str, Tensor]:
        """All terms, unweighted, and their weighted sum as "loss"."""
        w, targets, terms = self.weights, batch.targets, Terms()
        image = net.read_image(batch.pixels)
        words = net.read_text(batch.tokens)
        shown = image.take(batch.images)
        prompt, mask = net.read_prompt(shown, words, batch.exemplars)
        alone, kinds = self._further_queries(net, targets)
        answer = net.answer(shown, prompt, mask, alone)
        count = count_objects(targets)
        matches = self._layers(terms, net, answer, kinds, targets, count)
        if targets.masks is not None:
            if net.has("masks") and (w.mask or w.dice):
                self._masks(terms, net, image, answer, batch, kinds, matches, count)
            if w.dense or w.align:
                dense = DenseLoss(w, targets, shown.grid)
                if w.align:
                    everyone = torch.ones_like(targets.exhaustive)
                    named = everyone if batch.named is None else batch.named
                    dense.align(terms, net, shown, words, named)
                if w.dense:
                    dense.fused(terms, net, answer)
        if w.names and batch.naming is not None:
            logits = compare(net, image.tokens, batch.naming.tokens)
            terms.add("names", naming_losses(logits, batch.naming)["loss"], w.names)
        if teacher is not None:
            terms.add("features", teacher(net, image, batch.pixels), w.features)
        return terms.all()

    def _layers(
        self,
        terms: Terms,
        net: Detector,
        answer: Answer,
        kinds: Queries,
        targets: Targets,
        count: Tensor,
    ) -> Matches:
        """Terms of what each decoder layer says; the matches of the last one."""
        w, depth = self.weights, len(answer.layers)
        queries = torch.cat([layer.queries for layer in answer.layers], 1)
        logits = net.part("scoring")(queries, answer.prompt, answer.mask)
        logits = logits.unflatten(1, (depth, sum(kinds)))
        real = targets.valid.repeat(1, self.groups)
        matches: list[Matches] = []
        for i, layer in enumerate(answer.layers):
            last = i == depth - 1
            suffix = "" if last else "_aux"
            scores = logits[:, i].split(list(kinds), 1)
            boxes = layer.boxes.float().split(list(kinds), 1)

            matches.append(self.matcher(scores[0], boxes[0], targets))
            said = Group(suffix, scores[0], boxes[0], 1.0, count)
            self._detect(terms, said, targets, matches[-1])
            terms.add(f"presence{suffix}", presence_loss(layer.presence, targets), w.presence)
            if kinds.many and (last or self.many_on_aux):
                many = self.many(scores[1], boxes[1], targets)
                said = Group("_many", scores[1], boxes[1], w.one_to_many, count)
                self._detect(terms, said, targets, many)
            if kinds.noised:
                total = count * self.groups
                said = Group("_noised", scores[2], boxes[2], w.denoising, total, real)
                self._detect(terms, said, targets, self._denoised(targets))
        return matches[-1]

    def _detect(self, terms: Terms, said: Group, targets: Targets, matches: Matches) -> None:
        """Labels and boxes of one group of queries."""
        w, name, total = self.weights, said.name, said.total
        label = label_loss(said.logits, said.boxes, targets, matches, w, said.counted)
        l1, giou = box_losses(said.boxes, targets, matches, total)
        terms.add(f"label{name}", label, said.weight * w.label)
        terms.add(f"box{name}", l1, said.weight * w.box)
        terms.add(f"giou{name}", giou, said.weight * w.giou)

    # Queries beside those that are learned ----------------------------------------------

    def _further_queries(
        self, net: Detector, targets: Targets
    ) -> tuple[tuple[Tensor, Tensor] | None, Queries]:
        """One-to-many and noised queries with their boxes, and how many there are."""
        decoder = net.part("decoder")
        learned = decoder.query_embed.weight
        q, rows = learned.shape[0], targets.boxes.shape[0]
        parts: list[tuple[Tensor, Tensor]] = []
        kinds = Queries(q)
        if self.weights.one_to_many:
            parts.append((learned.expand(rows, -1, -1), decoder.references().expand(rows, -1, -1)))
            kinds = kinds._replace(many=q)
        if self.weights.denoising and targets.boxes.shape[1]:
            boxes = self._noised(targets)
            # Any query may be asked to mend a box: contents are drawn from the learned ones.
            drawn = torch.randint(q, boxes.shape[:2], device=boxes.device)
            parts.append((learned[drawn], boxes))
            kinds = kinds._replace(noised=boxes.shape[1])
        if not parts:
            return None, kinds
        content = torch.cat([p[0].float() for p in parts], 1)
        return (content, torch.cat([p[1] for p in parts], 1)), kinds

    def _noised(self, targets: Targets) -> Tensor:
        """(P, groups * T, 4): boxes moved and resized."""
        boxes = targets.boxes.float().repeat(1, self.groups, 1)
        shift = (torch.rand_like(boxes) * 2 - 1) * self.noise
        size = boxes[..., 2:]
        moved = boxes[..., :2] + shift[..., :2] * size
        scaled = size * (1 + shift[..., 2:])
        return torch.cat([moved, scaled], -1).clamp(0.002, 0.998)

    def _denoised(self, targets: Targets) -> Matches:
        """Each noised box belongs to the object that it was made of."""
        rows, objects = targets.valid.nonzero().unbind(1)
        size = targets.valid.shape[1]
        steps = [objects + g * size for g in range(self.groups)]
        return Matches(rows.repeat(self.groups), torch.cat(steps), objects.repeat(self.groups))

    # Masks -------------------------------------------------------------------------------

    def _masks(
        self,
        terms: Terms,
        net: Detector,
        image: ImageFeatures,
        answer: Answer,
        batch: GroundingBatch,
        kinds: Queries,
        matches: Matches,
        count: Tensor,
    ) -> None:
        """Masks of matched queries and of noised ones, of prompts that have any."""
        w, masks = self.weights, batch.targets.masks
        assert masks is not None  # noqa: S101 - for the type checker
        groups = [("", 1.0, matches)]
        if kinds.noised:
            # A query that was told where its object is learns to draw it before others do. Once
            # each: what more copies add is little.
            rows, objects = batch.targets.valid.nonzero().unbind(1)
            told = Matches(rows, objects + kinds.learned + kinds.many, objects)
            groups.append(("_noised", w.denoising, told))
        asked = Matches(*(torch.cat(parts) for parts in zip(*(g[2] for g in groups), strict=True)))
        if not len(asked.rows):
            nothing = answer.memory.sum() * 0
            for name, weight, _ in groups:
                terms.add(f"mask{name}", nothing, weight * w.mask)
                terms.add(f"dice{name}", nothing, weight * w.dice)
            return
        chosen, place = pick(asked, len(groups) * self.most_masks)
        rows, first = chosen.rows.unique(return_inverse=True)
        table = first.new_zeros(len(rows), int(place.max()) + 1)
        table[first, place] = chosen.queries
        head = net.part("masks")
        logits = head.read_rows(
            answer.memory[rows],
            image.grid,
            answer.prompt[rows],
            answer.mask[rows],
            answer.queries[rows[:, None], table],
            net.mask_features(image),
            batch.images[rows],
        )[first, place]
        if head.boxed:  # what other objects are is left to their boxes
            logits = within(logits, batch.targets.boxes[chosen.rows, chosen.objects])
        learned = chosen.queries < kinds.learned
        for name, weight, group in groups:
            mine = learned if group is matches else ~learned
            share = mine.sum() / max(1, len(group.rows))
            true = masks[chosen.rows[mine], chosen.objects[mine]]
            focal, dice = mask_losses(logits[mine], true, count * share.clamp(min=1e-6))
            terms.add(f"mask{name}", focal, weight * w.mask)
            terms.add(f"dice{name}", dice, weight * w.dice)


def pick(matches: Matches, most: int) -> tuple[Matches, Tensor]:
    """At most so many matches of each row, at random; and the place of each in its row.

    Returns: M matches by row, and (M,) places, each row's from 0.
    """
    keys = matches.rows + torch.rand(len(matches.rows), device=matches.rows.device).double()
    order = keys.argsort()
    rows = matches.rows[order]
    place = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
    kept = place < most
    order = order[kept]
    chosen = Matches(rows[kept], matches.queries[order], matches.objects[order])
    return chosen, place[kept]
