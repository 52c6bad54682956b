"""Stage 1 with the prompt in the loop: a student's map is judged by the masks it leads to.

The teacher's heads, frozen, answer the same prompts from the teacher's map and from the
student's (EdgeSAM, arXiv 2312.06660); each prompt is answered by itself, and refined by
points where the two masks differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..build import ModelConfig
from ..nn.detector import Answer, Detector, ImageFeatures
from ..nn.geometry import Exemplars
from ..nn.masks import within
from ..nn.tokenizer import tokenize
from ..types import Array
from .data.batches import Batches
from .data.sample import SampleSource, TrainingSample
from .errors import DataError
from .feature_source import FeatureSource
from .losses import dice_loss
from .stage1_image import ImageBatch, MapStudent, ShowImage, Shown, collate_images, feature_losses
from .stream import stream
from .task import Picture, Task
from .teachers import ImageTeacher

VISUAL = "visual"
"""The phrase of prompts that have no words, as SAM3 was trained."""


@dataclass(frozen=True)
class PromptedSettings:
    """Numbers of this stage, beside the loop's.

    Args:
        batch: images a rank and step. prompts: objects of an image that are asked, at most,
            each by itself. workers, seed: as for images.
        box, point, phrase: how often a prompt is of each kind, as shares of their sum. Samples
            without words are asked by boxes and points alone.
        jitter: deviation of a box's edges, in parts of its side; jitter_limit: at most, in
            parts of the image (20 of 1008 pixels).
        iterations: answers a prompt; after each but the last, a point is added where teacher
            and student differ. error_cells: fewer differing cells give no point.
        feature_weight: of the squared error of the maps, mean over channels (upstream's 0.0015
            of the sum over 1024). cosine_weight: of 1 - cosine.
        mask_weight, dice_weight: of cross-entropy and Dice against the teacher's mask.
        answer_weight: of cross-entropy against the teacher's scores and presence.
        wordless: the phrase of prompts without words; None: none at all, as upstream.
        validation: images of the held-out set that are looked at.
    """

    batch: int = 4
    prompts: int = 4
    workers: int = 0
    seed: int = 0
    box: float = 0.5
    point: float = 0.5
    phrase: float = 0.0
    jitter: float = 0.1
    jitter_limit: float = 20 / 1008
    iterations: int = 2
    error_cells: int = 10
    feature_weight: float = 1.5
    cosine_weight: float = 0.0
    mask_weight: float = 1.0
    dice_weight: float = 1.0
    answer_weight: float = 0.0
    wordless: str | None = VISUAL
    validation: int = 32

    def __post_init__(self) -> None:
        if min(self.box, self.point, self.phrase) < 0 or not self.box + self.point + self.phrase:
            raise DataError(
                f"shares of boxes, points and phrases are 0 or more, and not all 0; got "
                f"{self.box}, {self.point}, {self.phrase}"
            )
        if self.iterations < 1 or self.prompts < 1 or self.batch < 1:
            raise DataError("batch, prompts and iterations are at least 1")


# Prompts ------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """One prompt. box: (4,) cxcywh, point: (2,) xy, both in [0, 1]; words: a phrase."""

    box: Array | None = None
    point: Array | None = None
    words: str | None = None


class Asked(NamedTuple):
    """An image, prompts about it, and a seed for refining them."""

    shown: Shown
    asks: list[Ask]
    seed: int


@dataclass(frozen=True)
class AskAbout:
    """Draws prompts about a sample: objects by box or point, phrases by their words."""

    show: ShowImage
    settings: PromptedSettings

    def __call__(self, sample: TrainingSample, random: np.random.Generator) -> Asked:
        shown, asks = self.show(sample, random), self._asks(sample, random)
        return Asked(shown, asks, int(random.integers(2**31)))

    def _asks(self, sample: TrainingSample, random: np.random.Generator) -> list[Ask]:
        s = self.settings
        usable = np.ones(len(sample), bool) if sample.crowd is None else ~sample.crowd
        objects = np.flatnonzero(usable & _has_area(sample.boxes))
        phrases = [q for q in sample.queries if q.objects] if s.phrase else []
        asks: list[Ask] = []
        drawn = iter(random.permutation(objects).tolist())
        shares = np.array([s.box, s.point, s.phrase if phrases else 0.0])
        if not shares.sum():
            return asks
        for _ in range(s.prompts):
            kind = int(random.choice(3, p=shares / shares.sum()))
            if kind == 2:
                asks.append(Ask(words=phrases[int(random.integers(len(phrases)))].phrase))
                continue
            index = next(drawn, None)
            if index is None:
                break
            if kind == 0:
                asks.append(Ask(box=self._box(sample, index, random)))
            elif (point := _point(sample, index, random)) is not None:
                asks.append(Ask(point=point))
        return asks

    def _box(self, sample: TrainingSample, index: int, random: np.random.Generator) -> Array:
        height, width = sample.size
        x0, y0, x1, y1 = sample.boxes[index] / [width, height, width, height]
        side = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
        limit = self.settings.jitter_limit
        shift = np.clip(random.normal(size=4) * self.settings.jitter * side, -limit, limit)
        x0, y0, x1, y1 = np.clip(np.array([x0, y0, x1, y1]) + shift, 0, 1)
        x0, x1 = min(x0, x1), max(x0, x1)
        y0, y1 = min(y0, y1), max(y0, y1)
        return np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], np.float32)


def _has_area(boxes: Array) -> Array:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _point(sample: TrainingSample, index: int, random: np.random.Generator) -> Array | None:
    """A point on an object: the data set's own, or any of its mask; None if it has no pixel."""
    height, width = sample.size
    if sample.points is not None:
        x, y = sample.points[index]
    else:
        rows, columns = np.nonzero(sample.mask(index))
        if not len(rows):
            return None
        chosen = int(random.integers(len(rows)))
        x, y = columns[chosen] + 0.5, rows[chosen] + 0.5
    return np.array([x / width, y / height], np.float32).clip(0, 1)


