"""Files here and in stores: listing, reading with retries, and writing that is all or nothing."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.distributed import stores
from efficientsam3.errors import DataError, MissingPackageError

pytest.importorskip("pyarrow")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    for name in ("a.png", "b.png", "sub/c.png", "sub/d.jpg", ".hidden/e.png", "sub/.f.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["a.png", "b.png", "sub/c.png", "sub/d.jpg"]),
        ("/a.png", ["a.png"]),
        ("/*.png", ["a.png", "b.png"]),
        ("/[!a].png", ["b.png"]),
        ("/**/*.png", ["a.png", "b.png", "sub/c.png"]),
        ("/sub/*.jpg", ["sub/d.jpg"]),
    ],
)
def test_names_folders_and_patterns(
    files: Path, scheme: str, pattern: str, found: list[str]
) -> None:
    listed = stores.list_files(f"{scheme}{files}{pattern}")
    assert [file.name for file in listed] == [f"{scheme}{files}/{name}" for name in found]
    assert [file.bytes for file in listed] == [len(name) for name in found]
    assert all(file.time > 0 for file in listed)
    for file, name in zip(listed, found, strict=True):
        assert stores.read_bytes(file.name) == name.encode()


@pytest.mark.parametrize("place", ["", "{}/lost", "{}/*.tif", "file://{}/lost", "strange://a/b"])
def test_nothing_there_is_said(files: Path, place: str) -> None:
    with pytest.raises(DataError, match=r"there is no file|is empty|no address of a store"):
        stores.list_files(place.format(files))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{scheme}{tmp_path}/new/folder/x.bin"
    assert stores.list_names(f"{scheme}{tmp_path}/new/folder") == {}
    stores.write_file(place, b"one")
    stores.write_file(place, b"second")
    assert stores.read_bytes(place) == b"second"
    assert list(stores.list_names(f"{scheme}{tmp_path}/new/folder")) == ["x.bin"]

    class Full:
        def __len__(self) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises((OSError, TypeError)):
        stores.write_file(place, Full())  # type: ignore[arg-type]
    assert stores.read_bytes(place) == b"second"
    assert [p.name for p in (tmp_path / "new/folder").iterdir()] == ["x.bin"]
    stores.delete_file(place)
    stores.delete_file(place)
    assert list((tmp_path / "new/folder").iterdir()) == []


def test_a_late_store_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(stores.time, "sleep", waited.append)
    answers: list[Any] = [OSError("timeout"), TimeoutError("late"), "content"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert stores.retried(ask, "s3://bucket/a") == "content"
    assert waited == [0.5, 2.0]
    for lasting in (FileNotFoundError("gone"), OSError(errno.ENOSPC, "full")):
        answers[:] = [lasting, "content"]
        with pytest.raises(type(lasting)):
            stores.retried(ask, "s3://bucket/a")
    answers[:] = [OSError("timeout")] * 9
    with pytest.raises(OSError, match="timeout"):
        stores.retried(ask, "s3://bucket/a")
    assert len(answers) == 5, "four attempts"


def test_a_file_is_opened_again_where_a_read_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 40_000
    (tmp_path / "big.bin").write_bytes(content)
    monkeypatch.setattr(stores.time, "sleep", lambda _: None)

    class Flaky(stores.io.FileIO):
        reads = 0

        def read(self, size: int = -1) -> bytes:  # type: ignore[override]
            Flaky.reads += 1
            if Flaky.reads % 3 == 0:
                raise OSError("connection reset")
            return super().read(size) or b""

    monkeypatch.setattr(stores.io, "FileIO", Flaky)
    with stores.open_file(str(tmp_path / "big.bin")) as file:
        assert file.read() == content
        file.seek(-3, 2)
        assert file.read() == content[-3:]
    assert Flaky.reads > 6


def test_without_pyarrow_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.fs", None)
    with pytest.raises(MissingPackageError, match=r'pip install "efficientsam3\[ray\]"'):
        stores.list_files("s3://bucket/photos")
