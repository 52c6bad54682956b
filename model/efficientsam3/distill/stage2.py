"""Stage 2: a memory learns to track, from true masks, from another memory, or from both.

The other memory is a frozen tracker's, which goes through the same clip beside the student and is
asked the same. Losses against the truth are SAM 2's; against the teacher, those of EdgeTAM
(arXiv 2501.07256): the memory attention's output, masks, object score and predicted IoU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..build import ModelConfig
from ..nn.detector import Detector
from ..nn.memory import Memory
from .clip_batches import (
    ClipBatch,
    ClipBatches,
    ClipSettings,
    error_clicks,
    first_prompt,
    overlap,
    small_strip,
)
from .data.clip import ClipSource
from .errors import DataError
from .losses import Terms, dice_loss, focal_loss
from .rollout import Frames, Rollout, Said
from .settings import SettingsError
from .stream import stream
from .task import Picture, Task
from .teachers import digest


@dataclass(frozen=True)
class MemoryWeights:
    """Weights of the terms.

    Args:
        focal, dice, iou, presence: against true masks, SAM 2's.
        all_masks: of several masks, the share of the mean of all in the mask terms; the rest is
            the best one's alone. A head that learns from nothing otherwise gives each object of
            a clip a mask of its own, and never learns which one was meant.
        attention: squared error of the memory attention's output against the teacher's.
        teacher_mask, teacher_dice, teacher_iou, teacher_presence: against what the teacher says.
    """

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    presence: float = 1.0
    all_masks: float = 0.0
    attention: float = 1.0
    teacher_mask: float = 1.0
    teacher_dice: float = 1.0
    teacher_iou: float = 1.0
    teacher_presence: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0:
                raise SettingsError(f"the loss weight {field.name} is {value!r}; it is 0 or more")

    @property
    def truth(self) -> bool:
        """Whether true masks are asked for at all."""
        return bool(self.focal or self.dice or self.iou or self.presence)


@dataclass
class Step:
    """What student and teacher said on a frame, to the same question."""

    frame: int
    student: Said
    teacher: Said | None


class Walk:
    """Student and teacher go through a batch of clips, asked and corrected alike.

    Args:
        student, teacher: trackers of the same objects.
    """

    def __init__(
        self, batch: ClipBatch, settings: ClipSettings, student: Rollout, teacher: Rollout | None
    ) -> None:
        self.batch, self.settings = batch, settings
        self.trackers = [student, *([teacher] if teacher is not None else [])]
        self.generator = torch.Generator().manual_seed(batch.seed)
        self.steps: list[Step] = []

    def go(self) -> list[Step]:
        """All that was said, in order."""
        batch = self.batch
        if batch.prompt == "mask":
            truth = batch.masks[:, 0]
            self._all(0, lambda r, teacher: r.given(0, truth, forced=batch.forced and not teacher))
        else:
            xy, labels = first_prompt(batch, self.settings, self.generator)
            said = self._ask(0, xy, labels, None, multimask=batch.prompt == "click")
            for _ in range(batch.clicks):
                more, kinds = self._correction(0, said[0])
                xy, labels = torch.cat([xy, more], 1), torch.cat([labels, kinds], 1)
                said = self._ask(0, xy, labels, said, multimask=False)
            self._keep(0, said, conditions=True)
        for frame in range(1, batch.masks.shape[1]):
            said = self._all(frame, lambda r, _, t=frame: r.propagate(t))
            if frame in batch.corrected:
                xy, labels = self._correction(frame, said[0])
                said = self._ask(frame, xy, labels, said, multimask=True)
            self._keep(frame, said, conditions=frame in batch.corrected)
        return self.steps

    def _all(self, frame: int, work: Any) -> list[Said]:
        """Have each tracker say something, and note it."""
        said = []
        for number, rollout in enumerate(self.trackers):
            with torch.no_grad() if number else contextlib.nullcontext():
                said.append(work(rollout, bool(number)))
        self.steps.append(Step(frame, said[0], said[1] if len(said) > 1 else None))
        return said

    def _ask(
        self, frame: int, xy: Tensor, labels: Tensor, before: list[Said] | None, *, multimask: bool
    ) -> list[Said]:
        def work(rollout: Rollout, teacher: bool) -> Said:
            previous = None if before is None else before[int(teacher)].logits
            return rollout.ask(frame, xy, labels, previous, multimask=multimask)

        return self._all(frame, work)

    def _correction(self, frame: int, said: Said) -> tuple[Tensor, Tensor]:
        """A click where the student is wrong."""
        found = (said.logits > 0) & (said.masks.presence > 0)[:, None, None]
        return error_clicks(self.batch.masks[:, frame], found, self.generator)

    def _keep(self, frame: int, said: list[Said], *, conditions: bool) -> None:
        if frame + 1 == self.batch.masks.shape[1]:
            return  # nobody will read it
        for number, (rollout, own) in enumerate(zip(self.trackers, said, strict=True)):
            forced = self.batch.forced and not number
            truth = self.batch.masks[:, frame] if forced else None
            with torch.no_grad() if number else contextlib.nullcontext():
                rollout.keep(frame, own, conditions=conditions, truth=truth)


# Losses -----------------------------------------------------------------------------------------


def truth_losses(said: Said, truth: Tensor, all_masks: float = 0.0) -> dict[str, Tensor]:
    """SAM 2's losses of P objects on one frame, means over objects.

    Of several masks the best one learns, as nobody knows which is meant; the predicted IoU of all
    of them does.

    Args:
        truth: (P, h, w) bool. all_masks: see ``MemoryWeights``.
    """
    masks, target = said.masks, truth.float()
    present = truth.flatten(1).any(1).float()
    count, several = masks.logits.shape[:2]
    all_targets = target[:, None].expand_as(masks.logits)
    logits = masks.logits.float()
    focal = focal_loss(logits, all_targets).flatten(2).mean(2)
    dice = dice_loss(logits.flatten(0, 1), all_targets.flatten(0, 1)).view(count, several)
    best = (20 * focal + dice).argmin(1, keepdim=True)
    actual = overlap(logits > 0, truth[:, None].expand_as(masks.logits))
    iou = (masks.quality - actual).abs().mean(1)

    def chosen(term: Tensor) -> Tensor:
        return (1 - all_masks) * term.gather(1, best)[:, 0] + all_masks * term.mean(1)

    return {
        "focal": (chosen(focal) * present).mean(),
        "dice": (chosen(dice) * present).mean(),
        "iou": (iou * present).mean(),
        "presence": F.binary_cross_entropy_with_logits(masks.presence.float(), present),
    }


def teacher_losses(student: Said, teacher: Said) -> dict[str, Tensor]:
    """How far what was said is from what the teacher said, means over P objects and their masks.

    Masks and IoU count where the teacher sees an object.
    """
    ours, theirs = student.masks, teacher.masks
    seen = (theirs.presence > 0).float()[:, None]
    soft = theirs.logits.float().sigmoid()
    logits = ours.logits.float()
    mask = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").flatten(2).mean(2)
    dice = dice_loss(logits.flatten(0, 1), soft.flatten(0, 1)).view(mask.shape)
    iou = (ours.quality - theirs.quality).abs()
    presence = theirs.presence.float().sigmoid()
    out = {
        "teacher_mask": (mask * seen).mean(),
        "teacher_dice": (dice * seen).mean(),
        "teacher_iou": (iou * seen).mean(),
        "teacher_presence": F.binary_cross_entropy_with_logits(ours.presence.float(), presence),
    }
    if student.recalled is not None and teacher.recalled is not None:
        out["attention"] = F.mse_loss(student.recalled.float(), teacher.recalled.float())
    return out


def memory_loss(steps: list[Step], truth: Tensor, weights: MemoryWeights) -> dict[str, Tensor]:
    """All terms, each a mean over what was said, and their weighted sum as "loss".

    Args:
        truth: (P, T, h, w) bool.
    """
    found: dict[str, list[Tensor]] = {}
    for step in steps:
        terms: dict[str, Tensor] = {}
        if weights.truth:
            terms = truth_losses(step.student, truth[:, step.frame], weights.all_masks)
        if step.teacher is not None:
            terms |= teacher_losses(step.student, step.teacher)
        for name, value in terms.items():
            found.setdefault(name, []).append(value)
    total = Terms()
    for name, values in found.items():
        total.add(name, torch.stack(values).mean(), getattr(weights, name))
    return total.all()


# The task ---------------------------------------------------------------------------------------


class MemoryTask(Task):
    """Train a tracker on clips.

    Args:
        net: the student, with interactive head, second neck and memory. config: its numbers.
        source: videos. settings: of the clips. weights: of the terms; without a teacher those of
            the truth alone count.
        teacher: a tracker of the same grid and width; its image encoder may be another.
        held_out: videos for validation and pictures.

    Raises:
        DataError: no videos; a teacher of another grid; nothing is asked for.
        MissingPartError: a part that tracks is not there.
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
        for part in ("interactive", "interactive_neck", "memory"):
            net.part(part)  # MissingPartError names what the weights lack
        self.teacher: Detector | None = None
        if teacher is not None:
            self.teacher = _checked(config, *teacher)
        elif not self.weights.truth:
            raise DataError("without a teacher the truth must count: give its terms weights")
        self._teacher_digest = None if self.teacher is None else digest(self.teacher)
        self._same_eyes = False
        self._made = ClipBatches(source, config, self.settings)
        self._held_out = None
        if held_out is not None:
            self._held_out = ClipBatches(held_out, config, self.settings)

    def batches(self, start: int, rank: int, world: int) -> Iterator[ClipBatch]:
        """See ``Task``."""
        s = self.settings
        return stream(
            self._made, seed=s.seed, start=start, rank=rank, world=world, workers=s.workers
        )

    def start(self, device: torch.device) -> None:
        """See ``Task``."""
        if self.teacher is not None:
            self.teacher.to(device)
            self._same_eyes = _same_eyes(self.module, self.teacher)

    def loss(self, module: nn.Module, batch: ClipBatch) -> Mapping[str, Tensor]:
        """See ``Task``: "loss", and the terms of ``MemoryWeights``."""

        def work(net: Detector) -> dict[str, Tensor]:
            there = batch.to(next(net.parameters()).device)
            steps = self.walk(net, there).go()
            return memory_loss(steps, there.masks, self.weights)

        terms: dict[str, Tensor] = module(work)
        return terms

    def walk(self, net: Detector, batch: ClipBatch) -> Walk:
        """Student and teacher before a clip. batch: on the student's device."""
        frames = Frames.read(net, batch.pixels)
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                seen = frames if self._same_eyes else Frames.read(self.teacher, batch.pixels)
                teacher = Rollout(self.teacher, seen, batch.clips)
        return Walk(batch, self.settings, Rollout(net, frames, batch.clips), teacher)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """On held-out clips: J, the IoU after the first frame, of objects given by masks and by
        clicks; "presence", how often it is right. Of stills: on their one frame.
        """
        if self._held_out is None:
            return {}
        out: dict[str, list[Tensor]] = {}
        for prompt, name in (("mask", "J"), ("click", "J_click")):
            for batch in self._held_out.held_out(self.settings.validation, prompt):
                found, truth = self._track(batch)
                if truth.shape[1] > 1:
                    found, truth = found[:, 1:], truth[:, 1:]
                out.setdefault(name, []).append(overlap(found, truth).flatten())
                right = found.flatten(2).any(2) == truth.flatten(2).any(2)
                out.setdefault("presence", []).append(right.flatten().float())
        return {name: float(torch.cat(values).mean()) for name, values in out.items()}

    def _track(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """What the student finds in a clip that is prompted once, and the truth: (P, T, h, w)."""
        net = self.module
        there = batch.to(next(net.parameters()).device)
        frames = Frames.read(net, there.pixels)
        steps = Walk(there, self.settings, Rollout(net, frames, there.clips), None).go()
        found = [
            (s.student.logits > 0) & (s.student.masks.presence > 0)[:, None, None] for s in steps
        ]
        return torch.stack(found, 1), there.masks

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        """Held-out clips: frame after frame, all objects of a clip together."""
        if self._held_out is None:
            return {}
        strips = []
        for batch in self._held_out.held_out(4, "mask"):
            found, truth = self._track(batch)
            strips.append(small_strip(batch.pixels[0], found.any(0).cpu(), truth.any(0).cpu()))
        return {"clips": np.concatenate(strips)}

    def describe(self) -> dict[str, Any]:
        """See ``Task``."""
        kept = {k: v for k, v in asdict(self.settings).items() if k not in ("workers",)}
        kept["frames"] = list(self.settings.frames)
        return {
            "videos": len(self._made.source),
            "clips": kept,
            "weights": asdict(self.weights),
            "teacher": self._teacher_digest,
        }


def _checked(config: ModelConfig, theirs: ModelConfig, teacher: Detector) -> Detector:
    """A teacher that this student can learn from, frozen."""
    for field in ("grid", "resolution", "mean", "std", "width"):
        if getattr(config, field) != getattr(theirs, field):
            raise DataError(
                f"the teacher's {field} is {getattr(theirs, field)}, the student's "
                f"{getattr(config, field)}: they cannot be compared cell by cell"
            )
    for part in ("interactive", "interactive_neck", "memory"):
        teacher.part(part)
    return teacher.eval().requires_grad_(False)


def _same_eyes(student: Detector, teacher: Detector) -> bool:
    """Whether both see the same in a frame, now and for as long as the student trains."""

    def eyes(net: Detector) -> list[nn.Module]:
        masks = net.part("interactive").masks
        return [net.part("trunk"), net.part("interactive_neck"), masks.conv_s0, masks.conv_s1]

    for ours, theirs in zip(eyes(student), eyes(teacher), strict=True):
        if any(p.requires_grad for p in ours.parameters()):
            return False
        mine, other = ours.state_dict(), theirs.state_dict()
        if mine.keys() != other.keys():
            return False
        if not all(torch.equal(mine[k], other[k]) for k in mine):
            return False
    return True


# What a memory begins with ------------------------------------------------------------------------


@torch.no_grad()
def begin_from(memory: nn.Module, other: nn.Module) -> nn.Module:
    """Fill a memory, in place, with all that fits of another one of the same width.

    Of more layers of memory attention than there are here, the first, the last and those evenly
    between are taken. A Perceiver that the other has not stays as it is.
    """
    taken, given = (_layers(m) for m in (memory, other))
    spread = [round(i * (given - 1) / max(taken - 1, 1)) for i in range(taken)]
    state = other.state_dict()
    for key, value in memory.state_dict().items():
        if key.startswith(LAYERS):
            number, _, rest = key.removeprefix(LAYERS).partition(".")
            key = f"{LAYERS}{spread[int(number)]}.{rest}"
        source = state.get(key)
        if source is not None and source.shape == value.shape:
            value.copy_(source)
    return memory


@torch.no_grad()
def begin_near(memory: Memory, strength: float = 2.2) -> Memory:
    """Let a new memory's cells look first at what was remembered of their own place, in place.

    Queries and keys get the same bias: after turning, their product falls with the distance of
    the cells, by half a logit at the next cell. With torch's defaults a cell sees the mean of all
    that is remembered, in which no object can be told from another.
    """
    for layer in memory.attention.layers:
        part: Any = layer.cross_attn_image
        for projection in (part.q_proj, part.k_proj):
            projection.bias.zero_()
            projection.bias[::2] = strength  # of each turned pair, one
    return memory


LAYERS = "attention.layers."


def _layers(memory: nn.Module) -> int:
    numbers = {
        k.removeprefix(LAYERS).split(".")[0] for k in memory.state_dict() if k.startswith(LAYERS)
    }
    return len(numbers)
