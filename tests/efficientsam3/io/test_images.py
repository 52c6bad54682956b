"""Images of every kind, size and mode give the same RGB pixels; other values are refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import efficientsam3 as es3
from efficientsam3.errors import ImageError
from efficientsam3.io.images import normalize, read_rgb, read_rgb_of_size

Pixels = npt.NDArray[np.uint8]


def rgb(image: Any) -> Pixels:
    """What the model sees, (H, W, 3)."""
    out = read_rgb(image)
    assert out.dtype == torch.uint8
    return out.permute(1, 2, 0).numpy()


@pytest.fixture
def grey(photo: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(photo).convert("L"))


def test_a_path_an_image_an_array_and_a_tensor_are_the_same(photo: Pixels, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    tensor = torch.from_numpy(photo.copy()).permute(2, 0, 1)
    for image in (
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        Image.fromarray(photo),
        photo,
        tensor,
        tensor[None],
        tensor.contiguous(),
    ):
        assert (rgb(image) == photo).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "1"])
def test_every_mode_of_pil(photo: Pixels, mode: str) -> None:
    image = Image.fromarray(photo)
    converted = image.convert("RGBA" if mode == "LA" else "RGB").convert(mode.replace("PA", "P"))
    if mode == "PA":
        converted = converted.convert("PA")
    assert converted.mode == mode
    assert (rgb(converted) == np.asarray(converted.convert("RGB"))).all()
    if mode in ("RGB", "RGBA", "CMYK"):
        assert np.abs(rgb(converted).astype(int) - photo).max() <= 1


def test_transparency_is_dropped(photo: Pixels, grey: Pixels, tmp_path: Path) -> None:
    alpha = np.zeros((48, 64, 1), np.uint8)
    assert (rgb(np.concatenate([photo, alpha], 2)) == photo).all()
    assert (
        rgb(torch.from_numpy(np.concatenate([photo, alpha], 2)).permute(2, 0, 1)) == photo
    ).all()
    la = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha[..., 0])))
    assert (rgb(la) == grey[..., None]).all()
    palette = Image.fromarray(photo).convert("P")
    palette.save(tmp_path / "palette.png", transparency=0)
    with Image.open(tmp_path / "palette.png") as opened:
        assert opened.mode == "P"
    assert (rgb(tmp_path / "palette.png") == np.asarray(palette.convert("RGB"))).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_a_pixel_keep_their_shades(grey: Pixels, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    with Image.open(path) as opened:
        assert opened.mode.startswith("I")
    found = rgb(path).astype(int)
    assert np.abs(found - grey[..., None]).max() <= 1
    assert found.std() > 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_wide_integers_and_floats_of_pil(grey: Pixels, mode: str) -> None:
    assert (rgb(Image.fromarray(grey).convert(mode)) == grey[..., None]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(photo: Pixels, tmp_path: Path, orientation: int) -> None:
    turn: dict[int, Callable[[Pixels], Pixels]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[::-1],
    }
    image = Image.fromarray(photo)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    assert (rgb(tmp_path / "turned.png") == turn[orientation](photo)).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::-1],
        lambda a: a[:, ::-1],
        lambda a: a[..., ::-1],
        lambda a: a[::2, ::3],
        np.asfortranarray,
        lambda a: np.broadcast_to(a[:1], a.shape),
    ],
    ids=["rows", "columns", "channels", "steps", "fortran", "broadcast"],
)
def test_arrays_of_any_strides(photo: Pixels, view: Callable[[Pixels], Pixels]) -> None:
    assert (rgb(view(photo)) == view(photo)).all()


def test_a_read_only_array_gives_no_warning(photo: Pixels) -> None:
    frozen = photo.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (rgb(frozen) == photo).all()


def test_grey_and_bool_and_float_arrays(photo: Pixels, grey: Pixels) -> None:
    for image in (grey, grey[..., None], torch.from_numpy(grey.copy()), torch.tensor(grey)[None]):
        assert (rgb(image) == grey[..., None]).all()
    mask = grey > 100
    for image in (mask, mask[..., None], torch.from_numpy(mask)):
        assert (rgb(image) == 255 * mask[..., None]).all()
    for dtype in (np.float64, np.float32, np.float16, ">f4"):
        assert (rgb((photo / 255).astype(dtype)) == photo).all()
    assert (rgb(torch.from_numpy(photo / 255).permute(2, 0, 1)) == photo).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (500, 20000), (20000, 2)])
def test_any_size_fits_the_model(tiny: es3.ImageModel, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 200, np.uint8)
    pixels = tiny.preprocess(image)
    assert pixels.shape == (1, 3, 112, 112)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, torch.full_like(pixels, (200 / 255 - 0.5) / 0.5))


def test_pixels_are_normalized_to_the_configured_mean_and_deviation() -> None:
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)
    out = normalize(image, 8, mean=0.2, std=0.4)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([-0.5, 0.0, 2.0]))


# What is no image ----------------------------------------------------------------------------


def png(photo: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(photo: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        lambda photo: b"",
        lambda photo: b"not an image",
        lambda photo: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        lambda photo: png(photo)[:20],
        lambda photo: png(photo)[:-30],
        lambda photo: jpeg(photo)[:100],
        lambda photo: jpeg(photo)[: len(jpeg(photo)) // 2],
        lambda photo: png(photo)[:60] + b"\xff" * 40 + png(photo)[100:],
    ],
    ids=["empty", "text", "svg", "head", "cut", "jpeg-head", "jpeg-cut", "noise"],
)
def test_files_that_are_damaged_or_no_image(
    photo: Pixels, tmp_path: Path, content: Callable[[Pixels], bytes]
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content(photo))
    with pytest.raises(es3.ImageError) as caught:
        read_rgb(path)
    assert str(path) in str(caught.value)


def test_a_plugin_of_pillow_that_lacks_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'pi_heif'", name="pi_heif")

    path = tmp_path / "notes.jpg"
    path.write_text("no image")
    monkeypatch.setattr(Image, "open", ask)  # As Ultralytics changes it.
    with pytest.raises(es3.ImageError, match=r"notes\.jpg cannot be read as an image"):
        read_rgb(path)


def test_paths_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(es3.ImageError, match="there is no image at") as caught:
        read_rgb(tmp_path / "no.jpg")
    assert str(tmp_path / "no.jpg") in str(caught.value)
    with pytest.raises(es3.ImageError, match="cannot be read"):
        read_rgb(tmp_path)


def test_an_image_that_would_fill_the_memory(
    photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(photo))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", photo.size // 3 // 2 + 1)
    assert (rgb(path) == photo).all(), "large is welcome"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", photo.size // 3 // 4)
    with pytest.raises(es3.ImageError, match=r"bomb\.png"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 40, 50), np.uint8), ("(3, 40, 50)", "transpose")),
        (np.zeros((40, 50, 2), np.uint8), ("(40, 50, 2)", "1, 3 or 4")),
        (np.zeros((1, 40, 50, 3), np.uint8), ("(1, 40, 50, 3)",)),
        (np.zeros((40,), np.uint8), ("(40,)",)),
        (np.zeros((0, 50, 3), np.uint8), ("0 x 50", "at least one pixel")),
        (torch.zeros(40, 50, 3), ("(40, 50, 3)", "numpy array")),
        (torch.zeros(2, 3, 40, 50), ("(2, 3, 40, 50)",)),
        (None, ("NoneType", "path")),
        ([[1, 2], [3, 4]], ("list", "path")),
        (b"bytes", ("bytes", "path")),
        (7, ("int", "path")),
    ],
    ids=lambda x: "" if isinstance(x, tuple) else None,
)
def test_other_values_are_refused(image: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(es3.ImageError) as caught:
        read_rgb(image)
    for word in words:
        assert word in str(caught.value)


def test_image_errors_are_errors_of_the_package_and_value_errors() -> None:
    for error in (es3.ImageError, es3.PromptError, es3.CheckpointError):
        assert issubclass(error, es3.EfficientSam3Error)
        assert issubclass(error, ValueError)
    for error, builtin in (
        (es3.MissingAbilityError, RuntimeError),
        (es3.WeightsNotFoundError, FileNotFoundError),
    ):
        assert issubclass(error, es3.EfficientSam3Error)
        assert issubclass(error, builtin)


def test_images_that_were_annotated_before_their_rotation(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # Shown after a rotation by 90 degrees.
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert read_rgb_of_size(tmp_path / "a.png", (6, 4)).shape == (3, 6, 4)
    found = read_rgb_of_size(tmp_path / "a.png", (4, 6))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), pixels)
    with pytest.raises(ImageError, match=r"has 6 x 4 pixels .*, but its annotation says 5 x 4"):
        read_rgb_of_size(tmp_path / "a.png", (5, 4))
