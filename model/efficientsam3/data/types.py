"""What annotation files say, without pixels: the records that training and evaluation share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..io.rle import encode
from ..types import Array

Record = dict[str, Any]
Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels."""
QueryKey = tuple[Any, Any]
"""(image_id, category_id), or (video_id, category_id): names a query in a file of predictions."""


@dataclass(frozen=True, eq=False, slots=True)
class ObjectAnnotation:
    """One annotated object of an image.

    Attributes:
        box: (x0, y0, x1, y1) in pixels, as the file has it.
        mask: Compressed run lengths, or None where the file has only a box.
        crowd: Whether it is a region of several instances that are not told apart.
        area: In pixels.
    """

    box: Box
    mask: Record | None
    crowd: bool
    area: float

    @classmethod
    def from_mask(cls, mask: Array, crowd: bool = False) -> ObjectAnnotation:
        """Make an annotation of a mask.

        Args:
            mask: (H, W) bool.
            crowd: Whether the mask covers several instances.
        """
        rle, box = encode(mask)
        return cls(box, rle, crowd, float(np.count_nonzero(mask)))


@dataclass(frozen=True)
class PhraseQuery:
    """A phrase and the objects of an image that it names.

    Attributes:
        phrase: What is searched for.
        objects: Indices of the image's objects; empty if the phrase names nothing in the image.
        exhaustive: Whether all instances are among ``objects``, so that any other find is wrong.
        kind: Where the phrase comes from: "name", "synonym", "negative", ...; it weights sampling.
        key: (image_id, category_id) of the file, which predictions refer to.
        other_annotators: Objects as further annotators marked them (SA-Co/Gold has three).
    """

    phrase: str
    objects: tuple[int, ...] = ()
    exhaustive: bool = True
    kind: str = "name"
    key: QueryKey | None = None
    other_annotators: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class ImageRecord:
    """What an annotation file says of one image.

    Attributes:
        file: Path of the image below the folder of images.
        size: (height, width) in pixels.
        objects: The annotated objects.
        queries: Phrases about them; empty where the data set has no words.
        place: The file and the record, for errors.
    """

    file: str
    size: tuple[int, int]
    objects: tuple[ObjectAnnotation, ...]
    queries: tuple[PhraseQuery, ...] = ()
    place: str = ""


class ImageAnnotations(Protocol):
    """A reader of image annotations: records by index, parsed when they are asked for."""

    def __len__(self) -> int: ...

    def file(self, index: int) -> str:
        """Path of an image below the folder of images, without parsing its record.

        Args:
            index: Which image.
        """
        ...

    def __getitem__(self, index: int) -> ImageRecord: ...


@dataclass(frozen=True, eq=False)
class ClipRecord:
    """A video clip of an annotation file.

    Attributes:
        id: The clip's "id" in the file's "videos".
        name: Its name.
        size: (height, width) in pixels.
        length: Number of frames.
        sizes: (height, width) of each frame where they differ; None where all have ``size``.
    """

    id: Any
    name: str
    size: tuple[int, int]
    length: int
    sizes: tuple[tuple[int, int], ...] | None = None

    def size_of(self, frame: int) -> tuple[int, int]:
        """The (height, width) of a frame.

        Args:
            frame: Index of the frame.
        """
        return self.size if self.sizes is None else self.sizes[frame]


@dataclass(frozen=True, eq=False)
class ObjectTrack:
    """One object through a clip, annotated or predicted.

    Attributes:
        masks: Compressed run lengths by frame, None where the object is not visible.
        boxes: (x0, y0, x1, y1) in pixels by frame, None where the object is not visible.
        crowd: Whether it stands for several instances.
        score: In [0, 1]; 1 for an annotated object.
    """

    masks: Sequence[Record | None]
    boxes: Sequence[Box | None]
    crowd: bool = False
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class ClipQuery:
    """A phrase and the objects of a clip that it names.

    Attributes:
        key: (video_id, category_id) of the file, which predictions refer to.
        clip: The clip.
        phrase: What is searched for.
        tracks: The annotated objects; empty if the phrase names nothing in the clip.
    """

    key: QueryKey
    clip: ClipRecord
    phrase: str
    tracks: tuple[ObjectTrack, ...] = ()


@dataclass(frozen=True, eq=False)
class ClipAnnotations:
    """What a file of clip annotations says.

    Attributes:
        path: The file.
        queries: Phrases and clips by key.
        lists_negatives: Whether the file says which phrases name nothing in a clip.
        clips: All clips by id.
        phrases: All phrases by category id.
    """

    path: Path
    queries: Mapping[QueryKey, ClipQuery]
    lists_negatives: bool
    clips: Mapping[Any, ClipRecord] = field(default_factory=dict)
    phrases: Mapping[Any, str] = field(default_factory=dict)

    def query(self, key: QueryKey) -> ClipQuery:
        """Find a query by its key; one that the file does not have names nothing.

        Args:
            key: (video_id, category_id).
        """
        known = self.queries.get(key)
        return known or ClipQuery(key, self.clips[key[0]], self.phrases[key[1]])
