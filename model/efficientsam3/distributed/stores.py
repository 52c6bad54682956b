"""Files on this machine or in a store that pyarrow knows: listing, reading with retries, writing.

A place is a path of this machine, or a URI such as ``s3://bucket/photos``. What a store answers
late or not at all is asked again a few times.
"""

from __future__ import annotations

import errno
import glob
import io
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import DataError, MissingPackageError
from ..io.atomic import replacing
from ..io.paths import walk_files

T = TypeVar("T")

WAITS = (0.5, 2.0, 8.0)
"""Seconds before the second, third and fourth attempt."""
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors that another attempt does not change."""
LASTING_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EACCES}
OBJECT_STORES = ("s3", "gcs", "abfs")
"""Types of file systems in which an object appears when it is complete."""
BUFFER = 1 << 20
INSTALL = 'pip install "efficientsam3[ray]"'

logger = logging.getLogger(__name__)


class FileEntry(NamedTuple):
    """A file that was found.

    Attributes:
        name: Absolute path, or URI.
        bytes: Its size.
        time: When it was modified, in nanoseconds.
    """

    name: str
    bytes: int
    time: int


def import_pyarrow(name: str) -> Any:
    """Import a module of pyarrow.

    Args:
        name: Such as "parquet".

    Raises:
        MissingPackageError: pyarrow is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{name}" if name else "pyarrow")
    except ImportError as error:
        raise MissingPackageError(
            f"stores and Parquet files need pyarrow, which comes with Ray: {INSTALL}"
        ) from error


def is_uri(place: str) -> bool:
    """Whether a place is a URI, and not a path of this machine.

    Args:
        place: A path or a URI.
    """
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", place) is not None


def join(place: str, name: str) -> str:
    """The place of a file in a folder.

    Args:
        place: The folder, as a path or a URI.
        name: Relative to it, with "/".
    """
    if is_uri(place):
        base, mark, query = place.partition("?")
        return f"{base.rstrip('/')}/{name}{mark}{query}"
    return os.path.join(place, *name.split("/"))


def absolute(place: str) -> str:
    """A place in a form that all processes of this machine understand.

    Args:
        place: A path, also relative or with "~", or a URI.
    """
    return place if is_uri(place) else os.path.abspath(Path(place).expanduser())


def retried(action: Callable[[], T], name: str) -> T:
    """Do something that reads or writes, and again where the store fails for a moment.

    Args:
        action: What is done.
        name: Of what, for the log.

    Raises:
        OSError: It failed each time, or with an error that lasts.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except OSError as error:
            if wait is None or not _passes(error):
                raise
            logger.info("%s: %s; it is tried again in %s s", name, error, wait)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _passes(error: OSError) -> bool:
    return not isinstance(error, LASTING) and error.errno not in LASTING_CODES


# Reading -------------------------------------------------------------------------------------


def read_bytes(place: str) -> bytes:
    """Read a file.

    Args:
        place: A path or a URI.

    Raises:
        OSError: It cannot be read, also not when it is tried again.
    """

    def read() -> bytes:
        if not is_uri(place):
            return Path(place).read_bytes()
        system, path = _system_of(place)
        with system.open_input_stream(path) as stream:
            return bytes(stream.read())

    return retried(read, place)


def open_file(place: str) -> io.BufferedReader:
    """Open a file for reading at any position; each read is tried again where the store fails.

    Args:
        place: A path or a URI.

    Raises:
        OSError: It cannot be opened.
    """
    return io.BufferedReader(_ReopenedFile(place), BUFFER)


class _ReopenedFile(io.RawIOBase):
    """A file that is opened again, at the same position, after a read that failed."""

    def __init__(self, place: str) -> None:
        self._place, self._position = place, 0
        self._file: Any = None
        self._size: int = retried(self._open_and_measure, place)

    def _opened(self) -> Any:
        if self._file is None:
            if is_uri(self._place):
                system, path = _system_of(self._place)
                self._file = system.open_input_file(path)
            else:
                self._file = io.FileIO(self._place)
        return self._file

    def _open_and_measure(self) -> int:
        return int(self._opened().seek(0, os.SEEK_END))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        def read() -> bytes:
            try:
                file = self._opened()
                file.seek(self._position)
                return bytes(file.read(len(buffer)))
            except OSError:
                self._drop()
                raise

        content = retried(read, self._place)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def close(self) -> None:
        self._drop()
        super().close()


# Listing -------------------------------------------------------------------------------------


def list_files(place: str) -> list[FileEntry]:
    """Find files by a name, a folder or a pattern, sorted by name; hidden files are left out.

    Args:
        place: A file; a folder, with all folders below it; or a pattern, in which ``**`` matches
            any depth. As a path or a URI.

    Raises:
        DataError: Nothing is there, or the URI is none that pyarrow knows.
    """
    found = sorted(_list_uri(place) if is_uri(place) else _list_local(place))
    if not found:
        raise DataError(f"there is no file at {place}")
    return found


def _list_local(place: str) -> Iterator[FileEntry]:
    if not place:
        raise DataError('the name of a source is empty; the current folder is "."')
    path = Path(absolute(place))
    if path.is_file():
        files: Iterator[Path] = iter([path])
    elif path.is_dir():
        files = walk_files(path)
    else:
        names = map(Path, glob.iglob(str(path), recursive=True))
        files = (n for name in names for n in (walk_files(name) if name.is_dir() else [name]))
    for name in set(files):
        stat = name.stat()
        yield FileEntry(str(name), stat.st_size, stat.st_mtime_ns)


def _list_uri(place: str) -> Iterator[FileEntry]:
    fs = import_pyarrow("fs")
    base, mark, query = place.partition("?")
    # A question mark can begin the options of a store, and is no wildcard here.
    fixed = re.split(r"[^/]*[*\[]", base, maxsplit=1)[0]
    has_magic = fixed != base
    system, path = _system_of(fixed + mark + query)
    prefix = fixed.rstrip("/").removesuffix(path.rstrip("/"))
    try:
        info = retried(lambda: system.get_file_info(path.rstrip("/") or path), place)
        if info.type == fs.FileType.NotFound:
            return
        infos = [info]
        if info.type == fs.FileType.Directory:
            selector = fs.FileSelector(info.path, recursive=True)
            infos = retried(lambda: system.get_file_info(selector), place)
    except OSError as error:
        raise DataError(f"{place} cannot be listed: {error}") from error
    wanted = re.compile(_translate(base[len(prefix) :])) if has_magic else None
    for one in infos:
        inside = one.path[len(info.path) :]
        if one.type != fs.FileType.File or re.search(r"(^|/)\.", inside):
            continue
        if wanted is None or wanted.fullmatch(one.path):
            time = int(getattr(one, "mtime_ns", None) or 0)
            yield FileEntry(f"{prefix}{one.path}{mark}{query}", one.size, time)


def _translate(pattern: str) -> str:
    """A regular expression of a pattern in which * does not match "/"."""
    parts = re.split(r"(\*\*/|\*\*|\*|\[[^\]]+\])", pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    out = []
    for part in parts:
        is_set = part.startswith("[") and part.endswith("]")
        out.append(meaning.get(part) or (part.replace("[!", "[^") if is_set else re.escape(part)))
    return "".join(out)


def _system_of(place: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it."""
    fs = import_pyarrow("fs")
    try:
        # Making a client takes time, and has its own connections: one for all files of a store.
        scheme, _, rest = place.partition("://")
        authority, slash, inner = rest.partition("?")[0].partition("/")
        query = place.partition("?")[2]
        if scheme in ("s3", "gs", "gcs", "abfs", "abfss"):
            system = _client(scheme, authority, query)
            return system, authority + slash + inner
        return tuple(fs.FileSystem.from_uri(place))
    except Exception as error:
        import pyarrow

        if not isinstance(error, (pyarrow.ArrowException, OSError, ValueError)):
            raise
        raise DataError(f"{place} is no address of a store that pyarrow reads: {error}") from error


