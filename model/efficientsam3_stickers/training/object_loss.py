"""The loss of late fusion: box, mask and name of every object, and prompts that choose them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from efficientsam3.nn.features import ImageFeatures
from efficientsam3.nn.late_detector import LateDetector
from efficientsam3.nn.late_objects import ObjectQueries
from efficientsam3.nn.layers import cxcywh_to_xyxy
from efficientsam3.train.losses.common import LossTerms, check_weights, dice_loss
from efficientsam3.train.losses.matcher import paired_iou

from .feature_teacher import HEADS, FeatureTeacher
from .object_batches import ObjectBatch
from .object_matching import (
    Assignment,
    assign_all,
    at_random,
    every_object,
    match,
    one_of_each,
)
from .phrase_table import PhraseTable
from .phrase_truth import DOUBTFUL, TRUE
from .sticker_teacher import StickerTeacher


@dataclass(frozen=True)
class ObjectLossWeights:
    """Weights of the terms.

    Attributes:
        token: Tokens on objects, as the object decoder selects them.
        score: Queries that are objects.
        box: L1 distance of boxes.
        giou: 1 - generalized IoU of boxes.
        mask: Binary cross-entropy of masks, near the objects.
        dice: Dice loss of masks.
        name: Cross-entropy of the names of objects among all names.
        pooled_name: The same for tokens averaged over the true masks.
        phrase: Binary cross-entropy of all phrases for each object.
        meant: Objects that prompts mean.
        presence: Presence of what prompts mean.
    """

    token: float = 1.0
    score: float = 1.0
    box: float = 5.0
    giou: float = 2.0
    mask: float = 3.0
    dice: float = 3.0
    name: float = 3.0
    pooled_name: float = 1.5
    phrase: float = 0.1
    meant: float = 2.0
    presence: float = 1.0

    def __post_init__(self) -> None:
        check_weights(self)


class ObjectLoss:
    """All terms of late fusion and their weighted sum.

    Args:
        table: The phrases.
        weights: Weights of the terms.
        box_noise: By which part of its sides the box of a given query is moved at most.
        most_masks: Objects of an image, at most, whose masks are learned in a step, at random; 0:
            all. Drawing and correcting a mask costs more than all else that an object learns.
        teacher: Compares the image encoder's maps with a teacher's; None: no teacher. The model
            needs its heads.
        stickers: Compares objects with a teacher's vectors of their stickers; None: no such
            teacher. The model needs the heads, too.
    """

    def __init__(
        self,
        table: PhraseTable,
        weights: ObjectLossWeights | None = None,
        box_noise: float = 0.2,
        most_masks: int = 0,
        teacher: FeatureTeacher | None = None,
        stickers: StickerTeacher | None = None,
    ) -> None:
        self.teacher, self.stickers = teacher, stickers
        self.table, self.weights, self.box_noise = table, weights or ObjectLossWeights(), box_noise
        self.most_masks = most_masks

    def __call__(self, net: LateDetector, batch: ObjectBatch) -> dict[str, Tensor]:
        """The terms of a batch, unweighted, and their weighted sum as "loss".

        Args:
            net: The model.
            batch: The batch.
        """
        w, terms = self.weights, LossTerms()
        image = net.encode_image(batch.pixels)
        objects = net.find_objects(image, self._noised(batch))
        given = batch.boxes.shape[1]
        found = objects.queries.shape[1] - given
        count = batch.valid.sum().clamp(min=1)
        known = every_object(batch, found)
        terms.add("token", token_loss(objects, batch), w.token)
        l1, giou = _token_boxes(objects, batch)
        terms.add("token_box", l1, w.box)
        terms.add("token_giou", giou, w.giou)
        matched = known
        for layer, logits in objects.layers:
            matched = match(logits[:, :found], layer.boxes[:, :found], batch)
            terms.add("score", score_loss(logits[:, :found], matched), w.score)
            for pairs, suffix in ((matched, ""), (known, "_given")):
                l1, giou = box_terms(layer.boxes, pairs, batch)
                terms.add(f"box{suffix}", l1 / count, w.box)
                terms.add(f"giou{suffix}", giou / count, w.giou)
        both = Assignment(*(torch.cat(parts) for parts in zip(matched, known, strict=True)))
        drawn = at_random(one_of_each(matched, known), self.most_masks)
        self._mask_terms(terms, net, image, objects, batch, drawn)
        self._name_terms(terms, net, image, objects, batch, both, len(matched.images))
        self._prompt_terms(terms, net, image, objects, batch, matched, found)
        if self.teacher is not None:
            distance = self.teacher(net.part(HEADS), batch.pixels, image.map)
            terms.add("teacher", distance, self.teacher.weight)
        return terms.total()

    def _noised(self, batch: ObjectBatch) -> Tensor:
        boxes = batch.boxes
        noise = (torch.rand_like(boxes) * 2 - 1) * self.box_noise
        size = boxes[..., 2:]
        moved = torch.cat([boxes[..., :2] + noise[..., :2] * size, size * (1 + noise[..., 2:])], -1)
        return moved.clamp(0.01, 0.99)

    def _mask_terms(
        self,
        terms: LossTerms,
        net: LateDetector,
        image: ImageFeatures,
        objects: ObjectQueries,
        batch: ObjectBatch,
        pairs: Assignment,
    ) -> None:
        w = self.weights
        if not len(pairs.images):
            head, pixels = net.part("masks"), net.mask_features(image)[0]
            zero = pixels.sum() * 0 + head.query(objects.queries).sum() * 0
            terms.add("mask", zero, w.mask)
            terms.add("dice", zero, w.dice)
            return
        found = draw_pairs(net, image, objects, pairs)
        target = batch.masks[pairs.images, pairs.objects].float() / 255
        near = near_boxes(batch.boxes[pairs.images, pairs.objects], found.shape[-1])
        entropy = F.binary_cross_entropy_with_logits(found, target, reduction="none")
        terms.add("mask", ((entropy * near).sum((1, 2)) / near.sum((1, 2))).mean(), w.mask)
        terms.add("dice", dice_loss(found, target).mean(), w.dice)
        with torch.no_grad():
            terms.add("iou", iou_of_masks(found > 0, target > 0.5).mean(), 0.0)

    def _name_terms(
        self,
        terms: LossTerms,
        net: LateDetector,
        image: ImageFeatures,
        objects: ObjectQueries,
        batch: ObjectBatch,
        pairs: Assignment,
        matched: int,
    ) -> None:
        w, head, table = self.weights, net.part("decoder"), self.table
        text = head.embed_pooled(table.pooled(net))
        concepts = batch.concepts[pairs.images, pairs.objects]
        logits = head.similarity(
            head.embed_objects(objects.queries[pairs.images, pairs.queries]), text
        )
        truth = table.truth[concepts]
        terms.add("name", name_loss(logits, concepts, truth, table.names), w.name)
        entropy = F.binary_cross_entropy_with_logits(
            logits, (truth == TRUE).float(), reduction="none"
        )
        phrase = (entropy * (truth != DOUBTFUL)).sum() / max(1, len(logits))
        terms.add("phrase", phrase, w.phrase)
        shares = batch.shares / batch.shares.sum(-1, keepdim=True).clamp(min=1e-6)
        pooled = (shares @ image.tokens)[batch.valid]
        logits_pooled = head.similarity(head.embed_objects(pooled), text)
        own = batch.concepts[batch.valid]
        loss = name_loss(logits_pooled, own, table.truth[own], table.names)
        terms.add("pooled_name", loss, w.pooled_name)
        if self.stickers is not None:
            heads, weight = net.part(HEADS), self.stickers.weight
            queries = objects.queries[pairs.images, pairs.queries]
            styles = batch.styles[pairs.images, pairs.objects]
            distance = self.stickers(heads.query_sticker, queries, concepts, styles)
            terms.add("sticker", distance, weight)
            own_styles = batch.styles[batch.valid]
            distance = self.stickers(heads.token_sticker, pooled, own, own_styles)
            terms.add("pooled_sticker", distance, weight)
        with torch.no_grad():
            right = (logits[:, : table.names].argmax(1) == concepts).float()
            terms.add("right", right[:matched].mean() if matched else right.sum(), 0.0)
            terms.add("right_given", right[matched:].mean() if len(right) else right.sum(), 0.0)

    def _prompt_terms(
        self,
        terms: LossTerms,
        net: LateDetector,
        image: ImageFeatures,
        objects: ObjectQueries,
        batch: ObjectBatch,
        matched: Assignment,
        found: int,
    ) -> None:
        w, rows = self.weights, batch.images
        if not batch.phrases:
            return
        words, valid = self.table.read(net, batch.phrases)
        shown, keep = read_exemplars(net, image, batch)
        prompt, mask = torch.cat([words, shown], 1), torch.cat([valid, keep], 1)
        queries = objects.queries[:, :found]
        meant, presence = net.part("decoder")(queries, prompt, mask, rows)
        assigned = assign_all(objects.boxes[:, :found].detach(), matched, batch)[rows]
        judged = assigned >= 0
        wanted = batch.meant.gather(1, assigned.clamp(min=0)) & judged
        entropy = F.binary_cross_entropy_with_logits(meant, wanted.float(), reduction="none")
        terms.add("meant", (entropy * judged).sum() / judged.sum().clamp(min=1), w.meant)
        present = batch.meant.any(1).float()
        terms.add("presence", F.binary_cross_entropy_with_logits(presence, present), w.presence)


def read_exemplars(
    net: LateDetector, image: ImageFeatures, batch: ObjectBatch
) -> tuple[Tensor, Tensor]:
    """Tokens of the exemplars of all prompts; prompts without one share those of their image.

    Args:
        net: The model.
        image: Features of the B images.
        batch: The batch.

    Returns:
        (P, K, C) tokens, the class token last, and (P, K) bool, True where a token is valid.
    """
    geometry = net.part("geometry")
    bare, _ = geometry(image.tokens, image.grid, image.geometry, batch=len(image.tokens))
    shown = bare[batch.images]
    if batch.exemplars is None:
        return shown, torch.ones(len(shown), 1, dtype=torch.bool, device=shown.device)
    with_boxes = batch.exemplars.box_valid.any(1)
    chosen = image.take(batch.images[with_boxes])
    exemplars = type(batch.exemplars)(*(value[with_boxes] for value in batch.exemplars))
    tokens, valid = geometry(chosen.tokens, chosen.grid, chosen.geometry, exemplars)
    shown = F.pad(shown, (0, 0, tokens.shape[1] - 1, 0))
    keep = torch.zeros(shown.shape[:2], dtype=torch.bool, device=shown.device)
    keep[:, -1] = True
    keep[with_boxes] = valid
    place = with_boxes.nonzero().squeeze(1)
    return shown.index_copy(0, place, tokens), keep


def draw_pairs(
    net: LateDetector, image: ImageFeatures, objects: ObjectQueries, pairs: Assignment
) -> Tensor:
    """The masks of the queries of pairs.

    Args:
        net: The model.
        image: Features of the images.
        objects: Their queries.
        pairs: M pairs, at least one, in the order of their images.

    Returns:
        (M, h, w) logits.
    """
    head, pixels = net.part("masks"), net.mask_features(image)[0]
    boxes, drawn = objects.boxes.detach(), []
    for row, own in enumerate(pixels.split(1)):  # the gradients of slices are as large as the whole
        queries = pairs.queries[pairs.images == row]
        if len(queries):
            one = objects.queries[row, queries][None], boxes[row, queries][None]
            drawn.append(head(*one, own)[0])
    return torch.cat(drawn)


def iou_of_masks(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of pairs of masks.

    Args:
        a: (..., h, w) bool.
        b: The other masks, of a shape that broadcasts with the first.

    Returns:
        (...) IoU from 0 to 1; 0 where both masks are empty.
    """
    return (a & b).sum((-2, -1)) / (a | b).sum((-2, -1)).clamp(min=1)


