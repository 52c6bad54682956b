"""Checkpoints are complete or refused, and never damage an older one."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam3.errors import CheckpointError
from efficientsam3.train import checkpoint
from efficientsam3.train.merge import PartialCheckpoint

from ...conftest import tiny_model

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
        checkpoint.load_checkpoint(path)
    return str(caught.value)


def test_content_is_loaded_as_saved(tmp_path: Path) -> None:
    path = checkpoint.save_checkpoint(tmp_path, 7, CONTENT, keep=2)
    content = checkpoint.load_checkpoint(path)
    assert content["step"] == 7 and content["random"] == CONTENT["random"]
    assert torch.equal(content["module"]["w"], CONTENT["module"]["w"])  # type: ignore[index]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 9_999_999, 10_000_000):
        checkpoint.save_checkpoint(tmp_path, step, CONTENT, keep=2)
    assert list(checkpoint.list_checkpoints(tmp_path)) == [9_999_999, 10_000_000]


def test_the_first_of_several_errors_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        checkpoint.save_checkpoint(tmp_path, 10, CONTENT, keep=1)


def test_a_full_disk_leaves_the_older_one(tmp_path: Path) -> None:
    older = checkpoint.save_checkpoint(tmp_path, 5, CONTENT, keep=1)
    with (
        full_disk(100_000),
        pytest.raises(CheckpointError, match=r"could not be written .*too large") as caught,
    ):
        checkpoint.save_checkpoint(tmp_path, 10, CONTENT, keep=1)
    assert "step_0000005.pt, of step 5, is complete" in str(caught.value)
    assert checkpoint.load_checkpoint(older)["step"] == 5
    assert [p.name for p in older.parent.iterdir()] == [older.name]


def test_unfinished_files_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    path = checkpoint.checkpoint_path(tmp_path, 5)
    path.parent.mkdir()
    unfinished = path.parent / ".step_0000005.pt.x1y2z3"
    unfinished.write_bytes(b"half")
    checkpoint.save_checkpoint(tmp_path, 6, CONTENT, keep=1)
    assert not unfinished.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_file_cut_short_is_refused_and_the_older_named(share: float, tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, 5, CONTENT, keep=2)
    path = checkpoint.save_checkpoint(tmp_path, 10, CONTENT, keep=2)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    message = refusal(path)
    assert str(path) in message
    assert "step_0000005.pt was saved before it: delete step_0000010.pt" in message


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save_checkpoint(tmp_path, 5, CONTENT, keep=2)
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


def test_no_code_in_a_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoints" / "step_0000001.pt"
    path.parent.mkdir()
    torch.save({"format": checkpoint.FORMAT, "evil": Runs()}, path)
    assert "more than tensors and plain values" in refusal(path)
    assert capsys.readouterr().out == ""


def test_differences_of_the_run_are_named() -> None:
    saved = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": None}
    now = {"a": 1, "b": {"c": [1, 3], "f": 2.5}, "e": None}
    checkpoint.require_same(Path("x.pt"), saved, saved)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.require_same(Path("x.pt"), saved, now)
    message = str(caught.value)
    assert "b.c was 1, 2 and is 1, 3; b.d was x and is None; b.f was None and is 2.5." in message
    assert "--accept-changes" in message and "--restart" in message


def save_model(path: Path) -> Path:
    tiny_model().save(path)
    return path / "model.safetensors"


def save_part(path: Path) -> Path:
    model = tiny_model()
    PartialCheckpoint.of(model.config, model.learned(), ["trunk"]).save(path)
    return path


@pytest.mark.parametrize("write", [save_model, save_part])
def test_weights_that_do_not_fit_on_the_disk_are_an_error_of_ours(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path / "weights")
    before = path.read_bytes()
    with (
        full_disk(4096),
        pytest.raises(CheckpointError, match=r"could not be written .*too large.* MB free\)"),
    ):
        write(tmp_path / "weights")
    assert path.read_bytes() == before
    assert not list(tmp_path.rglob(".*"))
