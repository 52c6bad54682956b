"""Archives: downloaded once, verified, read; and errors with a way out."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from efficientsam3.io.archives import (
    Archive,
    ArchiveError,
    fetch_archive,
    read_file,
    read_folder,
)

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
        ArchiveError, match=r"19 bytes.*incomplete or altered.*Delete it and fetch again"
    ):
        fetch_archive(ARCHIVE, tmp_path)
    assert not client.exists()


def test_a_download_of_another_content_is_an_error(client: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="incomplete or altered"):
        fetch_archive(replace(ARCHIVE, command="manager pack else"), tmp_path)


def test_a_missing_client_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    archive = replace(ARCHIVE, command="no-such-manager pack")
    with pytest.raises(
        ArchiveError, match=r"missing.*run `no-such-manager pack`, and put thing-1.0"
    ):
        fetch_archive(archive, tmp_path)


def test_a_failing_client_is_quoted(client: Path, tmp_path: Path) -> None:
    client.with_name("manager").write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    with pytest.raises(
        ArchiveError, match=r"the thing cannot be downloaded: no network. On a machine"
    ):
        fetch_archive(ARCHIVE, tmp_path / "archives")
    assert not list((tmp_path / "archives").iterdir())


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tgz", {"other": b""})
    with pytest.raises(ArchiveError, match=r"has no package/emoji.json"):
        read_file(path, "package", "emoji.json")


def test_an_incomplete_archive_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tgz", {"package/1f34e.png": os.urandom(20000)})
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ArchiveError, match="cannot be unpacked"):
        list(read_folder(path, "package"))
