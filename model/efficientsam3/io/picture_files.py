"""Picture files by Pillow: opening them, their pages, and their samples before they are scaled.

Pillow reduces some files to 8 bits, or does not know their type; these are read here with all their
bits. HEIC is read by pi-heif or pillow-heif, and TIFF files of types that Pillow does not know by
tifffile, where these packages are installed. Nothing is registered with Pillow.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import ImageError, ImageWarning, shorten
from .heif import INSTALL, heif_package
from .pixel_values import Array, Samples, ValueRange

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
"""What bytes 8 to 12 of a HEIF file say."""
ONE_PICTURE = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
"""Suffixes of files whose further pictures, such as gain maps of phones, are no pages."""
TIFF_START = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ERRORS = (
    *(OSError, ValueError, SyntaxError, RuntimeError, EOFError, KeyError, IndexError, TypeError),
    *(struct.error, zlib.error, Image.DecompressionBombError, ArithmeticError),
)
"""What Pillow raises for damaged files and for types that it does not know."""
SEVERAL_PAGES = (
    "a picture file has several pages or frames, and the first is read; track takes all by path, "
    "and `efficientsam3 segment --pages all` too"
)
OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if np.little_endian else "16L"}
"""Of a raw mode that keeps the high byte of two, the one that keeps the low byte."""


@contextmanager
def open_picture(path: str | Path, page: int = 0) -> Iterator[Image.Image]:
    """Open a picture file with Pillow; its pixels are not decoded yet.

    Args:
        path: The file.
        page: Number of the page or frame of the file, from 0.

    Yields:
        The image, at its page.

    Raises:
        ImageError: The file cannot be read as an image, or has no such page.
    """
    with _open(Path(path)) as image:  # Pillow leaves files of some formats open.
        if page:
            try:
                image.seek(page)
            except ERRORS as error:
                raise ImageError(f"page {page + 1} of {path} cannot be read: {error}") from error
        yield image


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Panoramas exceed the size of the warning, but not that of the error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            start = _start(path)
            if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
                return _open_heif(path)
            return Image.open(path)
    except FileNotFoundError as error:
        raise ImageError(f"there is no image at {path}") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise ImageError(f"{path} cannot be read as an image: {error}") from error
        raise ImageError(
            f"there is no image at {shorten(str(path))}: the name is too long"
        ) from error
    except ImportError as error:  # Ultralytics makes Pillow import pi_heif for unknown formats.
        raise ImageError(f"{path} cannot be read as an image: its format is not known") from error
    except ERRORS as error:
        raise ImageError(f"{path} cannot be read as an image: {error}") from error


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(12)


def _open_heif(path: Path) -> Image.Image:
    package = heif_package()
    if package is None:
        raise ImageError(f"{path} is a HEIC picture, which Pillow reads with pi-heif: {INSTALL}")
    image: Image.Image = importlib.import_module(package).HeifImageFile(str(path))
    return image


def count_pages(path: str | Path) -> int:
    """Count the pages or frames of a picture file, from 1.

    Args:
        path: The file.

    Raises:
        ImageError: The file cannot be read as an image.
    """
    path = Path(path)
    try:
        with open_picture(path) as image:
            return int(getattr(image, "n_frames", 1))
    except ImageError:
        pages = _tiff_pages(path)
        if pages is None:
            raise
        return pages
    except ERRORS as error:
        raise ImageError(f"the pages of {path} cannot be counted: {error}") from error


def read_samples(path: str | Path, page: int | None = None, *, rotate: bool = True) -> Samples:
    """Read the samples of a picture file.

    Args:
        path: The file.
        page: Number of the page or frame, from 0; None: the first, with a warning where the file
            has several.
        rotate: Whether EXIF's rotation is applied.

    Raises:
        ImageError: The file cannot be decoded.
    """
    try:
        with open_picture(path, page or 0) as image:
            if page is None and _has_pages(image, Path(path)):
                # Without the name of the file, so that Python says it once.
                warnings.warn(SEVERAL_PAGES, ImageWarning, stacklevel=2)
            return samples_of(image, str(path), rotate=rotate)
    except ImageError as error:
        found = _read_tiff(Path(path), page or 0, error)
        if found is None:
            raise
        return found


def _has_pages(image: Image.Image, path: Path) -> bool:
    """Whether an image at its first page has further ones."""
    if path.suffix.lower() in ONE_PICTURE:
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except ERRORS:  # a damaged GIF, of which the first frame may be whole
        return False


def samples_of(image: Image.Image, name: str = "the image", *, rotate: bool = True) -> Samples:
    """The samples of a Pillow image; transparency is dropped.

    Args:
        image: An image of any mode. One that is not loaded yet is read with all its bits.
        name: How messages call it.
        rotate: Whether EXIF's rotation is applied.

    Raises:
        ImageError: It cannot be decoded.
    """
    if _tag(image, 284) == 2 and (_tag(image, 258) or 1) > 8 and len(image.getbands()) > 1:
        # Pillow decodes these to noise.
        raise ImageError(
            f"{name} cannot be decoded: Pillow does not read TIFF files with separate planes of "
            f"{_tag(image, 258)} bits. Pass the path of the file, or an array"
        )
    try:
        stated = _stated_range(image)
        integer = _integer_type(image)
        white_is_low = _tag(image, 262) == 0 and image.mode.startswith(("I", "F"))
        low_bytes = _low_bytes(image, rotate)
        _load_unmapped(image)
        upright = ImageOps.exif_transpose(image) if rotate else image
        if low_bytes is not None:
            high_bytes = _array(_to_rgb(upright))
            return Samples(high_bytes.astype(np.uint16) << 8 | low_bytes, stated)
        if upright.mode.startswith(("I", "F")):
            values = _array(upright)
            if integer is not None:
                # Pillow shows signed bytes as unsigned, and keeps 32 bits of either kind as signed.
                values = values.astype(integer) if values.itemsize > integer.itemsize else values
                values = values.view(integer) if values.itemsize == integer.itemsize else values
            return Samples(values, stated, white_is_low)
        if integer is not None and upright.mode == "L":
            return Samples(_array(upright).view(integer), stated)
        return Samples(_array(_to_rgb(upright)))
    except ERRORS as error:
        raise ImageError(f"{name} cannot be decoded: {_reason(error)}") from error


def _load_unmapped(image: Image.Image) -> None:
    """Decode a rotated TIFF; Pillow turns it wrongly where it maps the file into memory."""
    opened: Any = image
    if _tag(image, 274) not in (None, 1) and hasattr(image, "filename"):
        name, opened.filename = opened.filename, ""
        try:
            image.load()
        finally:
            opened.filename = name


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"Pillow does not know its type ({error}). Pass the path of the file, or an array"
    return str(error) or type(error).__name__


def _array(image: Image.Image) -> Array:
    array = np.array(image)
    return array[..., None] if array.ndim == 2 else array


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        return image if converted is None else converted
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    return image.convert("RGB")


# What a file says of its samples -----------------------------------------------------------------


def _tag(image: Image.Image, number: int) -> Any:
    """The first value of a TIFF tag; None where there is none."""
    if image.format != "TIFF":
        return None
    tags: Any = getattr(image, "tag_v2", None) or {}
    value = tags.get(number)
    return value[0] if isinstance(value, tuple) and value else value


def _integer_type(image: Image.Image) -> np.dtype[Any] | None:
    """The integer type of the samples of a TIFF, where Pillow shows another."""
    bits, kind = _tag(image, 258), _tag(image, 339)
    if kind == 2 and bits in (8, 16):
        return np.dtype(f"int{bits}")
    return np.dtype(np.uint32) if bits == 32 and kind in (None, 1) else None


def _stated_range(image: Image.Image) -> ValueRange | None:
    """The range of values that a file states; None where it states none."""
    if image.format == "TIFF":
        return tiff_range({n: _tag(image, n) for n in (258, 280, 281, 340, 341)})
    if image.mode.startswith("I") and image.format in ("PPM", "JPEG2000"):
        return ValueRange(0, 65535)  # Pillow scales them from what the file states.
    if image.mode.startswith("I") and image.format == "PNG":
        bits = _significant_bits(image)
        # Values are shifted up, as the standard says, or are not, as some cameras write them.
        if bits is not None and int(np.asarray(image).max(initial=0)) < 1 << bits:
            return ValueRange(0, (1 << bits) - 1)
    return None


def tiff_range(tags: dict[int, Any]) -> ValueRange | None:
    """The range of values that the tags of a TIFF state; None where they state none.

    Args:
        tags: The first values of the tags 258, 280, 281, 340 and 341, by number.
    """
    bits = tags[258] or 1
    usual = (0, (1 << bits) - 1)
    for low, high in ((340, 341), (280, 281)):
        stated = tags[low] if tags[low] is not None else 0, tags[high]
        if tags[high] is None or stated == usual or not np.isfinite(stated).all():
            continue
        if stated[0] < stated[1]:
            return ValueRange(float(stated[0]), float(stated[1]))
    return ValueRange(*map(float, usual)) if 8 < bits < 16 else None


def _significant_bits(image: Image.Image) -> int | None:
    """The number that a gray PNG's chunk sBIT gives, less than 16; None where there is none."""
    with _reopened(image) as file:
        if file is None:
            return None
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"sBIT":
                bits = file.read(1)[0] if length else 16
                return bits if 8 < bits < 16 else None
            if kind in (b"IDAT", b"IEND"):
                break
            file.seek(length + 4, io.SEEK_CUR)
    return None


