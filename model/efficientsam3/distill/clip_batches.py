"""Batches of clips with objects to track, and how they are prompted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..build import ModelConfig
from ..nn.interactive import BOTTOM_RIGHT, NOT_A_POINT, TOP_LEFT
from .data.batches import index_at
from .data.clip import ClipSource, TrainingClip
from .errors import DataError
from .task import Picture

PROMPTS = ("click", "box", "mask")
TRIES = 8


@dataclass(frozen=True)
class ClipSettings:
    """How clips are drawn and prompted.

    Args:
        frames: of a clip; several numbers: clips grow; 1: stills, from which the head learns what
            clicks, boxes and masks mean. growth: batches of each length, the last goes on.
        batch: clips a rank and step. objects: of a clip, at most.
        click, box, mask: how often the first frame is prompted so, as shares of their sum.
        clicks: corrections on the first frame, at most, where it is not prompted by masks.
        corrected: later frames on which a click corrects, at most.
        backwards: share of clips that are shown the last frame first.
        jitter: deviation of a box's edges, in parts of its side; jitter_limit: at most, in parts
            of the image.
        forced: share of batches in which true masks are remembered, not those that were found: a
            memory of nothing but errors teaches nothing.
        workers, seed: as for images. validation: held-out clips that are looked at.
    """

    frames: tuple[int, ...] = (8,)
    growth: int = 1000
    batch: int = 1
    objects: int = 3
    click: float = 0.5
    box: float = 0.25
    mask: float = 0.25
    clicks: int = 2
    corrected: int = 1
    backwards: float = 0.5
    jitter: float = 0.1
    jitter_limit: float = 20 / 1008
    forced: float = 0.5
    workers: int = 0
    seed: int = 0
    validation: int = 16

    def __post_init__(self) -> None:
        shares = self.click, self.box, self.mask
        if min(shares) < 0 or not sum(shares):
            raise DataError(f"shares of clicks, boxes and masks are 0 or more; got {shares}")
        if not self.frames or min(self.frames) < 1:
            raise DataError(f"clips have a frame or more; got {self.frames}")
        if min(self.growth, self.batch, self.objects) < 1 or min(self.clicks, self.corrected) < 0:
            raise DataError(
                "growth, batch and objects are at least 1, clicks and corrected at least 0"
            )
        if not (0 <= self.backwards <= 1 and 0 <= self.forced <= 1):
            raise DataError("backwards and forced are shares, from 0 to 1")

    def length(self, number: int) -> int:
        """Frames of the clips of batch ``number``."""
        return self.frames[min(number // self.growth, len(self.frames) - 1)]


class ClipBatch(NamedTuple):
    """B clips of T frames with P objects, each in sight on its clip's first frame.

    pixels: (B, T, 3, R, R) normalised. clips: (P,) the clip of each object. masks: (P, T, 4g, 4g)
    bool. prompt: of ``PROMPTS``, of the first frame. clicks: corrections there. corrected: later
    frames that a click corrects. forced: see ``ClipSettings``. seed: of what is drawn on the way.
    """

    pixels: Tensor
    clips: Tensor
    masks: Tensor
    prompt: str
    clicks: int
    corrected: tuple[int, ...]
    forced: bool
    seed: int

    def to(self, device: torch.device) -> ClipBatch:
        """The same with its tensors there."""
        pixels, clips, masks = (t.to(device) for t in (self.pixels, self.clips, self.masks))
        return self._replace(pixels=pixels, clips=clips, masks=masks)


@dataclass(frozen=True)
class ClipBatches:
    """Makes batch number n; what ``stream.stream`` calls. Picklable."""

    source: ClipSource
    config: ModelConfig
    settings: ClipSettings

    def __post_init__(self) -> None:
        if not len(self.source):
            raise DataError("there is nothing to train on: there are no videos")

    def __call__(self, number: int, random: np.random.Generator) -> ClipBatch:
        s = self.settings
        length = s.length(number)
        first = number * s.batch
        indices = [index_at(first + i, len(self.source), s.seed) for i in range(s.batch)]
        items = [self.draw(index, length, random) for index in indices]
        shares = np.array([s.click, s.box, s.mask])
        later = int(random.integers(s.corrected + 1))
        corrected = sorted(random.permutation(np.arange(1, length))[:later].tolist())
        return self._collate(
            items,
            PROMPTS[int(random.choice(3, p=shares / shares.sum()))],
            int(random.integers(s.clicks + 1)),
            tuple(corrected),
            bool(random.random() < s.forced),
            int(random.integers(2**31)),
        )

    def held_out(self, count: int, prompt: str) -> Iterator[ClipBatch]:
        """The first clips, one a batch, always the same, prompted once."""
        s = self.settings
        for index in range(min(count, len(self.source))):
            random = np.random.default_rng([s.seed, index])
            item = self.draw(index, max(s.frames), random)
            yield self._collate([item], prompt, 0, (), False, index)

    def draw(
        self, index: int, length: int, random: np.random.Generator
    ) -> tuple[TrainingClip, Tensor]:
        """A clip of so many frames, and masks (N, T, 4g, 4g) of its objects.

        Where a video is too short, or nothing is in sight at first, another stretch or another
        video is taken.
        """
        s, side = self.settings, 4 * self.config.grid
        for _ in range(TRIES):
            clip = self.source.cut(index, length, random)
            if random.random() < s.backwards:
                clip = clip.backwards()
            order = random.permutation(clip.objects).tolist() if len(clip) == length else []
            chosen: list[int] = []
            for n in order:
                if len(chosen) < s.objects and clip.mask_at(0, n, side).any():
                    chosen.append(n)
            if chosen:
                masks = [
                    torch.stack([clip.mask_at(t, n, side) for t in range(length)]) for n in chosen
                ]
                return clip, torch.stack(masks)
            index = int(random.integers(len(self.source)))
        raise DataError(
            f"of {TRIES} videos, the last {self.source.key(index)}, none has {length} frames with "
            "an object in sight on the first: use shorter clips, or other data"
        )

    def _collate(
        self,
        items: list[tuple[TrainingClip, Tensor]],
        prompt: str,
        clicks: int,
        corrected: tuple[int, ...],
        forced: bool,
        seed: int,
    ) -> ClipBatch:
        c = self.config
        pixels = torch.stack([clip.pixels(c.resolution, c.mean, c.std) for clip, _ in items])
        clips = torch.tensor([i for i, (_, masks) in enumerate(items) for _ in masks])
        masks = torch.cat([masks for _, masks in items])
        return ClipBatch(pixels, clips, masks, prompt, clicks, corrected, forced, seed)


# Prompts ----------------------------------------------------------------------------------------


def first_prompt(
    batch: ClipBatch, settings: ClipSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Points (P, K, 2) in [0, 1] and labels (P, K): one click on each object, or its box."""
    masks = batch.masks[:, 0]
    if batch.prompt == "click":
        return error_clicks(masks, torch.zeros_like(masks), generator)
    boxes = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        boxes.append(torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]))
    corners = torch.stack(boxes).float() / masks.shape[-1]
    sides = (corners[:, 2:] - corners[:, :2]).repeat(1, 2)
    noise = torch.randn(corners.shape, generator=generator).to(corners)
    limit = settings.jitter_limit
    xy = (corners + (settings.jitter * sides * noise).clamp(-limit, limit)).clamp(0, 1)
    labels = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=xy.device)
    return xy.view(-1, 2, 2), labels.expand(len(xy), -1)


