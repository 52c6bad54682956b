"""The task of late fusion: a model learns to find, draw and name the objects of scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efficientsam3.config import ModelConfig
from efficientsam3.data.sample import TrainingSample
from efficientsam3.nn.late_detector import LateDetector
from efficientsam3.train.pictures import concept_sheet
from efficientsam3.train.settings import LoopSettings
from efficientsam3.train.task import Picture, Task
from efficientsam3.train.validation import score

from .object_batches import ObjectBatch, ObjectBatches
from .object_loss import ObjectLoss, iou_of_masks

LARGE = 0.25
"""Side of large objects, as a share of the image's side; their masks are measured separately."""
PICTURES = 12


class ObjectTask(Task):
    """Trains a detector with late fusion. Its text encoder does not train.

    Args:
        net: The model.
        config: Its configuration.
        training: Makes batches.
        criterion: The loss.
        held_out: Samples for cgF1, by the name of their split.
        probes: Batches whose objects are named and drawn from their true boxes, by split.
        seed: Seed of the batches.
        workers: Processes that make batches.
    """

    def __init__(
        self,
        net: LateDetector,
        config: ModelConfig,
        training: ObjectBatches,
        criterion: ObjectLoss,
        *,
        held_out: Mapping[str, Sequence[TrainingSample]] | None = None,
        probes: Mapping[str, tuple[Sequence[ObjectBatch], tuple[str, ...]]] | None = None,
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        self.module: LateDetector = net
        self.training: ObjectBatches = training
        self.config, self.criterion = config, criterion
        self.held_out, self.probes = held_out or {}, probes or {}
        self.seed, self.workers = seed, workers

    def freeze(self, settings: LoopSettings) -> None:
        """Stop the gradients of the text encoder, and of all but ``settings.parts``.

        Args:
            settings: Settings of the loop.
        """
        super().freeze(settings)
        self.module.part("text").requires_grad_(False)

    def loss(self, module: nn.Module, batch: ObjectBatch) -> Mapping[str, Tensor]:
        """The terms of ``ObjectLoss``.

        Args:
            module: The model.
            batch: The batch.
        """
        return self.criterion(self.module, batch)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Concept scores of the held-out samples; names and masks of the probes.

        Args:
            module: The model.
        """
        out: dict[str, float] = {}
        for split, samples in self.held_out.items():
            found = score(self.module, self.config, samples)
            out |= {
                f"{split}/{name}": found[name] for name in ("cgF1", "pmF1", "IL_MCC", "cgF1@50")
            }
        for split, (batches, names) in self.probes.items():
            out |= {f"{split}/{k}": v for k, v in self._probe(batches, names).items()}
        return out

    def _probe(self, batches: Sequence[ObjectBatch], names: tuple[str, ...]) -> dict[str, float]:
        """Names and masks of objects whose boxes are given; recall of those that are found."""
        net = self.module
        head = net.part("decoder")
        text = head.embed_text(*self.criterion.table.read(net, names))
        right, ious, recalled, large = [], [], [], []
        for batch in batches:
            image = net.encode_image(batch.pixels)
            objects = net.find_objects(image, batch.boxes)
            given = batch.boxes.shape[1]
            logits = head.similarity(head.embed_objects(objects.queries[:, -given:]), text)
            right.append((logits.argmax(-1) == batch.concepts)[batch.valid])
            pixels = net.mask_features(image)[0]
            masks = net.part("masks")(objects.queries, objects.boxes, pixels) > 0
            true = batch.masks > 127
            ious.append(iou_of_masks(masks[:, -given:], true)[batch.valid])
            found = masks[:, :-given] & (objects.logits[:, :-given] > 0)[..., None, None]
            pairs = [iou_of_masks(f[:, None], t[None]) for f, t in zip(found, true, strict=True)]
            recalled.append(torch.stack([p.amax(0) for p in pairs])[batch.valid])
            large.append(batch.boxes[..., 2:].amax(-1)[batch.valid] > LARGE)
        is_large, iou, recall = torch.cat(large), torch.cat(ious), torch.cat(recalled)
        return {
            "named": float(torch.cat(right).float().mean()),
            "iou": float(iou.mean()),
            "iou large": float(iou[is_large].mean()),
            "recall": float((recall > 0.5).float().mean()),
            "found iou large": float(recall[is_large & (recall > 0.5)].mean()),
        }

    def pictures(self, module: nn.Module) -> dict[str, Picture]:
        """Predictions on held-out samples over the truth.

        Args:
            module: The model.
        """
        return {
            split: concept_sheet(self.module, self.config, list(samples[:PICTURES]))
            for split, samples in self.held_out.items()
        }

    def describe(self) -> dict[str, Any]:
        """Plain values that decide the numbers."""
        return {
            "batch": self.training.size,
            "seed": self.seed,
            "prompts": repr(self.training.shares),
            "weights": repr(self.criterion.weights),
            "teacher": getattr(self.criterion.teacher, "weight", 0.0),
            "phrases": len(self.criterion.table.phrases),
        }
