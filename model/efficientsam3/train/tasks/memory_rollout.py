"""A memory tracker that is trained: all objects of a batch of clips in step, with gradients.

It takes the steps of ``video.memory_tracker``, which tracks one stream without gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn.detector import Detector
from ...nn.interactive import InteractiveFeatures, InteractiveHead
from ...nn.memory import Memory
from ...types import NOT_A_POINT
from ...video.memory_bank import MemoryBank
from ...video.memory_tracker import MAX_PROMPT_LOGIT
from ...video.settings import MemorySettings
from ...video.types import NO_OBJECT, MemoryEntry
from ..losses.tracking import FrameOutput, HeadOutput
from ..prompts import sample_error_clicks
from .clip_batches import ClipBatch, ClipSettings, first_prompt

SETTINGS = MemorySettings(memory_selection=False, bidirectional=True)
"""As in SAM 2's training, the latest frames are read, however well the object was seen."""


class ClipFeatures(NamedTuple):
    """Features of B clips of T frames.

    Attributes:
        maps: (B * T, C, h, w) of three levels, frame t of clip b at b * T + t.
        length: T.
        resolution: pixels a side of the frames.
    """

    maps: InteractiveFeatures
    length: int
    resolution: int

    @classmethod
    def read(cls, net: Detector, pixels: Tensor) -> ClipFeatures:
        """Encode clips.

        Args:
            net: with an interactive head and its pyramid.
            pixels: (B, T, 3, R, R) float32, normalized.
        """
        encoded = net.part("trunk")(pixels.flatten(0, 1))
        return cls(net.read_frame(encoded), pixels.shape[1], pixels.shape[-1])

    def at(self, clips: Tensor, frame: int) -> InteractiveFeatures:
        """Features of one frame of some clips.

        Args:
            clips: (P,) int64.
            frame: number of the frame.
        """
        places = clips * self.length + frame
        return InteractiveFeatures(*(level[places] for level in self.maps))


class Rollout:
    """A tracker of P objects in a batch of clips, all of which start on the first frame.

    Args:
        net: with an interactive head and a memory.
        features: of the clips.
        clips: (P,) int64, the clip of each object.
    """

    def __init__(self, net: Detector, features: ClipFeatures, clips: Tensor) -> None:
        self.head: InteractiveHead = net.part("interactive")
        self.memory: Memory = net.part("memory")
        self.features, self.clips = features, clips
        count = len(features.maps.coarse) // features.length
        self.every_clip = torch.arange(count, device=clips.device)
        self.bank = MemoryBank(SETTINGS, self.memory.frames)

    def prompt_points(
        self, frame: int, xy: Tensor, labels: Tensor, previous: Tensor | None, *, multimask: bool
    ) -> HeadOutput:
        """Predict from points, without memory.

        Args:
            frame: number of the frame.
            xy: (P, K, 2) in [0, 1].
            labels: (P, K), as in ``nn.interactive``.
            previous: (P, h, w) logits of a mask that the points correct, or None.
            multimask: predict three masks of each object, else one.
        """
        features = self.head.without_memory(self.features.at(self.clips, frame))
        mask = (
            None
            if previous is None
            else previous.detach().clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT)[:, None]
        )
        return HeadOutput(self.head(features, xy, labels, mask, multimask=multimask))

    def prompt_masks(self, frame: int, masks: Tensor, *, forced: bool) -> HeadOutput:
        """Give the objects' masks on a frame. They are remembered as they are.

        Args:
            frame: number of the frame.
            masks: (P, h, w) bool.
            forced: remember objects as present even if the head predicts that they are not.

        Returns:
            What the head predicts from the masks.
        """
        size = (16 * self.memory.grid, 16 * self.memory.grid)
        large = F.interpolate(masks[:, None].float(), size, mode="bilinear")
        prompt = self.memory.mask_downsample(large)
        features = self.features.at(self.clips, frame)
        output = self.head(features, *self._no_points(), prompt)
        present = masks.flatten(1).any(1)
        visible = present & (forced | (output.presence > 0))
        pointers = self.memory.point(output.tokens[:, 0], visible)
        logits = torch.where(masks, -NO_OBJECT, NO_OBJECT)
        self.bank.condition(frame, self._entry(frame, logits, present, pointers, prompted=True))
        return HeadOutput(output)

    def propagate(self, frame: int) -> HeadOutput:
        """Predict the objects from the memory.

        Args:
            frame: number of the frame.
        """
        reading = self.bank.read(frame)
        device, count = self.clips.device, len(self.clips)
        ages = torch.tensor(reading.ages, dtype=torch.float32, device=device)
        remembered = self.memory.gather(
            torch.stack(reading.tokens, 1),
            torch.tensor(reading.positions, device=device).expand(count, -1),
            torch.stack(reading.pointers, 1),
            (ages / (SETTINGS.max_object_pointers - 1)).expand(count, -1),
        )
        coarse = self.memory.look(self.features.at(self.every_clip, frame).coarse)[self.clips]
        conditioned = self.memory.recall(coarse, remembered)
        features = self.features.at(self.clips, frame)._replace(coarse=conditioned)
        return HeadOutput(self.head(features, *self._no_points(), multimask=True), conditioned)

    def remember(
        self, frame: int, output: HeadOutput, *, prompted: bool, truth: Tensor | None = None
    ) -> None:
        """Add a prediction to the memory.

        Args:
            frame: number of the frame.
            output: the prediction.
            prompted: whether it came from points; such a frame is a conditioning frame.
            truth: (P, h, w) bool masks that are remembered instead, or None.
        """
        if truth is None:
            present = output.masks.presence > 0
            logits = torch.where(present[:, None, None], output.logits, NO_OBJECT)
        else:
            present = truth.flatten(1).any(1)
            logits = torch.where(truth, -NO_OBJECT, NO_OBJECT)
        tokens = output.masks.tokens
        token = tokens[torch.arange(len(tokens)), output.best.clamp(max=tokens.shape[1] - 1)]
        pointers = self.memory.point(token, present)
        entry = self._entry(frame, logits, present, pointers, prompted=prompted)
        if prompted:
            self.bank.condition(frame, entry)
        else:
            self.bank.remember(frame, entry)

    def _entry(
        self, frame: int, logits: Tensor, present: Tensor, pointers: Tensor, *, prompted: bool
    ) -> MemoryEntry:
        side = self.features.resolution if prompted else 16 * self.memory.grid
        large = F.interpolate(logits[:, None].float(), (side, side), mode="bilinear")
        masks = (large > 0).float() if prompted else large.sigmoid()
        features = self.features.at(self.every_clip, frame).coarse
        projected = self.memory.encoder.project(features)[self.clips]
        return MemoryEntry(self.memory.tokens(projected, masks, present), pointers, 1.0)

    def _no_points(self) -> tuple[Tensor, Tensor]:
        count, device = len(self.clips), self.clips.device
        labels = torch.full((count, 1), NOT_A_POINT, device=device)
        return torch.zeros(count, 1, 2, device=device), labels


