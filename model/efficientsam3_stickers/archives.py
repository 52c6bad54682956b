"""Archives with emojis: downloaded by the clients of package registries, and verified."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from .art import ArtError


@dataclass(frozen=True)
class Archive:
    """A file of a package registry.

    Attributes:
        title: What it contains, for messages.
        file: Name of the file.
        sha256: SHA-256 of its content.
        command: Command that downloads it into the current folder.
        licence: Licence of the emojis in it.
    """

    title: str
    file: str
    sha256: str
    command: str
    licence: str


@cache
def archives() -> dict[str, Archive]:
    """The archives of ``data/archives.json``: the emoji list as "list", the emoji sets by style."""
    file = resources.files(__package__).joinpath("data", "archives.json")
    return {name: Archive(**entry) for name, entry in json.loads(file.read_text("utf-8")).items()}


FONT_FILE = "NotoColorEmoji.ttf"
SYSTEM_FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
)


def fetch_archive(archive: Archive, folder: Path) -> Path:
    """Download an archive unless the folder has it, and verify it.

    Args:
        archive: The archive.
        folder: Folder of the archives, which may also be put there by hand.

    Returns:
        The path of the archive.

    Raises:
        ArtError: the client is missing or fails, or the content is not the expected one.
    """
    path = folder / archive.file
    if not path.exists():
        _download(archive, folder)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != archive.sha256:
        raise ArtError(
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
        raise ArtError(f"{archive.title} is downloaded by {client}, which is missing. {by_hand}")
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
            raise ArtError(f"{archive.title} cannot be downloaded: {reason}. {by_hand}")
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
        ArtError: the archive is damaged.
    """
    try:
        with tarfile.open(path, fileobj=None if content is None else io.BytesIO(content)) as tar:
            for member in tar:
                parent, _, name = member.name.rpartition("/")
                file = tar.extractfile(member) if member.isfile() and parent == folder else None
                if file is not None:
                    yield name, file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ArtError(f"{path} cannot be unpacked ({error}): delete it and fetch again") from error


def read_file(path: Path, folder: str, name: str, content: bytes | None = None) -> bytes:
    """One file of a tar archive.

    Args:
        path: The archive.
        folder: The folder in the archive.
        name: Name of the file.
        content: Content of the tar archive, where it is itself a part of ``path``.

    Raises:
        ArtError: the archive is damaged, or has no such file.
    """
    for found, data in read_folder(path, folder, content):
        if found == name:
            return data
    raise ArtError(f"{path} has no {folder}/{name}: it is of another version")


def read_noto_font(folder: Path) -> bytes:
    """The font file of Noto Color Emoji: from the folder, the system, or Debian's package.

    Args:
        folder: Folder of the archives.

    Raises:
        ArtError: there is no font, and the package cannot be downloaded or is damaged.
    """
    for font in (folder / FONT_FILE, *map(Path, SYSTEM_FONTS)):
        if font.is_file():
            return font.read_bytes()
    try:
        package = fetch_archive(archives()["noto"], folder)
    except ArtError as error:
        raise ArtError(
            f"{error}. Or install fonts-noto-color-emoji: a font of the system is used"
        ) from error
    data = _read_debian_data(package)
    return read_file(package, "./usr/share/fonts/truetype/noto", FONT_FILE, data)


def _read_debian_data(package: Path) -> bytes:
    """The data.tar.* of a .deb, which is an "ar" archive: 60-byte headers, even offsets."""
    content = package.read_bytes()
    offset = 8
    while offset + 60 <= len(content):
        name = content[offset : offset + 16].decode().strip()
        size = int(content[offset + 48 : offset + 58])
        offset += 60
        if name.startswith("data.tar"):
            return content[offset : offset + size]
        offset += size + size % 2
    raise ArtError(f"{package} is not a Debian package: delete it and fetch again")