class PromptBatch(NamedTuple):
    """B images with P prompts.

    shown: the images. images: (P,), the image of each prompt. exemplars: of the prompts,
    with one place for a box and ``iterations`` for points. words: a phrase a prompt, "" for
    none. seed: of the refining points.
    """

    shown: ImageBatch
    images: Tensor
    exemplars: Exemplars
    words: list[str]
    seed: int


@dataclass(frozen=True)
class CollatePrompts:
    """Items -> a batch."""

    iterations: int

    def __call__(self, items: list[Asked]) -> PromptBatch:
        asks = [(i, ask) for i, item in enumerate(items) for ask in item.asks]
        count = len(asks)
        points = torch.zeros(count, self.iterations, 2)
        boxes = torch.zeros(count, 1, 4)
        boxes[..., 2:] = 1  # of padding: pooled and masked out
        point_valid = torch.zeros(count, self.iterations, dtype=torch.bool)
        box_valid = torch.zeros(count, 1, dtype=torch.bool)
        for row, (_, ask) in enumerate(asks):
            if ask.box is not None:
                boxes[row, 0], box_valid[row, 0] = torch.from_numpy(ask.box), True
            if ask.point is not None:
                points[row, 0], point_valid[row, 0] = torch.from_numpy(ask.point), True
        exemplars = Exemplars(
            points,
            torch.ones(count, self.iterations, dtype=torch.long),
            point_valid,
            boxes,
            torch.ones(count, 1, dtype=torch.long),
            box_valid,
        )
        images = torch.tensor([i for i, _ in asks], dtype=torch.long)
        words = [ask.words or "" for _, ask in asks]
        shown = collate_images([item.shown for item in items])
        return PromptBatch(shown, images, exemplars, words, items[0].seed)


