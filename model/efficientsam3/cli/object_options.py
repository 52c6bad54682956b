"""The option by which ``efficientsam3 track`` is shown objects on given frames."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import UsageError

if TYPE_CHECKING:
    from ..video.objects import ObjectPrompt

ObjectOption = Annotated[
    list[str] | None,
    typer.Option(
        "--object",
        metavar="FRAME:SHAPE",
        help="An object to follow, on a frame from 0: 12:x0,y0,x1,y1 in pixels, a point 12:x,y, a "
        "polygon 12:x,y,x,y,x,y, a label map 12:masks.png with a number for each object, or a COCO "
        "file 12:instances.json. Of a folder of images, a COCO file names the frames itself.",
    ),
]


def parse_objects(
    values: Sequence[str] | None, file_names: Sequence[str] | None
) -> list[ObjectPrompt]:
    """Parse the values of ``--object``.

    Args:
        values: "frame:shape" each, or a COCO file.
        file_names: Names of the frames, for a folder of images.

    Raises:
        UsageError: A value has another form, or a file is not there.
        AnnotationError: A file is wrong.
    """
    from ..video.objects import ObjectPrompt, read_coco_objects, read_object_map

    out: list[ObjectPrompt] = []
    for value in values or ():
        match = re.fullmatch(r"(?:(\d+):)?(.+)", value, re.DOTALL)
        frame = None if match is None or match[1] is None else int(match[1])
        shape = value if match is None else match[2]
        if shape.lower().endswith(".json"):
            _check_file(shape, value)
            out += read_coco_objects(shape, frame, file_names)
        elif frame is None:
            raise UsageError(
                f"{value!r} is not FRAME:SHAPE: name the frame before the colon, from 0, and after "
                "it a box x0,y0,x1,y1, a point x,y, a polygon, or a file of masks"
            )
        elif (shown := _read_numbers(shape, value)) is not None:
            out.append(ObjectPrompt(frame, **shown))
        else:
            _check_file(shape, value)
            out += read_object_map(shape, frame)
    return out


def _read_numbers(shape: str, value: str) -> dict[str, Any] | None:
    """The shape as an argument of ``ObjectPrompt``; None where it is no list of numbers."""
    try:
        numbers = [float(part) for part in shape.split(",")]
    except ValueError:
        return None
    if len(numbers) % 2 or not all(abs(number) < 1e9 for number in numbers):
        raise UsageError(
            f"{value!r} ends with {len(numbers)} numbers: a box has four, a point two, and a "
            "polygon two for each of at least three corners, in pixels"
        )
    if len(numbers) == 2:
        return {"points": [numbers]}
    return {"box": numbers} if len(numbers) == 4 else {"mask": numbers}


def _check_file(shape: str, value: str) -> None:
    if not Path(shape).is_file():
        raise UsageError(
            f"{value!r} names neither numbers such as 10,20,200,220 nor a file: there is no file "
            f"at {shape}"
        )
