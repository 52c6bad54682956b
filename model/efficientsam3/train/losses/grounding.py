"""The loss of the grounding task: a batch of prompted images, answered and compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...nn.detector import Detector
from ...nn.features import Answer, ImageFeatures
from ...nn.geometry import Exemplars
from ...nn.masks import within
from ..errors import SettingsError
from .common import LossTerms
from .detection import (
    LossWeights,
    box_losses,
    count_objects,
    label_loss,
    mask_losses,
    presence_loss,
)
from .matcher import HungarianMatcher, Matches, OneToManyMatcher, Targets


class GroundingBatch(NamedTuple):
    """B images with P prompts.

    Attributes:
        pixels: (B, 3, R, R) float32, normalized.
        tokens: (P, L) int64 tokens of the phrases.
        images: (P,) int64, the image of each prompt.
        targets: of the P prompts, with masks at the mask head's resolution.
        exemplars: of the P prompts, or None if no prompt has any.
        extra_targets: what the collator's ``extra_targets`` made of the samples, for an extra loss.
    """

    pixels: Tensor
    tokens: Tensor
    images: Tensor
    targets: Targets
    exemplars: Exemplars | None = None
    extra_targets: Any = None


class GroundingStep(NamedTuple):
    """What the detector computed for a batch; the input of extra losses.

    Attributes:
        batch: the batch.
        image: features of its B images.
        prompt_image: features of the image of each of P prompts.
        text: (P, L, C) text features of the prompts, and their (P, L) mask.
        answer: detections of the P prompts.
    """

    batch: GroundingBatch
    image: ImageFeatures
    prompt_image: ImageFeatures
    text: tuple[Tensor, Tensor]
    answer: Answer


class ExtraLoss(Protocol):
    """Further terms beside SAM3's."""

    def to(self, device: torch.device) -> Any:
        """Move what the loss holds to the device of training.

        Args:
            device: where the detector is trained.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values on which the terms depend; they are compared when a run continues."""
        ...

    def __call__(self, net: Detector, step: GroundingStep) -> Iterable[tuple[str, Tensor, float]]:
        """The terms as (name, scalar, weight)."""
        ...


class QueryCounts(NamedTuple):
    """Number of queries of each kind in a decoder layer, in this order.

    Attributes:
        learned: The model's own queries, matched one to one.
        one_to_many: Copies of them that are matched one to many.
        noised: Queries that start at noised boxes of the targets.
    """

    learned: int
    one_to_many: int = 0
    noised: int = 0


