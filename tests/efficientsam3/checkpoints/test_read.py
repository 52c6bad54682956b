"""Damaged, hostile and missing files."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import efficientsam3 as es3

from .conftest import (
    NAME,
    write,
)

# Damaged and hostile files -------------------------------------------------------------------


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle", "nested", "renamed"])
def test_a_hostile_file_runs_nothing(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "file.pt"
    hostile = Hostile(marker)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(hostile, protocol=2))
    elif kind == "renamed":
        path = path.with_suffix(".safetensors")
        path.write_bytes(pickle.dumps({"model": hostile}))
    elif kind == "nested":
        torch.save({"model": {"a.weight": torch.zeros(1)}, "optimizer": [hostile]}, path)
    else:
        torch.save({"model": hostile}, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(es3.CheckpointError) as caught:
        es3.load(NAME, checkpoint=path)
    assert not marker.exists()
    assert str(path) in str(caught.value)
    if kind != "renamed":
        assert "could run code" in str(caught.value)
        assert ".safetensors" in str(caught.value)


def test_the_hostile_file_of_these_tests_is_hostile(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Hostile(marker)))
    assert marker.exists()


def damaged_files(plain: Path, tmp_path: Path) -> dict[str, Path]:
    whole = plain.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "not weights")
    safe = tmp_path / "whole.safetensors"
    save_file({"a": torch.zeros(1000)}, safe)
    old = tmp_path / "old.pth"
    torch.save({"model": {"a": torch.zeros(1000)}}, old, _use_new_zipfile_serialization=False)
    contents = {
        "empty.pt": b"",
        "start.pt": whole[: len(whole) // 2],
        "almost.pt": whole[:-1],
        "end.pt": whole[len(whole) // 2 :],
        "old_cut.pth": old.read_bytes()[:-500],
        "zip.pt": buffer.getvalue(),
        "page.pt": b"<!doctype html><title>Not found</title>",
        "lfs.pt": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 492833168\n",
        "empty.safetensors": b"",
        "cut.safetensors": safe.read_bytes()[:-1],
        "head.safetensors": safe.read_bytes()[:20],
        "noise.safetensors": bytes(range(256)) * 4,
    }
    paths = {}
    for name, content in contents.items():
        paths[name] = tmp_path / name
        paths[name].write_bytes(content)
    return paths


def test_damaged_files(plain: Path, tmp_path: Path) -> None:
    for path in damaged_files(plain, tmp_path).values():
        with pytest.raises(es3.CheckpointError) as caught:
            es3.load(NAME, checkpoint=path)
        assert str(path) in str(caught.value)
        assert "Delete it and download it again" in str(caught.value), path


@pytest.mark.parametrize(
    ("content", "described"),
    [
        ([torch.zeros(1)], "a list"),
        (torch.zeros(3), "a Tensor"),
        ({}, "nothing"),
        ({"model": {}}, "nothing"),
        ({"epoch": 3, "lr": 0.1}, "'epoch', 'lr'"),
        ({"model": {"a": torch.zeros(1), "b": "text"}}, "'b'"),
        ({1: torch.zeros(1)}, "not a dictionary of tensors by name"),
    ],
    ids=["list", "tensor", "empty", "empty-model", "no-tensors", "mixed", "numbered"],
)
def test_a_file_that_holds_something_else(tmp_path: Path, content: Any, described: str) -> None:
    path = write(tmp_path / "file.pt", content, None)
    with pytest.raises(es3.CheckpointError, match="not a dictionary of tensors by name") as caught:
        es3.load(NAME, checkpoint=path)
    assert described in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path, plain: Path) -> None:
    for options in ({"checkpoint": tmp_path / "no.pt"}, {"checkpoint": plain, "base": "no.pt"}):
        with pytest.raises(es3.WeightsNotFoundError, match=r"no weight file at .*no\.pt"):
            es3.load(NAME, **options)  # type: ignore[arg-type]
