"""Pages and animations: all frames by path as by PIL image, on one scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from efficientsam3.errors import ImageWarning, VideoError
from efficientsam3.io.frames import read_frames
from efficientsam3.io.heif import heif_package
from efficientsam3.io.picture_files import count_pages
from efficientsam3.io.samples import read_rgb_array

COLORS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200), (90, 90, 90)]


def write(path: Path, count: int = 6, **options: Any) -> Path:
    """A file with a picture of each color."""
    first, *rest = [Image.new("RGB", (32, 24), color) for color in COLORS[:count]]
    first.save(path, save_all=True, append_images=rest, **options)
    return path


FORMATS = [
    ("a.tif", {}),
    ("a.tiff", {"compression": "tiff_deflate"}),
    ("a.webp", {"duration": 100, "lossless": True}),
    ("a.png", {"duration": 100}),
    ("a.apng", {"duration": 100}),
    ("a.gif", {"duration": 100}),
    ("a.mpo", {"quality": 95}),
    ("a.avif", {"duration": 100, "quality": 95}),
]


@pytest.mark.parametrize(("name", "options"), FORMATS, ids=[name for name, _ in FORMATS])
def test_all_frames_by_path_as_by_image(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    count = 3 if name == "a.mpo" else 6  # Pillow writes no more pictures to an MPO
    path = write(tmp_path / name, count, **options)
    reader = read_frames(path)
    assert reader.expected == count
    frames = list(reader)
    assert [frame.index for frame in frames] == list(range(count))
    for frame, color in zip(frames, COLORS[:count], strict=True):
        assert frame.image.shape == (24, 32, 3) and frame.image.dtype == np.uint8
        assert np.abs(frame.image.mean((0, 1)) - color).max() < 12
    if "duration" in options:
        assert [frame.time for frame in frames] == pytest.approx([i / 10 for i in range(6)])
        assert reader.info.rate == pytest.approx(10)
    with Image.open(path) as image:
        by_image = list(read_frames(image))
    assert len(by_image) == count
    for one, other in zip(frames, by_image, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    part = list(read_frames(path, start=1, stop=5, stride=2))
    assert [frame.index for frame in part] == [1, 3][: count // 2]
    np.testing.assert_array_equal(part[0].image, frames[1].image)
    reader.reopen(count - 2)
    assert [frame.index for frame in reader] == [count - 2, count - 1]


def test_a_gif_without_times(tmp_path: Path) -> None:
    """Pillow writes such files without graphic control blocks, for which FFmpeg sees one frame."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3), np.uint8)
    first, *rest = map(Image.fromarray, noise)
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest)
    reader = read_frames(tmp_path / "a.gif")
    assert [frame.time for frame in reader] == pytest.approx([i / 10 for i in range(6)])
    assert not reader.warnings


