"""The options by which commands write masks as polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from .common import UsageError

if TYPE_CHECKING:
    from ..masks.polygons import MaskForm

PolygonsOption = Annotated[
    bool,
    typer.Option(
        "--polygons/--run-lengths",
        help="The COCO file has polygons, for tools that read nothing else; or run lengths, which "
        "hold every pixel.",
    ),
]
ToleranceOption = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="PIXELS",
        help="With --polygons: simplify polygons by at most this many pixels. 0 keeps all pixels.",
    ),
]


class CocoMasks(NamedTuple):
    """The form of masks in COCO files, as writers of the package take it.

    Attributes:
        masks: "rle" or "polygon".
        tolerance: In pixels, from 0.
    """

    masks: MaskForm
    tolerance: float


def read_coco_masks(polygons: bool, tolerance: float) -> CocoMasks:
    """Check the options, before any work.

    Args:
        polygons: Whether masks are written as polygons.
        tolerance: Pixels by which they are simplified.

    Raises:
        UsageError: A tolerance is given without polygons.
        ArgumentError: The tolerance is no finite number.
    """
    from ..masks.polygons import check_tolerance

    if check_tolerance(tolerance) and not polygons:
        raise UsageError("--tolerance simplifies polygons: add --polygons")
    return CocoMasks("polygon" if polygons else "rle", tolerance)
