"""Read images and prompts for the image model, also in the worker processes of a data loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import fiftyone.utils.torch as fout
import torch
from torchvision.transforms.v2 import functional as transforms

import efficientsam3 as es3
from efficientsam3.io.images import read_rgb

from .prompts import PROMPT_KEYS, Prompts, read_prompts


@dataclass(frozen=True)
class Item:
    """One image and its prompts.

    Attributes:
        image: (3, H, W) uint8 RGB, or None if the image cannot be read; or an image that the model
            has encoded.
        prompts: the prompts of the sample.
        error: why the image cannot be segmented, or None.
        source: the path of the file, or an empty string.
    """

    image: Any = None
    prompts: Prompts = field(default_factory=Prompts)
    error: es3.EfficientSam3Error | None = None
    source: str = ""

    @property
    def pixels(self) -> Any:
        """The image as a (H, W, 3) uint8 RGB array.

        Raises:
            ImageError: it could not be read.
        """
        if self.image is None:
            raise self.error or es3.ImageError("there is no image")
        return self.image.permute(1, 2, 0).numpy()


def make_item(image: Any, values: Mapping[str, Any]) -> Item:
    """Read an image and its prompts.

    An error becomes part of the item: an exception in a data loader would cost the whole batch.

    Args:
        image: a path, or any other image that the core reads.
        values: the values of the prompt fields, by the keys of ``PROMPT_KEYS``.
    """
    source = image if isinstance(image, str) else ""
    try:
        rgb = read_rgb(image)
    except es3.ImageError as error:
        return Item(error=error, source=source)
    try:
        prompts = read_prompts(values, (rgb.shape[1], rgb.shape[2]))
    except es3.PromptError as error:
        return Item(rgb, error=error, source=source)
    return Item(rgb, prompts, source=source)


def encode_items(
    core: es3.ImageModel, items: Sequence[Item], batch_size: int | None = None
) -> list[Item]:
    """Encode the images of items together.

    Args:
        core: the model.
        items: the items.
        batch_size: see ``ImageModel.encode``.

    Returns:
        the items, of which those without an error have the encoded image in place of the pixels.
    """
    good = [item.image for item in items if item.error is None]
    encoded = iter(core.encode(good, batch_size=batch_size))
    return [replace(i, image=next(encoded)) if i.error is None else i for i in items]


class ImageGetItem(fout.GetItem):
    """Read the image and the prompts of one sample.

    Args:
        field_mapping: field names by ``"filepath"`` and by the keys of ``PROMPT_KEYS``.
    """

    IMAGE_KEY = "filepath"

    def __init__(self, field_mapping: Mapping[str, str] | None = None) -> None:
        prompts = [k for k in PROMPT_KEYS if k in (field_mapping or {})]
        self._keys = [self.IMAGE_KEY, *prompts]
        super().__init__(field_mapping=field_mapping)

    @property
    def required_keys(self) -> list[str]:
        """The key of the image, and the keys of the prompts that have a field."""
        return list(self._keys)

    def __call__(self, d: Mapping[str, Any]) -> Item:
        """Read one sample.

        Args:
            d: the values of the fields, by the keys of ``required_keys``.
        """
        return make_item(d[self.IMAGE_KEY], d)


class ImageGetItemForVideo(ImageGetItem):
    """The same for one frame of a video, whose pixels are given.

    FiftyOne finds this class by its name when it feeds frames through a ``GetItem``.
    """

    IMAGE_KEY = "image"


class FixedSize:
    """Resize any image to (3, side, side) uint8 RGB, so that crops can form a batch.

    Args:
        side: height and width of the result in pixels.
    """

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: Any) -> torch.Tensor:
        """Resize one image.

        Args:
            image: any image that the core reads.
        """
        # The core resizes in the same way, so its own resizing changes nothing afterwards.
        rgb = read_rgb(image)[None].contiguous()
        return transforms.resize(rgb, [self.side, self.side], antialias=True)[0]