@dataclass(frozen=True)
class GroundingLoss:
    """All terms of the grounding task and their weighted sum.

    Attributes:
        weights: Weights of the terms.
        matcher: Matches the learned queries one to one.
        one_to_many_matcher: Matches the one-to-many queries.
        one_to_many_on_aux: Add the one-to-many terms of every decoder layer; SAM3 adds those of the
            last one alone.
        box_noise: By which part of its sides a denoising box is moved and resized at most, from 0
            to below 1 (DN-DETR).
        noise_groups: Noised copies of each box.
        max_masks: Objects of a prompt whose masks are compared, chosen at random, at most; and as
            many of its noised queries. It limits memory.
        extra: Further losses.

    Raises:
        SettingsError: a value is outside its range.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    matcher: HungarianMatcher = field(default_factory=HungarianMatcher)
    one_to_many_matcher: OneToManyMatcher = field(default_factory=OneToManyMatcher)
    one_to_many_on_aux: bool = False
    box_noise: float = 0.4
    noise_groups: int = 2
    max_masks: int = 16
    extra: tuple[ExtraLoss, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.box_noise < 1:
            raise SettingsError(
                f"box_noise is {self.box_noise!r}; it must be from 0 to below 1, so that noised "
                "boxes keep an area"
            )
        for name in ("noise_groups", "max_masks"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)!r}; it must be at least 1")

    def __call__(self, net: Detector, batch: GroundingBatch) -> dict[str, Tensor]:
        """Answer the prompts of a batch and compare the answers with the targets.

        Args:
            net: the detector that is trained.
            batch: on the detector's device.

        Returns:
            All terms, unweighted, and their weighted sum as "loss". Terms of decoder layers before
            the last end in "_aux", of one-to-many queries in "_many", of noised boxes in "_noised".
        """
        w, targets, terms = self.weights, batch.targets, LossTerms()
        image = net.read_image(batch.pixels)
        text = net.read_text(batch.tokens)
        prompt_image = image.take(batch.images)
        prompt, mask = net.read_prompt(prompt_image, text, batch.exemplars)
        queries, counts = self._extra_queries(net, targets)
        answer = net.answer(prompt_image, prompt, mask, queries)
        step = GroundingStep(batch, image, prompt_image, text, answer)
        objects = count_objects(targets)
        matches = self._detection_terms(terms, net, step, counts, objects)
        if targets.masks is not None and net.has("masks") and (w.mask or w.dice):
            self._mask_terms(terms, net, step, counts, matches, objects)
        for loss in self.extra:
            for name, value, weight in loss(net, step):
                terms.add(name, value, weight)
        return terms.total()

    def _detection_terms(
        self,
        terms: LossTerms,
        net: Detector,
        step: GroundingStep,
        counts: QueryCounts,
        objects: Tensor,
    ) -> Matches:
        """Add the terms of labels, boxes and presence; returns the matches of the last layer."""
        w, answer, targets = self.weights, step.answer, step.batch.targets
        queries = torch.cat([layer.queries for layer in answer.layers], 1)
        logits = net.part("scoring")(queries, answer.prompt, answer.mask)
        logits = logits.unflatten(1, (len(answer.layers), sum(counts)))
        groups = self.noise_groups
        for i, layer in enumerate(answer.layers):
            last = i == len(answer.layers) - 1
            suffix = "" if last else "_aux"
            scores = logits[:, i].split(list(counts), 1)
            boxes = layer.boxes.float().split(list(counts), 1)
            terms.add(f"presence{suffix}", presence_loss(layer.presence, targets), w.presence)
            matches = self.matcher(scores[0], boxes[0], targets)
            kinds: list[tuple[Any, ...]] = [(0, suffix, 1.0, matches, objects, None)]
            if counts.one_to_many and (last or self.one_to_many_on_aux):
                many = self.one_to_many_matcher(scores[1], boxes[1], targets)
                kinds.append((1, "_many", w.one_to_many, many, objects, None))
            if counts.noised:
                known, real = self._noised_matches(targets), targets.valid.repeat(1, groups)
                kinds.append((2, "_noised", w.denoising, known, objects * groups, real))
            for kind, name, factor, pairs, total, counted in kinds:
                label = label_loss(scores[kind], boxes[kind], targets, pairs, w, counted)
                l1, giou = box_losses(boxes[kind], targets, pairs, total)
                terms.add(f"label{name}", label, factor * w.label)
                terms.add(f"box{name}", l1, factor * w.box)
                terms.add(f"giou{name}", giou, factor * w.giou)
        return matches

    # Queries beside the learned ones ----------------------------------------------------

    def _extra_queries(
        self, net: Detector, targets: Targets
    ) -> tuple[tuple[Tensor, Tensor] | None, QueryCounts]:
        """Contents (P, Q, C) and boxes (P, Q, 4) of one-to-many and noised queries."""
        decoder = net.part("decoder")
        learned = decoder.query_embed.weight
        count, prompts = learned.shape[0], targets.boxes.shape[0]
        parts: list[tuple[Tensor, Tensor]] = []
        counts = QueryCounts(count)
        if self.weights.one_to_many:
            references = decoder.references().expand(prompts, -1, -1)
            parts.append((learned.expand(prompts, -1, -1), references))
            counts = counts._replace(one_to_many=count)
        if self.weights.denoising and targets.boxes.shape[1]:
            boxes = self._noised_boxes(targets)
            # Any query may have to correct a box, so contents are drawn from all of them.
            drawn = torch.randint(count, boxes.shape[:2], device=boxes.device)
            parts.append((learned[drawn], boxes))
            counts = counts._replace(noised=boxes.shape[1])
        if not parts:
            return None, counts
        content = torch.cat([p[0].float() for p in parts], 1)
        return (content, torch.cat([p[1] for p in parts], 1)), counts

    def _noised_boxes(self, targets: Targets) -> Tensor:
        """Moved and resized copies of the targets' boxes: (P, noise_groups * T, 4)."""
        boxes = targets.boxes.float().repeat(1, self.noise_groups, 1)
        noise = (torch.rand_like(boxes) * 2 - 1) * self.box_noise
        size = boxes[..., 2:]
        center = boxes[..., :2] + noise[..., :2] * size
        return torch.cat([center, size * (1 + noise[..., 2:])], -1).clamp(0.002, 0.998)

    def _noised_matches(self, targets: Targets) -> Matches:
        """Each noised box with the object of which it is a copy."""
        rows, objects = targets.valid.nonzero().unbind(1)
        size, groups = targets.valid.shape[1], self.noise_groups
        copies = torch.cat([objects + g * size for g in range(groups)])
        return Matches(rows.repeat(groups), copies, objects.repeat(groups))

    # Masks -------------------------------------------------------------------------------

    def _mask_terms(
        self,
        terms: LossTerms,
        net: Detector,
        step: GroundingStep,
        counts: QueryCounts,
        matches: Matches,
        objects: Tensor,
    ) -> None:
        """Add the terms of the masks of matched and noised queries."""
        batch, answer = step.batch, step.answer
        w, targets = self.weights, batch.targets
        groups = {"": (1.0, matches)}
        if counts.noised:
            # One noised query of each object: further copies add little.
            rows, indices = targets.valid.nonzero().unbind(1)
            first = Matches(rows, indices + counts.learned + counts.one_to_many, indices)
            groups["_noised"] = (w.denoising, first)
        pairs = zip(*(group for _, group in groups.values()), strict=True)
        wanted = Matches(*(torch.cat(parts) for parts in pairs))
        if not len(wanted.rows):
            zero = answer.memory.sum() * 0
            for name, (factor, _) in groups.items():
                terms.add(f"mask{name}", zero, factor * w.mask)
                terms.add(f"dice{name}", zero, factor * w.dice)
            return
        chosen, place = choose_matches(wanted, len(groups) * self.max_masks)
        logits = self._read_masks(net, step, chosen, place)
        learned = chosen.queries < counts.learned
        for name, (factor, group) in groups.items():
            mine = ~learned if name else learned
            share = mine.sum() / max(1, len(group.rows))
            true = targets.masks[chosen.rows[mine], chosen.objects[mine]]  # type: ignore[index]
            focal, dice = mask_losses(logits[mine], true, objects * share.clamp(min=1e-6))
            terms.add(f"mask{name}", focal, factor * w.mask)
            terms.add(f"dice{name}", dice, factor * w.dice)

    def _read_masks(
        self, net: Detector, step: GroundingStep, chosen: Matches, place: Tensor
    ) -> Tensor:
        """Mask logits (M, h, w) of chosen matches; prompts without a match are not computed."""
        prompts, row = chosen.rows.unique(return_inverse=True)
        table = row.new_zeros(len(prompts), int(place.max()) + 1)
        table[row, place] = chosen.queries
        images = step.batch.images[prompts]
        logits = read_masks(net, step.image, step.answer, prompts, table, images)[row, place]
        if net.part("masks").boxed:  # masks end at their boxes in use: nothing outside is compared
            logits = within(logits, step.batch.targets.boxes[chosen.rows, chosen.objects])
        return logits


