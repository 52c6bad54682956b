"""Encoding of images, and masks of single objects: what models of every runtime share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from .errors import ImageError
from .everything import check_everything, find_everything
from .io.samples import ImageLike
from .model_steps import ModelSteps
from .outputs import EncodedImage, join_objects, object_instances
from .prompts import check_batch_size, check_labeled, read_object_prompts
from .tiling import find_in_tiles
from .types import Array, Instances

OBJECT_BATCH = 16
"""Prompts of single objects per batch."""


class ObjectSegmenter(ModelSteps):
    """A model that encodes images and segments single objects."""

    # Images -----------------------------------------------------------------------------

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

    def _encode_window(self, pixels: Array, size: tuple[int, int] | None) -> EncodedImage:
        """Encode pixels of a picture of ``size``; None: of their own."""
        features, own = self._read(pixels)
        return EncodedImage(features, size or own, self)

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
        check_labeled(point_labels, points, "point_labels", "points")
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
