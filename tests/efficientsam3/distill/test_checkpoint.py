"""Checkpoints: whole or refused, and never in the way of an older one."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam3.distill import checkpoint
from efficientsam3.errors import CheckpointError

CONTENT = {"module": {"w": torch.arange(50_000.0)}, "means": {}, "random": [{"numpy": ["a", 1]}]}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    return str(caught.value)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, CONTENT, keep=2)
    content = checkpoint.load(path)
    assert content["step"] == 7 and content["random"] == CONTENT["random"]
    assert torch.equal(content["module"]["w"], CONTENT["module"]["w"])  # type: ignore[index]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 9_999_999, 10_000_000):
        checkpoint.save(tmp_path, step, CONTENT, keep=2)
    assert list(checkpoint.saved(tmp_path)) == [9_999_999, 10_000_000]


def test_the_first_of_many_errors_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch closes its archive after a short write, and fails at that again."""

    def twice(content: object, file: object) -> None:
        try:
            try:
                raise OSError(28, "No space left on device")
            finally:
                raise RuntimeError("unexpected pos 832 vs 726")
        finally:
            raise RuntimeError("unexpected pos 833 vs 727")

    monkeypatch.setattr(torch, "save", twice)
    with pytest.raises(CheckpointError, match=r"could not be written .*No space left"):
        checkpoint.save(tmp_path, 10, CONTENT, keep=1)


def test_a_full_disk_leaves_the_older_one(tmp_path: Path) -> None:
    older = checkpoint.save(tmp_path, 5, CONTENT, keep=1)
    with (
        full_disk(100_000),
        pytest.raises(CheckpointError, match=r"could not be written .*too large") as caught,
    ):
        checkpoint.save(tmp_path, 10, CONTENT, keep=1)
    assert "step_0000005.pt, of step 5, is whole" in str(caught.value)
    assert checkpoint.load(older)["step"] == 5
    assert [p.name for p in older.parent.iterdir()] == [older.name]


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    path = checkpoint.path_of(tmp_path, 5)
    path.parent.mkdir()
    torn = path.parent / ".step_0000005.pt.x1y2z3"
    torn.write_bytes(b"half")
    checkpoint.save(tmp_path, 6, CONTENT, keep=1)
    assert not torn.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_cut_short_is_refused_and_the_older_offered(share: float, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, CONTENT, keep=2)
    path = checkpoint.save(tmp_path, 10, CONTENT, keep=2)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    words = refusal(path)
    assert str(path) in words
    assert "step_0000005.pt was saved before it: delete step_0000010.pt" in words


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 5, CONTENT, keep=2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "there is no other in its folder" in refusal(path)


class Runs:
    def __reduce__(self) -> Any:
        return print, ("it ran",)


@pytest.mark.parametrize("content", [{"model": {}}, [1], torch.zeros(3)])
def test_other_files_are_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step_0000001.pt"
    path.parent.mkdir()
    torch.save(content, path)
    assert "not of this kind of run" in refusal(path)


def test_nothing_in_a_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoints" / "step_0000001.pt"
    path.parent.mkdir()
    torch.save({"format": checkpoint.FORMAT, "evil": Runs()}, path)
    assert "more than tensors and plain values" in refusal(path)
    assert capsys.readouterr().out == ""


def test_differences_are_listed_by_name() -> None:
    theirs = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": None}
    ours = {"a": 1, "b": {"c": [1, 3], "f": 2.5}, "e": None}
    assert checkpoint.differences(theirs, ours) == [
        "b.c: [1, 2] -> [1, 3]",
        "b.d: 'x' -> None",
        "b.f: None -> 2.5",
    ]
