"""One rule for values of every type and depth, the same by path, PIL image, array and tensor."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import efficientsam3 as es3
from efficientsam3.io.images import read_rgb
from efficientsam3.io.pixel_values import SourceRange, ValueRange, check_value_range

tifffile = pytest.importorskip("tifffile")
Array = npt.NDArray[Any]

RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)
"""Mean 127.5 once it is scaled to 8 bits."""
RGB_RAMP = np.stack([RAMP, RAMP[::-1], RAMP.T], 2)


def mean(image: Any) -> float:
    return float(read_rgb(image).float().mean())


def ramp(dtype: str, low: float, high: float, source: Array = RAMP) -> Array:
    values = low + source * (high - low)
    return (np.rint(values) if np.dtype(dtype).kind in "iu" else values).astype(dtype)


def png16(values: Array, color_type: int, chunks: dict[bytes, bytes] | None = None) -> bytes:
    """A PNG of 16 bits of any color type, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    out = b"\x89PNG\r\n\x1a\n"
    out += chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    for kind, data in (chunks or {}).items():
        out += chunk(kind, data)
    return out + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


TYPES = [
    ("bool", 0, 1),
    ("uint8", 0, 255),
    ("int8", -128, 127),
    ("uint16", 0, 255),
    ("uint16", 0, 1023),
    ("uint16", 0, 4095),
    ("uint16", 0, 16383),
    ("uint16", 0, 65535),
    (">u2", 0, 4095),
    ("int16", 0, 32767),
    ("int16", -32768, 32767),
    ("int16", -1024, 3071),
    ("int32", 0, 65535),
    ("int32", 0, 1_000_000),
    ("uint32", 0, 4_294_967_295),
    ("int64", 0, 4095),
    ("uint64", 0, 1 << 40),
    ("float16", 0, 1),
    ("float32", 0, 1),
    (">f4", 0, 1),
    ("float32", 0, 255),
    ("float32", 0, 10),
    ("float32", 0, 65535),
    ("float32", -1, 1),
    ("float64", 0, 1),
    ("float64", -3, 3),
]


@pytest.mark.parametrize(("dtype", "low", "high"), TYPES)
@pytest.mark.parametrize("source", [RAMP, RGB_RAMP], ids=["gray", "rgb"])
def test_types_and_depths_are_as_bright_at_every_door(
    tmp_path: Path, dtype: str, low: float, high: float, source: Array
) -> None:
    values = ramp(dtype, low, high, source) if dtype != "bool" else source > 0.5
    doors: dict[str, Any] = {"array": values}
    native = values.astype(values.dtype.newbyteorder("="))
    doors["tensor"] = torch.from_numpy(np.atleast_3d(native).transpose(2, 0, 1).copy())
    if dtype != "bool":
        order = ">" if dtype.startswith(">") else "<"
        photometric = "rgb" if source.ndim == 3 else "minisblack"
        doors["tiff"] = tmp_path / "a.tiff"
        tifffile.imwrite(doors["tiff"], native, byteorder=order, photometric=photometric)
        doors["zip"] = tmp_path / "b.tiff"
        tifffile.imwrite(doors["zip"], native, compression="zlib", photometric=photometric)
    if native.dtype == np.uint16:
        doors["png"] = tmp_path / "a.png"
        doors["png"].write_bytes(png16(values, 2 if source.ndim == 3 else 0))
    try:
        # Pillow takes signed bytes for unsigned ones, and 32 unsigned bits for signed ones.
        if native.dtype not in (np.int8, np.uint32):
            doors["pil"] = Image.fromarray(values)
    except TypeError:
        pass  # Pillow has no such type
    found = {door: read_rgb(image) for door, image in doors.items()}
    for door, rgb in found.items():
        assert rgb.dtype == torch.uint8 and rgb.shape == (3, 32, 32)
        assert abs(float(rgb.float().mean()) - 127.5) < 1, door
        assert (rgb.int() - found["array"].int()).abs().max() <= 1, door


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "HSV",
        "I",
        "I;16",
        "I;16B",
        "I;16L",
        "F",
    ],
)
def test_modes_of_pillow(mode: str, tmp_path: Path) -> None:
    gray = Image.fromarray(ramp("uint8", 0, 255))
    if mode.startswith("I;16"):
        image = Image.frombytes(mode, (32, 32), ramp(">u2" if "B" in mode else "<u2", 0, 65535))
    elif mode in ("La", "RGBa"):
        image = gray.convert(mode[:-1] + "A").convert(mode)
    else:
        image = gray.convert("P").convert("PA") if mode == "PA" else gray.convert(mode)
    assert image.mode == mode
    expected = 127.5 if mode != "1" else np.asarray(image).mean() * 255
    assert abs(mean(image) - expected) < 1