@contextmanager
def _reopened(image: Image.Image) -> Iterator[Any]:
    """The file of an image that is not loaded yet, at its start; None where it is not known."""
    name, file = getattr(image, "filename", ""), getattr(image, "fp", None)
    if name and Path(name).is_file():
        with Path(name).open("rb") as opened:
            yield opened
    elif file is not None and not getattr(file, "closed", False) and file.seekable():
        place = file.tell()
        file.seek(0)
        try:
            yield io.BytesIO(file.read())
        finally:
            file.seek(place)
    else:
        yield None


def _low_bytes(image: Image.Image, rotate: bool) -> Array | None:
    """(H, W, C) the low bytes of colors of 16 bits, of which Pillow keeps the high bytes.

    The file is decoded a second time, in the other byte order. None where colors have 8 bits, or
    the image is loaded already.
    """
    tiles = getattr(image, "tile", None) or []
    modes = [_raw_mode(tile) for tile in tiles]
    if not modes or not all(mode.startswith(("RGB", "LA;")) and "16" in mode for mode in modes):
        return None
    with _reopened(image) as file:
        if file is None:
            return None
        with Image.open(file) as again:
            if image.tell():
                again.seek(image.tell())
            gray = modes[0].startswith("LA;")
            # Of gray with transparency, all four bytes are read as if they were four channels.
            other = "RGBA" if gray else modes[0].replace(modes[0][-3:], OTHER_BYTE[modes[0][-3:]])
            again.tile = [_with_raw_mode(tile, other) for tile in again.tile]
            array = _array(ImageOps.exif_transpose(again) if rotate else again)
    return array[..., [1, 1, 1]] if gray else array[..., :3]


