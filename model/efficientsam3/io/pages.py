"""The pages of a file, or the frames of an animation, that Pillow reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from .picture_files import ERRORS, ONE_PICTURE, count_pages, open_picture, read_samples, samples_of
from .pixel_values import Array, Samples, SourceRange
from .samples import read_rgb_array

UNTIMED_GIF = 100.0
"""Milliseconds for which players show a frame of a GIF that does not say it."""
SCALED_PAGES = 32
"""Pages or frames, spread over a source, whose values give the range of all of them."""


def count_several(path: Path) -> int:
    """Count the pages of a picture file, from 1; 1 for a photo with gain maps or previews.

    Args:
        path: The file.

    Raises:
        ImageError: The file cannot be read as an image.
    """
    return 1 if path.suffix.lower() in ONE_PICTURE else count_pages(path)


def spread(count: int, most: int) -> list[int]:
    """Indices that are spread over a source, the first and the last among them.

    Args:
        count: Length of the source.
        most: Largest number of indices.
    """
    picked = np.linspace(0, count - 1, min(count, most)).round().astype(int)
    return list(dict.fromkeys(picked.tolist()))


def note_pages(path: Path, pages: int, values: SourceRange) -> None:
    """Let pages that are spread over a file decide its range of values, where it needs one.

    Args:
        path: The file.
        pages: Number of its pages.
        values: The range, which is widened.
    """
    for page in spread(pages, SCALED_PAGES):
        try:
            samples = read_samples(path, page)
        except ImageError:  # reported in its turn
            continue
        if not samples.is_deep:
            return
        values.note(samples)


def read_first_page(path: Path) -> Array:
    """Read the first page of a picture file, with the range of values that all of its pages have.

    Args:
        path: The file.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: The file cannot be decoded.
    """
    pages, values = count_several(path), SourceRange()
    if pages > 1:
        note_pages(path, pages, values)
    return read_rgb_array(path, values)


class Pages:
    """The pages or frames of a picture file or of a PIL image, read one after another.

    Args:
        source: The file, or an image.

    Attributes:
        count: Number of pages.
        rate: Frames per second of an animation; None for pages.

    Raises:
        ImageError: It cannot be read.
    """

    def __init__(self, source: Path | Image.Image) -> None:
        self.source = source
        self.rate: float | None = None
        if isinstance(source, Image.Image):
            try:
                self.count = int(getattr(source, "n_frames", 1))
            except ERRORS as error:
                raise ImageError(f"the pages of the image cannot be counted: {error}") from error
            return
        self.count = count_pages(source)
        try:
            with open_picture(source) as image:
                image.load()  # WebP and AVIF tell the duration after that
                duration = _duration(image)
            self.rate = 1000 / duration if self.count > 1 and duration else None
        except (ImageError, *ERRORS):
            pass  # the page is read, or fails, in its turn

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, page: int) -> Samples:
        """Read one page.

        Args:
            page: Number of the page, from 0.

        Raises:
            ImageError: It cannot be read.
        """
        if isinstance(self.source, Image.Image):
            return self._read(self.source, page)
        return read_samples(self.source, page)

    def read(
        self, is_picked: Callable[[int], bool]
    ) -> Iterator[tuple[int, float | None, Samples | ImageError]]:
        """Read the pages in order.

        Args:
            is_picked: Says by its number whether a page is needed.

        Yields:
            The number of each page that is needed, its time in seconds where the file has times,
            and its samples, or why it cannot be read.
        """
        if isinstance(self.source, Image.Image):
            yield from self._read_all(self.source, is_picked)
            return
        try:
            with open_picture(self.source) as image:
                yield from self._read_all(image, is_picked)
        except ImageError:  # a TIFF that Pillow does not know
            for page in filter(is_picked, range(self.count)):
                yield page, None, _try(partial(read_samples, self.source, page))

    def _read_all(
        self, image: Image.Image, is_picked: Callable[[int], bool]
    ) -> Iterator[tuple[int, float | None, Samples | ImageError]]:
        time: float | None = 0.0
        for page in range(self.count):
            if self.rate is None and not is_picked(page):
                continue
            found = _try(partial(self._read, image, page))
            if isinstance(found, ImageError) and not isinstance(self.source, Image.Image):
                found = _try(partial(read_samples, self.source, page))
            duration = _duration(image)
            if is_picked(page):
                yield page, None if self.rate is None else time, found
            time = time + duration / 1000 if time is not None and duration else None

    def _read(self, image: Image.Image, page: int) -> Samples:
        name: Any = "the image" if isinstance(self.source, Image.Image) else self.source
        try:
            image.seek(page)
        except ERRORS as error:
            raise ImageError(f"page {page + 1} of {name} cannot be read: {error}") from error
        return samples_of(image, f"page {page + 1} of {name}")


def _duration(image: Image.Image) -> float | None:
    """Milliseconds for which a frame is shown; None for a page."""
    duration = image.info.get("duration")
    return duration or (UNTIMED_GIF if image.format == "GIF" else None)


def _try(read: Callable[[], Samples]) -> Samples | ImageError:
    try:
        return read()
    except ImageError as error:
        return error
