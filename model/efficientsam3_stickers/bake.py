"""Bakes emoji sets into stickers. `efficientsam3 scenes fetch` does it once on a machine."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from efficientsam3.errors import MissingPackageError
from efficientsam3.io.archives import fetch_archive, read_file, read_folder
from efficientsam3.io.atomic import replacing_folder

from .archives import FONT_FILE, archives, read_noto_font
from .art import FORMAT, INDEX_FILE, MARGIN, SIZE, ArtError, ArtNotFoundError, StickerArt
from .art import cache_folder as default_folder
from .colors import color_word
from .concepts import Concept
from .similarity import SimilarityIndex
from .vocabulary import plain_code, read_concepts

RECIPE = 3
"""Version of the baking; stickers that another version baked are baked again."""

SVG_SIDE = 288
"""Width of a rendered SVG in pixels: twice a sticker's, for smooth edges."""

Pictures = Iterator[tuple[str, Image.Image]]
"""RGBA pictures of one style by plain code, of any size, with straight alpha."""

Progress = Callable[[str, int, int], None]
"""Called with a title, the number of finished steps, and the number of all steps."""


def fetch_stickers(
    folder: str | Path | None = None, progress: Progress | None = None
) -> StickerArt:
    """Download the archives that are missing, verify them, and bake the stickers.

    Finished work is not done again.

    Args:
        folder: Folder of the cache; None: ``cache_folder()``. Archives may be put by hand into its
            folder ``archives``.
        progress: Called as the work goes on.

    Raises:
        ArchiveError: an archive cannot be downloaded, is altered, or cannot be read.
        MissingPackageError: a package of the extra ``scenes`` is not installed.
    """
    folder = Path(folder) if folder else default_folder()
    report = progress or (lambda title, done, total: None)
    needed = {name: file for name, file in archives().items() if name != "noto"}
    paths = {}
    for done, (name, archive) in enumerate(needed.items()):
        report("Downloading", done, len(needed) + 1)
        paths[name] = fetch_archive(archive, folder / "archives")
    report("Downloading", len(needed), len(needed) + 1)
    font = read_noto_font(folder / "archives")
    report("Downloading", len(needed) + 1, len(needed) + 1)

    concepts = read_concepts(*read_names(paths["list"], paths["openmoji"]))
    digests = [archive.sha256 for archive in needed.values()] + [hashlib.sha256(font).hexdigest()]
    fingerprint = fingerprint_of(concepts, digests)
    try:
        baked = StickerArt.open(folder)
        if baked.fingerprint == fingerprint:
            return baked
    except (ArtNotFoundError, ArtError):
        pass
    codes = {concept.code for concept in concepts}
    pictures = {
        "noto": read_font(font, codes),
        "fluent": read_pictures(paths["fluent"], "package/assets", codes),
        "twemoji": read_pictures(paths["twemoji"], "package", codes),
        "openmoji": read_pictures(paths["openmoji"], "package/color/svg", codes),
    }
    return bake(folder, concepts, pictures, fingerprint, report)


def fingerprint_of(concepts: Iterable[Concept], digests: Iterable[str]) -> str:
    """Identifies all that baked stickers depend on.

    Args:
        concepts: The concepts.
        digests: SHA-256 of the archives.
    """
    versions = [FORMAT, RECIPE, SIZE, MARGIN, SVG_SIDE]
    content = [*versions, [asdict(concept) for concept in concepts], *digests]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def bake(
    folder: Path,
    concepts: Iterable[Concept],
    pictures: dict[str, Pictures],
    fingerprint: str,
    report: Progress,
) -> StickerArt:
    """Write ``folder/art``. It replaces an earlier one when it is complete.

    Args:
        folder: Folder of the cache.
        concepts: The concepts.
        pictures: Pictures by style. Codes that no concept has are ignored.
        fingerprint: Identifies what is baked.
        report: Called as the work goes on.
    """
    concepts = list(concepts)
    similarity = SimilarityIndex(len(concepts))
    index_of = {concept.code: i for i, concept in enumerate(concepts)}
    rows: list[dict[str, int]] = [{} for _ in concepts]
    colors: list[dict[str, str]] = [{} for _ in concepts]
    with replacing_folder(folder / "art") as temporary:
        for style, source in pictures.items():
            stickers: list[NDArray[np.uint8]] = []
            for code, picture in source:
                report(f"Baking {style}", len(stickers), len(concepts))
                i = index_of.get(code)
                sticker = None if i is None or style in rows[i] else fit_sticker(picture)
                if i is None or sticker is None:
                    continue
                rows[i][style] = len(stickers)
                color = color_word(sticker)
                if color:
                    colors[i][style] = color
                similarity.add(i, style, sticker)
                stickers.append(sticker)
            report(f"Baking {style}", len(concepts), len(concepts))
            empty = np.zeros((0, SIZE, SIZE, 4), np.uint8)
            np.save(temporary / f"{style}.npy", np.stack(stickers) if stickers else empty)
        entries = []
        for i, near, twins in similarity.compare(
            concepts, [i for i, row in enumerate(rows) if row]
        ):
            entry = asdict(concepts[i]) | {"styles": list(rows[i]), "near": near, "twins": twins}
            entries.append(entry | {"rows": rows[i], "colours": colors[i]})
        index = {"format": FORMAT, "fingerprint": fingerprint, "size": SIZE, "concepts": entries}
        (temporary / INDEX_FILE).write_text(json.dumps(index, indent=0) + "\n", encoding="utf-8")
    return StickerArt.open(folder)


