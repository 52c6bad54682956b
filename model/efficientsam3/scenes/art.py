"""Art: stickers baked once into memory maps, one a style, with names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EfficientSam3Error
from . import sources
from .concepts import STYLES, Concept, Part, part_of, read_concepts
from .likeness import Likeness, colour_word
from .sources import ArtError

if TYPE_CHECKING:
    from PIL import Image

SIZE = 144
MARGIN = 2
FORMAT = 1
RECIPE = 3
"""Changes with how art is baked: who has it baked in another way bakes it again."""
INDEX = "index.json"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


class ArtNotFoundError(EfficientSam3Error, FileNotFoundError):
    """There is no art on this machine yet."""


def cache_folder() -> Path:
    """Of scenes: ``$EFFICIENTSAM3_CACHE/scenes``, else of the user's cache."""
    own = os.environ.get("EFFICIENTSAM3_CACHE")
    if own:
        return Path(own).expanduser() / "scenes"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "efficientsam3" / "scenes"


class Art:
    """Stickers by (concept, style).

    concepts: by name, in the emoji list's order.
    fingerprint: of all the art and names; scenes of equal fingerprints and seeds are equal.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self.fingerprint: str = index["fingerprint"]
        self.concepts: dict[str, Concept] = {}
        self._rows: dict[str, dict[str, int]] = {}
        self._colours: dict[str, dict[str, str]] = {}
        for entry in index["concepts"]:
            name = entry["name"]
            self._rows[name], self._colours[name] = entry["rows"], entry["colours"]
            fields = {k: v for k, v in entry.items() if k not in ("rows", "colours")}
            for key, value in fields.items():
                fields[key] = tuple(value) if isinstance(value, list) else value
            self.concepts[name] = Concept(**fields)
        self._maps: dict[str, NDArray[np.uint8]] = {}

    @classmethod
    def open(cls, folder: str | Path | None = None) -> Art:
        """Open what ``fetch`` made; nothing is read before it is asked for.

        Args:
            folder: of the cache; ``cache_folder()`` if omitted.

        Raises:
            ArtNotFoundError: nothing was fetched. ArtError: it is damaged, or of another version.
        """
        folder = Path(folder) if folder else cache_folder()
        path = folder / "art" / INDEX
        if not path.is_file():
            raise ArtNotFoundError(
                f"there is no art in {folder}. Get it once with `efficientsam3 scenes fetch` "
                "(60 MB), or point EFFICIENTSAM3_CACHE at a folder that has it."
            )
        try:
            index = json.loads(path.read_text())
            if index["format"] != FORMAT:
                raise ArtError(
                    f"{path} is of format {index['format']}; this version reads {FORMAT}. "
                    "Run `efficientsam3 scenes fetch` again."
                )
            return cls(folder, index)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtError(
                f"{path} is damaged ({error!r}). Run `efficientsam3 scenes fetch` again."
            ) from error

    def sticker(self, name: str, style: str) -> NDArray[np.uint8]:
        """(144, 144, 4) uint8 RGBA, straight alpha; a read-only view of the memory map.

        Cropped tight, its longest side 140 pixels, centred. Where alpha is 0, colour is too:
        premultiply before it is scaled or turned.
        """
        try:
            row = self._rows[name][style]
        except KeyError:
            raise ArtError(self._lacks(name, style)) from None
        if style not in self._maps:
            self._maps[style] = self._map(style)
        return self._maps[style][row]

    def colour(self, name: str, style: str) -> str | None:
        """The colour word that is true of a sticker: most of its area has it. Else None."""
        return self._colours.get(name, {}).get(style)

    def names(self, part: Part | None = None, styles: Iterable[str] = STYLES) -> list[str]:
        """Of the concepts of a part of the split that at least one of the styles shows."""
        styles = set(styles)
        return [
            c.name
            for c in self.concepts.values()
            if part in (None, part_of(c.name)) and styles.intersection(c.styles)
        ]

    def _lacks(self, name: str, style: str) -> str:
        if name not in self.concepts:
            return f"no art is called {name!r}; art.concepts has the {len(self.concepts)} names"
        has = ", ".join(self.concepts[name].styles)
        return f"{name!r} is not drawn in the style {style!r}, but in {has}"

    def _map(self, style: str) -> NDArray[np.uint8]:
        path = self.folder / "art" / f"{style}.npy"
        try:
            array = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise ArtError(
                f"{path} is damaged ({error}). Run `efficientsam3 scenes fetch` again."
            ) from error
        if array.shape[1:] != (SIZE, SIZE, 4) or array.dtype != np.uint8:
            raise ArtError(
                f"{path} holds {array.dtype} {array.shape}, not stickers. "
                "Run `efficientsam3 scenes fetch` again."
            )
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        return Art.open, (self.folder,)  # a worker maps the files itself


# Making it -----------------------------------------------------------------------------------


def fetch(folder: str | Path | None = None, progress: Progress | None = None) -> Art:
    """Get the archives that are not here yet, verify them, and bake the art.

    Where all of it is done already, nothing is done.

    Args:
        folder: of the cache; ``cache_folder()`` if omitted. Archives may be put by hand into
            its folder "archives".

    Raises:
        ArtError: an archive cannot be had, or is not what it should be.
    """
    folder = Path(folder) if folder else cache_folder()
    report = progress or (lambda what, done, of: None)
    archives = folder / "archives"
    paths = {}
    others = [a for a in sources.ARCHIVES if a is not sources.NOTO]
    for done, archive in enumerate(others):
        report(f"Fetching {archive.title}", done, len(others) + 1)
        paths[archive] = sources.obtain(archive, archives)
    report(f"Fetching {sources.NOTO.title}", len(others), len(others) + 1)
    font = sources.noto_font(archives)
    report("Fetching", len(others) + 1, len(others) + 1)

    concepts = read_concepts(*sources.read_list(paths[sources.LIST], paths[sources.OPENMOJI]))
    mark = fingerprint(concepts, [a.sha256 for a in others] + [sources.sha256_of(font)])
    if _is_baked(folder, mark):
        return Art.open(folder)
    codes = {c.code for c in concepts}
    pictures = {
        "noto": sources.read_noto(font, codes),
        "fluent": sources.read_pictures(paths[sources.FLUENT], "package/assets", codes),
        "twemoji": sources.read_pictures(paths[sources.TWEMOJI], "package", codes),
        "openmoji": sources.read_pictures(paths[sources.OPENMOJI], "package/color/svg", codes),
    }
    bake(folder, concepts, pictures, mark, report)
    return Art.open(folder)


def fingerprint(concepts: Iterable[Concept], digests: Iterable[str]) -> str:
    """Of all that baked art depends on."""
    numbers = [FORMAT, RECIPE, SIZE, MARGIN, sources.RENDERED]
    content = [*numbers, [asdict(c) for c in concepts], *digests]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _is_baked(folder: Path, mark: str) -> bool:
    try:
        return Art.open(folder).fingerprint == mark
    except (ArtNotFoundError, ArtError):
        return False


def bake(
    folder: Path,
    concepts: Iterable[Concept],
    pictures: dict[str, Iterator[tuple[str, Image.Image]]],
    mark: str,
    report: Progress,
) -> None:
    """Write ``folder/art``: it appears whole, or the old one stays.

    Args:
        pictures: RGBA by code, for each style; codes that no concept has are passed over.
    """
    concepts = list(concepts)
    likeness = Likeness(len(concepts))
    number = {c.code: i for i, c in enumerate(concepts)}
    rows: list[dict[str, int]] = [{} for _ in concepts]
    colours: list[dict[str, str]] = [{} for _ in concepts]
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".baking-"))
    try:
        for style, source in pictures.items():
            stickers: list[NDArray[np.uint8]] = []
            for code, picture in source:
                report(f"Baking {style}", len(stickers), len(concepts))
                if code not in number:
                    continue
                sticker = fit(picture)
                if sticker is None or style in rows[number[code]]:
                    continue
                rows[number[code]][style] = len(stickers)
                word = colour_word(sticker)
                if word:
                    colours[number[code]][style] = word
                likeness.add(number[code], style, sticker)
                stickers.append(sticker)
            report(f"Baking {style}", len(concepts), len(concepts))
            array = np.stack(stickers) if stickers else np.zeros((0, SIZE, SIZE, 4), np.uint8)
            np.save(temporary / f"{style}.npy", array)
        shown = [i for i in range(len(concepts)) if rows[i]]
        entries = []
        for i, near, twins in likeness.compare(concepts, shown):
            entry = asdict(concepts[i]) | {"styles": list(rows[i]), "near": near, "twins": twins}
            entries.append(entry | {"rows": rows[i], "colours": colours[i]})
        index = {"format": FORMAT, "fingerprint": mark, "size": SIZE, "concepts": entries}
        (temporary / INDEX).write_text(json.dumps(index, indent=0) + "\n")
        os.chmod(temporary, 0o755)
        _take_place(temporary, folder / "art")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, place: Path) -> None:
    if place.exists():
        aside = Path(tempfile.mkdtemp(dir=place.parent, prefix=".old-"))
        place.replace(aside / place.name)
        new.replace(place)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        new.replace(place)


def fit(picture: Image.Image) -> NDArray[np.uint8] | None:
    """A picture's object as a sticker (SIZE, SIZE, 4); None where nothing is opaque."""
    from PIL import Image

    box = picture.getchannel("A").point([0] * 16 + [255] * 240).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    scale = (SIZE - 2 * MARGIN) / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    canvas = np.zeros((SIZE, SIZE, 4), np.uint8)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    # Of RGBA, PIL resizes premultiplied colours: no dark fringe.
    small = picture.resize((width, height), Image.Resampling.LANCZOS)
    canvas[top : top + height, left : left + width] = np.asarray(small)
    canvas[canvas[..., 3] == 0] = 0  # what resampling rings beyond the edge
    return canvas
