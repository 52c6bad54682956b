"""One training step of the whole detector: a batch of prompted images -> losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.detector import Answer, Detector, ImageFeatures
from ..nn.geometry import Exemplars
from ..nn.layers import inverse_sigmoid, layer_norm
from .losses import (
    LossWeights,
    box_losses,
    dice_loss,
    focal_loss,
    label_loss,
    mask_losses,
    presence_loss,
)
from .matcher import HungarianMatcher, Matches, OneToManyMatcher, Targets

Add = Callable[[str, Tensor, float], None]
"""Takes a term: its name, its value and its weight in the sum."""


class GroundingBatch(NamedTuple):
    """B images with P prompts.

    pixels: (B, 3, R, R) normalised. tokens: (P, L) of the phrases. images: (P,), the image
    of each prompt. targets: of P prompts, masks at the mask head's resolution.
    exemplars: of P prompts, or None.
    """

    pixels: Tensor
    tokens: Tensor
    images: Tensor
    targets: Targets
    exemplars: Exemplars | None = None


@dataclass(frozen=True)
class GroundingLoss:
    """How a detector is taught to ground: what is asked of its answers.

    Args:
        weights: of the terms. matcher, many: one to one, one to many.
        noise: of denoising boxes, in halves of their sides. groups: noised copies a box.
        most_masks: objects of a prompt whose masks are compared, at random; bounds memory.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    matcher: HungarianMatcher = field(default_factory=HungarianMatcher)
    many: OneToManyMatcher = field(default_factory=OneToManyMatcher)
    noise: float = 0.4
    groups: int = 2
    most_masks: int = 16

    def __call__(self, net: Detector, batch: GroundingBatch) -> dict[str, Tensor]:
        """All terms, unweighted, and their weighted sum as "loss"."""
        w, targets = self.weights, batch.targets
        image = net.read_image(batch.pixels)
        words = net.read_text(batch.tokens)
        shown = image.take(batch.images)
        prompt, mask = net.read_prompt(shown, words, batch.exemplars)
        alone, split = self._further_queries(net, targets)
        answer = net.answer(shown, prompt, mask, alone)

        count = targets.valid.sum().clamp(min=1).float()
        terms: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}

        def add(name: str, value: Tensor, weight: float) -> None:
            terms[name] = terms.get(name, 0) + value.detach()
            sums[name] = sums.get(name, 0) + weight * value

        depth, total = len(answer.layers), answer.layers[0].queries.shape[1]
        queries = torch.cat([layer.queries for layer in answer.layers], 1)
        logits = net.part("scoring")(queries, prompt, mask).unflatten(1, (depth, total))
        matches: Matches | None = None
        for i, layer in enumerate(answer.layers):
            scores = logits[:, i].split(split, 1)
            boxes = layer.boxes.float().split(split, 1)
            last = i == depth - 1
            suffix = "" if last else "_aux"
            matches = self.matcher(scores[0], boxes[0], targets)
            self._detect(add, suffix, 1.0, scores[0], boxes[0], targets, matches, count)
            add(f"presence{suffix}", presence_loss(layer.presence, targets), w.presence)
            if split[1]:
                many = self.many(scores[1], boxes[1], targets)
                self._detect(add, "_many", w.one_to_many, scores[1], boxes[1], targets, many, count)
            if split[2]:
                noised = self._denoised(targets)
                self._detect(
                    add,
                    "_noised",
                    w.denoising,
                    scores[2],
                    boxes[2],
                    targets,
                    noised,
                    count * self.groups,
                )
        if targets.masks is not None and "masks" in net._modules and matches is not None:
            focal, dice = self._masks(net, image, answer, batch, matches, count)
            add("mask", focal, w.mask)
            add("dice", dice, w.dice)
        if targets.masks is not None and (w.dense or w.align):
            self._dense(add, net, targets.masks, shown, words, answer, batch)
        terms["loss"] = torch.stack(list(sums.values())).sum()
        return terms

    # Queries beside those that are learned ----------------------------------------------

    def _further_queries(
        self, net: Detector, targets: Targets
    ) -> tuple[tuple[Tensor, Tensor] | None, list[int]]:
        """One-to-many and noised queries, and how many queries there are of each kind."""
        decoder = net.part("decoder")
        learned = decoder.query_embed.weight
        q, rows = learned.shape[0], targets.boxes.shape[0]
        parts: list[tuple[Tensor, Tensor]] = []
        split = [q, 0, 0]
        if self.weights.one_to_many:
            parts.append((learned.expand(rows, -1, -1), decoder.references().expand(rows, -1, -1)))
            split[1] = q
        if self.weights.denoising and targets.boxes.shape[1]:
            boxes = self._noised(targets)
            split[2] = boxes.shape[1]
            # Any query may be asked to mend a box: contents are drawn from the learned ones.
            drawn = torch.randint(q, boxes.shape[:2], device=boxes.device)
            parts.append((learned[drawn], boxes))
        if not parts:
            return None, split
        content = torch.cat([p[0].float() for p in parts], 1)
        return (content, torch.cat([p[1] for p in parts], 1)), split

    def _noised(self, targets: Targets) -> Tensor:
        """(B, groups * T, 4): boxes moved and resized, by up to ``noise`` of their sides."""
        boxes = targets.boxes.float().repeat(1, self.groups, 1)
        shift = torch.rand_like(boxes) * 2 - 1
        size = boxes[..., 2:]
        moved = boxes[..., :2] + shift[..., :2] * size / 2 * self.noise * 2
        scaled = size * (1 + shift[..., 2:] * self.noise)
        return torch.cat([moved, scaled], -1).clamp(0.002, 0.998)

    def _denoised(self, targets: Targets) -> Matches:
        rows, objects = targets.valid.nonzero().unbind(1)
        size = targets.valid.shape[1]
        steps = [objects + g * size for g in range(self.groups)]
        return Matches(rows.repeat(self.groups), torch.cat(steps), objects.repeat(self.groups))

    # Terms -------------------------------------------------------------------------------

    def _detect(
        self,
        add: Add,
        suffix: str,
        weight: float,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        matches: Matches,
        count: Tensor,
    ) -> None:
        w = self.weights
        labels = label_loss(logits, boxes, targets, matches, w)
        add(f"label{suffix}", labels, weight * w.label)
        l1, giou = box_losses(boxes, targets, matches, count)
        add(f"box{suffix}", l1, weight * w.box)
        add(f"giou{suffix}", giou, weight * w.giou)

    def _masks(
        self,
        net: Detector,
        image: ImageFeatures,
        answer: Answer,
        batch: GroundingBatch,
        matches: Matches,
        count: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Masks of matched queries only, of prompts that have any."""
        masks = batch.targets.masks
        assert masks is not None  # noqa: S101 - for the type checker
        rows, first = matches.rows.unique(return_inverse=True)
        if not len(rows):
            nothing = answer.memory.sum() * 0
            return nothing, nothing
        # Matches are sorted by row: the place of each among those of its row.
        number = torch.arange(len(first), device=first.device)
        starts = torch.searchsorted(first, torch.arange(len(rows), device=first.device))
        place = number - starts[first]
        kept = place < self.most_masks
        first, place = first[kept], place[kept]
        chosen, objects = matches.queries[kept], matches.objects[kept]
        table = chosen.new_zeros(len(rows), int(place.max()) + 1)
        table[first, place] = chosen
        queries = answer.queries[rows[:, None], table]
        finer = net._mask_features(image.map)
        logits = net.part("masks").read_rows(
            answer.memory[rows],
            image.grid,
            answer.prompt[rows],
            answer.mask[rows],
            queries,
            finer,
            batch.images[rows],
        )[first, place]
        wanted = masks[rows[first], objects]
        return mask_losses(logits, wanted, count * kept.float().mean())

    def _dense(
        self,
        add: Add,
        net: Detector,
        masks: Tensor,
        shown: ImageFeatures,
        words: tuple[Tensor, Tensor],
        answer: Answer,
        batch: GroundingBatch,
    ) -> None:
        """Each token says whether it lies on the concept, and which box it is in."""
        w, targets = self.weights, batch.targets
        grid = shown.grid
        masks = masks.float() * targets.valid[..., None, None]
        share = F.adaptive_avg_pool2d(masks, grid).flatten(2)  # (P, T, N)
        inside = share.amax(1).clamp(0, 1)
        sure = (targets.exhaustive | targets.present).float()[:, None]
        scoring, decoder = net.part("scoring"), net.part("decoder")

        def tell(name: str, tokens: Tensor, prompt: Tensor, mask: Tensor, weight: float) -> None:
            logits = scoring(tokens, prompt, mask)
            focal = (focal_loss(logits, inside, 0.5, 1.0) * sure).mean()
            add(f"{name}_focal", focal, 10 * weight)
            here = targets.present
            dice = dice_loss(logits[here], inside[here]).sum() / here.sum().clamp(min=1)
            add(f"{name}_dice", dice, weight)

        if w.align:
            plain = F.layer_norm(shown.tokens, shown.tokens.shape[-1:])
            tell("align", plain, words[0], words[1], w.align)
        if not w.dense:
            return
        fused = layer_norm(decoder.norm, answer.memory)
        tell("dense", fused, answer.prompt, answer.mask, w.dense)
        row, token = (inside > 0.5).nonzero().unbind(1)
        if not len(row):
            return
        objects = share[row, :, token].argmax(1)
        start = torch.full((len(row), 4), 0.15, device=fused.device)
        start[:, 0] = (token % grid[1] + 0.5) / grid[1]
        start[:, 1] = (token // grid[1] + 0.5) / grid[0]
        drawn = (decoder.bbox_embed(fused[row, token]) + inverse_sigmoid(start)).sigmoid()
        index = torch.arange(len(row), device=row.device)
        wanted = targets._replace(boxes=targets.boxes[row, objects][:, None])
        matches = Matches(index, torch.zeros_like(index), torch.zeros_like(index))
        l1, giou = box_losses(
            drawn[:, None].float(), wanted, matches, torch.tensor(float(len(row)))
        )
        add("dense_box", l1, w.dense * w.box)
        add("dense_giou", giou, w.dense * w.giou)