def test_heic(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    assert heif_package() == "pillow_heif"
    pictures = heif.HeifFile()
    for color in COLORS[:3]:
        pictures.add_from_pillow(Image.new("RGB", (64, 48), color))
    pictures.save(tmp_path / "a.heic", quality=95)
    assert count_pages(tmp_path / "a.heic") == 3
    for frame, color in zip(read_frames(tmp_path / "a.heic"), COLORS[:3], strict=True):
        assert np.abs(frame.image.mean((0, 1)) - color).max() < 12
    assert "HEIF" not in Image.OPEN, "nothing is registered with Pillow"
    write(tmp_path / "b.png", 1)
    with pytest.warns(ImageWarning, match="the first is read"):
        assert len(list(read_frames(tmp_path))) == 2, "it is one of the images of a folder"


def test_further_pictures_of_a_photo_are_no_frames(tmp_path: Path) -> None:
    """Phones write gain maps and previews into their JPEG files."""
    write(tmp_path / "a.mpo", 2).rename(tmp_path / "a.jpg")
    assert len(list(read_frames(tmp_path / "a.jpg"))) == 1


def test_one_page_is_one_frame(tmp_path: Path) -> None:
    for name in ("a.tif", "a.png", "a.webp"):
        assert len(list(read_frames(write(tmp_path / name, 1)))) == 1


def test_a_page_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", compression="tiff_deflate")
    with Image.open(path) as image:
        image.seek(2)
        (offset,) = image.tag_v2[273]
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = b"\0" * 20
    path.write_bytes(content)
    reader = read_frames(path)
    assert [frame.index for frame in reader] == [0, 1, 3, 4, 5]
    assert reader.unreadable == 1 and "page 3 of" in reader.warnings[0]


def test_the_first_page_alone_is_said(tmp_path: Path) -> None:
    """Where an image is expected; but not where the page is named."""
    write(tmp_path / "photo.mpo", 2).rename(tmp_path / "photo.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "one.tif")
    for name, _ in FORMATS:
        if name == "a.avif" and not features.check("avif"):
            continue
        path = write(tmp_path / name)
        with pytest.warns(ImageWarning, match="several pages or frames, and the first is read"):
            first = read_rgb_array(path)
        np.testing.assert_array_equal(first, read_rgb_array(path, page=0))
    for name in ("photo.jpg", "one.tif"):
        read_rgb_array(tmp_path / name)


# One scale ----------------------------------------------------------------------------------


def deep(level: int) -> np.ndarray:
    return np.full((16, 16), level, np.uint16)


@pytest.mark.parametrize("kind", ["folder", "pattern", "list", "array", "images", "pages"])
def test_frames_of_one_source_have_one_scale(tmp_path: Path, kind: str) -> None:
    levels = [100, 200, 1000, 3000, 4095, 50]
    arrays = [deep(level) for level in levels]
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    images = [Image.fromarray(array) for array in arrays]
    images[0].save(tmp_path / "all.tiff", save_all=True, append_images=images[1:])
    source: Any = {
        "folder": tmp_path,
        "pattern": str(tmp_path / "*.png"),
        "list": [tmp_path / f"{number}.png" for number in range(6)],
        "array": np.stack(arrays)[..., None],
        "images": images,
        "pages": tmp_path / "all.tiff",
    }[kind]
    if kind == "folder":
        (tmp_path / "all.tiff").unlink()
    expected = [round(level * 255 / 4095) for level in levels]
    assert [int(f.image.mean()) for f in read_frames(source)] == expected
    later = read_frames(source, start=5)
    assert [int(f.image.mean()) for f in later] == expected[5:], "also from another frame on"


def test_a_stream_has_the_scale_of_its_first_frame_that_is_not_black() -> None:
    frames = read_frames(deep(level) for level in (0, 1000, 500, 4095))
    assert [int(f.image.mean()) for f in frames] == [0, 249, 125, 255]
    (warning,) = frames.warnings
    assert "range of the source, 0 to 1023" in warning and "value_range" in warning
    given = read_frames((deep(level) for level in (0, 1000, 4095)), value_range=(0, 4095))
    assert [int(f.image.mean()) for f in given] == [0, 62, 255] and not given.warnings


# What is passed over ------------------------------------------------------------------------


def test_all_that_pillow_reads_is_a_frame_and_the_rest_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.new("RGB", (16, 16), (10, 20, 30))
    for suffix in ("jpg", "tga", "ico", "dds", "pbm", "mpo", "bmp", "pcx", "sgi", "ppm", "qoi"):
        (image.convert("1") if suffix == "pbm" else image).save(tmp_path / f"a.{suffix}")
    for name in ("b.CR2", "c.dng", "d.cr2", "notes.txt", "README", ".hidden"):
        (tmp_path / name).write_bytes(b"?")
    reader = read_frames(tmp_path)
    assert len(list(reader)) == 11 and not reader.warnings
    said = "5 files are passed over, because Pillow does not read them: "
    said += "2 .cr2, 1 .dng, 1 .txt, 1 without a suffix"
    assert caplog.text.count("passed over") == 1 and said in caplog.text
    caplog.clear()
    assert len(list(read_frames(str(tmp_path / "*.jpg")))) == 1 and not caplog.text
    with pytest.raises(VideoError, match=r"no image matches .*1 file is passed over.*1 \.cr2"):
        read_frames(str(tmp_path / "*.CR2"))


def test_heic_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efficientsam3.io import paths, picture_files

    monkeypatch.setattr(paths, "heif_package", lambda: None)
    monkeypatch.setattr(picture_files, "heif_package", lambda: None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(VideoError, match=r"1 \.heic \(HEIC: pip install 'efficientsam3\[pictures"):
        read_frames(tmp_path)
    reader = read_frames(tmp_path / "a.heic")
    with pytest.raises(VideoError, match="pip install"):
        list(reader)


def test_an_empty_name_is_no_source() -> None:
    with pytest.raises(VideoError, match="empty"):
        read_frames("")
