"""Archives: fetched once, verified, read; and what is said when they cannot be."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from efficientsam3.scenes import sources
from efficientsam3.scenes.sources import Archive, ArtError

CONTENT = b"the archive's content"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package manager that counts its calls and writes an archive into its folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "manager"
    program.write_text(f'#!/bin/sh\necho call >> {folder}/calls\nprintf "$2" > thing-1.0.tgz\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "calls"


ARCHIVE = Archive(
    "the thing",
    "thing-1.0.tgz",
    hashlib.sha256(CONTENT).hexdigest(),
    ("manager", "pack", CONTENT.decode()),
    "MIT",
)


def test_an_archive_is_fetched_once(client: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archives"
    path = sources.obtain(ARCHIVE, folder)
    assert path.read_bytes() == CONTENT
    assert sources.obtain(ARCHIVE, folder) == path
    assert client.read_text() == "call\n"
    assert [p.name for p in folder.iterdir()] == ["thing-1.0.tgz"]


def test_an_archive_put_by_hand_needs_no_client(tmp_path: Path) -> None:
    (tmp_path / ARCHIVE.file).write_bytes(CONTENT)
    assert sources.obtain(replace(ARCHIVE, command=("nobody",)), tmp_path).exists()


def test_an_altered_archive_is_said(client: Path, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE.file).write_bytes(CONTENT[:-3])
    with pytest.raises(
        ArtError, match=r"18 bytes.*cut short or altered.*Delete it and fetch again"
    ):
        sources.obtain(ARCHIVE, tmp_path)
    assert not client.exists()


def test_another_content_from_the_client_is_said(client: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtError, match="cut short or altered"):
        sources.obtain(replace(ARCHIVE, command=("manager", "pack", "else")), tmp_path)


def test_no_client_says_what_to_do_by_hand(tmp_path: Path) -> None:
    archive = replace(ARCHIVE, command=("no-such-manager", "pack"))
    with pytest.raises(ArtError, match=r"not here.*run `no-such-manager pack` and put thing-1.0"):
        sources.obtain(archive, tmp_path)


def test_a_client_that_fails_is_quoted(client: Path, tmp_path: Path) -> None:
    client.with_name("manager").write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    with pytest.raises(ArtError, match=r"the thing cannot be fetched: no network. Where there"):
        sources.obtain(ARCHIVE, tmp_path / "archives")
    assert not list((tmp_path / "archives").iterdir())


def test_every_archive_is_pinned() -> None:
    for archive in sources.ARCHIVES:
        assert len(archive.sha256) == 64
        assert any(char.isdigit() for char in archive.file)
        assert archive.licence


# Reading ------------------------------------------------------------------------------------


def tarball(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(colour: str, size: int = 6) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (size, size), colour).save(out, "PNG")
    return out.getvalue()


def test_pictures_are_read_by_code(tmp_path: Path) -> None:
    path = tarball(
        tmp_path / "a.tgz",
        {
            "package/assets/1f34e.png": png("red"),
            "package/assets/2764-fe0f.png": png("blue"),
            "package/assets/1f34f.png": png("green"),
            "package/other/1f415.png": png("brown"),
        },
    )
    found = dict(sources.read_pictures(path, "package/assets", {"1f34e", "2764", "1f415"}))
    assert set(found) == {"1f34e", "2764"}
    assert found["1f34e"].getpixel((0, 0)) == (255, 0, 0, 255)


def test_an_svg_is_drawn_large() -> None:
    pytest.importorskip("resvg_py")
    left_half = b'<path fill="#0f0" d="M0 0h18v36H0z"/>'
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36">' + left_half + b"</svg>"
    image = sources.draw_svg(svg)
    assert image.size == (sources.RENDERED, sources.RENDERED)
    assert image.getpixel((10, 100)) == (0, 255, 0, 255)
    assert image.getpixel((280, 100)) == (0, 0, 0, 0)


def test_a_broken_svg_is_said() -> None:
    pytest.importorskip("resvg_py")
    with pytest.raises(ArtError, match="cannot be drawn"):
        sources.draw_svg(b"<svg")


def test_names_come_from_both_lists(tmp_path: Path) -> None:
    first = tarball(tmp_path / "a.tgz", {"package/emoji.json": b'[{"unified": "1F34E"}]'})
    second = [{"hexcode": "2764-FE0F", "annotation": "red heart"}]
    content = json.dumps(second).encode()
    other = tarball(tmp_path / "b.tgz", {"package/data/openmoji.json": content})
    assert sources.read_list(first, other) == ([{"unified": "1F34E"}], {"2764": "red heart"})


def test_a_missing_member_is_said(tmp_path: Path) -> None:
    path = tarball(tmp_path / "a.tgz", {"other": b""})
    with pytest.raises(ArtError, match=r"has no package/emoji.json"):
        sources.read_list(path, path)


def test_an_archive_cut_short_is_said(tmp_path: Path) -> None:
    path = tarball(tmp_path / "a.tgz", {"package/1f34e.png": os.urandom(20000)})
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ArtError, match="cannot be unpacked"):
        list(sources.read_pictures(path, "package", {"1f34e"}))


def test_the_extra_is_named_where_it_lacks() -> None:
    with pytest.raises(ArtError, match=r"pip install 'efficientsam3\[scenes\]'"):
        sources.needed("no_such_module.part")


def test_a_font_is_unpacked_from_debians_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tarball(tmp_path / "data", {"./usr/share/fonts/noto/NotoColorEmoji.ttf": b"a font"})
    content = data.read_bytes()
    parts = [("debian-binary", b"2.0"), ("control.tar.xz", b"odd"), ("data.tar.xz", content)]
    deb = b"!<arch>\n"
    for name, part in parts:
        deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{0o644:<8}{len(part):<10}`\n".encode() + part
        deb += b"\n" * (len(part) % 2)
    archives = tmp_path / "archives"
    archives.mkdir()
    (archives / "noto.deb").write_bytes(deb)
    digest = hashlib.sha256(deb).hexdigest()
    monkeypatch.setattr(sources, "NOTO", Archive("Noto", "noto.deb", digest, ("x",), ""))
    monkeypatch.setattr(sources, "SYSTEM_FONTS", ())
    font = sources.noto_font(archives)
    assert font.read_bytes() == b"a font"
    (archives / "noto.deb").unlink()
    assert sources.noto_font(archives) == font  # unpacked once


def test_a_font_of_the_system_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    font = tmp_path / "NotoColorEmoji.ttf"
    font.write_bytes(b"a font")
    monkeypatch.setattr(sources, "SYSTEM_FONTS", (str(font),))
    assert sources.noto_font(tmp_path / "archives") == font


def test_a_font_without_bitmaps_is_said(tmp_path: Path) -> None:
    pytest.importorskip("fontTools")
    font = tmp_path / "NotoColorEmoji.ttf"
    font.write_bytes(b"no font at all")
    with pytest.raises(ArtError, match="is not Noto Color Emoji with bitmaps"):
        list(sources.read_noto(font, {"1f34e"}))
