"""Batches of the memory task: clips with objects to track, and how they are prompted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from ...config import ModelConfig
from ...data.clip import ClipSource, TrainingClip
from ...errors import DataError
from ...types import BOTTOM_RIGHT, TOP_LEFT
from ...values import is_share
from ..batches import TRIES, index_at
from ..prompts import BOX_NOISE, BOX_NOISE_LIMIT, jitter_boxes, sample_error_clicks
from ..settings import check

PROMPTS = ("click", "box", "mask")


@dataclass(frozen=True)
class ClipSettings:
    """How clips are drawn and prompted. Shares and corrections are as in SAM 2's training.

    Attributes:
        frames: Frames of a clip. Several numbers: clips become longer in the course of training. 1:
            still images, from which the head learns what clicks, boxes and masks mean.
        growth: Batches of each length; the last length goes on.
        batch: Clips of a process and step.
        objects: Objects of a clip, at most.
        click: Share of the batches that are prompted by a click, relative to ``box`` and ``mask``.
        box: Share of the batches that are prompted by a box.
        mask: Share of the batches that are prompted by a mask.
        clicks: Corrections on the first frame, at most, if it is not prompted by masks.
        corrected: Later frames on which a click corrects, at most.
        backwards: Share of the clips whose frames are reversed.
        box_noise: Standard deviation of the noise of a box's edges, as a part of its sides.
        box_noise_limit: The most by which an edge moves, as a part of the image.
        forced: Share of the batches in which true masks are remembered instead of predicted ones.
            An untrained tracker would otherwise learn from a memory of errors alone.
        workers: Processes that read clips.
        seed: Of the order of clips and of the prompts.
        validation: Held-out clips that are tracked.

    Raises:
        SettingsError: a value is outside its range.
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
    box_noise: float = BOX_NOISE
    box_noise_limit: float = BOX_NOISE_LIMIT
    forced: float = 0.5
    workers: int = 0
    seed: int = 0
    validation: int = 16

    def __post_init__(self) -> None:
        shares = self.click, self.box, self.mask
        for name, value in zip(PROMPTS, shares, strict=True):
            check(self, name, value >= 0, "0 or more")
        check(self, "click", sum(shares) > 0, "above 0 if box and mask are 0")
        check(self, "frames", min(self.frames, default=0) >= 1, "numbers of at least 1")
        for name in ("growth", "batch", "objects"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("clicks", "corrected"):
            check(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("backwards", "forced"):
            check(self, name, is_share(getattr(self, name)), "from 0 to 1")

    def length(self, number: int) -> int:
        """Frames of the clips of a batch.

        Args:
            number: of the batch, from 0.
        """
        return self.frames[min(number // self.growth, len(self.frames) - 1)]


class ClipBatch(NamedTuple):
    """B clips of T frames with P objects, each visible on the first frame of its clip.

    Attributes:
        pixels: (B, T, 3, R, R) float32, normalized.
        clips: (P,) int64, the clip of each object.
        masks: (P, T, h, w) bool, at the resolution of the mask head.
        prompt: one of ``PROMPTS``, of the first frame.
        clicks: corrections on the first frame.
        corrected: later frames on which a click corrects.
        forced: whether true masks are remembered, see ``ClipSettings``.
        seed: of what is drawn while the clip is tracked.
    """

    pixels: Tensor
    clips: Tensor
    masks: Tensor
    prompt: str
    clicks: int
    corrected: tuple[int, ...]
    forced: bool
    seed: int


@dataclass(frozen=True)
class ClipBatches:
    """Make batch number n of a source of clips. Picklable, for worker processes.

    Attributes:
        source: The videos.
        config: Of the model; resolution, grid and normalization are used.
        settings: How clips are drawn and prompted.

    Raises:
        DataError: there are no videos.
    """

    source: ClipSource
    config: ModelConfig
    settings: ClipSettings

    def __post_init__(self) -> None:
        if not len(self.source):
            raise DataError("there is nothing to train on: there are no videos")

    def __call__(self, number: int, rng: np.random.Generator) -> ClipBatch:
        """Batch ``number``; all that is random comes from the generator."""
        s = self.settings
        length, first = s.length(number), number * s.batch
        indices = [index_at(first + i, len(self.source), s.seed) for i in range(s.batch)]
        pixels, clips, masks = self._stack([self._draw(i, length, rng) for i in indices])
        shares = np.array([s.click, s.box, s.mask])
        later = int(rng.integers(s.corrected + 1))
        corrected = sorted(rng.permutation(np.arange(1, length))[:later].tolist())
        prompt = PROMPTS[int(rng.choice(3, p=shares / shares.sum()))]
        clicks, forced = int(rng.integers(s.clicks + 1)), bool(rng.random() < s.forced)
        seed = int(rng.integers(2**31))
        return ClipBatch(pixels, clips, masks, prompt, clicks, tuple(corrected), forced, seed)

    def held_out(self, count: int, prompt: str) -> Iterator[ClipBatch]:
        """The first clips, always the same, each prompted once and never corrected.

        Args:
            count: clips, at most.
            prompt: one of ``PROMPTS``.

        Yields:
            Batches of one clip.
        """
        s = self.settings
        for index in range(min(count, len(self.source))):
            item = self._draw(index, max(s.frames), np.random.default_rng([s.seed, index]))
            yield ClipBatch(*self._stack([item]), prompt, 0, (), False, index)

    def _draw(
        self, index: int, length: int, rng: np.random.Generator
    ) -> tuple[TrainingClip, Tensor]:
        """A clip of ``length`` frames, and masks (N, T, h, w) of its objects.

        If a video is too short, or no object is visible on the first frame, another part of it or
        another video is taken.
        """
        s, side = self.settings, 4 * self.config.grid
        for _ in range(TRIES):
            clip = self.source.cut(index, length, rng)
            if rng.random() < s.backwards:
                clip = clip.backwards()
            order = rng.permutation(clip.objects).tolist() if len(clip) == length else []
            visible = [n for n in order if clip.mask_at(0, n, side).any()][: s.objects]
            if visible:
                masks = [[clip.mask_at(t, n, side) for t in range(length)] for n in visible]
                return clip, torch.stack([torch.stack(row) for row in masks])
            index = int(rng.integers(len(self.source)))
        raise DataError(
            f"of {TRIES} videos, the last {self.source.key(index)}, none has {length} frames with "
            "an object visible on the first: use shorter clips, or other data"
        )

    def _stack(self, items: list[tuple[TrainingClip, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, clips and masks of a ``ClipBatch``."""
        c = self.config
        pixels = torch.stack([clip.pixels(c.resolution, c.mean, c.std) for clip, _ in items])
        clips = torch.tensor([i for i, (_, masks) in enumerate(items) for _ in masks])
        return pixels, clips, torch.cat([masks for _, masks in items])


def first_prompt(
    batch: ClipBatch, settings: ClipSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The prompt of the first frame: one click on each object, or its noised box.

    Args:
        batch: prompted by clicks or boxes.
        settings: with the noise of boxes.
        generator: on the CPU.

    Returns:
        (P, K, 2) xy in [0, 1], and (P, K) labels as in ``nn.interactive``.
    """
    masks = batch.masks[:, 0]
    if batch.prompt == "click":
        return sample_error_clicks(masks, torch.zeros_like(masks), generator)
    corners = masks_to_boxes(masks)
    corners[:, 2:] += 1  # behind the last pixel
    corners = corners / masks.shape[-1]
    noise = torch.randn(corners.shape, generator=generator).to(corners)
    moved = jitter_boxes(corners, noise, settings.box_noise, settings.box_noise_limit)
    labels = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=moved.device)
    return moved.view(-1, 2, 2), labels.expand(len(moved), -1)
