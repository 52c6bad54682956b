"""The memory task (Stage 2): a tracker learns from true masks, from another tracker, or from both.

The teacher is a frozen tracker that goes through the same clip beside the student and gets the same
prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from ...data.clip import ClipSource
from ...errors import DataError
from ...nn.detector import Detector
from ..batches import to_device
from ..losses.common import paired_mask_iou
from ..losses.tracking import MemoryWeights, memory_loss
from ..pictures import grid, mask_cells
from ..settings import to_plain
from ..task import Picture, Task, describe_data
from ..teachers import weights_digest
from .clip_batches import ClipBatch, ClipBatches, ClipSettings
from .memory_rollout import ClipFeatures, ClipRunner, Rollout

PARTS = ("interactive", "interactive_neck", "memory")
"""The parts of a model that track."""
PICTURES = 4
"""Held-out clips that are drawn."""


class MemoryTask(Task):
    """Train a tracker on clips.

    Args:
        net: the student, with interactive head, second pyramid and memory.
        config: of the student.
        source: videos.
        settings: of the clips.
        weights: of the terms; without a teacher only those against the truth count.
        teacher: config and model of a tracker with the same grid and width; its image encoder may
            be another one. None: no teacher.
        held_out: videos for validation and pictures.

    Raises:
        DataError: there are no videos, the teacher has another grid, or no term has a weight.
        MissingPartError: a part that tracks is missing.
    """

    def __init__(
        self,
        net: Detector,
        config: ModelConfig,
        source: ClipSource,
        settings: ClipSettings | None = None,
        weights: MemoryWeights | None = None,
        teacher: tuple[ModelConfig, Detector] | None = None,
        held_out: ClipSource | None = None,
    ) -> None:
        self.module: Detector = net
        self.config = config
        self.settings = settings or ClipSettings()
        self.weights = weights or MemoryWeights()
        for part in PARTS:
            net.part(part)
        self.teacher: Detector | None = None
        if teacher is not None:
            self.teacher = _frozen_teacher(config, *teacher)
        elif not self.weights.uses_truth:
            raise DataError(
                "without a teacher only terms against the truth remain, and all their weights are "
                "0: give focal, dice, iou or presence a weight"
            )
        self.teacher_digest = None if self.teacher is None else weights_digest(self.teacher)
        self.same_features = False
        self.training: ClipBatches = ClipBatches(source, config, self.settings)
        self.seed, self.workers = self.settings.seed, self.settings.workers
        self.held_out: ClipBatches | None = None
        if held_out is not None:
            self.held_out = ClipBatches(held_out, config, self.settings)

    def start(self, device: torch.device) -> None:
        """Move the teacher to the device, and see whether its image features are the student's.

        Args:
            device: where the module is trained.
        """
        if self.teacher is not None:
            self.teacher.to(device)
            self.same_features = _same_features(self.module, self.teacher)

    def loss(self, module: nn.Module, batch: ClipBatch) -> Mapping[str, Tensor]:
        """Scalar "loss", and the terms of ``MemoryWeights``.

        Args:
            module: the module that is trained.
            batch: on the module's device.
        """
        return memory_loss(self.runner(batch).run(), batch.masks, self.weights)

    def runner(self, batch: ClipBatch) -> ClipRunner:
        """Student and teacher at the start of a batch of clips.

        Args:
            batch: on the student's device.
        """
        features, teacher = ClipFeatures.read(self.module, batch.pixels), None
        if self.teacher is not None:
            with torch.no_grad():
                seen = features
                if not self.same_features:
                    seen = ClipFeatures.read(self.teacher, batch.pixels)
                teacher = Rollout(self.teacher, seen, batch.clips)
        student = Rollout(self.module, features, batch.clips)
        return ClipRunner(batch, self.settings, student, teacher)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Figures of held-out clips; nothing without them.

        Args:
            module: the module that is trained.

        Returns:
            "J" and "J_click": mean IoU after the first frame of objects that are prompted by masks
            and by a click (of still images: on their one frame); "presence": how often it is
            predicted rightly whether an object is visible.
        """
        if self.held_out is None:
            return {}
        out: dict[str, list[Tensor]] = {}
        for prompt, name in (("mask", "J"), ("click", "J_click")):
            for batch in self.held_out.held_out(self.settings.validation, prompt):
                found, truth = self._track(batch)
                if truth.shape[1] > 1:
                    found, truth = found[:, 1:], truth[:, 1:]
                out.setdefault(name, []).append(paired_mask_iou(found, truth).flatten())
                right = found.flatten(2).any(2) == truth.flatten(2).any(2)
                out.setdefault("presence", []).append(right.flatten().float())
        return {name: float(torch.cat(values).mean()) for name, values in out.items()}

    def _track(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Masks (P, T, h, w) that the student finds in a clip that is prompted once, and truth."""
        batch = to_device(batch, next(self.module.parameters()).device)
        student = Rollout(self.module, ClipFeatures.read(self.module, batch.pixels), batch.clips)
        outputs = ClipRunner(batch, self.settings, student, None).run()
        return torch.stack([output.student.found for output in outputs], 1), batch.masks

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        """Held-out clips, a row for each, with all objects of a clip together.

        Args:
            module: the module that is trained.
        """
        if self.held_out is None:
            return {}
        cells: list[Picture] = []
        for batch in self.held_out.held_out(PICTURES, "mask"):
            found, truth = (masks.any(0).cpu() for masks in self._track(batch))
            cells += mask_cells(batch.pixels[0], found, truth)
        return {"clips": grid(cells, max(self.settings.frames))}

    def describe(self) -> dict[str, Any]:
        """Number of videos, settings, weights, the teacher, identity of the data's files."""
        kept = {k: v for k, v in to_plain(self.settings).items() if k != "workers"}
        return {
            "videos": len(self.training.source),
            "clips": kept,
            "weights": asdict(self.weights),
            "teacher": self.teacher_digest,
            **describe_data(self.training.source),
        }


def _frozen_teacher(config: ModelConfig, other: ModelConfig, teacher: Detector) -> Detector:
    """The teacher, frozen, if a student of ``config`` can learn from it."""
    for field in ("grid", "resolution", "mean", "std", "width"):
        if getattr(config, field) != getattr(other, field):
            raise DataError(
                f"the teacher's {field} is {getattr(other, field)}, the student's "
                f"{getattr(config, field)}: they must be equal, so that features can be compared"
            )
    for part in PARTS:
        teacher.part(part)
    return teacher.eval().requires_grad_(False)


def _same_features(student: Detector, teacher: Detector) -> bool:
    """Whether both compute the same features of a frame, now and while the student trains."""

    def parts(net: Detector) -> list[nn.Module]:
        masks = net.part("interactive").masks
        return [net.part("trunk"), net.part("interactive_neck"), masks.conv_s0, masks.conv_s1]

    for ours, theirs in zip(parts(student), parts(teacher), strict=True):
        if any(p.requires_grad for p in ours.parameters()):
            return False
        state, other = ours.state_dict(), theirs.state_dict()
        if state.keys() != other.keys():
            return False
        if not all(torch.equal(state[key], other[key]) for key in state):
            return False
    return True
