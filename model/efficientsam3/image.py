"""The image predictor: encode once, ask many times."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import weights
from .build import ModelConfig, build
from .devices import best_device, best_dtype, find_device, parse_dtype
from .errors import MissingAbilityError, PromptError
from .nn.detector import Answer, Detector, FoldedDetector, ImageFeatures, fold, share
from .nn.geometry import Exemplars
from .nn.interactive import BOTTOM_RIGHT, TOP_LEFT
from .nn.layers import cxcywh_to_xyxy, xyxy_to_cxcywh
from .nn.masks import suppress
from .nn.tokenizer import tokenize
from .pixels import ImageLike, normalise, read_rgb
from .prompts import (
    check_labelled,
    pack_exemplars,
    read_array,
    read_boxes,
    read_concepts,
    read_labels,
    read_phrase,
    read_points,
)
from .types import Array, Instances, LogitPatch, Patch, join

VISUAL = "visual"
"""The text that stands for a concept shown by exemplars alone, as SAM3 was trained."""

OBJECT = "object"
"""The label of what the interactive head finds."""

ABILITIES = {
    "concepts": ("geometry",),
    "exemplars": ("geometry",),
    "masks": ("masks",),
    "interactive": ("interactive", "interactive_neck"),
    "video": ("interactive", "interactive_neck", "memory"),
}
"""What each ability needs beside the required parts."""

LARGEST_HOLE = 256
"""Holes of an interactive mask up to this many low-resolution cells are filled."""


class Grounding(NamedTuple):
    """Raw answers to one prompt an image, as tensors.

    logits: (B, Q). presence: (B,) logits. boxes: (B, Q, 4) cxcywh in [0, 1].
    masks: (B, Q, h, w) logits, None without a mask head. memory: (B, N, C) fused tokens.
    """

    logits: Tensor
    presence: Tensor
    boxes: Tensor
    masks: Tensor | None
    memory: Tensor


@dataclass(eq=False)
class EncodedImage:
    """An image that a model has read: pass it instead of the image to ask again cheaply.

    size: (height, width) in pixels. features: of the model that read it, on its device.
    """

    features: ImageFeatures
    size: tuple[int, int]
    owner: ImageModel


class ImageModel:
    """A model that finds instances of concepts, of exemplars, and single objects.

    Made by ``load``; by ``from_config`` untrained.

    Attributes:
        name: of the table, or of the saved folder. config: all its numbers.
        device, dtype: where and in what it computes. abilities: a frozenset of
            "concepts", "exemplars", "masks", "interactive", "video": what the weights can do.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        source: Callable[[], Detector],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        speed: str = "exact",
    ) -> None:
        if speed not in ("exact", "fast"):
            raise ValueError(f"speed is 'exact' or 'fast'; got {speed!r}")
        self.name, self.config, self.speed = name, config, speed
        self.device = find_device(device) if device is not None else best_device()
        self.dtype = parse_dtype(dtype) if dtype is not None else best_dtype(self.device)
        self._source = source
        learned = source()
        self.net: FoldedDetector = fold(learned, self.dtype, pooled=speed == "fast")
        fresh = source()
        if fresh is not learned:
            share(self.net, learned, fresh)
        self.net.to(self.device)
        self.abilities = frozenset(
            ability for ability, parts in ABILITIES.items() if set(parts) <= set(config.parts)
        )
        self._texts: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        # Prompts that go through the heads together; each needs some 60 MB at full size.
        self._chunk = 4 if self.device.type == "cpu" else 16

    @classmethod
    def from_config(
        cls, config: ModelConfig, name: str = "untrained", **options: Any
    ) -> ImageModel:
        """An untrained model of ``config``; ``options`` as in ``load``."""
        learned = build(config).eval().requires_grad_(False)
        return cls(name, config, lambda: learned, **options)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"ImageModel({self.name!r}, {dtype} on {self.device}, speed={self.speed!r})"

    def save(
        self, folder: str | os.PathLike[str], dtype: torch.dtype | str = torch.float32
    ) -> None:
        """Write ``model.safetensors`` and ``config.json``; ``load(folder)`` reads them.

        Args:
            dtype: of matrices and kernels on disk; "float16" halves the file.
        """
        weights.save_folder(
            Path(folder), self.name, self.config, self.learned(), parse_dtype(dtype)
        )

    def learned(self) -> Detector:
        """The weights as they were learned, in float32, for training, saving and export.

        They are not kept in memory beside their inference form: files are read again.
        """
        return self._source()

    # Images ----------------------------------------------------------------------------

    def preprocess(self, image: ImageLike) -> Tensor:
        """An image -> (1, 3, R, R) float32 normalised pixels, on the model's device.

        Args:
            image: a path, PIL image, numpy (H, W, C) RGB, or tensor (C, H, W); see
                ``pixels.read_rgb``.
        """
        return self._normalise(read_rgb(image))

    def _normalise(self, rgb: Tensor) -> Tensor:
        c = self.config
        return normalise(rgb.to(self.device), c.resolution, c.mean, c.std)

    @torch.inference_mode()
    def encode(self, image: ImageLike | EncodedImage) -> EncodedImage:
        """Read an image once; ``segment`` takes the result again and again."""
        if isinstance(image, EncodedImage):
            if image.owner is not self:
                raise PromptError(
                    f"this image was encoded by {image.owner!r}; encode it with {self!r} first"
                )
            return image
        rgb = read_rgb(image)
        features = self.net.read_image(self._normalise(rgb))
        return EncodedImage(features, (rgb.shape[1], rgb.shape[2]), self)

    def embed(self, image: ImageLike | EncodedImage) -> Array:
        """Mean of the coarsest pyramid level: (D,) float32, for similarity and uniqueness."""
        return self.encode(image).features.tokens[0].mean(0).float().cpu().numpy()

    def embed_patches(self, image: ImageLike | EncodedImage) -> Array:
        """The coarsest pyramid level: (D, rows, columns) float32."""
        features = self.encode(image).features
        level = features.tokens[0].T.unflatten(1, features.grid)
        return level.float().cpu().numpy()

    # Concepts --------------------------------------------------------------------------

    @torch.inference_mode()
    def segment(
        self,
        image: ImageLike | EncodedImage,
        concepts: str | Sequence[str] | None = None,
        *,
        boxes: Any = None,
        box_labels: Any = None,
        points: Any = None,
        point_labels: Any = None,
        threshold: float = 0.5,
        max_instances: int | None = None,
        nms: float | None = None,
        multimask: bool = False,
        mask_input: Any = None,
    ) -> Instances:
        """Every instance of some concepts, or one object that is pointed at.

        Args:
            image: as ``preprocess`` takes it, or from ``encode``.
            concepts: noun phrases, "yellow school bus". All are asked together.
            boxes: (K, 4) xyxy pixels: exemplars of the one concept, or, without a
                concept, of what is to be found.
            box_labels: (K,) 1 for "like this", 0 for "not like this"; all 1 if omitted.
            points: (K, 2) xy pixels: exemplars where there is a concept or a box; alone,
                clicks on the one object to segment.
            point_labels: (K,) 1 on it, 0 off it; all 1 if omitted.
            threshold: instances score more than this.
            max_instances: keep the best scoring.
            nms: drop an instance whose mask overlaps a better one of its concept by more
                than this IoU. None: as the model's configuration says, which for all released
                models is not at all: SAM3 needs none on images.
            multimask, mask_input: see ``segment_objects``; for points alone.

        Returns:
            Instances in the order of concepts, then of falling scores; for points alone
            the object's mask, or its three candidates.

        Raises:
            PromptError, ImageError, MissingAbilityError: the message says the way out.
        """
        asked = read_concepts(concepts)
        check_labelled(box_labels, boxes, "box_labels", "boxes")
        check_labelled(point_labels, points, "point_labels", "points")
        if asked is None and boxes is None:
            if points is None:
                raise PromptError(
                    "nothing to find: pass concepts=['person'], boxes of exemplars, or points"
                )
            clicks = read_array(points, 2, "points")[None]
            labels = None if point_labels is None else np.asarray(point_labels)[None]
            return self.segment_objects(
                image, points=clicks, point_labels=labels, masks=mask_input, multimask=multimask
            )
        if mask_input is not None:
            raise PromptError("mask_input goes with points alone, not with concepts or exemplars")
        self.require("concepts" if boxes is None and points is None else "exemplars")
        if not 0 <= threshold <= 1:
            raise PromptError(f"threshold is between 0 and 1; got {threshold}")
        if nms is not None and not 0 <= nms <= 1:
            raise PromptError(f"nms is an IoU between 0 and 1; got {nms}")
        if max_instances is not None and max_instances < 0:
            raise PromptError(f"max_instances is 0 or more; got {max_instances}")
        nms = self.config.nms if nms is None else nms
        encoded = self.encode(image)
        exemplars = None
        if boxes is not None or points is not None:
            if asked is not None and len(asked) > 1:
                raise PromptError(
                    f"exemplars show one concept; got {len(asked)}: {', '.join(asked)}. "
                    "Call segment once for each; the encoded image is shared."
                )
            exemplars = self._exemplars(encoded.size, boxes, box_labels, points, point_labels)
        names = asked or [VISUAL]
        found = []
        for start in range(0, len(names), self._chunk):
            part = names[start : start + self._chunk]
            answer = self._ask(encoded.features, part, exemplars)
            found += [
                self._instances(encoded, answer, row, name, threshold, max_instances, nms)
                for row, name in enumerate(part)
            ]
        out = join(found)
        if max_instances is not None and len(out) > max_instances:
            best = np.argsort(-out.scores, kind="stable")[:max_instances]
            out = out[np.sort(best)]
        return out

    @torch.inference_mode()
    def ground(
        self,
        pixels: Tensor,
        concepts: Sequence[str | None],
        boxes: Tensor | None = None,
        box_labels: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
    ) -> Grounding:
        """The model's raw answers: every query, one prompt an image.

        Args:
            pixels: (B, 3, R, R) from ``preprocess``.
            concepts: B phrases; None: the exemplars alone.
            boxes: (B, K, 4) cxcywh in [0, 1]; box_labels: (B, K), all 1 if omitted.
            points: (B, K, 2) xy in [0, 1]; point_labels: (B, K), all 1 if omitted.
        """
        self.require("concepts")
        c = self.config
        if pixels.ndim != 4 or pixels.shape[1:] != (3, c.resolution, c.resolution):
            raise PromptError(
                f"pixels are (B, 3, {c.resolution}, {c.resolution}) from preprocess(); "
                f"got {tuple(pixels.shape)}"
            )
        if not torch.isfinite(pixels).all():
            raise PromptError("pixels hold NaN or infinite values; use preprocess(image)")
        if isinstance(concepts, str) or len(concepts) != len(pixels):
            raise PromptError(f"{len(pixels)} images need {len(pixels)} concepts, one for each")
        names = [VISUAL if name is None else read_phrase(name) for name in concepts]
        exemplars = None
        if boxes is not None or points is not None:
            exemplars = pack_exemplars(
                len(pixels), self.device, boxes, box_labels, points, point_labels
            )
        image = self.net.read_image(pixels.to(self.device))
        answer = self._ask(image, names, exemplars)
        masks = None
        if "masks" in self.abilities:
            everything = torch.arange(answer.logits.shape[1], device=self.device)
            masks = torch.stack(
                [self.net.masks_of(image, answer, row, everything) for row in range(len(names))]
            )
        return Grounding(answer.logits, answer.presence, answer.boxes, masks, answer.memory)

    def _ask(self, image: ImageFeatures, names: list[str], exemplars: Exemplars | None) -> Answer:
        prompt, mask = self.net.read_prompt(image, self._read_text(names), exemplars)
        return self.net.answer(image, prompt, mask)

    def _read_text(self, names: list[str]) -> tuple[Tensor, Tensor]:
        """Features of phrases, each read once ever (of the last thousand)."""
        new = [n for n in dict.fromkeys(names) if n not in self._texts]
        if new:
            tokens = tokenize(new, self.config.context).to(self.device)
            features, mask = self.net.read_text(tokens)
            self._texts.update(zip(new, zip(features, mask, strict=True), strict=True))
        chosen = [self._texts[name] for name in names]
        for name in names:
            self._texts.move_to_end(name)
        while len(self._texts) > 1024:
            self._texts.popitem(last=False)
        return torch.stack([f for f, _ in chosen]), torch.stack([m for _, m in chosen])

    def _exemplars(
        self, size: tuple[int, int], boxes: Any, box_labels: Any, points: Any, point_labels: Any
    ) -> Exemplars:
        scale = torch.tensor([size[1], size[0]], dtype=torch.float32)
        box_rows = point_rows = None
        if boxes is not None:
            corners = torch.from_numpy(read_boxes(boxes, size)) / scale.repeat(2)
            box_rows = xyxy_to_cxcywh(corners)[None]
        if points is not None:
            point_rows = torch.from_numpy(read_points(points, size))[None] / scale
        return pack_exemplars(
            1,
            self.device,
            box_rows,
            None if box_labels is None else np.asarray(box_labels)[None],
            point_rows,
            None if point_labels is None else np.asarray(point_labels)[None],
        )

    def _instances(
        self,
        image: EncodedImage,
        answer: Answer,
        row: int,
        name: str,
        threshold: float,
        most: int | None,
        nms: float | None,
    ) -> Instances:
        presence = answer.presence[row].sigmoid()
        scores = answer.logits[row].sigmoid() * presence
        kept = (scores > threshold).nonzero().flatten()
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
        if most is not None and nms is None:
            kept = kept[:most]
        patches: list[Patch] | None = None
        if "masks" in self.abilities:
            patches = []
            if len(kept):
                masks = self.net.masks_of(image.features, answer, row, kept)
                if nms is not None:
                    best = suppress(masks > 0, nms)
                    kept, masks = kept[best], masks[best]
                patches = [LogitPatch.cut(m) for m in masks.cpu().numpy()]
        elif nms is not None:
            self.require("masks")
        probability = float(presence)
        return Instances(
            boxes=_to_pixels(answer.boxes[row, kept], image.size),
            scores=scores[kept].cpu().numpy(),
            presence=np.full(len(kept), probability, np.float32),
            labels=[name] * len(kept),
            size=image.size,
            patches=patches,
            concepts=(name,),
            concept_presence={name: probability},
        )

    # Single objects --------------------------------------------------------------------

    @torch.inference_mode()
    def segment_objects(
        self,
        image: ImageLike | EncodedImage,
        *,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        multimask: bool = False,
    ) -> Instances:
        """One mask for each of N prompts, by the interactive head.

        Args:
            image: as ``preprocess`` takes it, or from ``encode``.
            boxes: (N, 4) xyxy pixels, one a object.
            points: (N, K, 2) xy pixels. point_labels: (N, K) 1 on it, 0 off it, -1 padding.
            masks: (N, 1, h, w) logits: ``low_res`` of an earlier answer, to refine.
            multimask: three candidates a prompt, best first, instead of one mask.

        Returns:
            Instances in the order of the prompts. ``scores`` are predicted IoU, ``presence``
            the probability that there is an object at all, ``boxes`` those of the masks.
        """
        self.require("interactive")
        check_labelled(point_labels, points, "point_labels", "points")
        encoded = self.encode(image)
        xy, labels, earlier = self._clicks(encoded.size, boxes, points, point_labels, masks)
        features = self.net.interactive_features(encoded.features)
        head = self.net.part("interactive")
        found = []
        for start in range(0, len(xy), 16):
            rows = slice(start, start + 16)
            said = head(
                features,
                xy[rows],
                labels[rows],
                None if earlier is None else earlier[rows],
                multimask=multimask,
            )
            for logits, quality, presence in zip(
                said.logits.cpu().numpy(), said.quality.cpu(), said.presence.cpu(), strict=True
            ):
                order = quality.argsort(descending=True, stable=True).numpy()
                found.append(_object(logits[order], quality.numpy()[order], presence, encoded.size))
        if not found:
            return _object(
                np.zeros((0, 1, 1), np.float32),
                np.zeros(0, np.float32),
                torch.zeros(()),
                encoded.size,
            )
        out = join(found)
        low = [f.low_res for f in found if f.low_res is not None]
        return replace(out, low_res=np.concatenate(low))

    def _clicks(
        self, size: tuple[int, int], boxes: Any, points: Any, point_labels: Any, masks: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scale = np.array([size[1], size[0]], np.float32)
        coordinates, labels = [], []
        if boxes is not None:
            corners = read_boxes(boxes, size).reshape(-1, 2, 2)
            coordinates.append(corners / scale)
            labels.append(np.tile([TOP_LEFT, BOTTOM_RIGHT], (len(corners), 1)))
        if points is not None:
            clicks = read_array(points, 2, "points", dims=3)
            if not clicks.shape[1]:
                raise PromptError("points hold no point; a click is [[x, y]]")
            flat = read_points(clicks.reshape(-1, 2), size, checked=point_labels)
            coordinates.append(flat.reshape(clicks.shape) / scale)
            labels.append(read_labels(point_labels, clicks.shape[:2], "point_labels", padding=True))
        earlier = None
        if masks is not None:
            side = 4 * self.config.grid
            earlier = torch.as_tensor(np.asarray(masks, np.float32), device=self.device)
            earlier = earlier.reshape(-1, *earlier.shape[-3:]) if earlier.ndim > 2 else earlier
            if earlier.ndim == 3:
                earlier = earlier[:, None]
            if earlier.ndim != 4 or earlier.shape[1:] != (1, side, side):
                raise PromptError(
                    f"masks are (N, 1, {side}, {side}) logits, such as low_res of an earlier "
                    f"answer; got {np.shape(masks)}"
                )
            if not torch.isfinite(earlier).all():
                raise PromptError("masks hold NaN or infinite values; pass low_res as it came")
        counts = {len(c) for c in coordinates} | ({len(earlier)} if earlier is not None else set())
        if not counts:
            raise PromptError("nothing to segment: pass boxes, points or masks")
        if len(counts) > 1:
            raise PromptError(
                f"boxes, points and masks are of one object each, but there are {sorted(counts)}"
            )
        n = counts.pop()
        xy = np.concatenate(coordinates, 1) if coordinates else np.zeros((n, 0, 2))
        kinds = np.concatenate(labels, 1) if labels else np.zeros((n, 0))
        return (
            torch.as_tensor(xy, dtype=torch.float32, device=self.device),
            torch.as_tensor(kinds, dtype=torch.long, device=self.device),
            earlier,
        )

    def require(self, ability: str) -> None:
        """Raise MissingAbilityError, which says the way out, unless ``ability`` is there."""
        if ability in self.abilities:
            return
        lost = [weights.MEANING[p] for p in ABILITIES[ability] if p not in self.config.parts]
        also = " (every concept prompt passes through it)" if ability == "concepts" else ""
        raise MissingAbilityError(
            f"{self.name} cannot answer this: its weights have no {' and no '.join(lost)}{also}. "
            "Take a model that has it (`efficientsam3 models`), or, for one of the hub's, "
            "base=<a checkpoint that has it>, such as a full file of the same release. "
            f"It can: {', '.join(sorted(self.abilities)) or 'encode images'}."
        )


# Results ------------------------------------------------------------------------------------


def _to_pixels(boxes: Tensor, size: tuple[int, int]) -> Array:
    """(N, 4) cxcywh in [0, 1] -> xyxy pixels within the image."""
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(cxcywh_to_xyxy(boxes).cpu().numpy() * limits, 0, limits)


def _object(logits: Array, quality: Array, presence: Tensor, size: tuple[int, int]) -> Instances:
    """The masks of one interactive prompt, (M, h, w) logits."""
    patches: list[Patch] = [LogitPatch.cut(_fill_holes(m)) for m in logits]
    n, probability = len(patches), float(presence.sigmoid())
    boxes = np.array([p.crop(size)[1] for p in patches], np.float32).reshape(n, 4)
    return Instances(
        boxes=boxes,
        scores=quality.astype(np.float32),
        presence=np.full(n, probability, np.float32),
        labels=[OBJECT] * n,
        size=size,
        patches=patches,
        low_res=logits[:, None].clip(-32, 32),
    )


def _fill_holes(logits: Array) -> Array:
    """Background areas of up to ``LARGEST_HOLE`` cells become foreground, as in SAM3."""
    from scipy import ndimage

    labels, count = ndimage.label(logits <= 0, np.ones((3, 3)))
    if not count:
        return logits
    small = np.bincount(labels.ravel(), minlength=count + 1) <= LARGEST_HOLE
    small[0] = False
    return np.where(small[labels], np.float32(10), logits) if small.any() else logits
