"""Archives of emojis are pinned, and the font comes from the folder, the system or a package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from efficientsam3.io.archives import Archive, ArchiveError
from efficientsam3_stickers import archives
from efficientsam3_stickers.concepts import STYLES

from ..efficientsam3.io.test_archives import write_tar


def test_every_archive_is_pinned() -> None:
    assert set(archives.archives()) == {"list", *STYLES}
    for archive in archives.archives().values():
        assert len(archive.sha256) == 64
        assert any(char.isdigit() for char in archive.file)
        assert archive.license


# Noto is a font -------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian package with a font, in a folder of archives; the system has no font."""
    name = "./usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    data = write_tar(tmp_path / "data", {name: b"a font"}).read_bytes()
    deb = b"!<arch>\n"
    for part, content in (
        ("debian-binary", b"2.0"),
        ("control.tar.xz", b"odd"),
        ("data.tar.xz", data),
    ):
        header = f"{part:<16}{0:<12}{0:<6}{0:<6}{0o644:<8}{len(content):<10}`\n"
        deb += header.encode() + content + b"\n" * (len(content) % 2)
    path = tmp_path / "archives" / "noto.deb"
    path.parent.mkdir()
    path.write_bytes(deb)
    digest = hashlib.sha256(deb).hexdigest()
    noto = Archive("Noto", path.name, digest, "x", "")
    monkeypatch.setattr(archives, "archives", lambda: {"noto": noto})
    monkeypatch.setattr(archives, "SYSTEM_FONTS", ())
    return path


def test_the_font_is_read_from_debians_package(package: Path) -> None:
    assert archives.read_noto_font(package.parent) == b"a font"


def test_a_font_of_the_folder_or_the_system_is_used(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    font = tmp_path / archives.FONT_FILE
    font.write_bytes(b"another font")
    monkeypatch.setattr(archives, "SYSTEM_FONTS", (str(font),))
    assert archives.read_noto_font(package.parent) == b"another font"
    (package.parent / archives.FONT_FILE).write_bytes(b"a third font")
    assert archives.read_noto_font(package.parent) == b"a third font"


def test_a_missing_font_is_an_error_that_names_the_package(package: Path) -> None:
    package.unlink()
    with pytest.raises(ArchiveError, match=r"Noto is downloaded by x, .*fonts-noto-color-emoji"):
        archives.read_noto_font(package.parent)


def test_a_package_of_another_format_is_an_error(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.write_bytes(b"!<arch>\n")
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    noto = Archive("Noto", package.name, digest, "x", "")
    monkeypatch.setattr(archives, "archives", lambda: {"noto": noto})
    with pytest.raises(ArchiveError, match="is not a Debian package"):
        archives.read_noto_font(package.parent)
