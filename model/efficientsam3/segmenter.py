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
from .errors import ImageError, PromptError
from .everything import check_everything, find_everything
from .io.samples import ImageLike
from .masks.overlap import suppress
from .model_steps import Answers, ModelSteps
from .outputs import (
    EncodedImage,
    Suppression,
    best,
    join_classes,
    join_objects,
    object_instances,
    to_pixels,
)
from .prompts import (
    ExemplarPrompts,
    check_batch_size,
    check_labelled,
    check_segment_arguments,
    read_array,
    read_exemplars,
    read_object_prompts,
    warn_of_negatives,
)
from .tiling import find_in_tiles
from .types import Array, Instances, LogitPatch, Patch

FindAll = Callable[[Sequence[EncodedImage]], list[list[Instances]]]
"""Instances of each image and phrase."""

VISUAL = "visual"
"""Text prompt of SAM3 for exemplars without a concept."""

OBJECT_BATCH = 16
"""Prompts of single objects per batch."""

TEXT_CACHE = 1024
"""Phrases whose features are kept."""


class Segmenter(ModelSteps):
    """A model that segments concepts, instances like exemplars, and single objects.

    Attributes:
        name: Name of the table or of a folder.
        config: The model's configuration, with at least ``resolution``, ``grid``, ``nms`` and
            ``negative_exemplars``.
        device: Where it computes.
        key: Equal for models with the same weights, number format and speed, in all processes.
        abilities: What the weights can do, of "concepts", "exemplars", "masks", "interactive",
            "video".
    """

    # What users call --------------------------------------------------------------------

    @overload
    def encode(
        self, image: list[Any] | tuple[Any, ...], *, batch_size: int | None = None
    ) -> list[EncodedImage]: ...

    @overload
    def encode(
        self, image: ImageLike | EncodedImage, *, batch_size: int | None = None
    ) -> EncodedImage: ...

    def encode(self, image: Any, *, batch_size: int | None = None) -> Any:
        """Run the image encoder; ``segment`` and ``segment_objects`` take the result.

        Args:
            image: A path, PIL image, (H, W, C) RGB array or (C, H, W) tensor; see
                ``io.images.read_rgb``. An encoded image is returned as it is. Or a list of such,
                of any sizes, which are encoded in batches.
            batch_size: Images of a list that are encoded together, which bounds memory. None: 4 on
                a CPU, 16 elsewhere.

        Returns:
            An encoded image; a list of them for a list.

        Raises:
            ImageError: An image cannot be read.
            PromptError: An image was encoded by another model, or ``batch_size`` is not a whole
                number from 1.
        """
        step = self._images_together(batch_size)
        if not isinstance(image, (list, tuple)):
            return self._encode_together([image])[0]
        parts = (image[start : start + step] for start in range(0, len(image), step))
        return [encoded for part in parts for encoded in self._encode_together(part)]

    def _encode_one(self, image: ImageLike | EncodedImage) -> EncodedImage:
        """Encode an image where a list has no meaning."""
        if isinstance(image, (list, tuple)):
            raise ImageError(
                f"one image is expected here; got a {type(image).__name__} of {len(image)}: call "
                "this once for each image"
            )
        return self._encode_together([image])[0]

    def _images_together(self, batch_size: int | None) -> int:
        return self._batch_size if batch_size is None else check_batch_size(batch_size)

    def _encode_together(self, images: Sequence[ImageLike | EncodedImage]) -> list[EncodedImage]:
        new = [image for image in images if not isinstance(image, EncodedImage)]
        read = iter(self._read_several(new) if len(new) > 1 else map(self._read, new))
        return [
            image.for_model(self)
            if isinstance(image, EncodedImage)
            else EncodedImage(*next(read), self)
            for image in images
        ]

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
        threshold: float = 0.5,
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
        threshold: float = 0.5,
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
        threshold: float = 0.5,
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
            points: (K, 2) xy pixels: exemplars where there is a concept or a box; otherwise
                clicks on one object.
            point_labels: (K,) 1 positive, 0 negative. None: all 1.
            threshold: Keep instances that score more than this, 0 to 1.
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
                as long. None: the whole picture alone. It goes with concepts.
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
            threshold=threshold,
            max_instances=max_instances,
            nms=nms,
            class_agnostic=class_agnostic,
            overlap_metric=overlap_metric,
            tile=tile,
        )
        step = self._images_together(batch_size)
        several = isinstance(image, (list, tuple))
        if several and (boxes is not None or points is not None):
            raise PromptError(
                f"boxes and points are in one image, and there are {len(image)}: call segment once "
                "for each image, with its own"
            )
        if classes is None and boxes is None:
            clicks = read_array(points, 2, "points")[None]
            labels = None if point_labels is None else np.asarray(point_labels)[None]
            return self.segment_objects(
                image, points=clicks, point_labels=labels, masks=mask_input, multimask=multimask
            )
        if mask_input is not None:
            raise PromptError("mask_input goes with points alone, not with concepts or exemplars")
        self.require("concepts" if boxes is None and points is None else "exemplars")
        nms = self.config.nms if nms is None else nms
        suppression = Suppression(nms, class_agnostic, overlap_metric)
        exemplars = None
        if boxes is not None or points is not None:
            image = self._encode_one(image)
            exemplars = read_exemplars(image.size, boxes, box_labels, points, point_labels)
            warn_of_negatives(self.config.negative_exemplars, self.name, exemplars)
        classes = classes or {VISUAL: [VISUAL]}
        phrases = unique_phrases(classes)
        # Where instances of several phrases or tiles are compared, all are needed until then.
        limit = None if tile is not None or suppression.compares(classes) else max_instances
        find = partial(
            self._find,
            names=list(phrases.values()),
            exemplars=exemplars,
            threshold=threshold,
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

    def _find_in_tiles(self, image: Any, tile: Any, find: FindAll) -> list[Instances]:
        resolution = self.config.resolution
        return find_in_tiles(
            image, tile, resolution, self._encode_window, lambda encoded: find([encoded])[0]
        )

    def _encode_window(self, pixels: Array, size: tuple[int, int] | None) -> EncodedImage:
        """Encode pixels of a picture of ``size``; None: of their own."""
        features, own = self._read(pixels)
        return EncodedImage(features, size or own, self)

    def _find(
        self,
        images: Sequence[EncodedImage],
        *,
        names: list[str],
        exemplars: ExemplarPrompts | None,
        threshold: float,
        max_instances: int | None,
        nms: float | None,
    ) -> list[list[Instances]]:
        """Instances of each image and phrase; phrases of all images are answered in batches."""
        step = self._batch_size if exemplars is None else 1
        pairs = [(image, name) for image in images for name in names]
        found = []
        for start in range(0, len(pairs), step):
            batch = pairs[start : start + step]
            for image, answers, row, name in self._answer_pairs(batch, exemplars):
                found.append(
                    self._instances(image, answers, row, name, threshold, max_instances, nms)
                )
        count = len(names)
        return [found[start : start + count] for start in range(0, len(found), count)]

    def _answer_pairs(
        self, pairs: Sequence[tuple[EncodedImage, str]], exemplars: ExemplarPrompts | None
    ) -> Iterator[tuple[EncodedImage, Answers, int, str]]:
        """Answer phrases for images: each image, answers, and the row and name of the phrase."""
        images = {id(image): image for image, _ in pairs}
        if len(images) > 1:
            names = [name for _, name in pairs]
            together = self._answer_several([image.features for image, _ in pairs], names)
            if together is not None:
                for row, (image, name) in enumerate(pairs):
                    yield image, together, row, name
                return
        for key, image in images.items():
            names = [name for other, name in pairs if id(other) == key]
            answers = self._answer(image.features, names, exemplars)
            for row, name in enumerate(names):
                yield image, answers, row, name

    def _instances(
        self,
        image: EncodedImage,
        answers: Answers,
        row: int,
        name: str,
        threshold: float,
        max_instances: int | None,
        nms: float | None,
    ) -> Instances:
        scores = answers.scores[row]
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

    # Everything ------------------------------------------------------------------------

    def segment_everything(
        self,
        image: ImageLike | EncodedImage,
        *,
        points_per_side: int = 32,
        threshold: float = 0.8,
        stability_threshold: float = 0.95,
        nms: float = 0.7,
        max_instances: int | None = None,
        tile: Any = None,
    ) -> Instances:
        """Segment all things in an image without a word, by the interactive head.

        Each point of a grid is a click, with three candidates. Good masks are kept, each once.

        Args:
            image: As ``encode`` takes it, or from ``encode``.
            points_per_side: Points along each side of the grid, 1 to 256.
            threshold: Keep masks with a larger predicted IoU, 0 to 1.
            stability_threshold: Keep masks that change little where their logits are cut higher
                or lower by 1: their area then, over that of the lower cut, is at least this.
            nms: Of two masks with a larger IoU the one with the lower score is dropped.
            max_instances: Keep at most this many instances, the best. None: all.
            tile: Click on the points of a grid in each tile too; see ``segment``. Small things
                need it.

        Returns:
            Instances with the label "object", by decreasing predicted IoU. Masks can lie within
            others: a wheel in a car.

        Raises:
            ImageError: The image cannot be read.
            PromptError: An argument is wrong.
            MissingAbilityError: The weights have no interactive head.
        """
        settings = check_everything(
            points_per_side, threshold, stability_threshold, nms, max_instances, tile
        )
        self.require("interactive")

        def find(encoded: EncodedImage) -> list[Instances]:
            return [find_everything(encoded, self._answer_objects, settings)]

        if tile is None:
            found = find(self._encode_one(image))
        else:
            resolution = self.config.resolution
            found = find_in_tiles(image, tile, resolution, self._encode_window, find, nested=True)
        return found[0][:max_instances]

    # Single objects --------------------------------------------------------------------

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
        """Segment one object for each of N prompts, by the interactive head.

        Args:
            image: As ``encode`` takes it, or from ``encode``.
            boxes: (N, 4) xyxy pixels, one for each object.
            points: (N, K, 2) xy pixels.
            point_labels: (N, K) 1 on the object, 0 off it, -1 padding. None: all 1.
            masks: (N, 1, h, w) logits to refine: ``low_res`` of an earlier result.
            multimask: Return three candidates per prompt, the best first, instead of one mask.

        Returns:
            Instances in the order of the prompts. ``scores`` are predicted IoU, ``presence`` is
            the probability that there is an object, ``boxes`` are those of the masks.

        Raises:
            ImageError: The image cannot be read.
            PromptError: A prompt is wrong, or there is none.
            MissingAbilityError: The weights have no interactive head.
        """
        self.require("interactive")
        check_labelled(point_labels, points, "point_labels", "points")
        encoded = self._encode_one(image)
        side = 4 * self.config.grid
        prompts = read_object_prompts(encoded.size, side, boxes, points, point_labels, masks)
        found = []
        for start in range(0, len(prompts[0]), OBJECT_BATCH):
            xy, labels, earlier = (
                None if p is None else p[start : start + OBJECT_BATCH] for p in prompts
            )
            output = self._answer_objects(encoded.features, xy, labels, earlier, multimask)  # type: ignore[arg-type]
            for logits, quality, presence in zip(*output, strict=True):
                order = np.argsort(-quality, kind="stable")
                found.append(
                    object_instances(logits[order], quality[order], float(presence), encoded.size)
                )
        return join_objects(found, encoded.size)
