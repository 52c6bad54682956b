"""The plugin that FiftyOne runs where the package is installed; the package has all its code."""

from typing import Any


def register(plugin: Any) -> None:
    """Register the operators and the panel.

    Args:
        plugin: FiftyOne's plugin context.
    """
    from fiftyone_esam3 import register as register_all

    register_all(plugin)