def error_clicks(truth: Tensor, said: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A click for each object, where what was said is wrong: any such cell.

    Args:
        truth, said: (P, h, w) bool.

    Returns: (P, 1, 2) in [0, 1]; (P, 1): 1 where the object was missed, 0 where it is not. Where
        nothing is wrong, a click on the object; without an object, no click.
    """
    wrong = (truth != said).flatten(1)
    right = truth.flatten(1)
    pool = torch.where(wrong.any(1, keepdim=True), wrong, right)
    luck = torch.rand(pool.shape, generator=generator).to(pool.device)
    cell = torch.where(pool, luck, -1.0).argmax(1, keepdim=True)
    rows, columns = truth.shape[-2:]
    xy = torch.stack([(cell % columns + 0.5) / columns, (cell // columns + 0.5) / rows], -1)
    labels = right.gather(1, cell).long()
    return xy.float(), torch.where(pool.any(1, keepdim=True), labels, NOT_A_POINT)


def overlap(found: Tensor, truth: Tensor) -> Tensor:
    """IoU of (..., h, w) bool masks -> (...); 1 where both are empty."""
    both = (found & truth).flatten(-2).sum(-1)
    either = (found | truth).flatten(-2).sum(-1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def small_strip(pixels: Tensor, found: Tensor, truth: Tensor, side: int = 160) -> Picture:
    """Frames of a clip side by side: (side, T * side, 3) uint8.

    Green: found and there. Orange: there and not found. Red: found and not there.

    Args:
        pixels: (T, 3, R, R). found, truth: (T, h, w) bool.
    """
    from .pictures import EXTRA, HIT, MISS

    low, high = pixels.aminmax()
    image = F.interpolate((pixels - low) / (high - low).clamp(min=1e-6), (side, side))
    picture = (image.permute(0, 2, 3, 1) * 140).float()
    size = (side, side)
    found, truth = (F.interpolate(m[:, None].float(), size)[:, 0] > 0.5 for m in (found, truth))
    for area, colour in ((found & truth, HIT), (truth & ~found, MISS), (found & ~truth, EXTRA)):
        tint = torch.tensor(colour, dtype=torch.float32, device=picture.device)
        picture = torch.where(area[..., None], picture / 2 + tint / 2, picture)
    out: Picture = np.concatenate(list(picture.cpu().numpy().astype(np.uint8)), 1)
    return out