def fit_sticker(picture: Image.Image) -> NDArray[np.uint8] | None:
    """Crop a picture to its opaque part and scale it to a sticker.

    Args:
        picture: RGBA, of any size.

    Returns:
        (SIZE, SIZE, 4) RGBA, straight alpha; None where nothing is opaque.
    """
    box = picture.getchannel("A").point([0] * 16 + [255] * 240).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    scale = (SIZE - 2 * MARGIN) / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    sticker = np.zeros((SIZE, SIZE, 4), np.uint8)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    # PIL premultiplies RGBA before it resizes, so edges do not become dark.
    small = picture.resize((width, height), Image.Resampling.LANCZOS)
    sticker[top : top + height, left : left + width] = np.asarray(small)
    sticker[sticker[..., 3] == 0] = 0  # resampling leaves color in transparent pixels
    return sticker


def read_names(emoji_list: Path, openmoji: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The emoji list, and the CLDR short names by plain code.

    Args:
        emoji_list: Archive of emoji-datasource.
        openmoji: Archive of OpenMoji.
    """
    rows = json.loads(read_file(emoji_list, "package", "emoji.json"))
    named = json.loads(read_file(openmoji, "package/data", "openmoji.json"))
    return rows, {plain_code(r["hexcode"]): r["annotation"] for r in named}


def read_pictures(path: Path, folder: str, codes: set[str]) -> Pictures:
    """The pictures of a folder in an archive, whose files are named by code points.

    Args:
        path: The archive.
        folder: The folder.
        codes: Plain codes of the pictures to read.
    """
    for name, content in read_folder(path, folder):
        code = plain_code(name.partition(".")[0])
        if code in codes:
            yield code, render_svg(content) if name.endswith(".svg") else _decode(content)


def render_svg(content: bytes) -> Image.Image:
    """Render an SVG: RGBA, ``SVG_SIDE`` pixels wide.

    Args:
        content: Content of the file.
    """
    resvg = _import("resvg_py")
    try:
        png = resvg.svg_to_bytes(
            svg_string=content.decode(), width=SVG_SIDE, skip_system_fonts=True
        )
    except ValueError as error:
        raise ArtError(f"an SVG cannot be rendered ({error}): fetch its archive again") from error
    return _decode(bytes(png))


def read_font(content: bytes, codes: set[str]) -> Pictures:
    """The bitmaps (136 x 128) of Noto Color Emoji.

    Args:
        content: Content of the font file.
        codes: Plain codes of the pictures to read.
    """
    font_tools = _import("fontTools.ttLib")
    try:
        font = font_tools.TTFont(io.BytesIO(content), lazy=True)
        glyphs = font.getBestCmap()
        bitmaps = font["CBDT"].strikeData[0]
        ligatures = _read_ligatures(font["GSUB"].table)
    except (font_tools.TTLibError, KeyError) as error:
        raise ArtError(
            f"{FONT_FILE} is not Noto Color Emoji with bitmaps ({error}): remove it, or "
            "put Debian's into the folder of archives"
        ) from error
    for code in sorted(codes):
        names = tuple(glyphs.get(int(point, 16), "") for point in code.split("-"))
        glyph = names[0] if len(names) == 1 else ligatures.get(names, "")
        if glyph in bitmaps:
            yield code, _decode(bitmaps[glyph].imageData)


def _read_ligatures(table: Any) -> dict[tuple[str, ...], str]:
    """The glyph of each sequence of glyphs, without the variation selector's glyph."""
    found = {}
    for lookup in table.LookupList.Lookup:
        for sub in lookup.SubTable:
            sub = sub.ExtSubTable if lookup.LookupType == 7 else sub
            for first, ends in getattr(sub, "ligatures", {}).items():
                for end in ends:
                    found[(first, *(c for c in end.Component if c != "uniFE0F"))] = end.LigGlyph
    return found


def _decode(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGBA")


def _import(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"baking stickers needs {module.partition('.')[0]}: pip install 'efficientsam3[scenes]'"
        ) from error
