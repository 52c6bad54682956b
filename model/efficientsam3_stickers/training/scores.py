"""Scores learn from all objects of an image, when everything else of a model is trained.

A ``Rescorer`` reads a few numbers of each object and no image. The answers of a model are computed
once, and the rescorer learns from them in a minute.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from efficientsam3.errors import DataError
from efficientsam3.nn.late_detector import LateDetector
from efficientsam3.nn.late_objects import ObjectQueries
from efficientsam3.nn.late_scores import Rescorer, both

from .object_batches import ObjectBatch
from .object_loss import draw_pairs, iou_of_masks, read_exemplars
from .object_matching import Assignment, assign_all, match
from .phrase_table import PhraseTable

GOOD_IOU = 0.5
"""Mask IoU of an object that counts as found."""
SAME_IOU = 0.75
"""Queries whose boxes overlap a found object by more are not judged: suppression drops them."""


class Answers(NamedTuple):
    """What a model answers to P prompts, and what it should answer.

    Attributes:
        meant: (P, Q) logits of each object being meant.
        found: (P, Q) logits of each query being an object.
        presence: (P,) logits of presence.
        boxes: (P, Q, 4) cxcywh boxes of the queries.
        target: (P, Q) bool, queries that are an object that is meant.
        judged: (P, Q) bool, queries that are judged.
        present: (P,) bool, prompts whose concept the image shows.
    """

    meant: Tensor
    found: Tensor
    presence: Tensor
    boxes: Tensor
    target: Tensor
    judged: Tensor
    present: Tensor

    def take(self, rows: Tensor) -> Answers:
        """Select prompts.

        Args:
            rows: (N,) their indices.
        """
        return Answers(*(values[rows] for values in self))


@torch.no_grad()
def read_answers(net: LateDetector, batches: Iterable[ObjectBatch], table: PhraseTable) -> Answers:
    """The answers of a model to the prompts of batches.

    Args:
        net: The model, in evaluation mode.
        batches: Batches of scenes.
        table: Reads the phrases.

    Raises:
        DataError: No batch has a prompt.
    """
    parts = [_answer(net, batch, table) for batch in batches if batch.phrases]
    if not parts:
        raise DataError("scores cannot be learned: no scene has a prompt; pass more scenes")
    return Answers(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _answer(net: LateDetector, batch: ObjectBatch, table: PhraseTable) -> Answers:
    rows = batch.images
    image = net.encode_image(batch.pixels)
    objects = net.find_objects(image)
    matched = match(objects.logits, objects.boxes, batch)
    good = torch.zeros(0, dtype=torch.bool)
    if len(matched.images):
        drawn = draw_pairs(net, image, objects, matched) > 0
        true = batch.masks[matched.images, matched.objects] > 127
        good = iou_of_masks(drawn, true) > GOOD_IOU
    words, valid = table.read(net, batch.phrases)
    shown, keep = read_exemplars(net, image, batch)
    prompt, mask = torch.cat([words, shown], 1), torch.cat([valid, keep], 1)
    meant, presence = net.part("decoder")(objects.queries, prompt, mask, rows)
    target, judged = score_targets(objects, matched, good, batch)
    found, boxes = objects.logits[rows], objects.boxes[rows]
    return Answers(meant, found, presence, boxes, target, judged, batch.meant.any(1))


def score_targets(
    objects: ObjectQueries, matched: Assignment, good: Tensor, batch: ObjectBatch
) -> tuple[Tensor, Tensor]:
    """What the scores of queries should be.

    Args:
        objects: The queries of the images.
        matched: M pairs of queries and objects.
        good: (M,) bool, whether the mask of each is good.
        batch: The batch, with P prompts.

    Returns:
        (P, Q) bool, queries that are an object that is meant, and (P, Q) bool, queries that are
        judged.
    """
    shape = objects.logits.shape
    own = torch.full(shape, -1)
    own[matched.images[good], matched.queries[good]] = matched.objects[good]
    of_one = torch.zeros(shape, dtype=torch.bool)
    of_one[matched.images, matched.queries] = True
    twins = (assign_all(objects.boxes, matched, batch, SAME_IOU) >= 0) & ~of_one
    rows = batch.images
    target = batch.meant.gather(1, own[rows].clamp(min=0)) & (own[rows] >= 0)
    return target, ~twins[rows]


def score_loss(rescorer: Rescorer, answers: Answers) -> Tensor:
    """Cross-entropy of scores and of presence.

    The score of a query is the product of its probability and that of presence, as users get it.

    Args:
        rescorer: Corrects the logits.
        answers: The answers.
    """
    a = answers
    logits, presence = rescorer(a.meant, a.found, a.presence, a.boxes)
    score = both(logits, presence[:, None])
    entropy = F.binary_cross_entropy_with_logits(score, a.target.float(), reduction="none")
    shown = F.binary_cross_entropy_with_logits(presence, a.present.float())
    return (entropy * a.judged).sum(1).mean() + shown


def fit_rescorer(
    rescorer: Rescorer,
    answers: Answers,
    *,
    steps: int = 2500,
    size: int = 256,
    lr: float = 3e-3,
    seed: int = 0,
) -> tuple[float, float]:
    """Train a rescorer, in place.

    Args:
        rescorer: The rescorer.
        answers: What it learns from.
        steps: Number of steps.
        size: Prompts of a step.
        lr: Learning rate of the first step; it falls to 0.
        seed: Seed of the prompts that are drawn.

    Returns:
        The loss on all answers before and after.
    """
    before = _mean_loss(rescorer, answers, size)
    rescorer.requires_grad_(True)
    optimizer = torch.optim.AdamW(rescorer.parameters(), lr, weight_decay=1e-3)
    draw = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        rows = torch.randint(len(answers.present), (size,), generator=draw)
        loss = score_loss(rescorer, answers.take(rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rescorer.requires_grad_(False)
    return before, _mean_loss(rescorer, answers, size)


@torch.no_grad()
def _mean_loss(rescorer: Rescorer, answers: Answers, size: int) -> float:
    """The loss on all answers, of ``size`` prompts at a time, which bounds the memory."""
    count = len(answers.present)
    total = 0.0
    for rows in torch.arange(count).split(size):
        total += len(rows) * float(score_loss(rescorer, answers.take(rows)))
    return total / count
