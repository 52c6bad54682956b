"""What FiftyOne runs as a plugin where the package is installed; all of it is in the package."""

from typing import Any


def register(plugin: Any) -> None:
    """Registers operators and panels."""
    from fiftyone_esam3 import register as register_all

    register_all(plugin)
