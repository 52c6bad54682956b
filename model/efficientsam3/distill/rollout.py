"""The memory tracker as it is learned: objects of a batch of clips in step, gradients throughout.

The same steps as ``video.memory``, which runs one stream without gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.detector import Detector
from ..nn.interactive import NOT_A_POINT, InteractiveFeatures, InteractiveHead, ObjectMasks
from ..nn.memory import Memory
from ..video.bank import Bank, Memento, MemorySettings
from ..video.memory import LARGEST, NO_OBJECT

SETTINGS = MemorySettings(selection=False, both_ways=True)
"""As SAM 2 was trained: the latest frames are read, however well the object was seen."""


class Frames(NamedTuple):
    """Features of B clips of T frames.

    maps: (B * T, C, ., .), frame t of clip b at b * T + t. length: T. resolution: of the pixels.
    """

    maps: InteractiveFeatures
    length: int
    resolution: int

    @classmethod
    def read(cls, net: Detector, pixels: Tensor) -> Frames:
        """(B, T, 3, R, R) normalised pixels -> features."""
        encoded = net.part("trunk")(pixels.flatten(0, 1))
        return cls(net.read_frame(encoded), pixels.shape[1], pixels.shape[-1])

    def of(self, rows: Tensor, frame: int) -> InteractiveFeatures:
        """A frame of clips ``rows`` (P,)."""
        places = rows * self.length + frame
        return InteractiveFeatures(*(level[places] for level in self.maps))


@dataclass
class Said:
    """What was said of P objects on a frame.

    masks: the head's answer. recalled: (P, C, h, w), the frame as the memory shows it, where the
    memory was asked.
    """

    masks: ObjectMasks
    recalled: Tensor | None = None

    @property
    def best(self) -> Tensor:
        """(P,) of the masks, the one that is thought the best."""
        return self.masks.quality.argmax(1)

    @property
    def logits(self) -> Tensor:
        """(P, h, w), the best mask, whether the object is there or not."""
        return self.masks.logits[torch.arange(len(self.best)), self.best]


class Rollout:
    """A tracker of P objects in a batch of clips, all of which begin on the first frame.

    Args:
        net: with an interactive head and a memory. frames: of the clips.
        clips: (P,) in which clip each object is.
    """

    def __init__(self, net: Detector, frames: Frames, clips: Tensor) -> None:
        self.head: InteractiveHead = net.part("interactive")
        self.memory: Memory = net.part("memory")
        self.frames, self.clips = frames, clips
        self.every = torch.arange(len(frames.maps.coarse) // frames.length, device=clips.device)
        self.bank = Bank(SETTINGS, self.memory.frames)

    def ask(
        self, frame: int, xy: Tensor, labels: Tensor, previous: Tensor | None, *, multimask: bool
    ) -> Said:
        """Ask by points, without memory.

        Args:
            xy: (P, K, 2) in [0, 1]. labels: (P, K). previous: (P, h, w) logits to be corrected.
        """
        features = self.head.without_memory(self.frames.of(self.clips, frame))
        prompt = None if previous is None else previous.detach().clamp(-LARGEST, LARGEST)[:, None]
        return Said(self.head(features, xy, labels, prompt, multimask=multimask))

    def propagate(self, frame: int) -> Said:
        """Find the objects by what is remembered."""
        reading = self.bank.read(frame)
        device, count = self.clips.device, len(self.clips)
        ages = torch.tensor(reading.ages, dtype=torch.float32, device=device)
        remembered = self.memory.gather(
            torch.stack(reading.tokens, 1),
            torch.tensor(reading.when, device=device).expand(count, -1),
            torch.stack(reading.pointers, 1),
            (ages / (SETTINGS.pointers - 1)).expand(count, -1),
        )
        looked = self.memory.look(self.frames.of(self.every, frame).coarse)[self.clips]
        recalled = self.memory.recall(looked, remembered)
        features = self.frames.of(self.clips, frame)._replace(coarse=recalled)
        return Said(self.head(features, *self._no_clicks(), multimask=True), recalled)

    def given(self, frame: int, masks: Tensor, *, forced: bool) -> Said:
        """Say what the objects look like on a frame.

        Args:
            masks: (P, h, w) bool. forced: objects are where their masks are, whatever the head
                thinks of it.

        Returns: what the head says of the masks; they are remembered as they are.
        """
        size = (16 * self.memory.grid, 16 * self.memory.grid)
        large = F.interpolate(masks[:, None].float(), size, mode="bilinear")
        prompt = self.memory.mask_downsample(large)
        features = self.frames.of(self.clips, frame)
        said = self.head(features, *self._no_clicks(), prompt)
        present = masks.flatten(1).any(1)
        pointers = self.memory.point(said.tokens[:, 0], present & (forced | (said.presence > 0)))
        logits = torch.where(masks, -NO_OBJECT, NO_OBJECT)
        self.bank.condition(frame, self._memento(frame, logits, present, pointers, given=True))
        return Said(said)

    def keep(
        self, frame: int, said: Said, *, conditions: bool, truth: Tensor | None = None
    ) -> None:
        """Remember what was said.

        Args:
            conditions: it was prompted. truth: (P, h, w) bool, to be remembered instead.
        """
        if truth is None:
            present = said.masks.presence > 0
            logits = torch.where(present[:, None, None], said.logits, NO_OBJECT)
        else:
            present = truth.flatten(1).any(1)
            logits = torch.where(truth, -NO_OBJECT, NO_OBJECT)
        tokens = said.masks.tokens
        token = tokens[torch.arange(len(tokens)), said.best.clamp(max=tokens.shape[1] - 1)]
        pointers = self.memory.point(token, present)
        memento = self._memento(frame, logits, present, pointers, given=conditions)
        if conditions:
            self.bank.condition(frame, memento)
        else:
            self.bank.remember(frame, memento)

    def _memento(
        self, frame: int, logits: Tensor, present: Tensor, pointers: Tensor, *, given: bool
    ) -> Memento:
        side = self.frames.resolution if given else 16 * self.memory.grid
        large = F.interpolate(logits[:, None].float(), (side, side), mode="bilinear")
        masks = (large > 0).float() if given else large.sigmoid()
        features = self.frames.of(self.every, frame).coarse
        projected = self.memory.encoder.project(features)[self.clips]
        return Memento(self.memory.tokens(projected, masks, present), pointers, 1.0)

    def _no_clicks(self) -> tuple[Tensor, Tensor]:
        count, device = len(self.clips), self.clips.device
        labels = torch.full((count, 1), NOT_A_POINT, device=device)
        return torch.zeros(count, 1, 2, device=device), labels
