"""What models of every runtime share: from prompts of a user to instances, without torch.

A runtime reads an image, answers prompts and computes masks, and gives arrays. Everything between
these steps is here: checks of prompts, batches, thresholds, suppression, and instances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, overload

import numpy as np

from .concepts import Concepts, unique_phrases
from .errors import PromptError
from .exemplar_prompts import check_points, read_exemplars, warn_of_negatives
from .io.samples import ImageLike
from .masks.overlap import suppress
from .model_steps import Answers, Shown
from .object_segmenter import ObjectSegmenter
from .outputs import (
    EncodedExemplars,
    EncodedImage,
    Suppression,
    best,
    join_classes,
    read_encoded,
    to_pixels,
)
from .prompts import check_labeled, check_segment_arguments, read_array
from .tiling import find_in_tiles
from .types import Array, Instances, LogitPatch, Patch

FindAll = Callable[[Sequence[EncodedImage]], list[list[Instances]]]
"""Instances of each image and phrase."""

VISUAL = "visual"
"""Text prompt of SAM3 for exemplars without a concept."""

TEXT_CACHE = 1024
"""Phrases whose features are kept."""


class Segmenter(ObjectSegmenter):
    """A model that segments concepts, instances like exemplars, and single objects.

    Attributes:
        name: Name of the table or of a folder.
        config: The model's configuration, with at least ``resolution``, ``grid``, ``nms``,
            ``negative_exemplars`` and ``point_exemplars``.
        device: Where it computes.
        key: Equal for models with the same weights, number format and speed, in all processes.
        abilities: What the weights can do, of "concepts", "exemplars", "masks", "interactive",
            "video".
    """

    # Exemplars ------------------------------------------------------------------------

    def exemplar(
        self,
        image: ImageLike | EncodedImage,
        *,
        boxes: Any = None,
        box_labels: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        mask_labels: Any = None,
    ) -> EncodedExemplars:
        """Encode exemplars with the image that they are drawn on, to find the same in other images.

        SAM3's models are trained with exemplars of the image itself; exemplars of another image
        find less.

        Args:
            image: As ``encode`` takes it, or from ``encode``.
            boxes: (K, 4) xyxy pixels.
            box_labels: (K,) 1 for a positive exemplar, 0 for a negative one. None: all 1.
            points: (K, 2) xy pixels.
            point_labels: (K,) 1 positive, 0 negative. None: all 1.
            masks: K masks or polygons, as in ``segment``.
            mask_labels: (K,) 1 positive, 0 negative. None: all 1.

        Returns:
            What ``segment`` takes as ``exemplars``, for any number of images.

        Raises:
            ImageError: The image cannot be read.
            PromptError: An exemplar is wrong, or there is none.
            MissingAbilityError: The weights have no encoder of exemplars, or none of points.
        """
        self.require("exemplars")
        drawn = {
            "boxes": boxes,
            "box_labels": box_labels,
            "points": points,
            "point_labels": point_labels,
            "masks": masks,
            "mask_labels": mask_labels,
        }
        for prompts, labels in (
            ("boxes", "box_labels"),
            ("points", "point_labels"),
            ("masks", "mask_labels"),
        ):
            check_labeled(drawn[labels], drawn[prompts], labels, prompts)
        return self._encode_exemplars(self._encode_one(image), drawn)

    def _encode_exemplars(self, image: EncodedImage, drawn: dict[str, Any]) -> EncodedExemplars:
        """Encode exemplars of an image, with the arguments of ``read_exemplars`` by name."""
        prompts = read_exemplars(image.size, **drawn)
        check_points(self.config.point_exemplars, self.name, len(prompts.points))
        warn_of_negatives(self.config.negative_exemplars, self.name, prompts)
        count = len(prompts.boxes) + len(prompts.points)
        return EncodedExemplars(self._read_exemplars(image.features, prompts), count, self)

    # Concepts --------------------------------------------------------------------------

    @overload
    def segment(
        self,
        image: list[Any] | tuple[Any, ...],
        concepts: Concepts | None = None,
        *,
        boxes: Any = None,
        box_labels: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        mask_labels: Any = None,
        exemplars: EncodedExemplars | Sequence[EncodedExemplars] | None = None,
        threshold: float = 0.5,
        presence: str = "multiply",
        max_instances: int | None = None,
        nms: float | None = None,
        class_agnostic: bool = False,
        overlap_metric: str = "iou",
        multimask: bool = False,
        mask_input: Any = None,
        tile: Any = None,
        batch_size: int | None = None,
    ) -> list[Instances]: ...

    @overload
    def segment(
        self,
        image: ImageLike | EncodedImage,
        concepts: Concepts | None = None,
        *,
        boxes: Any = None,
        box_labels: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        mask_labels: Any = None,
        exemplars: EncodedExemplars | Sequence[EncodedExemplars] | None = None,
        threshold: float = 0.5,
        presence: str = "multiply",
        max_instances: int | None = None,
        nms: float | None = None,
        class_agnostic: bool = False,
        overlap_metric: str = "iou",
        multimask: bool = False,
        mask_input: Any = None,
        tile: Any = None,
        batch_size: int | None = None,
    ) -> Instances: ...

    def segment(
        self,
        image: Any,
        concepts: Concepts | None = None,
        *,
        boxes: Any = None,
        box_labels: Any = None,
        points: Any = None,
        point_labels: Any = None,
        masks: Any = None,
        mask_labels: Any = None,
        exemplars: EncodedExemplars | Sequence[EncodedExemplars] | None = None,
        threshold: float = 0.5,
        presence: str = "multiply",
        max_instances: int | None = None,
        nms: float | None = None,
        class_agnostic: bool = False,
        overlap_metric: str = "iou",
        multimask: bool = False,
        mask_input: Any = None,
        tile: Any = None,
        batch_size: int | None = None,
    ) -> Any:
        """Segment every instance of some concepts, or one object at some points.

        Args:
            image: As ``encode`` takes it, or from ``encode``; or a list of such, of any sizes.
            concepts: Noun phrases such as "yellow school bus"; they are processed together. Or a
                mapping from classes to their phrases, {"vehicle": ["car", "truck"]}: labels are
                classes, and instances that two phrases of a class find are one.
            boxes: (K, 4) xyxy pixels: exemplars of the one concept, or, without a concept, of
                what to find.
            box_labels: (K,) 1 for a positive exemplar, 0 for a negative one. None: all 1.
            points: (K, 2) xy pixels: exemplars where there is a concept or another exemplar;
                otherwise clicks on one object.
            point_labels: (K,) 1 positive, 0 negative. None: all 1.
            masks: K exemplars by their masks: arrays (H, W) bool, run lengths, or polygons of
                (P, 2) corners; see ``masks.shapes.read_shape``. Each is read as its box, because
                no weights have an encoder for masks of exemplars.
            mask_labels: (K,) 1 for a positive exemplar, 0 for a negative one. None: all 1.
            exemplars: Exemplars of other images, from ``exemplar``: one result or several.
            threshold: Keep instances that score more than this, 0 to 1.
            presence: "multiply": scores are those of the queries times the presence of the
                concept. "separate": scores are those of the queries alone. ``presence`` of the
                result is beside them either way.
            max_instances: Keep at most this many instances, the best. None: all.
            nms: Drop an instance whose mask overlaps a better one of its class by more than this.
                None: the model's default (no suppression for released models). Those of two
                phrases of a class, and of two classes if ``class_agnostic``, then overlap by 0.5.
            class_agnostic: Whether instances of different classes are compared too.
            overlap_metric: "iou", or "iom": the intersection over the smaller mask.
            multimask: As in ``segment_objects``, for points alone.
            mask_input: ``masks`` of ``segment_objects``, for points alone.
            tile: For large pictures, read tiles besides the whole picture, and join objects that
                borders of tiles cut: the side of a tile in pixels, or (side, overlap), where
                neighboring tiles share ``overlap`` pixels (an eighth of the side by default).
                "auto": tiles of the model's resolution, where the picture is more than 1.5 times
                as long. None: the whole picture alone. It goes with concepts and ``exemplars``.
            batch_size: Images of a list that are encoded and asked together; see ``encode``.

        Returns:
            Instances in the order of classes, then of decreasing scores; for points alone the
            object's mask, or its three candidates. For a list of images, a list of these.

        Raises:
            ImageError: The image cannot be read.
            PromptError: An argument is wrong, or arguments do not go together.
            MissingAbilityError: The weights lack a part that this call needs.
        """
        classes = check_segment_arguments(
            concepts,
            boxes=boxes,
            box_labels=box_labels,
            points=points,
            point_labels=point_labels,
            masks=masks,
            mask_labels=mask_labels,
            exemplars=exemplars,
            threshold=threshold,
            presence=presence,
            max_instances=max_instances,
            nms=nms,
            class_agnostic=class_agnostic,
            overlap_metric=overlap_metric,
            tile=tile,
        )
        step = self._images_together(batch_size)
        several = isinstance(image, (list, tuple))
        drawn = {
            "boxes": boxes,
            "box_labels": box_labels,
            "points": points,
            "point_labels": point_labels,
            "masks": masks,
            "mask_labels": mask_labels,
        }
        is_drawn = any(value is not None for value in drawn.values())
        if several and is_drawn:
            raise PromptError(
                f"boxes, points and masks are in one image, and there are {len(image)}: call "
                "segment once for each image, with its own, or pass those of one image to all by "
                "exemplars=model.exemplar(image, boxes=...)"
            )
        if classes is None and boxes is None and masks is None and exemplars is None:
            clicks = read_array(points, 2, "points")[None]
            labels = None if point_labels is None else np.asarray(point_labels)[None]
            return self.segment_objects(
                image, points=clicks, point_labels=labels, masks=mask_input, multimask=multimask
            )
        if mask_input is not None:
            raise PromptError("mask_input goes with points alone, not with concepts or exemplars")
        self.require("exemplars" if is_drawn or exemplars is not None else "concepts")
        self._expect_prompts()
        nms = self.config.nms if nms is None else nms
        suppression = Suppression(nms, class_agnostic, overlap_metric)
        shown = []
        if exemplars is not None:
            shown = [one.shown for one in read_encoded(exemplars, self)]
        if is_drawn:
            image = self._encode_one(image)
            shown.append(self._encode_exemplars(image, drawn).shown)
        classes = classes or {VISUAL: [VISUAL]}
        phrases = unique_phrases(classes)
        # Where instances of several phrases or tiles are compared, all are needed until then.
        limit = None if tile is not None or suppression.compares(classes) else max_instances
        find = partial(
            self._find,
            names=list(phrases.values()),
            shown=shown,
            threshold=threshold,
            presence=presence,
            max_instances=limit,
            nms=suppression.of_phrase,
        )
        out = []
        images = image if several else [image]
        for start in range(0, len(images), step):
            part = images[start : start + step]
            if tile is None:
                found = find(self._encode_together(part))
            else:
                found = [self._find_in_tiles(one, tile, find) for one in part]
            for one in found:
                by_phrase = dict(zip(phrases, one, strict=True))
                out.append(best(join_classes(by_phrase, classes, suppression), max_instances))
        return out if several else out[0]

    def _expect_prompts(self) -> None:
        """Called before an image is read that phrases or exemplars are looked for in."""
        return

    def _find_in_tiles(self, image: Any, tile: Any, find: FindAll) -> list[Instances]:
        resolution = self.config.resolution
        return find_in_tiles(
            image, tile, resolution, self._encode_window, lambda encoded: find([encoded])[0]
        )

    def _find(
        self,
        images: Sequence[EncodedImage],
        *,
        names: list[str],
        shown: Sequence[Shown],
        threshold: float,
        presence: str,
        max_instances: int | None,
        nms: float | None,
    ) -> list[list[Instances]]:
        """Instances of each image and phrase; phrases of all images are answered in batches."""
        pairs = [(image, name) for image in images for name in names]
        found = []
        for start in range(0, len(pairs), self._batch_size):
            batch = pairs[start : start + self._batch_size]
            for image, answers, row, name in self._answer_pairs(batch, shown):
                scores = answers.scores[row]
                if presence == "multiply":
                    scores = scores * answers.presence[row]
                found.append(
                    self._instances(
                        image, answers, row, name, scores, threshold, max_instances, nms
                    )
                )
        count = len(names)
        return [found[start : start + count] for start in range(0, len(found), count)]

    def _answer_pairs(
        self, pairs: Sequence[tuple[EncodedImage, str]], shown: Sequence[Shown]
    ) -> Iterator[tuple[EncodedImage, Answers, int, str]]:
        """Answer phrases for images: each image, answers, and the row and name of the phrase."""
        images = {id(image): image for image, _ in pairs}
        if len(images) > 1:
            names = [name for _, name in pairs]
            together = self._answer_several([image.features for image, _ in pairs], names, shown)
            if together is not None:
                for row, (image, name) in enumerate(pairs):
                    yield image, together, row, name
                return
        for key, image in images.items():
            names = [name for other, name in pairs if id(other) == key]
            answers = self._answer(image.features, names, shown)
            for row, name in enumerate(names):
                yield image, answers, row, name

    def _instances(
        self,
        image: EncodedImage,
        answers: Answers,
        row: int,
        name: str,
        scores: Array,
        threshold: float,
        max_instances: int | None,
        nms: float | None,
    ) -> Instances:
        """The queries of one phrase with scores (Q,) above the threshold, best first."""
        kept = np.flatnonzero(scores > threshold)
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        if max_instances is not None and nms is None:
            kept = kept[:max_instances]
        patches: list[Patch] | None = None
        if "masks" in self.abilities:
            patches = []
            if len(kept):
                masks = self._masks(image.features, answers, row, kept)
                if nms is not None:
                    best = suppress(masks > 0, nms)
                    kept, masks = kept[best], masks[best]
                patches = [LogitPatch.cut(m) for m in masks]
        elif nms is not None:
            self.require("masks")
        probability = float(answers.presence[row])
        return Instances(
            boxes=to_pixels(answers.boxes[row, kept], image.size),
            scores=scores[kept],
            presence=np.full(len(kept), probability, np.float32),
            labels=[name] * len(kept),
            size=image.size,
            patches=patches,
            concepts=(name,),
            concept_presence={name: probability},
        )
