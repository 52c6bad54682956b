"""An image with its objects and phrases: what every image data set gives to training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError, MaskError
from ..io.identity import Identity, identity
from ..io.images import normalize
from ..io.rle import Mask, decode, mask_size
from ..types import Array
from .types import ImageRecord, PhraseQuery

if TYPE_CHECKING:
    from .clip import ClipSource


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """An image, its objects, and phrases about them; checked when it is made.

    Attributes:
        key: The sample's name, unique in the data set; saved teacher features are found by it.
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) float32, (x0, y0, x1, y1) in pixels within the image.
        masks: N masks, arrays (H, W) bool or COCO run lengths; None where there are only boxes.
        queries: Phrases; empty where the data set has no words (SA-1B).
        crowd: (N,) bool, regions of several instances: neither targets nor errors. None: no crowds.
        points: (N, 2) float32, (x, y) in pixels of a point on each object, or None.
        photograph: Whether training may augment the image; False for drawn scenes.
    """

    key: str
    image: Array
    boxes: Array
    masks: tuple[Mask, ...] | None = None
    queries: tuple[PhraseQuery, ...] = ()
    crowd: Array | None = field(default=None, repr=False)
    points: Array | None = field(default=None, repr=False)
    photograph: bool = True

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise DataError(
                f"{self.key}: an image is (H, W, 3) uint8; got {self.image.shape} "
                f"{self.image.dtype}"
            )
        n = len(self.boxes)
        if self.boxes.shape != (n, 4):
            raise DataError(f"{self.key}: boxes are (N, 4) xyxy pixels; got {self.boxes.shape}")
        for name, shape in (("crowd", (n,)), ("points", (n, 2))):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise DataError(f"{self.key}: {name} has shape {value.shape}, not {shape}")
        if self.masks is not None and len(self.masks) != n:
            raise DataError(f"{self.key}: {len(self.masks)} masks for {n} boxes")
        for index, mask in enumerate(self.masks or ()):
            check_mask_size(mask, self.size, f"{self.key}, mask {index}")
        for query in self.queries:
            beyond = [i for i in query.objects if not 0 <= i < n]
            if beyond:
                raise DataError(
                    f"{self.key}: {query.phrase!r} names object {beyond[0]}, but there are {n}"
                )

    @classmethod
    def of(cls, record: ImageRecord, image: Array) -> TrainingSample:
        """Make a sample of a record and its image.

        Objects without area are left out (COCO has a few), and boxes are clipped to the image.
        Crowds are no objects of a phrase; a phrase that names a crowd is not exhaustive, and one
        that names nothing else is left out: it is neither present nor absent.

        Args:
            record: What the annotation file says.
            image: (H, W, 3) uint8 RGB, of the record's size.

        Raises:
            DataError: Some objects have masks and others have none.
        """
        further = {i for q in record.queries for group in q.other_annotators for i in group}
        kept: dict[int, int] = {}
        for index, found in enumerate(record.objects):
            x0, y0, x1, y1 = found.box
            if index not in further and (found.crowd or (x1 > x0 and y1 > y0)):
                kept[index] = len(kept)
        objects = [record.objects[index] for index in kept]
        masks = tuple(found.mask for found in objects if found.mask is not None)
        if masks and len(masks) != len(objects):
            raise DataError(
                f"{record.place}: {len(masks)} of {len(objects)} objects have a mask; training "
                "needs masks of all objects or of none"
            )
        queries = []
        for query in record.queries:
            crowded = any(record.objects[i].crowd for i in query.objects)
            named = tuple(
                kept[i] for i in query.objects if i in kept and not record.objects[i].crowd
            )
            if named or not query.objects:
                exhaustive = query.exhaustive and not crowded
                queries.append(PhraseQuery(query.phrase, named, exhaustive, query.kind, query.key))
        height, width = record.size
        boxes = np.array([found.box for found in objects], np.float32).reshape(-1, 4)
        return cls(
            record.file,
            image,
            boxes.clip(0, np.array([width, height, width, height], np.float32)),
            masks if masks or not objects else None,
            tuple(queries),
            np.array([found.crowd for found in objects], bool),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def mask(self, index: int) -> Array:
        """Decode the mask of one object: (H, W) bool.

        Args:
            index: Which object.
        """
        if self.masks is None:
            raise DataError(f"{self.key} has boxes and no masks; use data with masks here")
        return decode_mask(self.masks[index], f"{self.key}, mask {index}")

    def masks_at(self, size: int, objects: tuple[int, ...] | None = None) -> Tensor:
        """Resize masks to a square, without keeping the aspect, as the image is.

        Args:
            size: Rows and columns; 4 * grid for targets of the mask head.
            objects: Indices of objects; None takes all.

        Returns:
            (N, size, size) float32 in [0, 1], the covered part of each cell.
        """
        chosen = range(len(self)) if objects is None else objects
        out = torch.zeros(len(chosen), size, size)
        for row, index in enumerate(chosen):  # One full mask at a time: SA-1B has hundreds.
            out[row] = resize_mask(self.mask(index), size)
        return out.clamp_(0, 1)

    def boxes_in_unit(self) -> Tensor:
        """Boxes as the model has them: (N, 4) float32, (cx, cy, w, h) in [0, 1]."""
        height, width = self.size
        boxes = torch.from_numpy(np.asarray(self.boxes, np.float32)) / torch.tensor(
            [width, height, width, height]
        )
        low, high = boxes[:, :2].clamp(0, 1), boxes[:, 2:].clamp(0, 1)
        return torch.cat([(low + high) / 2, high - low], 1)

    def pixels(self, resolution: int, mean: float = 0.5, std: float = 0.5) -> Tensor:
        """Prepare the image for the encoder.

        Args:
            resolution: Rows and columns; the image is resized without keeping its aspect.
            mean: Subtracted from values in [0, 1].
            std: Divides what is left.

        Returns:
            (1, 3, resolution, resolution) float32.
        """
        rgb = torch.from_numpy(np.ascontiguousarray(self.image)).permute(2, 0, 1)
        return normalize(rgb, resolution, mean, std)


class SampleSource(Protocol):
    """A data set: samples by index, each with a key that is known without reading its image."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The key of a sample, without reading its image.

        Args:
            index: Which sample.
        """
        ...

    def __getitem__(self, index: int) -> TrainingSample: ...


def sample_files(source: SampleSource | ClipSource, index: int) -> list[Path]:
    """The files that a sample or a video is read from: its pictures, and its annotations.

    Args:
        source: A data set. One that is made of files has the method ``files(index)``.
        index: Which sample.

    Returns:
        The files; empty for a data set that is not made of files.
    """
    files = getattr(source, "files", None)
    return [] if files is None else list(files(index))


def source_files(source: SampleSource | ClipSource) -> Iterator[Path]:
    """The files of a whole data set.

    Args:
        source: A data set. Samples that are made as they are asked for have no files and may be
            any number, so they are not counted. A data set of others has ``all_files()``.
    """
    of_others = getattr(source, "all_files", None)
    if of_others is not None:
        yield from of_others()
    elif getattr(source, "files", None) is not None:
        for index in range(len(source)):
            yield from sample_files(source, index)


def source_identity(source: SampleSource | ClipSource) -> Identity | None:
    """What tells whether a file of a data set has changed, without reading its content.

    Args:
        source: The data set.

    Returns:
        Plain values, see ``io.identity``; None for a data set that is not made of files.
    """
    found = dict.fromkeys(source_files(source))
    # What is missing is an error when it is read.
    there = [path for path in found if path.is_file()]
    return identity(there) if there else None


def decode_mask(mask: Mask, place: str) -> Array:
    """Decode a mask of either form: (H, W) bool.

    Args:
        mask: An array or run lengths.
        place: Begins the message of an error.

    Raises:
        DataError: The mask is damaged; the message begins with ``place``.
    """
    try:
        return decode(mask)
    except MaskError as error:
        raise DataError(f"{place}: {error}") from error


def check_mask_size(mask: Mask, size: tuple[int, int], place: str) -> None:
    """Refuse a mask that is of another size than the image.

    Args:
        mask: An array or run lengths.
        size: (height, width) of the image.
        place: Begins the message of an error.

    Raises:
        DataError: The message begins with ``place``.
    """
    try:
        found = mask_size(mask)
    except MaskError as error:
        raise DataError(f"{place}: {error}") from error
    if found != size:
        raise DataError(
            f"{place} has {found[1]} x {found[0]} pixels, but the image has {size[1]} x {size[0]}: "
            "the annotation belongs to another copy of the data"
        )


def resize_mask(mask: Array, size: int) -> Tensor:
    """Resize a mask (H, W) bool to (size, size) float32, the covered part of each cell.

    Args:
        mask: (H, W) bool.
        size: Rows and columns.
    """
    covered = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None, None]
    return F.interpolate(covered, (size, size), mode="bilinear", antialias=True)[0, 0]
