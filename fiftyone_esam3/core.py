"""The door to the core package: found, or one sentence that says how to get it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path


def require_core() -> None:
    """Raises an ImportError that says what to do if ``efficientsam3`` cannot be used.

    FiftyOne downloads and runs this folder before it looks at what the folder requires, so the
    missing package has to be named here.
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
    """A pip command; for a copy made by FiftyOne, with the address that it came from."""
    manifest = Path(__file__).with_name("manifest.json")
    source = ""
    if manifest.is_file():
        # FiftyOne writes the address of a registered source into its copy of the manifest.
        source = json.loads(manifest.read_text(encoding="utf-8")).get("url") or ""
    if not source:
        return "pip install the repository that this folder comes from"
    if "github.com/" in source:
        # .../tree/<branch> and .../commit/<hash> are pages; pip wants @<branch> or @<hash>.
        for page in ("/tree/", "/commit/"):
            source = source.replace(page, "@")
        source = f"git+{source}"
    return f'pip install "efficientsam3 @ {source}"'
