"""Archives of package registries: downloaded by the registries' own clients, and verified."""

from __future__ import annotations

import hashlib
import io
import lzma
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import EfficientSam3Error


class ArchiveError(EfficientSam3Error, RuntimeError):
    """An archive cannot be downloaded, is altered, or cannot be read."""


@dataclass(frozen=True)
class Archive:
    """A file of a package registry.

    Attributes:
        title: What it contains, for messages.
        file: Name of the file.
        sha256: SHA-256 of its content.
        command: Command that downloads it into the current folder.
        license: License of its content.
    """

    title: str
    file: str
    sha256: str
    command: str
    license: str


def fetch_archive(archive: Archive, folder: Path) -> Path:
    """Download an archive unless the folder has it, and verify it.

    Args:
        archive: The archive.
        folder: Folder of the archives, which may also be put there by hand.

    Returns:
        The path of the archive.

    Raises:
        ArchiveError: The client is missing or fails, or the content is not the expected one.
    """
    path = folder / archive.file
    if not path.exists():
        _download(archive, folder)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != archive.sha256:
        raise ArchiveError(
            f"{path} ({path.stat().st_size:,} bytes) is incomplete or altered: its SHA-256 is "
            f"{digest}, not {archive.sha256}. Delete it and fetch again"
        )
    return path


def _download(archive: Archive, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    client, *arguments = archive.command.split()
    by_hand = (
        f"On a machine with a network, run `{archive.command}`, and put {archive.file} "
        f"into {folder}"
    )
    program = shutil.which(client)
    if program is None:
        raise ArchiveError(
            f"{archive.title} is downloaded by {client}, which is missing. {by_hand}"
        )
    # The client writes into a folder of its own: what a killed one leaves is never taken for an
    # archive.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
        process = subprocess.run(
            [program, *arguments],
            cwd=temporary,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        files = list(Path(temporary).glob(f"*{Path(archive.file).suffix}"))
        if process.returncode or len(files) != 1:
            output = process.stderr.strip() or process.stdout.strip() or "no file arrived"
            reason = output.splitlines()[-1]
            raise ArchiveError(f"{archive.title} cannot be downloaded: {reason}. {by_hand}")
        files[0].replace(folder / archive.file)


def read_folder(
    path: Path, folder: str, content: bytes | None = None
) -> Iterator[tuple[str, bytes]]:
    """The files of one folder of a tar archive.

    Args:
        path: The archive.
        folder: The folder in the archive.
        content: Content of the tar archive, where it is itself a part of ``path``.

    Yields:
        Name and content of each file.

    Raises:
        ArchiveError: The archive is damaged.
    """
    try:
        with tarfile.open(path, fileobj=None if content is None else io.BytesIO(content)) as tar:
            for member in tar:
                parent, _, name = member.name.rpartition("/")
                file = tar.extractfile(member) if member.isfile() and parent == folder else None
                if file is not None:
                    yield name, file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ArchiveError(
            f"{path} cannot be unpacked ({error}): delete it and fetch again"
        ) from error


def read_file(path: Path, folder: str, name: str, content: bytes | None = None) -> bytes:
    """One file of a tar archive.

    Args:
        path: The archive.
        folder: The folder in the archive.
        name: Name of the file.
        content: Content of the tar archive, where it is itself a part of ``path``.

    Raises:
        ArchiveError: The archive is damaged, or has no such file.
    """
    for found, data in read_folder(path, folder, content):
        if found == name:
            return data
    raise ArchiveError(f"{path} has no {folder}/{name}: it is of another version")
