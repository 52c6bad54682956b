"""Prompt in the loop (Stage 1): a student's map is judged by the masks to which it leads.

The teacher's heads, frozen, answer the same prompts from the teacher's map and from the student's
(EdgeSAM, arXiv 2312.06660; upstream's geometry fine-tune). Each prompt is answered by itself, and
refined by points where the two masks differ.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import ModelConfig
from ...data.augment import Augment
from ...data.sample import SampleSource
from ...nn.detector import Detector
from ...nn.features import Answer, ImageFeatures
from ...nn.geometry import Exemplars
from ...nn.masks import within
from ...nn.tokenizer import tokenize
from ...segmenter import VISUAL
from ..features import FeatureSource
from ..losses.common import LossTerms, dice_loss, paired_mask_iou
from ..losses.grounding import read_masks
from ..pictures import grid, mask_cells
from ..prompts import sample_error_clicks
from ..task import Picture
from ..teachers import ImageTeacher
from .feature_task import FeatureTask, keys_of
from .image_distillation import ImageCollator, MapStudent, feature_losses
from .prompted_batches import PromptBatch, PromptCollator, PromptedSettings

COLUMNS = 8
"""Prompts of a picture."""
KNOWN_PHRASES = 4096
"""Phrases whose text features are kept, 32 kB each for SAM3's text encoder."""

MaskPair = tuple[Tensor, Tensor]
"""(P, h, w) mask logits of teacher and student."""


class FrozenHeads:
    """All parts of a detector but its image encoder, frozen: a map in, answers out.

    Gradients pass through to the map and end there.

    Args:
        detector: the teacher.
        context: tokens of a phrase.

    Raises:
        MissingPartError: the detector has no geometry encoder or no mask head.
    """

    def __init__(self, detector: Detector, context: int) -> None:
        for name in ("geometry", "masks"):
            detector.part(name)
        parts = {**dict(detector.named_children()), "trunk": nn.Identity()}
        self.net = Detector(parts).eval().requires_grad_(False)
        self.context = context
        self._read = functools.lru_cache(KNOWN_PHRASES)(self._read_phrase)

    def to(self, device: torch.device) -> None:
        """Move all weights to a device.

        Args:
            device: where the student is trained.
        """
        self.net.to(device)
        self._read.cache_clear()

    @torch.no_grad()
    def _read_phrase(self, phrase: str) -> tuple[Tensor, Tensor]:
        """Text features (L, C) of a phrase and their mask (L,)."""
        device = self.net.part("decoder").query_embed.weight.device
        features, mask = self.net.read_text(tokenize([phrase], self.context).to(device))
        return features[0], mask[0]

    def text(self, phrases: list[str]) -> tuple[Tensor, Tensor]:
        """Text features of P phrases.

        Args:
            phrases: the phrases; features of recent ones are kept.

        Returns:
            (P, L, C) features and their (P, L) mask.
        """
        features, masks = zip(*map(self._read, phrases), strict=True)
        return torch.stack(features), torch.stack(masks)

    def answer(
        self, image: ImageFeatures, text: tuple[Tensor, Tensor] | None, exemplars: Exemplars
    ) -> Answer:
        """Answer P prompts.

        Args:
            image: features of one image for each prompt, from ``ImageFeatures.take``.
            text: features and mask of the prompts, from ``text``; None: exemplars alone.
            exemplars: of the prompts.
        """
        if text is None:
            given = image.tokens, image.grid, image.geometry
            return self.net.answer(image, *self.net.part("geometry")(*given, exemplars))
        return self.net.answer(image, *self.net.read_prompt(image, text, exemplars))

    def masks(self, answer: Answer, best: Tensor, image: ImageFeatures, rows: Tensor) -> Tensor:
        """The mask of one query of each prompt.

        Args:
            answer: to P prompts.
            best: (P,) int64, the queries.
            image: features of the images.
            rows: (P,) int64, the image of each prompt.

        Returns:
            (P, h, w) float32 logits.
        """
        every = torch.arange(len(best), device=best.device)
        masks = read_masks(self.net, image, answer, every, best[:, None], rows)[:, 0].float()
        boxed = self.net.part("masks").boxed
        return within(masks, answer.boxes[every, best]) if boxed else masks