def _raw_mode(tile: Any) -> str:
    args = tile[3]
    mode = args[0] if isinstance(args, tuple) and args else args
    return mode if isinstance(mode, str) else ""


def _with_raw_mode(tile: Any, mode: str) -> Any:
    args = (mode, *tile[3][1:]) if isinstance(tile[3], tuple) else mode
    return type(tile)(*tile[:3], args) if hasattr(tile, "_fields") else (*tile[:3], args)


# TIFF files that Pillow does not read ------------------------------------------------------------


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does; False where it cannot be read.

    Args:
        path: The file.
    """
    try:
        return _start(path)[:4] in TIFF_START
    except OSError:
        return False


def _tiff_pages(path: Path) -> int | None:
    if not is_tiff(path) or importlib.util.find_spec("tifffile") is None:
        return None
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return len(file.pages)
    except (*ERRORS, tifffile.TiffFileError):
        return None


def _read_tiff(path: Path, page: int, reason: ImageError) -> Samples | None:
    """The samples of a TIFF that Pillow does not read; None where the file is not a TIFF.

    Raises:
        ImageError: It cannot be read; the message says its type.
    """
    if not is_tiff(path):
        return None
    if importlib.util.find_spec("tifffile") is None:
        raise ImageError(f"{reason}. tifffile reads TIFF files of more types: {INSTALL}")
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            if page >= len(file.pages):
                raise reason
            found: Any = file.pages[page]
            kind = f"{found.shape} of {found.dtype}"
            pixels = found.imagewidth * found.imagelength
            if Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS:
                raise ImageError(f"{path} has {pixels} pixels, more than Pillow's limit")
            values = found.asarray()
            tags = {n: first_value(found.tags, n) for n in (258, 262, 274, 280, 281, 284, 340, 341)}
    except (*ERRORS, tifffile.TiffFileError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"page {page + 1} of {path} cannot be decoded: {error}") from error
    if values.ndim == 3 and tags[284] == 2:
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and values.shape[2] == 2:
        values = values[..., :1]
    if (
        values.ndim != 3
        or values.shape[2] not in (1, 3, 4)
        or tags[262] not in (0, 1, 2)
        or (values.dtype.kind not in "biuf")
    ):
        raise ImageError(
            f"{path} is a TIFF of a type that is no picture: {kind}, photometric interpretation "
            f"{tags[262]}. Convert it to gray or RGB"
        )
    values = _upright(values, tags[274] or 1)
    return Samples(values, tiff_range(tags), tags[262] == 0)


def first_value(tags: Any, number: int) -> Any:
    """The first value of a tag that tifffile read; None where the tag is missing.

    Args:
        tags: The tags of a page.
        number: The tag's number.
    """
    value = tags[number].value if number in tags else None
    return value[0] if isinstance(value, tuple) and value else value


def _upright(values: Array, orientation: int) -> Array:
    """Apply EXIF's orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    rows = orientation in (3, 4, 7, 8)
    columns = orientation in (2, 3, 6, 7)
    return values[:: -1 if rows else 1, :: -1 if columns else 1]
