"""Check that the core package is installed, and say how to install it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path


def require_core() -> None:
    """Check that ``efficientsam3`` can be imported.

    FiftyOne downloads and runs this folder before it checks the folder's requirements, so the
    missing package is reported here.

    Raises:
        ImportError: it cannot be imported; the message says what to do.
    """
    try:
        core = importlib.import_module("efficientsam3")
    except ModuleNotFoundError as error:
        if error.name != "efficientsam3":
            raise
        raise ImportError(
            "this folder is only the FiftyOne side of EfficientSAM3 and needs the efficientsam3 "
            f"package: {_how_to_install()}"
        ) from error
    if not hasattr(core, "load"):
        raise ImportError(
            f"{getattr(core, '__file__', 'a folder')} is called efficientsam3 and hides the "
            "efficientsam3 package; give that folder another name"
        )


def _how_to_install() -> str:
    """A pip command, with the address of the repository where FiftyOne recorded it."""
    manifest = Path(__file__).with_name("manifest.json")
    source = ""
    if manifest.is_file():
        # FiftyOne writes the address of a registered source into its copy of the manifest.
        source = json.loads(manifest.read_text(encoding="utf-8")).get("url") or ""
    if not source:
        return "pip install the repository that this folder comes from"
    if "github.com/" in source:
        # .../tree/<branch> and .../commit/<hash> are web pages; pip takes @<branch> and @<hash>.
        for page in ("/tree/", "/commit/"):
            source = source.replace(page, "@")
        source = f"git+{source}"
    return f'pip install "efficientsam3 @ {source}"'