class PromptInTheLoop(FeatureTask[PromptBatch]):
    """Train a student's image encoder by the masks that frozen heads make of its map.

    Args:
        trunk: the student's image encoder.
        detector: the teacher's whole model, whose heads answer.
        config: of the teacher; the student's map has its width and grid.
        source: samples with masks or points.
        settings: numbers of the task.
        features: the teacher's saved maps; None: its image encoder computes them at every step.
        held_out: samples for validation.
        augment: changes photographs for training; None: not at all.

    Raises:
        DataError: there are no samples.
        FeatureFileError: features are missing.
        MissingPartError: the detector has no geometry encoder or no mask head.
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
        *,
        augment: Augment | None = None,
    ) -> None:
        s = settings or PromptedSettings()
        self.heads = FrozenHeads(detector, config.context)
        student = MapStudent(trunk, config.grid, config.trunk_width, config.trunk_width)
        teacher, keys = ImageTeacher.of(detector, config), keys_of(source)

        def collate(saved: FeatureSource | None) -> PromptCollator:
            return PromptCollator(ImageCollator(config, saved), s)

        super().__init__(student, source, keys, held_out, collate, s, teacher, features, augment)

    def start(self, device: torch.device) -> None:
        """Move teacher and heads to the device.

        Args:
            device: where the module is trained.
        """
        super().start(device)
        self.heads.to(device)

    def _compute_target(self, batch: PromptBatch) -> Tensor:
        """The teacher's maps: (B, C, grid, grid)."""
        target: Tensor = self.teacher(batch.images.pixels)
        return target

    def loss(self, module: nn.Module, batch: PromptBatch) -> Mapping[str, Tensor]:
        """Scalars "loss"; "mse" and "cosine" of the maps; "mask", "dice" and "iou" of the masks.

        Args:
            module: the module that is trained.
            batch: on the module's device.
        """
        return self.compare(module, batch)[0]

    def _figures(self, module: nn.Module, batch: PromptBatch) -> dict[str, Tensor]:
        """The terms of the loss; "iou" is that of the student's masks with the teacher's."""
        return {k: v for k, v in self.compare(module, batch)[0].items() if k != "loss"}

    def compare(
        self, module: nn.Module, batch: PromptBatch
    ) -> tuple[dict[str, Tensor], list[MaskPair]]:
        """Answer the prompts of a batch from both maps.

        Args:
            module: the student.
            batch: on its device.

        Returns:
            The terms of the loss; and the masks of teacher and student in each iteration, none if
            the batch has no prompt.
        """
        s, terms = self.settings, LossTerms()
        student = module(batch.images.pixels)
        teacher = self._target(batch).to(student.device).float()
        error, distance = feature_losses(student, teacher)
        terms.add("mse", error, s.feature_weight)
        terms.add("cosine", distance, s.cosine_weight)
        if not len(batch.rows):
            return terms.total(), []
        text = self._text(batch)
        with torch.no_grad():
            teacher_image = self.heads.net.read_image(teacher)
        student_image = self.heads.net.read_image(student)
        teacher_rows, student_rows = (i.take(batch.rows) for i in (teacher_image, student_image))
        generator = torch.Generator().manual_seed(batch.seed)
        exemplars, pairs = batch.exemplars, []
        for iteration in range(s.iterations):
            with torch.no_grad():
                wanted = self.heads.answer(teacher_rows, text, exemplars)
                best = wanted.logits.argmax(1)  # the same query of both
                teacher_masks = self.heads.masks(wanted, best, teacher_image, batch.rows)
            answer = self.heads.answer(student_rows, text, exemplars)
            masks = self.heads.masks(answer, best, student_image, batch.rows)
            weights = {"mask": s.mask_weight, "dice": s.dice_weight, "iou": 0.0}
            for name, value in mask_losses(masks, teacher_masks).items():
                terms.add(name, value / s.iterations, weights[name])
            if s.answer_weight:
                terms.add("answer", answer_loss(answer, wanted) / s.iterations, s.answer_weight)
            pairs.append((teacher_masks, masks.detach()))
            if iteration + 1 < s.iterations:
                exemplars = refine(exemplars, iteration + 1, *pairs[-1], s.error_pixels, generator)
        return terms.total(), pairs

    def _text(self, batch: PromptBatch) -> tuple[Tensor, Tensor] | None:
        """Text features of the prompts; all masked for prompts without a phrase."""
        usual = self.settings.exemplar_phrase
        if usual is None and not any(batch.phrases):
            return None
        features, mask = self.heads.text([p or usual or VISUAL for p in batch.phrases])
        has_text = torch.tensor([bool(p or usual) for p in batch.phrases], device=mask.device)
        return features, mask & has_text[:, None]

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        """Held-out images with the student's masks over the teacher's, a row for each iteration.

        Args:
            module: the module that is trained.
        """
        if self.held_out is None:
            return {}
        batch = self._on_device(next(self.held_out.once(8)))
        _, pairs = self.compare(module, batch)
        if not pairs:
            return {}
        pixels = batch.images.pixels[batch.rows[:COLUMNS]]
        cells: list[Picture] = []
        for teacher, student in pairs:
            cells += mask_cells(pixels, student[:COLUMNS] > 0, teacher[:COLUMNS] > 0)
        return {"masks": grid(cells, len(pixels))}