def token_targets(batch: ObjectBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that stand for objects.

    An object's tokens are up to three that it covers most and that lie in its middle.

    Args:
        batch: The batch.

    Returns:
        (B, N) int64 object of each token, -1 for none; (B, N) bool, tokens that are counted; and
        (B, T, N) weights of the tokens.
    """
    shares = batch.shares
    grid = round(shares.shape[-1] ** 0.5)
    at = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(at, at, indexing="ij")
    cx, cy, w, h = (v[..., None] for v in batch.boxes.unbind(-1))
    half = 0.5 / grid
    distance = ((x.flatten() - cx) / (w / 2 + half)).square()
    distance = distance + ((y.flatten() - cy) / (h / 2 + half)).square()
    weight = (shares.clamp(min=1e-3).sqrt() * torch.exp(-2 * distance)) * batch.valid[..., None]
    weight = weight * (shares > 0)
    best, _ = weight.topk(min(3, weight.shape[-1]), -1)
    chosen = (weight >= torch.maximum(best[..., -1:], 0.5 * best[..., :1])) & (weight > 0)
    chosen_weight = weight * chosen
    strongest, objects = chosen_weight.max(1)
    positive = strongest > 0
    counted = positive | (shares.amax(1) < 0.3)
    return torch.where(positive, objects, -1), counted, weight


def token_loss(objects: ObjectQueries, batch: ObjectBatch) -> Tensor:
    """Focal loss of tokens that stand for objects.

    Args:
        objects: From the object decoder.
        batch: The batch.
    """
    which, counted, _ = token_targets(batch)
    target = (which >= 0).float()
    logits = cast(Tensor, objects.token_logits)
    p = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focus = torch.where(target > 0, 0.5 * (1 - p), 0.5 * p).detach() * 2
    return (entropy * focus * counted).sum() / target.sum().clamp(min=1)


def _token_boxes(objects: ObjectQueries, batch: ObjectBatch) -> tuple[Tensor, Tensor]:
    which, _, _ = token_targets(batch)
    rows, tokens = (which >= 0).nonzero().unbind(1)
    pairs = Assignment(rows, tokens, which[rows, tokens])
    l1, giou = box_terms(cast(Tensor, objects.token_boxes), pairs, batch)
    return l1 / max(1, len(rows)), giou / max(1, len(rows))


def score_loss(logits: Tensor, pairs: Assignment) -> Tensor:
    """Focal loss of queries that are objects of their own.

    Args:
        logits: (B, Q).
        pairs: The queries that are.
    """
    target = torch.zeros_like(logits)
    target[pairs.images, pairs.queries] = 1
    p = logits.sigmoid().detach()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focus = torch.where(target > 0, 1 - p, p)
    return (entropy * focus).sum() / target.sum().clamp(min=1)


def box_terms(boxes: Tensor, pairs: Assignment, batch: ObjectBatch) -> tuple[Tensor, Tensor]:
    """Sums of the L1 distance and of 1 - generalized IoU of pairs.

    Args:
        boxes: (B, Q, 4) cxcywh in [0, 1].
        pairs: The pairs.
        batch: The batch.
    """
    found = boxes[pairs.images, pairs.queries]
    wanted = batch.boxes[pairs.images, pairs.objects]
    _, giou = paired_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
    return (found - wanted).abs().sum(), (1 - giou).sum()


def near_boxes(boxes: Tensor, size: int) -> Tensor:
    """Cells within boxes that are widened by half: (M, size, size) float32.

    Args:
        boxes: (M, 4) cxcywh in [0, 1].
        size: Cells a side.
    """
    at = (torch.arange(size) + 0.5) / size
    cx, cy, w, h = (v[:, None] for v in boxes.unbind(-1))
    columns = (at - cx).abs() <= 0.75 * w + 1.5 / size
    rows = (at - cy).abs() <= 0.75 * h + 1.5 / size
    return (rows[:, :, None] & columns[:, None]).float()


def name_loss(logits: Tensor, concepts: Tensor, truth: Tensor, names: int) -> Tensor:
    """Cross-entropy of the name of objects among all names that are not true of them, too.

    Args:
        logits: (M, V), of names first.
        concepts: (M,) number of the right name; -1: the object is not counted.
        truth: (M, V) from ``phrase_truth``.
        names: Number of names.
    """
    others = truth[:, :names] != 0
    others.scatter_(1, concepts.clamp(min=0)[:, None], False)
    known = concepts >= 0
    loss = F.cross_entropy(
        logits[:, :names].masked_fill(others, -1e4), concepts.clamp(min=0), reduction="none"
    )
    return (loss * known).sum() / known.sum().clamp(min=1)
