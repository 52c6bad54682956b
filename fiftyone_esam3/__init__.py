"""EfficientSAM3 in FiftyOne: zoo models and a plugin; this folder also works when copied alone."""

from typing import Any

from .core import require_core
from .source import download_model, load_model, parse_parameters, resolve_input

__all__ = ["download_model", "load_model", "parse_parameters", "register", "resolve_input"]


def register(plugin: Any) -> None:
    """Registers operators and panels, when FiftyOne runs this folder as a plugin.

    FiftyOne runs it under a name of its own. What is registered comes from the installed package,
    so that plugin, zoo and scripts share one model in memory.
    """
    require_core()
    from fiftyone_esam3.plugin import register as register_all

    register_all(plugin)
