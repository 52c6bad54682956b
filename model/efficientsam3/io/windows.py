"""Pictures that are read in windows, so that a large one is never in memory as a whole.

TIFF files are read by their own tiles or strips where tifffile is installed. An array that is
mapped from a file is read where it is asked. Every other picture is decoded once, by Pillow, and
cut.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ImageError
from .picture_files import ERRORS, first_value, is_tiff, tiff_range
from .pixel_values import Array, Samples, SourceRange, to_uint8
from .samples import ImageLike, samples_of_any

Window = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels."""

MAX_PICTURE = 2**32 - 1
"""The most pixels of a picture, which run lengths count in 32 bits."""


class WindowReader:
    """A picture of which windows are read.

    Args:
        image: As ``io.samples.read_rgb_array`` takes it.

    Attributes:
        size: (height, width) in pixels.

    Raises:
        ImageError: The image cannot be read.
    """

    def __init__(self, image: ImageLike) -> None:
        self._tiff = None
        if isinstance(image, (str, os.PathLike)):
            self._tiff = _TiffWindows.open(Path(image))
        self._samples = None if self._tiff is not None else samples_of_any(image)
        size = self._tiff.size if self._tiff is not None else self._samples.values.shape  # type: ignore[union-attr]
        self.size: tuple[int, int] = (int(size[0]), int(size[1]))
        if self.size[0] * self.size[1] > MAX_PICTURE:
            raise ImageError(
                f"a picture has at most {MAX_PICTURE:,} pixels; got {self.size[1]} x {self.size[0]}"
            )
        self._range: SourceRange | None = None

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *error: object) -> None:
        if self._tiff is not None:
            self._tiff.close()

    def read(self, window: Window) -> Array:
        """Read a window as RGB. All windows have one scale of values.

        Args:
            window: (x0, y0, x1, y1) in pixels, within the picture.

        Returns:
            (h, w, 3) uint8.

        Raises:
            ImageError: It cannot be decoded.
        """
        samples = self._read(window)
        if samples.is_deep and self._range is None:
            self._range = SourceRange()
            for part in _cover(self.size, 1024):
                self._range.note(self._read(part))
        pixels = to_uint8(samples, self._range)
        return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[:, :, :3]

    def reduce(self, side: int) -> Array:
        """Read the whole picture, reduced by whole numbers of rows and of columns.

        Args:
            side: Rows and columns that the result has at least, where the picture has them.

        Returns:
            (h, w, 3) uint8, means of rectangles of pixels.
        """
        tall, wide = (max(1, length // side) for length in self.size)
        rows, columns = -(-self.size[0] // tall), -(-self.size[1] // wide)
        out = np.empty((rows, columns, 3), np.uint8)
        for x0, y0, x1, y1 in _cover(self.size, tall * wide * max(1, 1024 // (tall * wide))):
            pixels = self.read((x0, y0, x1, y1))
            pad = [(0, -(y1 - y0) % tall), (0, -(x1 - x0) % wide), (0, 0)]
            pixels = np.pad(pixels, pad, "edge") if pad[0][1] or pad[1][1] else pixels
            height, width = pixels.shape[0] // tall, pixels.shape[1] // wide
            cells = pixels.reshape(height, tall, width, wide, 3)
            top, left = y0 // tall, x0 // wide
            out[top : top + height, left : left + width] = np.rint(cells.mean((1, 3)))
        return out

    def _read(self, window: Window) -> Samples:
        if self._tiff is not None:
            return self._tiff.read(window)
        x0, y0, x1, y1 = window
        whole: Any = self._samples
        return Samples(whole.values[y0:y1, x0:x1], whole.stated, whole.white_is_low)


def _cover(size: tuple[int, int], side: int) -> Iterator[Window]:
    """Windows of ``side`` pixels that cover a picture without overlap."""
    height, width = size
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield x, y, min(x + side, width), min(y + side, height)


class _TiffWindows:
    """The first page of a TIFF, of which only the tiles or strips in a window are decoded."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file, self._page = path, file, file.pages[0]
        self.size = (self._page.imagelength, self._page.imagewidth)
        numbers = (258, 280, 281, 340, 341)
        tags = {n: first_value(self._page.tags, n) for n in numbers}
        self._stated = tiff_range(tags)

    @classmethod
    def open(cls, path: Path) -> _TiffWindows | None:
        """Open a file; None where it is no TIFF, or one that is read as a whole."""
        if not is_tiff(path) or importlib.util.find_spec("tifffile") is None:
            return None
        import tifffile

        try:
            file = tifffile.TiffFile(path)
        except (*ERRORS, tifffile.TiffFileError):
            return None
        page: Any = file.pages[0]
        if (
            page.photometric not in (0, 1, 2)
            or page.planarconfig != 1
            or page.samplesperpixel not in (1, 3, 4)
            or page.imagedepth != 1
            or page.bitspersample % 8
            or page.dtype is None
            or first_value(page.tags, 274) not in (None, 1)
        ):
            file.close()
            return None
        return cls(path, file)

    def close(self) -> None:
        self._file.close()

    def read(self, window: Window) -> Samples:
        """Decode the segments that a window touches."""
        page, (x0, y0, x1, y1) = self._page, window
        width = self.size[1]
        rows = page.tilelength if page.is_tiled else page.rowsperstrip
        columns = page.tilewidth if page.is_tiled else width
        across = -(-width // columns)
        out = np.zeros((y1 - y0, x1 - x0, page.samplesperpixel), page.dtype)
        for row in range(y0 // rows, -(-y1 // rows)):
            for column in range(x0 // columns, -(-x1 // columns)):
                pixels = self._decode(row * across + column)
                if pixels is None:  # not stored: no pixel of it differs from 0
                    continue
                top, left = row * rows, column * columns
                bottom, right = min(top + pixels.shape[0], y1), min(left + pixels.shape[1], x1)
                low_y, low_x = max(top, y0), max(left, x0)
                out[low_y - y0 : bottom - y0, low_x - x0 : right - x0] = pixels[
                    low_y - top : bottom - top, low_x - left : right - left
                ]
        return Samples(out, self._stated, page.photometric == 0)

    def _decode(self, index: int) -> Array | None:
        import tifffile

        page = self._page
        try:
            offset, count = page.dataoffsets[index], page.databytecounts[index]
            if not count:
                return None
            handle = self._file.filehandle
            handle.seek(offset)
            tables = {"jpegtables": page.jpegtables} if page.jpegtables is not None else {}
            pixels = page.decode(handle.read(count), index, **tables)[0]
        except (*ERRORS, tifffile.TiffFileError) as error:
            raise ImageError(f"{self._path} cannot be decoded: {error}") from error
        return None if pixels is None else np.asarray(pixels).reshape(pixels.shape[-3:])
