"""Which query of late fusion is which object of a scene."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from efficientsam3.nn.layers import cxcywh_to_xyxy
from efficientsam3.train.losses.matcher import pairwise_iou

from .object_batches import ObjectBatch

DUPLICATE_IOU = 0.6
"""Queries whose box overlaps an object by more are judged as this object by prompts."""


class Assignment(NamedTuple):
    """Which query is which object.

    Attributes:
        images: (M,) the image of each pair.
        queries: (M,) the query.
        objects: (M,) the object.
    """

    images: Tensor
    queries: Tensor
    objects: Tensor


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, batch: ObjectBatch) -> Assignment:
    """Match one query to each object, by score and box.

    Args:
        logits: (B, Q) object logits.
        boxes: (B, Q, 4) cxcywh in [0, 1].
        batch: The batch.
    """
    from scipy.optimize import linear_sum_assignment

    distance = torch.cdist(boxes, batch.boxes, p=1)
    _, giou = pairwise_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(batch.boxes))
    cost = 5 * distance - 2 * giou - 2 * logits.sigmoid()[..., None]
    images, queries, objects = [], [], []
    for row, (matrix, count) in enumerate(
        zip(cost.numpy(), batch.valid.sum(1).tolist(), strict=True)
    ):
        chosen, places = linear_sum_assignment(matrix[:, :count])
        images += [row] * len(chosen)
        queries += chosen.tolist()
        objects += places.tolist()
    return Assignment(*torch.tensor([images, queries, objects]).long())


def one_of_each(matched: Assignment, known: Assignment) -> Assignment:
    """One query of each object, at random the one that was found or the one that was given.

    Args:
        matched: The queries that were found; an object may have none.
        known: The given queries of all objects.
    """
    most = int(known.objects.max()) + 1 if len(known.objects) else 1
    keys = known.images * most + known.objects
    found = matched.images * most + matched.objects
    queries = known.queries.clone()
    place = torch.searchsorted(keys, found)  # given queries are in the order of their keys
    take = torch.rand(len(found), device=found.device) < 0.5
    queries[place[take]] = matched.queries[take]
    return Assignment(known.images, queries, known.objects)


def at_random(pairs: Assignment, most: int) -> Assignment:
    """Some of the pairs of each image, in the same order.

    Args:
        pairs: The pairs, in the order of their images.
        most: Pairs of an image, at most; 0: all.
    """
    if not most or not len(pairs.images):
        return pairs
    device = pairs.images.device
    shuffled = (pairs.images + torch.rand(len(pairs.images), device=device)).argsort()
    images = pairs.images[shuffled]
    place = torch.arange(len(images), device=device) - torch.searchsorted(images, images)
    kept = shuffled[place < most].sort().values
    return Assignment(*(part[kept] for part in pairs))


def every_object(batch: ObjectBatch, found: int) -> Assignment:
    """The given query of each object.

    Args:
        batch: The batch.
        found: Number of queries that were found, which come before the given ones.
    """
    rows, objects = batch.valid.nonzero().unbind(1)
    return Assignment(rows, objects + found, objects)


def assign_all(
    boxes: Tensor, matched: Assignment, batch: ObjectBatch, least: float = DUPLICATE_IOU
) -> Tensor:
    """The object of each query: the matched one, else one that its box overlaps most; -1 for none.

    Args:
        boxes: (B, Q, 4) cxcywh in [0, 1].
        matched: Pairs that are matched.
        batch: The batch.
        least: IoU of boxes above which a query that is not matched is judged as an object.

    Returns:
        (B, Q) int64.
    """
    iou, _ = pairwise_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(batch.boxes))
    best, which = (iou * batch.valid[:, None]).max(-1)
    assigned = torch.where(best > least, which, -1)
    assigned[matched.images, matched.queries] = matched.objects
    return assigned
