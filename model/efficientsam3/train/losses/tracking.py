"""Losses of the memory task: of tracked masks against the truth and against another tracker.

Losses against the truth are SAM 2's (arXiv 2408.00714); those against a teacher are EdgeTAM's
(arXiv 2501.07256): the memory attention's output, masks, object score and predicted IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn.interactive import ObjectMasks
from .common import LossTerms, check_weights, dice_loss, focal_loss, paired_mask_iou


@dataclass(frozen=True)
class MemoryWeights:
    """Weights of the terms.

    Attributes:
        focal: Weight of the focal loss of masks against the truth.
        dice: Weight of the Dice loss of masks against the truth.
        iou: Weight of the error of predicted IoUs.
        presence: Weight of the cross-entropy of the object score.
        all_masks: Of several masks of a click, the share of the mean of all in the mask terms; the
            rest is the best one's alone, as in SAM 2. A head that learns from nothing needs a share
            of all masks: else each of its masks takes another object, and it never learns which one
            was meant.
        attention: Weight of the squared error of the memory attention's output against the
            teacher's.
        teacher_mask: Weight of the cross-entropy of masks with the teacher's.
        teacher_dice: Weight of the Dice loss of masks with the teacher's.
        teacher_iou: Weight of the difference of predicted IoUs from the teacher's.
        teacher_presence: Weight of the cross-entropy of the object score with the teacher's.

    Raises:
        SettingsError: a weight is negative.
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
        check_weights(self)

    @property
    def uses_truth(self) -> bool:
        """Whether a term against the truth has a weight."""
        return bool(self.focal or self.dice or self.iou or self.presence)


@dataclass
class HeadOutput:
    """What a tracker predicts for P objects on a frame.

    Attributes:
        masks: The head's output, M masks of each object.
        conditioned: (P, C, h, w), the memory attention's output; None if the memory was not read.
    """

    masks: ObjectMasks
    conditioned: Tensor | None = None

    @property
    def best(self) -> Tensor:
        """(P,) int64, the mask of each object with the highest predicted IoU."""
        return self.masks.quality.argmax(1)

    @property
    def logits(self) -> Tensor:
        """(P, h, w) logits of the best masks, whether or not the object is present."""
        return self.masks.logits[torch.arange(len(self.best)), self.best]

    @property
    def found(self) -> Tensor:
        """(P, h, w) bool, the best masks; empty where the object is predicted to be absent."""
        return (self.logits > 0) & (self.masks.presence > 0)[:, None, None]


@dataclass
class FrameOutput:
    """What student and teacher predict on a frame after the same prompt.

    Attributes:
        frame: Number of the frame in the clip.
        student: The student's prediction.
        teacher: The teacher's prediction, or None without a teacher.
    """

    frame: int
    student: HeadOutput
    teacher: HeadOutput | None


def truth_losses(output: HeadOutput, truth: Tensor, all_masks: float = 0.0) -> dict[str, Tensor]:
    """SAM 2's losses of P objects on one frame, means over objects.

    Of several masks the best one learns, since it is unknown which is meant; the predicted IoUs of
    all of them learn.

    Args:
        output: the tracker's prediction.
        truth: (P, h, w) bool.
        all_masks: see ``MemoryWeights``.

    Returns:
        Scalars "focal", "dice", "iou" (of objects that are visible) and "presence".
    """
    masks, target = output.masks, truth.float()
    present = truth.flatten(1).any(1).float()
    targets = target[:, None].expand_as(masks.logits)
    logits = masks.logits.float()
    focal = focal_loss(logits, targets).flatten(2).mean(2)
    dice = dice_loss(logits.flatten(0, 1), targets.flatten(0, 1)).view(focal.shape)
    best = (20 * focal + dice).argmin(1, keepdim=True)
    actual = paired_mask_iou(logits > 0, truth[:, None].expand_as(masks.logits))
    iou = (masks.quality - actual).abs().mean(1)

    def chosen(term: Tensor) -> Tensor:
        return (1 - all_masks) * term.gather(1, best)[:, 0] + all_masks * term.mean(1)

    return {
        "focal": (chosen(focal) * present).mean(),
        "dice": (chosen(dice) * present).mean(),
        "iou": (iou * present).mean(),
        "presence": F.binary_cross_entropy_with_logits(masks.presence.float(), present),
    }


def teacher_losses(student: HeadOutput, teacher: HeadOutput) -> dict[str, Tensor]:
    """How far a student's prediction is from its teacher's, means over P objects and their masks.

    Masks and IoUs count where the teacher predicts that the object is present.

    Args:
        student: the student's prediction.
        teacher: the teacher's, after the same prompt.

    Returns:
        Scalars "teacher_mask", "teacher_dice", "teacher_iou", "teacher_presence"; and "attention"
        if both read their memory.
    """
    masks, wanted = student.masks, teacher.masks
    present = (wanted.presence > 0).float()[:, None]
    soft = wanted.logits.float().sigmoid()
    logits = masks.logits.float()
    mask = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").flatten(2).mean(2)
    dice = dice_loss(logits.flatten(0, 1), soft.flatten(0, 1)).view(mask.shape)
    iou = (masks.quality - wanted.quality).abs()
    score = wanted.presence.float().sigmoid()
    out = {
        "teacher_mask": (mask * present).mean(),
        "teacher_dice": (dice * present).mean(),
        "teacher_iou": (iou * present).mean(),
        "teacher_presence": F.binary_cross_entropy_with_logits(masks.presence.float(), score),
    }
    if student.conditioned is not None and teacher.conditioned is not None:
        out["attention"] = F.mse_loss(student.conditioned.float(), teacher.conditioned.float())
    return out


def memory_loss(
    outputs: Sequence[FrameOutput], truth: Tensor, weights: MemoryWeights
) -> dict[str, Tensor]:
    """All terms, each a mean over the predictions that have it, and their weighted sum as "loss".

    Args:
        outputs: all predictions on a batch of clips.
        truth: (P, T, h, w) bool.
        weights: of the terms.
    """
    found: dict[str, list[Tensor]] = {}
    for output in outputs:
        terms: dict[str, Tensor] = {}
        if weights.uses_truth:
            terms = truth_losses(output.student, truth[:, output.frame], weights.all_masks)
        if output.teacher is not None:
            terms |= teacher_losses(output.student, output.teacher)
        for name, value in terms.items():
            found.setdefault(name, []).append(value)
    total = LossTerms()
    for name, values in found.items():
        total.add(name, torch.stack(values).mean(), getattr(weights, name))
    return total.total()
