"""The options by which commands are shown examples of other images."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PromptError
from .common import UsageError

ExampleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--example",
        metavar="IMAGE:SHAPE",
        help="An example of what to find, in any image: photo.jpg:x0,y0,x1,y1 in pixels. Instead "
        "of a box, a point x,y, a polygon of at least three corners x,y,x,y,x,y, or a picture "
        "whose pixels that are not 0 are the example.",
    ),
]
NotExampleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--not-example", metavar="IMAGE:SHAPE", help="An example of what not to find, likewise."
    ),
]


class Presence(str, Enum):
    """How scores contain the presence; see ``ImageModel.segment``."""

    multiply = "multiply"
    separate = "separate"


PresenceOption = Annotated[
    Presence,
    typer.Option(
        help="multiply: scores contain the probability that the concept is in the image as a "
        "factor. separate: they do not, and it is beside them."
    ),
]


LABELS = {"boxes": "box_labels", "points": "point_labels", "masks": "mask_labels"}
"""The argument that has the signs of each kind of example."""


def parse_examples(
    examples: Sequence[str] | None, not_examples: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Parse the values of ``--example`` and ``--not-example``.

    Args:
        examples: "image:shape" each.
        not_examples: The same, negative.

    Returns:
        Arguments of ``ImageModel.exemplar`` as plain values, one for each image.

    Raises:
        UsageError: A value has another form, does not fit its image, or a file is not there.
        ImageError: An image cannot be read.
    """
    by_image: dict[str, dict[str, Any]] = {}
    for sign, values in ((1, examples or ()), (0, not_examples or ())):
        for value in values:
            image, separator, shape = value.rpartition(":")
            if not separator or not image or not shape:
                raise UsageError(
                    f"{value!r} is not IMAGE:SHAPE: name the image before the colon, and after it "
                    "a box x0,y0,x1,y1, a point x,y, a polygon, or the file of a mask"
                )
            if not Path(image).is_file():
                raise UsageError(f"there is no image at {image}, of the example {value!r}")
            kind, read = _read(shape, value)
            known = by_image.setdefault(image, {"image": image})
            known.setdefault(kind, []).append(read)
            known.setdefault(LABELS[kind], []).append(sign)
    for one in by_image.values():
        _check(**one)
    return list(by_image.values())


def _check(image: str, **drawn: Any) -> None:
    """Check examples with their image, before any work."""
    from ..exemplar_prompts import read_exemplars
    from ..io.samples import read_rgb_array

    height, width = read_rgb_array(image).shape[:2]
    try:
        read_exemplars((height, width), **drawn)
    except PromptError as error:
        raise UsageError(f"an example in {image} is wrong: {error}") from error


def _read(shape: str, value: str) -> tuple[str, Any]:
    """The argument of ``ImageModel.exemplar`` that a shape goes to, and its value."""
    try:
        numbers = [float(part) for part in shape.split(",")]
    except ValueError:
        return "masks", _read_mask(shape, value)
    if not all(abs(number) < 1e9 for number in numbers) or len(numbers) % 2:
        raise UsageError(
            f"{value!r} ends with {len(numbers)} numbers: a box has four, a point two, and a "
            "polygon two for each of at least three corners, in pixels"
        )
    kind = {2: "points", 4: "boxes"}.get(len(numbers), "masks")
    return kind, numbers


def _read_mask(shape: str, value: str) -> dict[str, Any]:
    """Run lengths of the pixels of a picture that are not 0, as plain values."""
    from ..data.object_videos import read_gray
    from ..io import rle

    if not Path(shape).is_file():
        raise UsageError(
            f"{value!r} ends neither with numbers such as 10,20,200,220 nor with the name of a "
            f"picture: there is no file at {shape}"
        )
    run_lengths, _ = rle.encode(read_gray(Path(shape), UsageError) > 0)
    return {**run_lengths, "counts": run_lengths["counts"].decode("ascii")}