def refine(
    exemplars: Exemplars,
    slot: int,
    teacher: Tensor,
    student: Tensor,
    error_pixels: int,
    generator: torch.Generator,
) -> Exemplars:
    """Add a point to each prompt where its two masks differ.

    The point is positive where the student misses what the teacher has, negative where it adds.

    Args:
        exemplars: of P prompts.
        slot: which of their points is filled.
        teacher: (P, h, w) mask logits.
        student: (P, h, w) mask logits.
        error_pixels: prompts with fewer differing pixels get no point.
        generator: chooses the pixels.
    """
    wanted, found = teacher > 0, student > 0
    xy, label = sample_error_clicks(wanted, found, generator)
    points, labels = exemplars.points.clone(), exemplars.point_labels.clone()
    valid = exemplars.point_valid.clone()
    points[:, slot] = xy[:, 0].to(points.dtype)
    labels[:, slot] = label[:, 0].clamp(min=0)
    valid[:, slot] = (wanted != found).flatten(1).sum(1) >= error_pixels
    return exemplars._replace(points=points, point_labels=labels, point_valid=valid)


def mask_losses(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """How far a student's masks are from its teacher's.

    Args:
        student: (P, h, w) logits.
        teacher: (P, h, w) logits.

    Returns:
        Means over prompts: "mask" (cross-entropy with the teacher's probabilities), "dice", and
        "iou" of the binary masks.
    """
    soft = teacher.sigmoid()
    return {
        "mask": F.binary_cross_entropy_with_logits(student, soft),
        "dice": dice_loss(student, soft).mean(),
        "iou": paired_mask_iou(student > 0, teacher > 0).mean(),
    }


def answer_loss(student: Answer, teacher: Answer) -> Tensor:
    """Cross-entropy of the scores of all queries and of the presence with the teacher's.

    Args:
        student: answers to P prompts.
        teacher: answers to the same prompts.
    """
    scores = F.binary_cross_entropy_with_logits(student.logits, teacher.logits.sigmoid())
    presence = F.binary_cross_entropy_with_logits(student.presence, teacher.presence.sigmoid())
    return scores + presence
