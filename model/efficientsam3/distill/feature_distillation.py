"""A further loss of Stage 3: features of the image stay near those of a frozen teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.detector import Detector, ImageFeatures
from ..nn.neck import enlarge
from .settings import SettingsError
from .teachers import ImageTeacher, PyramidTeacher

FORMS = ("cosine", "l2")


class FeatureDistillation:
    """Compares the student's image features with a teacher's, cell by cell.

    Args:
        teacher: of maps (what the image encoder gives), or of the pyramid that the heads read.
        form: "cosine": 1 - cosine of a cell's features, whatever their length; "l2": squared
            distance over the teacher's squared length.
    """

    def __init__(self, teacher: ImageTeacher | PyramidTeacher, form: str = "cosine") -> None:
        if form not in FORMS:
            raise SettingsError(f"form is {form!r}; known: {', '.join(FORMS)}")
        self.teacher, self.form = teacher, form

    def to(self, device: torch.device) -> None:
        """Bring the teacher there."""
        self.teacher.to(device)

    def describe(self) -> dict[str, Any]:
        """What the loss depends on, as plain values."""
        return {"form": self.form, "teacher": self.teacher.describe()}

    def __call__(self, net: Detector, image: ImageFeatures, pixels: Tensor) -> Tensor:
        """The mean over levels and cells.

        Args:
            image: the student's features of ``pixels``, (B, 3, R, R).
        """
        if isinstance(self.teacher, PyramidTeacher):
            coarse = image.tokens.transpose(1, 2).unflatten(2, image.grid)
            ours = [coarse, *net.mask_features(image)]
            theirs = self.teacher(pixels)
        else:
            ours = [enlarge(image.map.float(), self.teacher.grid)]
            theirs = [self.teacher(pixels)]
        apart = [self._apart(a, b) for a, b in zip(ours, theirs, strict=True)]
        return torch.stack(apart).mean()

    def _apart(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Of two (B, C, h, w) maps."""
        if ours.shape != theirs.shape:
            raise SettingsError(
                f"the model's features are {tuple(ours.shape)}, and those of the teacher "
                f"{self.teacher.name!r} are {tuple(theirs.shape)}: take a teacher of the same "
                "width and resolution"
            )
        ours, theirs = ours.float(), theirs.float()
        if self.form == "cosine":
            return (1 - F.cosine_similarity(ours, theirs, dim=1)).mean()
        return (ours - theirs).square().sum() / theirs.square().sum().clamp(min=1e-6)