class ClipRunner:
    """Track a batch of clips with student and teacher, prompted and corrected alike.

    Args:
        batch: the clips, with the prompt of the first frame and the corrections.
        settings: with the noise of boxes.
        student: tracker of the objects.
        teacher: another tracker of the same objects, or None; it computes no gradients.
    """

    def __init__(
        self, batch: ClipBatch, settings: ClipSettings, student: Rollout, teacher: Rollout | None
    ) -> None:
        self.batch, self.settings = batch, settings
        self.trackers = [student, *([teacher] if teacher is not None else [])]
        self.generator = torch.Generator().manual_seed(batch.seed)
        self.outputs: list[FrameOutput] = []

    def run(self) -> list[FrameOutput]:
        """Track all frames; returns all predictions in order."""
        batch = self.batch
        if batch.prompt == "mask":
            truth = batch.masks[:, 0]
            self._each(0, lambda r, i: r.prompt_masks(0, truth, forced=batch.forced and not i))
        else:
            xy, labels = first_prompt(batch, self.settings, self.generator)
            last = self._points(0, xy, labels, None, multimask=batch.prompt == "click")
            for _ in range(batch.clicks):
                more, more_labels = self._correction(0, last[0])
                xy, labels = torch.cat([xy, more], 1), torch.cat([labels, more_labels], 1)
                last = self._points(0, xy, labels, last, multimask=False)
            self._remember(0, last, prompted=True)
        for frame in range(1, batch.masks.shape[1]):
            last = self._each(frame, lambda r, _, t=frame: r.propagate(t))  # type: ignore[misc]
            if frame in batch.corrected:
                xy, labels = self._correction(frame, last[0])
                last = self._points(frame, xy, labels, last, multimask=True)
            self._remember(frame, last, prompted=frame in batch.corrected)
        return self.outputs

    def _each(self, frame: int, predict: Callable[[Rollout, int], HeadOutput]) -> list[HeadOutput]:
        """Let each tracker predict, and keep the predictions; the student is number 0."""
        outputs = []
        for number, tracker in enumerate(self.trackers):
            with torch.no_grad() if number else contextlib.nullcontext():
                outputs.append(predict(tracker, number))
        teacher = outputs[1] if len(outputs) > 1 else None
        self.outputs.append(FrameOutput(frame, outputs[0], teacher))
        return outputs

    def _points(
        self,
        frame: int,
        xy: Tensor,
        labels: Tensor,
        before: list[HeadOutput] | None,
        *,
        multimask: bool,
    ) -> list[HeadOutput]:
        """Prompt each tracker with points, which correct its own mask ``before``."""

        def predict(tracker: Rollout, number: int) -> HeadOutput:
            previous = None if before is None else before[number].logits
            return tracker.prompt_points(frame, xy, labels, previous, multimask=multimask)

        return self._each(frame, predict)

    def _correction(self, frame: int, student: HeadOutput) -> tuple[Tensor, Tensor]:
        """A click on each object where the student is wrong."""
        return sample_error_clicks(self.batch.masks[:, frame], student.found, self.generator)

    def _remember(self, frame: int, outputs: list[HeadOutput], *, prompted: bool) -> None:
        if frame + 1 == self.batch.masks.shape[1]:
            return  # no later frame reads it
        for number, (tracker, output) in enumerate(zip(self.trackers, outputs, strict=True)):
            forced = self.batch.forced and not number
            truth = self.batch.masks[:, frame] if forced else None
            with torch.no_grad() if number else contextlib.nullcontext():
                tracker.remember(frame, output, prompted=prompted, truth=truth)
