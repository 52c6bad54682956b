"""HEIC pictures: their suffixes, and the package that reads them.

This module does not import numpy, so that commands can name files without it.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Suffixes, in lower case, of files that pi-heif or pillow-heif reads."""
INSTALL = "pip install 'efficientsam3[pictures]'"


@lru_cache
def heif_package() -> str | None:
    """The package that reads HEIC: "pillow_heif", or "pi_heif", which only decodes; or None."""
    names = ("pillow_heif", "pi_heif")
    return next((name for name in names if importlib.util.find_spec(name) is not None), None)