def test_lab() -> None:
    white_to_black = np.zeros((4, 2, 3), np.uint8)
    white_to_black[:, 0, 0] = 255
    found = read_rgb(Image.fromarray(white_to_black, "LAB")).float()
    assert found[:, :, 0].min() > 250 and found[:, :, 1].max() < 5


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
@pytest.mark.parametrize("outlier", [256, 60_000])
def test_one_outlier_does_not_turn_a_picture_black(dtype: str, outlier: int) -> None:
    values = ramp(dtype, 0, 255)
    values[3, 4] = outlier
    assert abs(mean(values) - 127.5) < 2
    assert (read_rgb(Image.fromarray(values)) == read_rgb(values)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nan_and_infinite_values_are_0(tmp_path: Path, bad: float, dtype: str) -> None:
    values = ramp(dtype, 0, 1)
    values[16:] = bad
    tifffile.imwrite(tmp_path / "a.tif", values)
    doors = [values, torch.from_numpy(values), tmp_path / "a.tif"]
    doors += [Image.fromarray(values)] if dtype == "float32" else []
    for image in doors:
        found = read_rgb(image).float()
        assert not found[:, 16:].any() and abs(found[:, :16].mean() - 63.7) < 1
    assert mean(np.full((8, 8), bad, dtype)) == 0


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        *((0, dtype, 0) for dtype in ("uint8", "uint16", "int16", "int32", "float32", "float64")),
        *((100, dtype, 100) for dtype in ("uint8", "uint16", "int32", "float32")),
        (1, "float32", 255),
        (0.5, "float64", 128),
        (4095, "uint16", 255),
        (65535, "uint16", 255),
        (-5, "int16", 0),
    ],
)
def test_constant_images(value: float, dtype: str, expected: int) -> None:
    assert mean(np.full((9, 9), value, dtype)) == expected
    if dtype not in ("int16", "float64"):
        assert mean(Image.fromarray(np.full((9, 9), value, dtype))) == expected


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_white_is_zero(tmp_path: Path, dtype: str) -> None:
    values = ramp(dtype, 0, 1 if dtype == "float32" else np.iinfo(dtype).max)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    found = read_rgb(tmp_path / "a.tif").int()
    assert (found + read_rgb(values).int() - 255).abs().max() <= 1
    with Image.open(tmp_path / "a.tif") as image:
        assert (read_rgb(image) == found).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_planar_tiff(tmp_path: Path, dtype: str) -> None:
    values = ramp(dtype, 0, 1 if dtype == "float32" else np.iinfo(dtype).max, RGB_RAMP)
    planes = np.moveaxis(values, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    assert (read_rgb(tmp_path / "a.tif").int() - read_rgb(values).int()).abs().max() <= 1
    if dtype == "uint16":
        with Image.open(tmp_path / "a.tif") as image, pytest.raises(es3.ImageError, match="planes"):
            read_rgb(image)


def test_the_range_that_a_file_states(tmp_path: Path) -> None:
    dark = ramp("uint16", 0, 500)  # without a statement white is 1023
    for number, (tags, expected) in enumerate(
        {
            ((281, "H", 1, 4095),): 127.5 * 500 / 4095,
            ((340, "H", 1, 0), (341, "H", 1, 500)): 127.5,
            ((281, "H", 1, 65535),): 127.5 * 500 / 1023,  # what is so without saying
            ((340, "H", 1, 500), (341, "H", 1, 500)): 127.5 * 500 / 1023,  # not a range
        }.items()
    ):
        path = tmp_path / f"{number}.tif"
        extra = [(code, kind, count, value, True) for code, kind, count, value in tags]
        tifffile.imwrite(path, dark, extratags=extra)
        assert mean(path) == pytest.approx(expected, abs=1)
        with Image.open(path) as image:
            assert mean(image) == pytest.approx(expected, abs=1)
    # Significant bits of a PNG, whose values are shifted up or are not.
    (tmp_path / "a.png").write_bytes(png16(dark, 0, {b"sBIT": b"\x0c"}))
    assert mean(tmp_path / "a.png") == pytest.approx(127.5 * 500 / 4095, abs=1)
    (tmp_path / "a.png").write_bytes(png16(dark << 4, 0, {b"sBIT": b"\x0c"}))
    assert mean(tmp_path / "a.png") == pytest.approx(127.5 * 8000 / 16383, abs=1)
    # The largest value of a PGM.
    header = b"P5 32 32 4095\n"
    (tmp_path / "a.pgm").write_bytes(header + dark.astype(">u2").tobytes())
    assert mean(tmp_path / "a.pgm") == pytest.approx(127.5 * 500 / 4095, abs=1)


def test_packed_12_bits(tmp_path: Path) -> None:
    """Two values in three bytes, as microscopes write them."""
    values = ramp("uint16", 0, 4095)
    packed = bytearray()
    for a, b in values.reshape(-1, 2).tolist():
        packed += bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
    entries = [(256, 4, 32), (257, 4, 32), (258, 3, 12), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, 32), (279, 4, len(packed))]
    out = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        out += struct.pack("<HHII", tag, kind, 1, value)
    (tmp_path / "a.tif").write_bytes(out + b"\0\0\0\0")
    assert abs(mean(tmp_path / "a.tif") - 127.5) < 1