def refine(
    exemplars: Exemplars,
    place: int,
    teacher: Tensor,
    student: Tensor,
    error_cells: int,
    generator: torch.Generator,
) -> Exemplars:
    """Add a point to each prompt where its two masks differ.

    The point is any of the differing cells: positive where the student misses what the
    teacher has, negative where it adds. Prompts with fewer than ``error_cells`` get none.

    Args:
        place: column of the points to fill. teacher, student: (P, h, w) logits.
    """
    wrong = (teacher > 0) != (student > 0)
    rows, columns = wrong.shape[-2:]
    flat = wrong.flatten(1)
    luck = torch.rand(flat.shape, generator=generator).to(flat.device)
    cell = torch.where(flat, luck, -1.0).argmax(1)
    x = (cell % columns + 0.5) / columns
    y = (cell // columns + 0.5) / rows
    missed = (teacher > 0).flatten(1).gather(1, cell[:, None])[:, 0]
    points, labels = exemplars.points.clone(), exemplars.point_labels.clone()
    valid = exemplars.point_valid.clone()
    points[:, place] = torch.stack([x, y], 1).to(points.dtype)
    labels[:, place] = missed.long()
    valid[:, place] = flat.sum(1) >= error_cells
    return exemplars._replace(points=points, point_labels=labels, point_valid=valid)


# Heads --------------------------------------------------------------------------------------


class Heads:
    """All of a detector but its image encoder, frozen: a map in, answers out.

    Gradients pass through to the map and end there.
    """

    def __init__(self, detector: Detector, context: int) -> None:
        parts = dict(detector.named_children())
        for name in ("geometry", "masks"):
            detector.part(name)  # MissingPartError names what the weights lack
        self.net = Detector({**parts, "trunk": nn.Identity()}).eval().requires_grad_(False)
        self.context = context
        self._words: dict[str, tuple[Tensor, Tensor]] = {}

    def to(self, device: torch.device) -> None:
        """Move all weights."""
        self.net.to(device)
        self._words.clear()

    def words(self, phrases: list[str]) -> tuple[Tensor, Tensor]:
        """(P, L, C) features of phrases and their (P, L) mask."""
        new = [p for p in dict.fromkeys(phrases) if p not in self._words]
        if new:
            if len(self._words) > 100_000:
                self._words.clear()
                new = list(dict.fromkeys(phrases))
            device = self.net.part("decoder").query_embed.weight.device
            with torch.no_grad():
                read = self.net.read_text(tokenize(new, self.context).to(device))
            self._words.update(zip(new, zip(*read, strict=True), strict=True))
        found = [self._words[p] for p in phrases]
        return torch.stack([f for f, _ in found]), torch.stack([m for _, m in found])

    def read(self, encoded: Tensor) -> tuple[ImageFeatures, list[Tensor]]:
        """(B, C, grid, grid) map -> features, and the finer levels of the pyramid."""
        return self.net.read_image(encoded), self.net.part("neck")(encoded, (1, 0))

    def answer(
        self, image: ImageFeatures, words: tuple[Tensor, Tensor] | None, exemplars: Exemplars
    ) -> Answer:
        """Args:
        image: features of one image a prompt, from ``take``. words: of the prompts.
        """
        if words is None:
            given = image.tokens, image.grid, image.geometry
            return self.net.answer(image, *self.net.part("geometry")(*given, exemplars))
        return self.net.answer(image, *self.net.read_prompt(image, words, exemplars))

    def masks(self, answer: Answer, best: Tensor, finer: list[Tensor], images: Tensor) -> Tensor:
        """The mask of one query (P,) of each prompt: (P, h, w) logits."""
        grid = (finer[0].shape[-2] // 2, finer[0].shape[-1] // 2)
        rows = torch.arange(len(best), device=best.device)
        queries = answer.queries[rows, best][:, None]
        args = answer.memory, grid, answer.prompt, answer.mask
        head = self.net.part("masks")
        out: Tensor = head.read_rows(*args, queries, finer, images)[:, 0].float()
        return within(out, answer.boxes[rows, best]) if head.boxed else out


# The task -----------------------------------------------------------------------------------


class PromptInTheLoop(Task):
    """Train a student's image encoder by the masks that frozen heads make of its map.

    Args:
        trunk: the student's image encoder. detector: the teacher's whole model, whose heads
            answer. config: of the teacher; the student's map has its width and grid.
        source: samples with masks or points. features: the teacher's saved maps; else the
            detector's own image encoder is the teacher at every step.
        held_out: samples for validation.

    Raises:
        DataError, FeatureFileError, MissingPartError: as the message says.
    """

    def __init__(
        self,
        trunk: nn.Module,
        detector: Detector,
        config: ModelConfig,
        source: SampleSource,
        settings: PromptedSettings | None = None,
        features: FeatureSource | None = None,
        held_out: SampleSource | None = None,
    ) -> None:
        s = self.settings = settings or PromptedSettings()
        self.heads = Heads(detector, config.context)
        self.teacher = ImageTeacher.of(detector, config)
        self.module = MapStudent(trunk, config.grid, config.trunk_width, config.trunk_width)
        numbers = config.resolution, config.mean, config.std, config.grid
        if features is not None:
            features.require(source.key(i) for i in range(len(source)))
        collate = CollatePrompts(s.iterations)
        ask = AskAbout(ShowImage(*numbers, features), s)
        self._made = Batches(source, ask, collate, s.batch, s.seed)
        self._held_out: Batches[Asked, PromptBatch] | None = None
        if held_out is not None:
            ask = AskAbout(ShowImage(*numbers), s)
            self._held_out = Batches(held_out, ask, collate, s.batch, s.seed)

    def batches(self, start: int, rank: int, world: int) -> Iterator[PromptBatch]:
        """See ``Task``."""
        s = self.settings
        return stream(
            self._made, seed=s.seed, start=start, rank=rank, world=world, workers=s.workers
        )

    def start(self, device: torch.device) -> None:
        """See ``Task``."""
        self.heads.to(device)
        self.teacher.to(device)

    def loss(self, module: nn.Module, batch: PromptBatch) -> Mapping[str, Tensor]:
        """See ``Task``: "loss"; "mse", "cosine" of the maps; "mask", "dice", "iou" of masks."""
        losses, _ = self._compare(module, batch)
        return losses

    def _compare(
        self, module: nn.Module, batch: PromptBatch
    ) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
        """Losses, and (teacher's, student's) masks of each iteration."""
        s = self.settings
        student = module(batch.shown.pixels)
        target = batch.shown.target
        teacher = self.teacher(batch.shown.pixels) if target is None else target
        teacher = teacher.to(student.device).float()
        error, apart = feature_losses(student, teacher)
        losses = {"mse": error.detach(), "cosine": apart.detach()}
        total = s.feature_weight * error + s.cosine_weight * apart
        if not len(batch.images):
            return {"loss": total, **losses}, []

        device = student.device
        images = batch.images.to(device)
        exemplars = Exemplars(*(t.to(device) for t in batch.exemplars))
        words = None
        if s.wordless is not None or any(batch.words):
            features, mask = self.heads.words([w or s.wordless or VISUAL for w in batch.words])
            said = torch.tensor([bool(w or s.wordless) for w in batch.words], device=device)
            words = features, mask & said[:, None]
        with torch.no_grad():
            theirs, finer_theirs = self.heads.read(teacher)
            theirs = theirs.take(images)
        ours, finer_ours = self.heads.read(student)
        ours = ours.take(images)

        generator = torch.Generator().manual_seed(batch.seed)
        sums: dict[str, Tensor] = {}
        pairs = []
        for iteration in range(s.iterations):
            with torch.no_grad():
                right = self.heads.answer(theirs, words, exemplars)
                best = right.logits.argmax(1)  # of both: the same query
                wanted = self.heads.masks(right, best, finer_theirs, images)
            answer = self.heads.answer(ours, words, exemplars)
            got = self.heads.masks(answer, best, finer_ours, images)
            parts = mask_losses(got, wanted)
            if s.answer_weight:
                parts["answer"] = answer_loss(answer, right)
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value / s.iterations
            pairs.append((wanted, got.detach()))
            if iteration + 1 < s.iterations:
                place = iteration + 1
                exemplars = refine(exemplars, place, wanted, got.detach(), s.error_cells, generator)
        total = total + s.mask_weight * sums["mask"] + s.dice_weight * sums["dice"]
        if s.answer_weight:
            total = total + s.answer_weight * sums["answer"]
        losses |= {k: v.detach() for k, v in sums.items()}
        return {"loss": total, **losses}, pairs

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Losses on held-out images; "iou": of the student's masks with the teacher's."""
        if self._held_out is None:
            return {}
        sums: dict[str, float] = {}
        count = 0
        for batch in self._held_out.once(self.settings.validation):
            for name, value in self._compare(module, _on(batch, module))[0].items():
                sums[name] = sums.get(name, 0.0) + len(batch.shown.keys) * float(value)
            count += len(batch.shown.keys)
        return {name: value / count for name, value in sums.items() if name != "loss"}

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        """Held-out images; green: both masks, blue: the teacher's alone, red: the student's."""
        if self._held_out is None:
            return {}
        batch = next(self._held_out.once(8))
        _, pairs = self._compare(module, _on(batch, module))
        if not pairs:
            return {}
        rows = [overlay(batch, theirs.cpu(), ours.cpu()) for theirs, ours in pairs]
        return {"masks": np.concatenate(rows, 0)}

    def describe(self) -> dict[str, Any]:
        """See ``Task``."""
        from .settings import plain

        free = ("workers", "validation")
        numbers = {k: v for k, v in plain(self.settings).items() if k not in free}
        return {"samples": len(self._made.source), **numbers}


def _on(batch: PromptBatch, module: nn.Module) -> PromptBatch:
    device = next(module.parameters()).device
    return batch._replace(shown=batch.shown._replace(pixels=batch.shown.pixels.to(device)))


def mask_losses(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """(P, h, w) logits of both -> mean cross-entropy "mask", "dice", and "iou" (to read)."""
    soft = teacher.sigmoid()
    mask = F.binary_cross_entropy_with_logits(student, soft)
    both = ((student > 0) & (teacher > 0)).flatten(1).sum(1)
    either = ((student > 0) | (teacher > 0)).flatten(1).sum(1)
    iou = torch.where(either > 0, both / either.clamp(min=1), 1.0).mean()
    return {"mask": mask, "dice": dice_loss(student, soft).mean(), "iou": iou}


def answer_loss(student: Answer, teacher: Answer) -> Tensor:
    """Cross-entropy of all queries' scores and of the presence against the teacher's."""
    scores = F.binary_cross_entropy_with_logits(student.logits, teacher.logits.sigmoid())
    presence = F.binary_cross_entropy_with_logits(student.presence, teacher.presence.sigmoid())
    return scores + presence


def overlay(batch: PromptBatch, teacher: Tensor, student: Tensor, side: int = 160) -> Picture:
    """The first eight prompts side by side: (side, 8 * side, 3) uint8."""
    tiles = []
    pixels = batch.shown.pixels.cpu().float()
    low, high = pixels.aminmax()
    for row, image in enumerate(batch.images[:8].tolist()):
        tile = F.interpolate((pixels[image : image + 1] - low) / (high - low), (side, side))[0]
        pair = torch.stack([teacher[row], student[row]])[None].float()
        theirs, ours = F.interpolate(pair, (side, side), mode="bilinear")[0] > 0
        for where, colour in (
            (theirs & ours, (0, 1, 0)),
            (theirs & ~ours, (0, 0.3, 1)),
            (ours & ~theirs, (1, 0, 0)),
        ):
            tint = torch.tensor(colour, dtype=torch.float32).view(3, 1, 1)
            tile = torch.where(where, tile * 0.5 + tint * 0.5, tile)
        tiles.append((tile.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    tiles += [np.zeros((side, side, 3), np.uint8)] * (8 - len(tiles))
    out: Picture = np.concatenate(tiles, 1)
    return out
