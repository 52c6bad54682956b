"""Archives with emojis: downloaded by the clients of package registries, and verified."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path

from efficientsam3.io.archives import Archive, ArchiveError, fetch_archive, read_file


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


def read_noto_font(folder: Path) -> bytes:
    """The font file of Noto Color Emoji: from the folder, the system, or Debian's package.

    Args:
        folder: Folder of the archives.

    Raises:
        ArchiveError: there is no font, and the package cannot be downloaded or is damaged.
    """
    for font in (folder / FONT_FILE, *map(Path, SYSTEM_FONTS)):
        if font.is_file():
            return font.read_bytes()
    try:
        package = fetch_archive(archives()["noto"], folder)
    except ArchiveError as error:
        raise ArchiveError(
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
    raise ArchiveError(f"{package} is not a Debian package: delete it and fetch again")