@lru_cache(maxsize=64)
def _client(scheme: str, authority: str, query: str) -> Any:
    fs = import_pyarrow("fs")
    return fs.FileSystem.from_uri(f"{scheme}://{authority}" + (f"?{query}" if query else ""))[0]


# Writing -------------------------------------------------------------------------------------


def write_file(place: str, content: bytes) -> None:
    """Write a file that appears when it is complete; it replaces an earlier one.

    Args:
        place: A path or a URI. Missing folders are created.
        content: What the file gets.

    Raises:
        OSError: It cannot be written, also not when it is tried again.
    """
    retried(lambda: _write_once(place, content), place)


def _write_once(place: str, content: bytes) -> None:
    if not is_uri(place):
        with replacing(Path(place)) as temporary:
            temporary.write_bytes(content)
        return
    system, path = _system_of(place)
    if system.type_name in OBJECT_STORES:
        with system.open_output_stream(path) as stream:
            stream.write(content)
        return
    folder, _, name = path.rpartition("/")
    system.create_dir(folder, recursive=True)
    temporary_path = f"{folder}/.{name}.{secrets.token_hex(8)}"
    try:
        with system.open_output_stream(temporary_path) as stream:
            stream.write(content)
        system.move(temporary_path, path)
    except BaseException:
        _delete(system, temporary_path)
        raise


def delete_file(place: str) -> None:
    """Delete a file; one that does not exist is no error.

    Args:
        place: A path or a URI.

    Raises:
        OSError: It cannot be deleted.
    """
    if is_uri(place):
        _delete(*_system_of(place))
    else:
        Path(place).unlink(missing_ok=True)


def _delete(system: Any, path: str) -> None:
    try:
        system.delete_file(path)
    except FileNotFoundError:
        return


def list_names(place: str) -> dict[str, FileEntry]:
    """The files of a folder by their names, without those in folders below; {} where it is missing.

    Args:
        place: The folder, as a path or a URI.

    Raises:
        OSError: It cannot be listed.
    """
    if not is_uri(place):
        if not os.path.isdir(place):
            return {}
        with os.scandir(place) as entries:
            found = [(e.name, e.path, e.stat()) for e in entries if e.is_file()]
        return {n: FileEntry(p, s.st_size, s.st_mtime_ns) for n, p, s in found}
    fs = import_pyarrow("fs")
    system, path = _system_of(place)
    selector = fs.FileSelector(path.rstrip("/"), allow_not_found=True)
    infos = retried(lambda: system.get_file_info(selector), place)
    return {
        info.base_name: FileEntry(join(place, info.base_name), info.size, 0)
        for info in infos
        if info.type == fs.FileType.File
    }
