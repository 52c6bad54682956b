"""Identities of inputs: small plain values that differ once a file, folder or pattern changes."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .paths import walk_files

Identity = dict[str, Any]


def identity(source: str | Path | Iterable[str | Path]) -> Identity:
    """What tells whether a source has changed since an earlier run, without reading its content.

    Programs can set a file's size and modification time, but not the time of its last change of
    status, which tells of a file of the same size and modification time.

    Args:
        source: A file; a folder, which stands for all files below it but hidden ones; a pattern
            such as ``"frames/*.jpg"``; or a list of files, for a folder in which only some files
            count. A name that is none of these, such as an address or a camera, stands for itself.

    Returns:
        Plain values. A file: ``{"path", "bytes", "mtime_ns", "ctime_ns"}``, and ``"target"`` where
        it is a symbolic link. Several files: ``{"path", "files", "bytes", "digest"}`` with the
        number of files, their total size, and a digest of the same of each, in order; a list has
        no ``"path"``. Otherwise ``{"path"}``.
    """
    if not isinstance(source, (str, Path)):
        return _of_files([Path(file) for file in source])
    path = Path(source).expanduser()
    absolute = os.path.abspath(path)
    if path.is_file():
        return {"path": absolute, **_of_file(path)}
    if path.is_dir():
        return {"path": absolute, **_of_files(sorted(walk_files(path)), path)}
    if glob.has_magic(str(source)):
        matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        return {"path": absolute, **_of_files([match for match in matches if match.is_file()])}
    return {"path": str(source)}


def content_digest(files: Iterable[str | Path]) -> str:
    """A digest of the content of files, which tells whether any of them has changed.

    Args:
        files: The files, in order.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in files:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _of_file(path: Path) -> Identity:
    stat = path.stat()
    values: Identity = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if os.name == "posix":  # elsewhere it is the time of creation
        values["ctime_ns"] = stat.st_ctime_ns
    target = os.path.realpath(path)
    if target != os.path.abspath(path):
        values["target"] = target
    return values


def _of_files(files: list[Path], folder: Path | None = None) -> Identity:
    digest, total = hashlib.sha256(), 0
    for file in files:
        values = _of_file(file)
        total += values["bytes"]
        name = file.relative_to(folder) if folder else Path(os.path.abspath(file))
        digest.update(
            f"{name.as_posix()}\0{list(values.values())}\n".encode("utf-8", "surrogateescape")
        )
    return {"files": len(files), "bytes": total, "digest": digest.hexdigest()[:16]}
