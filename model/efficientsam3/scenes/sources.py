"""Where art comes from: archives of known content, got by the package managers' own clients."""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EfficientSam3Error
from .concepts import plain_code

if TYPE_CHECKING:
    from PIL import Image

Pictures = dict[str, "Image.Image"]
"""RGBA pictures by plain code points ("1f34e"), of any size, straight alpha."""


class ArtError(EfficientSam3Error, RuntimeError):
    """Art that cannot be had, is altered, or cannot be read."""


@dataclass(frozen=True)
class Archive:
    """A file of a package registry, and what it is made of.

    command: gets the file into the current folder. licence: of the art in it.
    """

    title: str
    file: str
    sha256: str
    command: tuple[str, ...]
    licence: str


def _npm(title: str, package: str, version: str, sha256: str, licence: str) -> Archive:
    file = f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    command = ("npm", "pack", "--silent", f"{package}@{version}")
    return Archive(title, file, sha256, command, licence)


LIST = _npm(
    "the emoji list",
    "emoji-datasource",
    "16.0.0",
    "2006725061dc0098daa832d65f854a7bec0740af2eb47cb5b23d89f7e2c849f9",
    "MIT",
)
FLUENT = _npm(
    "Fluent 3D",
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
)
TWEMOJI = _npm(
    "Twemoji",
    "@twemoji/svg",
    "15.0.0",
    "1d2907557a422c7c4e3feca50ef915c39da1db3d76b4a4d7e73fb59bce4403c3",
    "CC-BY-4.0",
)
OPENMOJI = _npm(
    "OpenMoji, and names of pictures",
    "openmoji",
    "17.0.0",
    "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "CC-BY-SA-4.0",
)
NOTO = Archive(
    "Noto Color Emoji",
    "fonts-noto-color-emoji_2.042-0+deb12u1_all.deb",
    "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
    ("apt-get", "download", "fonts-noto-color-emoji=2.042-0+deb12u1"),
    "OFL-1.1 (font), Apache-2.0 (pictures)",
)
ARCHIVES = (LIST, NOTO, FLUENT, TWEMOJI, OPENMOJI)

RENDERED = 288
"""Pixels of a drawn SVG's longer side: twice a sticker's, for clean edges."""


# Getting ------------------------------------------------------------------------------------


def obtain(archive: Archive, folder: Path) -> Path:
    """The archive in the folder, fetched unless it is there, and as it should be.

    Raises:
        ArtError: no client, no network, or another content.
    """
    path = folder / archive.file
    if not path.exists():
        _fetch(archive, folder)
    digest = sha256_of(path)
    if digest != archive.sha256:
        raise ArtError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short or altered: its sha256 is "
            f"{digest}, not {archive.sha256}. Delete it and fetch again."
        )
    return path