@pytest.mark.parametrize("color_type", [2, 4, 6], ids=["rgb", "gray-alpha", "rgba"])
def test_colors_of_16_bits_keep_all_bits(tmp_path: Path, color_type: int) -> None:
    values = ramp("uint16", 0, 4095, RGB_RAMP)
    if color_type == 4:
        values = values[..., :1]
    alpha = np.full((32, 32, 1), 7, np.uint16)
    stored = values if color_type == 2 else np.concatenate([values, alpha], 2)
    (tmp_path / "a.png").write_bytes(png16(stored, color_type))
    assert (read_rgb(tmp_path / "a.png") == read_rgb(values)).all()
    with Image.open(tmp_path / "a.png") as image:
        assert (read_rgb(image) == read_rgb(values)).all()
    with Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())) as image:
        assert (read_rgb(image) == read_rgb(values)).all()


def test_a_deep_picture_is_turned_upright(tmp_path: Path) -> None:
    values = ramp("uint16", 0, 4095, RGB_RAMP)[:20]
    arrays = [values, values[..., 0], values / 4095, (values[..., 0] / 16).astype(np.uint8)]
    for number, array in enumerate(arrays):
        path = tmp_path / f"{number}.tif"
        photometric = "rgb" if array.ndim == 3 else "minisblack"
        turn = (274, "H", 1, 6, True)
        tifffile.imwrite(path, array, extratags=[turn], photometric=photometric)
        turned = read_rgb(np.rot90(array, -1)).int()
        assert (read_rgb(path).int() - turned).abs().max() <= 1, number
        if number != 2:
            with Image.open(path) as image:
                assert (read_rgb(image).int() - turned).abs().max() <= 1, number


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), complex),
        np.zeros((4, 4), object),
        np.zeros((4, 4), "datetime64[s]"),
        torch.zeros(3, 4, 4, dtype=torch.complex64),
    ],
    ids=["complex", "object", "time", "tensor"],
)
def test_values_that_are_no_numbers(image: Any) -> None:
    with pytest.raises(es3.ImageError, match="bool, integers or floats; got"):
        read_rgb(image)


def test_a_tiff_that_is_no_picture(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4), np.complex64))
    with pytest.raises(es3.ImageError, match=r"a\.tif"):
        read_rgb(tmp_path / "a.tif")


# One scale for a source ----------------------------------------------------------------------


def test_pictures_of_one_source_have_one_scale() -> None:
    source = SourceRange()
    first = read_rgb(ramp("uint16", 0, 200), source).float().mean()
    second = read_rgb(ramp("uint16", 0, 100), source).float().mean()
    assert abs(first / second - 2) < 0.05
    source = SourceRange()
    assert not read_rgb(np.zeros((8, 8), np.uint16), source).any()
    assert abs(read_rgb(ramp("uint16", 0, 4095), source).float().mean() - 127.5) < 1


def test_a_range_that_is_given() -> None:
    given = SourceRange(check_value_range((-1000, 3000)))
    assert mean(ramp("int16", -1000, 3000)) == pytest.approx(127.5, abs=1)
    found = read_rgb(np.full((8, 8), 1000, np.int16), given)
    assert (found == 128).all()
    assert check_value_range(None) is None and check_value_range([0, 9]) == ValueRange(0, 9)
    for wrong in ((1, 1), (2, 1), (0, float("nan")), 5, "ab", (1, 2, 3)):
        with pytest.raises(es3.ImageError, match="range of values"):
            check_value_range(wrong)


@pytest.mark.parametrize(
    "turn", [lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a[..., ::-1], np.asfortranarray]
)
def test_deep_arrays_of_any_strides(turn: Callable[[Array], Array]) -> None:
    values = ramp("uint16", 0, 4095, RGB_RAMP)
    assert (read_rgb(turn(values)) == read_rgb(np.ascontiguousarray(turn(values)))).all()