def read_masks(
    net: Detector,
    image: ImageFeatures,
    answer: Answer,
    prompts: Tensor,
    queries: Tensor,
    images: Tensor,
) -> Tensor:
    """Compute the masks of some queries of some prompts.

    Args:
        net: with a mask head.
        image: features of B images.
        answer: detections of P prompts.
        prompts: (R,) int64, the prompts.
        queries: (R, K) int64, the queries of each prompt.
        images: (R,) int64, the image of each prompt.

    Returns:
        (R, K, h, w) logits, not cut to boxes.
    """
    logits: Tensor = net.part("masks").read_rows(
        answer.memory[prompts],
        image.grid,
        answer.prompt[prompts],
        answer.mask[prompts],
        answer.queries[prompts[:, None], queries],
        net.mask_features(image),
        images,
    )
    return logits


def choose_matches(matches: Matches, most: int) -> tuple[Matches, Tensor]:
    """Choose matches of each prompt at random.

    Args:
        matches: of all prompts.
        most: matches of a prompt, at most.

    Returns:
        M matches ordered by prompt; and (M,) the number of each within its prompt, from 0.
    """
    keys = matches.rows + torch.rand(len(matches.rows), device=matches.rows.device).double()
    order = keys.argsort()
    rows = matches.rows[order]
    place = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
    kept = place < most
    order = order[kept]
    return Matches(rows[kept], matches.queries[order], matches.objects[order]), place[kept]
