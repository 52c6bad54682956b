"""The network with late fusion: objects are found once, and prompts choose among them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from .detector import Detector, FoldedDetector
from .features import Answer, ImageFeatures
from .interactive import InteractiveFeatures
from .late_objects import ObjectQueries
from .layers import cast
from .positions import encode_grid


class LateDetector(Detector):
    """A detector whose fusion of image and prompt comes last.

    The parts have the names of ``Detector``: ``fusion`` is an ``ObjectDecoder``, ``decoder`` a
    ``PromptDecoder``, ``masks`` a ``PixelHead``, ``neck`` a ``StageNeck``. There is no ``scoring``.
    """

    # Images ------------------------------------------------------------------------------

    def encode_image(self, pixels: Tensor) -> ImageFeatures:
        """Encode images without looking for objects.

        Args:
            pixels: (B, 3, R, R) normalized pixels.

        Returns:
            Features of the B images.
        """
        maps = self.part("trunk")(pixels)
        level = self.coarse_level(maps)
        grid = (level.shape[-2], level.shape[-1])
        positions = encode_grid(*grid, level.shape[1], level.device)
        tokens = level.flatten(2).transpose(1, 2).float()
        tokens = self.part("fusion").encode(tokens, positions, grid)
        geometry = []
        if self.has("geometry"):
            geometry = self.part("geometry").read_image(tokens, positions)
        return ImageFeatures(maps[-1], tokens, tokens, geometry, grid, fine=maps[:-1])

    def find_objects(self, image: ImageFeatures, given: Tensor | None = None) -> ObjectQueries:
        """Find the objects of images.

        Args:
            image: From ``encode_image``.
            given: As in ``ObjectDecoder.forward``.

        Returns:
            The objects.
        """
        positions = encode_grid(*image.grid, image.tokens.shape[-1], image.tokens.device)
        objects: ObjectQueries = self.part("fusion")(
            image.tokens, positions, image.grid, image.fine[1], given
        )
        return objects

    def read_image(self, pixels: Tensor) -> ImageFeatures:
        """Encode images and find their objects.

        Args:
            pixels: (B, 3, R, R) normalized pixels.

        Returns:
            Features of the B images.
        """
        image = self.encode_image(pixels)
        image.objects = self.find_objects(image)
        return image

    def coarse_level(self, encoded: Any) -> Tensor:
        """Compute the pyramid level of scale 1.

        Args:
            encoded: Maps of the image encoder's stages, finest first.

        Returns:
            (B, C, g, g).
        """
        level: Tensor = self.part("neck")(encoded[-1:], (0,))[0]
        return level

    def mask_features(self, image: ImageFeatures) -> list[Tensor]:
        """Return the pixel features of images, computed once.

        Args:
            image: Features of the images, which keep the result.

        Returns:
            One map (B, D, 4 * rows, 4 * columns).
        """
        if image.mask_features is None:
            head = self.part("masks")
            image.mask_features = [head.read_pixels(image.tokens, image.grid, image.fine)]
        return image.mask_features

    def read_frame(self, encoded: Any) -> InteractiveFeatures:
        """Compute the tracker's features of a frame.

        Args:
            encoded: Maps of the image encoder's stages, finest first.

        Returns:
            The features.
        """
        fine, middle, coarse = (x.float() for x in self.part("interactive_neck")(encoded))
        features: InteractiveFeatures = self.part("interactive").read_frame(fine, middle, coarse)
        return features

    def frame_features(self, image: ImageFeatures) -> InteractiveFeatures:
        """Return the tracker's features of a frame, computed once.

        Args:
            image: Features of one frame, which keep the result.

        Returns:
            The features.
        """
        if image.frame is None:
            image.frame = self.read_frame((*image.fine, image.map))
        return image.frame

    # Prompts -----------------------------------------------------------------------------

    def answer(
        self,
        image: ImageFeatures,
        prompt: Tensor,
        mask: Tensor,
        alone: tuple[Tensor, Tensor] | None = None,
    ) -> Answer:
        """Choose the objects that B prompts mean.

        Args:
            image: Features of one image, which all prompts share, or of B images.
            prompt: (B, L, C) prompt tokens.
            mask: (B, L) bool, True where a prompt token is valid.
            alone: Not used; prompts are compared with the objects that were found.

        Returns:
            The detections, without masks.
        """
        objects = image.objects or self.find_objects(image)
        count = len(prompt)
        images = torch.arange(count, device=prompt.device)
        if len(objects.queries) == 1:
            images = torch.zeros_like(images)
        meant, presence = self.part("decoder")(objects.queries, prompt, mask, images)
        queries, boxes, found = (
            t.expand(count, *t.shape[1:]) for t in (objects.queries, objects.boxes, objects.logits)
        )
        tokens = image.tokens.expand(count, -1, -1)
        decoder = self.part("decoder")
        logits, presence = decoder.score_objects(meant, found, presence, objects.boxes)
        return Answer(logits, presence, boxes.float(), queries, tokens, prompt, mask, [])

    def masks_of(self, image: ImageFeatures, answer: Answer, row: int, queries: Tensor) -> Tensor:
        """Compute masks of selected queries of one prompt.

        Args:
            image: Features of one image, or of as many images as prompts.
            answer: From ``answer``.
            row: Index of the prompt.
            queries: (K,) indices of the queries.

        Returns:
            (K, 4 * rows, 4 * columns) mask logits.
        """
        pixels = self.mask_features(image)[0]
        pixels = pixels[row : row + 1] if len(pixels) > 1 else pixels
        chosen = answer.queries[row, queries][None], answer.boxes[row, queries][None]
        masks: Tensor = self.part("masks")(*chosen, pixels)[0]
        return masks

    def presence_bias(self) -> Tensor:
        """The bias of the presence head, (1,), which a calibration changes."""
        bias: Tensor = self.part("decoder").presence_bias()
        return bias

    def object_bias(self) -> Tensor:
        """The bias of the scores of objects, (1,), which a calibration changes."""
        bias: Tensor = self.part("decoder").object_bias()
        return bias

    def folded(self, dtype: torch.dtype, *, pooled: bool) -> FoldedDetector:
        """Make the inference form, see ``fold``.

        Args:
            dtype: Dtype of the costly linear layers and convolutions.
            pooled: Not used: the tokens are few.
        """
        return FoldedLateDetector(self, dtype)


class FoldedLateDetector(LateDetector, FoldedDetector):
    """A detector with late fusion for inference, made by ``fold``.

    Batch norms are folded into convolutions.

    Args:
        learned: A trained detector; it does not change, and tensors that are neither folded nor
            cast are shared with it.
        dtype: Dtype of the image encoder.
    """

    def __init__(self, learned: LateDetector, dtype: torch.dtype) -> None:
        tensors = [*learned.parameters(), *learned.buffers()]
        parts: dict[str, Any] = copy.deepcopy(
            dict(learned.named_children()), {id(t): t for t in tensors}
        )
        Detector.__init__(self, parts)
        self.dtype = dtype
        self.eval()
        parts["trunk"].fold_norms()
        parts["trunk"].cast(dtype)
        cast(parts["masks"], torch.float32)  # channels last
        self._places = {}
        self._memory_is_cast = False
        self.requires_grad_(False)
