"""Large pictures: a model reads the whole picture and its tiles, and what it finds is joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .errors import PromptError
from .io.samples import ImageLike
from .io.windows import WindowReader
from .masks.tiles import TileJoiner, lay_tiles
from .outputs import EncodedImage
from .types import Array, Instances

Find = Callable[[EncodedImage], Sequence[Instances]]
"""Instances of each phrase in an encoded image."""


def find_in_tiles(
    image: ImageLike | EncodedImage,
    tile: Any,
    resolution: int,
    encode: Callable[[Array, tuple[int, int] | None], EncodedImage],
    find: Find,
    nested: bool = False,
) -> list[Instances]:
    """Find phrases in a picture and in its tiles.

    One tile is in memory at a time, beside the picture reduced to about the model's resolution and
    the run lengths of what is found. Pictures that are not read in windows (``io.windows``) are in
    memory too.

    Args:
        image: A picture as ``io.windows.WindowReader`` takes it.
        tile: As ``masks.tiles.check_tile`` takes it.
        resolution: Pixels a side of the model's input.
        encode: Encodes (h, w, 3) uint8 RGB of a picture with a (height, width) in pixels; None:
            that of the array.
        find: Finds all phrases.
        nested: As in ``masks.tiles.TileJoiner``.

    Returns:
        Instances of each phrase.

    Raises:
        PromptError: The setting is wrong, or the image is encoded already.
        ImageError: The image cannot be read.
    """
    if isinstance(image, EncodedImage):
        raise PromptError(
            "tiles are read from pixels, which an encoded image has not: pass the image itself, "
            "or tile=None"
        )
    with WindowReader(image) as reader:
        tiles = lay_tiles(reader.size, tile, resolution)
        if not tiles:
            height, width = reader.size
            return list(find(encode(reader.read((0, 0, width, height)), None)))
        whole = find(encode(reader.reduce(2 * resolution), reader.size))
        joiners = [TileJoiner(reader.size, nested) for _ in whole]
        for one in tiles:
            found = find(encode(reader.read(one.box), None))
            for joiner, part in zip(joiners, found, strict=True):
                joiner.add(part, one)
    return [joiner.join(part) for joiner, part in zip(joiners, whole, strict=True)]
