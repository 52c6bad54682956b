"""Archives: downloaded once, verified, read; and errors with a way out."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from efficientsam3_stickers import archives
from efficientsam3_stickers.archives import Archive, fetch_archive
from efficientsam3_stickers.art import ArtError
from efficientsam3_stickers.concepts import STYLES

CONTENT = b"content-of-the-archive"

ARCHIVE = Archive(
    "the thing",
    "thing-1.0.tgz",
    hashlib.sha256(CONTENT).hexdigest(),
    f"manager pack {CONTENT.decode()}",
    "MIT",
)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package manager that writes an archive into its folder; gives the log of its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "manager"
    program.write_text(f'#!/bin/sh\necho call >> {folder}/calls\nprintf "$2" > thing-1.0.tgz\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "calls"


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """A tar archive of some files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_an_archive_is_downloaded_once(client: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archives"
    path = fetch_archive(ARCHIVE, folder)
    assert path.read_bytes() == CONTENT
    assert fetch_archive(ARCHIVE, folder) == path
    assert client.read_text() == "call\n"
    assert [p.name for p in folder.iterdir()] == ["thing-1.0.tgz"]


def test_an_archive_put_there_by_hand_needs_no_client(tmp_path: Path) -> None:
    (tmp_path / ARCHIVE.file).write_bytes(CONTENT)
    assert fetch_archive(replace(ARCHIVE, command="missing"), tmp_path).exists()


def test_an_altered_archive_is_an_error(client: Path, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE.file).write_bytes(CONTENT[:-3])
    with pytest.raises(
        ArtError, match=r"19 bytes.*incomplete or altered.*Delete it and fetch again"
    ):
        fetch_archive(ARCHIVE, tmp_path)
    assert not client.exists()


def test_a_download_of_another_content_is_an_error(client: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtError, match="incomplete or altered"):
        fetch_archive(replace(ARCHIVE, command="manager pack else"), tmp_path)


def test_a_missing_client_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    archive = replace(ARCHIVE, command="no-such-manager pack")
    with pytest.raises(ArtError, match=r"missing.*run `no-such-manager pack`, and put thing-1.0"):
        fetch_archive(archive, tmp_path)


def test_a_failing_client_is_quoted(client: Path, tmp_path: Path) -> None:
    client.with_name("manager").write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    with pytest.raises(ArtError, match=r"the thing cannot be downloaded: no network. On a machine"):
        fetch_archive(ARCHIVE, tmp_path / "archives")
    assert not list((tmp_path / "archives").iterdir())


def test_every_archive_is_pinned() -> None:
    assert set(archives.archives()) == {"list", *STYLES}
    for archive in archives.archives().values():
        assert len(archive.sha256) == 64
        assert any(char.isdigit() for char in archive.file)
        assert archive.licence


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tgz", {"other": b""})
    with pytest.raises(ArtError, match=r"has no package/emoji.json"):
        archives.read_file(path, "package", "emoji.json")


def test_an_incomplete_archive_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tgz", {"package/1f34e.png": os.urandom(20000)})
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ArtError, match="cannot be unpacked"):
        list(archives.read_folder(path, "package"))


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
    with pytest.raises(ArtError, match=r"Noto is downloaded by x, .*fonts-noto-color-emoji"):
        archives.read_noto_font(package.parent)


def test_a_package_of_another_format_is_an_error(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.write_bytes(b"!<arch>\n")
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    noto = Archive("Noto", package.name, digest, "x", "")
    monkeypatch.setattr(archives, "archives", lambda: {"noto": noto})
    with pytest.raises(ArtError, match="is not a Debian package"):
        archives.read_noto_font(package.parent)
