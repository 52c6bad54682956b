"""EfficientSAM3 in FiftyOne: zoo models and a plugin; this folder also works when copied alone."""

import os
import sys
from pathlib import Path
from typing import Any

from .core_package import require_core
from .zoo.source import download_model, load_model, parse_parameters, resolve_input

__all__ = ["download_model", "load_model", "parse_parameters", "register", "resolve_input"]


def register(plugin: Any) -> None:
    """Register the operators and the panel; FiftyOne calls this in a plugin's folder.

    FiftyOne imports the folder under another name. The operators come from the installed package,
    so that the plugin, the zoo and scripts share one model in memory.

    Args:
        plugin: FiftyOne's plugin context.
    """
    require_core()
    _share_processors()
    from fiftyone_esam3.plugin import register as register_all

    register_all(plugin)


def _share_processors() -> None:
    """Let FiftyOne's own processes, the App's server and the command, share the processors."""
    if os.environ.get("FIFTYONE_SERVER") == "1" or Path(sys.argv[0]).stem == "fiftyone":
        from efficientsam3.runtime.threads import share_processors

        share_processors()
