"""Files and folders that appear only when they are complete.

What a killed process leaves unfinished is removed when the same file or folder is written again. A
process holds a lock on what it writes, by which others know that it is not abandoned.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and what is abandoned stays
    fcntl = None

MAX_NAME = 100
"""Characters of a name that the name of its temporary file begins with."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a temporary file that replaces ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never a part of it. A process that has the old
    file memory-mapped keeps its content. The file has the permissions that the user's umask gives.

    A terminal, a pipe or ``/dev/null`` is written to at the end, and stays what it is.

    Args:
        path: The file to write. Missing folders are created.

    Yields:
        The temporary file, in the folder of ``path``, or where temporary files are.

    Raises:
        OSError: The file cannot be written, or is a disk or a socket.
    """
    path = _system_file(path)
    if _is_special(path):
        with tempfile.TemporaryDirectory(prefix="esam3-") as folder:
            temporary = Path(folder, path.name)
            temporary.touch()
            yield temporary
            with temporary.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        return
    with _claimed(path, _make_file) as temporary:
        mode = temporary.stat().st_mode
        try:
            yield temporary
            if temporary.stat().st_mode != mode:  # safetensors writes another file in its place
                temporary.chmod(stat.S_IMODE(mode))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_picture(
    image: Image.Image, path: Path, format: str | None = None, **options: Any
) -> None:
    """Write a picture file that replaces ``path`` when it is complete.

    Pillow's own writer does not notice that a full disk takes only a part of its last block, and
    leaves a cut file without an error. So the picture is encoded in memory.

    Args:
        image: The picture.
        path: The file. Missing folders are created.
        format: Pillow's name of the format. None: the suffix of ``path`` tells it.
        **options: Options of the format, as ``Image.save`` takes them.

    Raises:
        ValueError: The suffix is that of no format.
        OSError: The file cannot be written.
    """
    encoded = io.BytesIO()
    encoded.name = path.name  # Pillow takes the format from it
    image.save(encoded, format, **options)
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a temporary folder that replaces ``path`` when the block ends without an error.

    The earlier folder is moved aside first, and moved back if the new one cannot take its place.
    A process that has files of the earlier folder memory-mapped keeps their content.

    Args:
        path: The folder to write. Missing parent folders are created.

    Yields:
        The temporary folder, which is empty.

    Raises:
        OSError: The folder cannot be written, or a device or a pipe has its name.
    """
    if _is_special(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    with _claimed(path, _make_folder) as work:
        new, old = work / "new", work / "old"
        new.mkdir()
        try:
            yield new
            if path.exists():
                os.replace(path, old)
            try:
                os.replace(new, path)
            except OSError:
                if old.exists():
                    os.replace(old, path)
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _system_file(path: Path) -> Path:
    """What a link of the system leads to, such as ``/dev/stdout``; else the path itself."""
    if path.is_symlink() and path.absolute().parts[1:2] in (("dev",), ("proc",)):
        resolved = Path(os.path.realpath(path))
        return resolved if resolved.exists() else path
    return path


def _is_special(path: Path) -> bool:
    """Whether a path is of a terminal or another device of characters, or of a pipe.

    Raises:
        OSError: It is of a disk or a socket, which no file can replace.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return False  # there is nothing yet, or what writes the file says why it cannot
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise OSError(errno.EINVAL, "it is a disk or a socket, and no file", str(path))
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _make_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _make_folder(path: Path) -> int | None:
    path.mkdir()
    return None if fcntl is None else os.open(path, os.O_RDONLY)


@contextmanager
def _claimed(path: Path, make: Callable[[Path], int | None]) -> Iterator[Path]:
    """Make and lock a temporary file or folder beside ``path``, after removing abandoned ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    while True:
        temporary = path.with_name(f".{path.name[:MAX_NAME]}.{secrets.token_hex(8)}")
        handle = make(temporary)
        if fcntl is None or handle is None:
            if handle is not None:
                os.close(handle)  # Windows replaces no file that is open
            yield temporary
            return
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not temporary.exists():
                continue  # another process took it for abandoned before it was locked
            yield temporary
            return
        finally:
            os.close(handle)


def _remove_abandoned(path: Path) -> None:
    """Remove what killed processes left of the same file or folder."""
    if fcntl is None:
        return
    start = f".{path.name[:MAX_NAME]}."
    for name in glob.glob(glob.escape(str(path.with_name(start))) + "*"):
        if not re.fullmatch(r"[0-9a-f]{16}", name[len(str(path.with_name(start))) :]):
            continue
        with suppress(OSError):
            handle = os.open(name, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _restore(Path(name), path)
                shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)
            finally:
                os.close(handle)


def _restore(work: Path, path: Path) -> None:
    """Bring an earlier folder back that a process moved aside before it was killed."""
    if (work / "old").is_dir() and not path.exists():
        os.replace(work / "old", path)
