"""The loss of the grounding task for late fusion.

An object that no prompt of a step names may be annotated under another category, or not at all.
What is compared is therefore the probability that a query is an object and that the prompt means
it, and nothing is learned of objects alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ...nn.detector import Detector
from ...nn.features import Answer
from ...nn.late_detector import LateDetector
from .common import LossTerms
from .detection import LossWeights, box_losses, count_objects, label_loss, presence_loss
from .grounding import GroundingBatch, GroundingLoss, GroundingStep, QueryCounts
from .matcher import Matches


@dataclass(frozen=True)
class LateGroundingLoss(GroundingLoss):
    """The terms of ``GroundingLoss`` for a ``LateDetector``.

    The noised boxes of targets are further queries, which learn boxes and masks. There are no
    one-to-many queries, and no extra losses. The label of a matched query is 1: scores of late
    fusion are no IoUs.

    Attributes:
        weights: As of ``GroundingLoss``, with other defaults; so are the next two.
        box_noise: By which part of its sides a noised box is moved and resized at most.
        noise_groups: Noised copies of each box.
    """

    weights: LossWeights = field(default_factory=lambda: LossWeights(denoising=1.0, quality=0.0))
    box_noise: float = 0.2
    noise_groups: int = 1

    def __call__(self, net: Detector, batch: GroundingBatch) -> dict[str, Tensor]:
        """Answer the prompts of a batch and compare the answers with the targets.

        Args:
            net: The ``LateDetector`` that is trained.
            batch: On the detector's device.

        Returns:
            As ``GroundingLoss`` does.
        """
        w, targets, terms = self.weights, batch.targets, LossTerms()
        late = cast(LateDetector, net)
        image = late.encode_image(batch.pixels)
        own = image.take(batch.images)  # the image of each prompt
        text = net.read_text(batch.tokens)
        prompt, mask = net.read_prompt(own, text, batch.exemplars)
        noised = self._noised_boxes(targets)
        objects = late.find_objects(own, noised)
        learned = objects.queries.shape[1] - noised.shape[1]
        every = torch.arange(len(prompt), device=prompt.device)
        decoder, boxes = net.part("decoder"), objects.boxes[:, :learned]
        meant, presence = decoder(objects.queries[:, :learned], prompt, mask, every)
        logits, presence = decoder.score_objects(
            meant, objects.logits[:, :learned], presence, boxes.detach()
        )
        terms.add("presence", presence_loss(presence, targets), w.presence)
        matches = self.matcher(logits, boxes, targets)
        terms.add("label", label_loss(logits, boxes, targets, matches, w), w.label)
        rows, wanted = targets.valid.nonzero().unbind(1)
        known = Matches(rows, wanted + learned, wanted)
        count = count_objects(targets)
        for i, (layer, _) in enumerate(objects.layers):
            aux = "" if i == len(objects.layers) - 1 else "_aux"
            for pairs, factor, name in ((matches, 1.0, aux), (known, w.denoising, "_noised")):
                l1, giou = box_losses(layer.boxes, targets, pairs, count)
                terms.add(f"box{name}", l1, factor * w.box)
                terms.add(f"giou{name}", giou, factor * w.giou)
        if targets.masks is not None and net.has("masks") and (w.mask or w.dice):
            found = objects.boxes, objects.queries
            answer = Answer(logits, presence, *found, own.tokens, prompt, mask, [])
            step = GroundingStep(batch, image, own, text, answer)
            counts = QueryCounts(learned, noised=noised.shape[1])
            self._mask_terms(terms, net, step, counts, matches, count)
        return terms.total()

    def _read_masks(
        self, net: Detector, step: GroundingStep, chosen: Matches, place: Tensor
    ) -> Tensor:
        """Mask logits (M, h, w) of chosen matches."""
        pixels, answer = net.mask_features(step.image)[0], step.answer
        rows, queries = chosen.rows, chosen.queries
        args = answer.queries[rows, queries][:, None], answer.boxes[rows, queries][:, None].detach()
        logits: Tensor = net.part("masks")(*args, pixels[step.batch.images[rows]])
        return logits[:, 0]
