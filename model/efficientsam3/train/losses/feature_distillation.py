"""An extra loss of the grounding task: image features stay near those of a frozen teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn.detector import Detector
from ...nn.neck import enlarge
from ..errors import SettingsError
from ..teachers import ImageTeacher, PyramidTeacher
from .grounding import GroundingStep

DISTANCES = ("cosine", "l2")


class FeatureDistillation:
    """Compare the student's image features with a teacher's, cell by cell.

    Upstream's ``TeacherFeatureDistillation``. It adds the term "features".

    Args:
        teacher: of the image encoder's map (``ImageTeacher``), or of the feature pyramid that the
            heads read (``PyramidTeacher``).
        distance: "cosine": 1 - cosine similarity of the features of a cell; "l2": squared distance
            over the squared length of the teacher's features.
        weight: of the term in the sum of losses; upstream has 0.05.

    Raises:
        SettingsError: the distance is unknown.
    """

    def __init__(
        self,
        teacher: ImageTeacher | PyramidTeacher,
        distance: str = "cosine",
        weight: float = 0.05,
    ) -> None:
        if distance not in DISTANCES:
            raise SettingsError(
                f"distance is {distance!r}; it must be one of {', '.join(DISTANCES)}"
            )
        self.teacher, self.distance, self.weight = teacher, distance, weight

    def to(self, device: torch.device) -> None:
        """Move the teacher to a device.

        Args:
            device: where the student is trained.
        """
        self.teacher.to(device)

    def describe(self) -> dict[str, Any]:
        """Plain values on which the loss depends."""
        teacher = self.teacher.describe()
        return {"distance": self.distance, "weight": self.weight, "teacher": teacher}

    def __call__(self, net: Detector, step: GroundingStep) -> list[tuple[str, Tensor, float]]:
        """The term "features", a mean over levels and cells.

        Args:
            net: the student.
            step: what it computed; ``image`` and the batch's ``pixels`` are used.

        Returns:
            One (name, value, weight).

        Raises:
            SettingsError: the features of student and teacher have different shapes.
        """
        image, pixels = step.image, step.batch.pixels
        if isinstance(self.teacher, PyramidTeacher):
            coarse = image.tokens.transpose(1, 2).unflatten(2, image.grid)
            student = [coarse, *net.mask_features(image)]
            teacher = self.teacher(pixels)
        else:
            student = [enlarge(image.map.float(), self.teacher.grid)]
            teacher = [self.teacher(pixels)]
        pairs = zip(student, teacher, strict=True)
        loss = torch.stack([self._distance(a, b) for a, b in pairs]).mean()
        return [("features", loss, self.weight)]

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean distance of two (B, C, h, w) maps."""
        if student.shape != teacher.shape:
            raise SettingsError(
                f"the model's features have the shape {tuple(student.shape)}, and those of the "
                f"teacher {self.teacher.name!r} {tuple(teacher.shape)}: choose a teacher of the "
                "same width and resolution"
            )
        student, teacher = student.float(), teacher.float()
        if self.distance == "cosine":
            return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
        return (student - teacher).square().sum() / teacher.square().sum().clamp(min=1e-6)