def sha256_of(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def _fetch(archive: Archive, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command, client = archive.command, archive.command[0]
    by_hand = (
        f"Where there is a network, run `{' '.join(command)}` and put {archive.file} into {folder}."
    )
    program = shutil.which(client)
    if program is None:
        raise ArtError(f"{archive.title} is fetched by {client}, which is not here. {by_hand}")
    # A folder of its own: what a killed client leaves is never taken for an archive.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
        done = subprocess.run(
            [program, *command[1:]],
            cwd=temporary,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        files = [p for p in Path(temporary).iterdir() if p.suffix == Path(archive.file).suffix]
        if done.returncode or len(files) != 1:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing arrived").splitlines()
            raise ArtError(f"{archive.title} cannot be fetched: {said[-1]}. {by_hand}")
        files[0].replace(folder / archive.file)


# Reading ------------------------------------------------------------------------------------


def read_list(emoji_list: Path, openmoji: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(rows of the emoji list, CLDR's short names by plain code)."""
    rows = json.loads(_member(emoji_list, "package/emoji.json"))
    named = json.loads(_member(openmoji, "package/data/openmoji.json"))
    return rows, {plain_code(r["hexcode"]): r["annotation"] for r in named}


def _member(path: Path, name: str) -> bytes:
    for found, content in _members(path, lambda member: member == name):
        if found == name:
            return content
    raise ArtError(f"{path} has no {name}: it is of another version")


def _members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and wanted(member.name):
                    file = archive.extractfile(member)
                    if file is not None:
                        yield member.name, file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ArtError(f"{path} cannot be unpacked: {error}. Delete it; fetch again.") from error


def read_pictures(path: Path, folder: str, codes: set[str]) -> Iterator[tuple[str, Image.Image]]:
    """The pictures (SVG, or of fixed size) of a folder in an archive, named by code points."""

    def code(member: str) -> str:
        parent, _, file = member.rpartition("/")
        return plain_code(file.partition(".")[0]) if parent == folder else ""

    for member, content in _members(path, lambda member: code(member) in codes):
        yield code(member), draw_svg(content) if member.endswith(".svg") else _decode(content)


def draw_svg(content: bytes) -> Image.Image:
    """An SVG's picture, RGBA, ``RENDERED`` pixels wide."""
    resvg = needed("resvg_py")
    try:
        png = resvg.svg_to_bytes(
            svg_string=content.decode(), width=RENDERED, skip_system_fonts=True
        )
    except ValueError as error:
        raise ArtError(f"an SVG cannot be drawn: {error}") from error
    return _decode(bytes(png))


def _decode(content: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(io.BytesIO(content)).convert("RGBA")


def needed(module: str) -> Any:
    """A module of the extra `scenes`."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ArtError(
            f"scenes need {module.partition('.')[0]}: pip install 'efficientsam3[scenes]'"
        ) from error


# Noto is a font ------------------------------------------------------------------------------

SYSTEM_FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
)


def noto_font(folder: Path) -> Path:
    """The font file: the system's, else unpacked from Debian's package into the folder."""
    font = folder / "NotoColorEmoji.ttf"
    for path in (font, *map(Path, SYSTEM_FONTS)):
        if path.is_file():
            return path
    try:
        package = obtain(NOTO, folder)
    except ArtError as error:
        raise ArtError(
            f"{error} Or install fonts-noto-color-emoji: the system's font is used if there is one."
        ) from error
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as temporary:
        data = Path(temporary) / "data.tar"
        data.write_bytes(_debian_data(package))
        for name, content in _members(data, lambda name: name.endswith("/NotoColorEmoji.ttf")):
            unpacked = Path(temporary) / Path(name).name
            unpacked.write_bytes(content)
            unpacked.replace(font)
    if not font.is_file():
        raise ArtError(f"{package} has no NotoColorEmoji.ttf")
    return font


def _debian_data(package: Path) -> bytes:
    """The data.tar.* of a .deb, which is an "ar" archive: 60-byte headers, even offsets."""
    content = package.read_bytes()
    at = 8
    while at + 60 <= len(content):
        name, size = content[at : at + 16].decode().strip(), int(content[at + 48 : at + 58])
        at += 60
        if name.startswith("data.tar"):
            return content[at : at + size]
        at += size + size % 2
    raise ArtError(f"{package} is no Debian package. Delete it; fetch again.")


def read_noto(font_file: Path, codes: set[str]) -> Iterator[tuple[str, Image.Image]]:
    """The font's bitmaps (136 x 128) of the codes that it has."""
    font_tools = needed("fontTools.ttLib")
    with font_file.open("rb") as file:
        try:
            font = font_tools.TTFont(file, lazy=True)
            glyphs = font.getBestCmap()
            bitmaps = font["CBDT"].strikeData[0]
            ligatures = _ligatures(font["GSUB"].table)
        except (font_tools.TTLibError, KeyError) as error:
            raise ArtError(
                f"{font_file} is not Noto Color Emoji with bitmaps ({error}). Remove it, or put "
                "Debian's into the folder of archives."
            ) from error
        for code in sorted(codes):
            names = tuple(glyphs.get(int(c, 16), "") for c in code.split("-"))
            glyph = names[0] if len(names) == 1 else ligatures.get(names, "")
            if glyph in bitmaps:
                yield code, _decode(bitmaps[glyph].imageData)


def _ligatures(table: Any) -> dict[tuple[str, ...], str]:
    """Glyphs of sequences, the variation selector's glyph left out."""
    found = {}
    for lookup in table.LookupList.Lookup:
        for sub in lookup.SubTable:
            sub = sub.ExtSubTable if lookup.LookupType == 7 else sub
            for first, ends in getattr(sub, "ligatures", {}).items():
                for end in ends:
                    found[(first, *(c for c in end.Component if c != "uniFE0F"))] = end.LigGlyph
    return found
