"""Stickers: emojis of several sets, baked once into memory-mapped files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efficientsam3.errors import EfficientSam3Error

from .concepts import STYLES, Concept, Part, part_of

SIZE = 144
"""Side of a baked sticker in pixels."""

MARGIN = 2
"""Transparent pixels around a sticker's longer side."""

FORMAT = 1
INDEX_FILE = "index.json"


class ArtError(EfficientSam3Error, RuntimeError):
    """Emojis or stickers cannot be downloaded, are altered, or cannot be read."""


class ArtNotFoundError(EfficientSam3Error, FileNotFoundError):
    """No stickers have been baked on this machine."""


def cache_folder() -> Path:
    """The folder of the stickers: ``$EFFICIENTSAM3_CACHE/scenes``, else in the user's cache."""
    own = os.environ.get("EFFICIENTSAM3_CACHE")
    if own:
        return Path(own).expanduser() / "scenes"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "efficientsam3" / "scenes"


class StickerArt:
    """Baked stickers by concept and style. It can be pickled: a worker maps the files itself.

    Args:
        folder: Folder of the cache, which contains ``art/``.
        index: Content of ``art/index.json``.

    Attributes:
        folder: Folder of the cache.
        fingerprint: Identifies stickers and names; scenes with equal fingerprints and seeds are
            equal.
        concepts: Concepts by name, in the order of the emoji list.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self.fingerprint: str = index["fingerprint"]
        self.concepts: dict[str, Concept] = {}
        self._rows: dict[str, dict[str, int]] = {}
        self._colors: dict[str, dict[str, str]] = {}
        for entry in index["concepts"]:
            fields: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in entry.items()
            }
            name = fields["name"]
            self._rows[name], self._colors[name] = fields.pop("rows"), fields.pop("colours")
            self.concepts[name] = Concept(**fields)
        self._maps: dict[str, NDArray[np.uint8]] = {}

    @classmethod
    def open(cls, folder: str | Path | None = None) -> StickerArt:
        """Open the stickers that ``efficientsam3 scenes fetch`` baked. Pictures are read later.

        Args:
            folder: Folder of the cache; None: ``cache_folder()``.

        Raises:
            ArtNotFoundError: nothing has been baked.
            ArtError: the index is damaged or of another version.
        """
        folder = Path(folder) if folder else cache_folder()
        path = folder / "art" / INDEX_FILE
        if not path.is_file():
            raise ArtNotFoundError(
                f"there are no stickers in {folder}: run `efficientsam3 scenes fetch` once "
                "(60 MB), or set EFFICIENTSAM3_CACHE to a folder that has them"
            )
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index["format"] != FORMAT:
                raise ArtError(
                    f"{path} is of format {index['format']}, and this version reads format "
                    f"{FORMAT}: run `efficientsam3 scenes fetch` again"
                )
            return cls(folder, index)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtError(
                f"{path} is damaged ({error!r}): run `efficientsam3 scenes fetch` again"
            ) from error

    def sticker(self, name: str, style: str) -> NDArray[np.uint8]:
        """The sticker of a concept: (144, 144, 4) RGBA, straight alpha, read-only.

        Its longer side has 140 pixels, and it is centered. Transparent pixels are black, so that it
        has to be premultiplied before it is scaled or rotated.

        Args:
            name: Name of the concept.
            style: One of the concept's styles.

        Raises:
            ArtError: there is no such sticker, or its file is damaged.
        """
        try:
            row = self._rows[name][style]
        except KeyError:
            if name not in self.concepts:
                known = f"the index has {len(self.concepts)} other names"
            else:
                known = f"its styles are {', '.join(self.concepts[name].styles)}"
            raise ArtError(
                f"there is no sticker {name!r} in the style {style!r}: {known}"
            ) from None
        if style not in self._maps:
            self._maps[style] = self._open_map(style)
        return self._maps[style][row]

    def color(self, name: str, style: str) -> str | None:
        """The word for the color of most of a sticker's area; None if there is none.

        Args:
            name: Name of the concept.
            style: Style of the sticker.
        """
        return self._colors.get(name, {}).get(style)

    def concept_names(self, part: Part | None = None, styles: Iterable[str] = STYLES) -> list[str]:
        """Names of concepts that have a sticker in at least one of some styles.

        Args:
            part: Part of the concepts; None: all.
            styles: The styles.
        """
        styles = set(styles)
        return [
            c.name
            for c in self.concepts.values()
            if part in (None, part_of(c.name)) and styles.intersection(c.styles)
        ]

    def _open_map(self, style: str) -> NDArray[np.uint8]:
        path = self.folder / "art" / f"{style}.npy"
        try:
            array: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise ArtError(
                f"{path} is damaged ({error}): run `efficientsam3 scenes fetch` again"
            ) from error
        if array.shape[1:] != (SIZE, SIZE, 4) or array.dtype != np.uint8:
            raise ArtError(
                f"{path} contains {array.dtype} {array.shape} instead of stickers: run "
                "`efficientsam3 scenes fetch` again"
            )
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        return StickerArt.open, (self.folder,)
