"""Identities of files, folders, patterns and lists change when what they stand for changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.io.identity import content_digest, identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        (folder / name).write_bytes(b"content")
    return folder


def sources(folder: Path) -> dict[str, Any]:
    return {
        "file": folder / "b.jpg",
        "folder": folder,
        "pattern": f"{folder}/*.jpg",
        "list": [folder / "a.jpg", folder / "b.jpg"],
    }


def rewrite(path: Path) -> None:
    path.write_bytes(b"another content")


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def rewrite_unseen(path: Path) -> None:
    """Another content of the same size and the same modification time."""
    stat = path.stat()
    time.sleep(0.02)  # the system's clock for files may tick at 100 Hz
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def replace_unseen(path: Path) -> None:
    """The same by another file that takes the place of the first."""
    stat = path.stat()
    time.sleep(0.02)
    new = path.with_name("new")
    new.write_bytes(b"CONTENT")
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(new, path)


def link_to_another(path: Path) -> None:
    """A link to a file of the same size and times."""
    target = path.parent.parent / "other"
    target.write_bytes(b"CONTENT")
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("kind", ["file", "folder", "pattern", "list"])
@pytest.mark.parametrize(
    "change", [rewrite, touch, rewrite_unseen, replace_unseen, link_to_another]
)
def test_a_changed_file_changes_it(folder: Path, kind: str, change: Callable[[Path], None]) -> None:
    source = sources(folder)[kind]
    before = identity(source)
    assert identity(source) == before
    change(folder / "b.jpg")
    assert identity(source) != before


@pytest.mark.skipif(os.name != "posix", reason="other systems have no time of status change")
@pytest.mark.parametrize("kind", ["file", "folder", "pattern", "list"])
def test_the_target_of_a_link_counts(folder: Path, kind: str) -> None:
    """Two files of the same size, and of the same times as far as the system tells."""
    targets = [folder.parent / "one", folder.parent / "two"]
    for target in targets:
        target.write_bytes(b"content")
        os.utime(target, ns=(0, 0))
    (folder / "b.jpg").unlink()
    seen = []
    for target in targets:
        (folder / "b.jpg").symlink_to(target)
        seen.append(identity(sources(folder)[kind]))
        (folder / "b.jpg").unlink()
    assert seen[0] != seen[1]


def test_the_order_of_a_list_counts(folder: Path) -> None:
    a, b = folder / "a.jpg", folder / "b.jpg"
    assert identity([a, b]) != identity([b, a])


@pytest.mark.parametrize("kind", ["folder", "pattern"])
def test_files_that_come_go_or_are_renamed_change_it(folder: Path, kind: str) -> None:
    source = sources(folder)[kind]
    seen = [identity(source)]
    (folder / "d.jpg").write_bytes(b"")
    seen.append(identity(source))
    (folder / "d.jpg").rename(folder / "e.jpg")
    seen.append(identity(source))
    (folder / "a.jpg").unlink()
    seen.append(identity(source))
    assert len({str(one) for one in seen}) == 4
    assert seen[1]["files"] == seen[0]["files"] + 1


def test_hidden_files_do_not_count(folder: Path) -> None:
    before = identity(folder)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / ".thumbs").mkdir()
    (folder / ".thumbs/a.jpg").write_bytes(b"x")
    assert identity(folder) == before == {**before, "files": 3, "bytes": 21}


def test_relative_and_absolute_names_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    for relative, absolute in (("photos", folder), ("photos/a.jpg", folder / "a.jpg")):
        assert identity(relative) == identity(absolute)
    assert identity("photos/*.jpg") == identity(f"{folder}/*.jpg")


def test_names_that_are_no_files_stand_for_themselves() -> None:
    assert identity("https://example.org/a.mp4") == {"path": "https://example.org/a.mp4"}
    assert identity("0") == {"path": "0"}


def test_content(folder: Path) -> None:
    files = [folder / "a.jpg", folder / "b.jpg"]
    before = content_digest(files)
    touch(files[0])
    assert content_digest(files) == before
    rewrite(files[0])
    assert content_digest(files) != before
